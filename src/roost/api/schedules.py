"""Schedules of saved jobs and templates over HTTP. When and how they fire is what `mags-cron` does (`cron.py`).

A schedule follows what it is of: a job that is changed runs as changed, a template as its newest revision says, unless
the schedule names one.
"""

from typing import Annotated, Any

import msgspec
from litestar import HttpMethod, Request, delete, get, post, route
from litestar.datastructures import State
from litestar.params import Parameter
from msgspec import Meta

from roost import ids
from roost.accounts.tokens import Account
from roost.api import cron as crons
from roost.api import saved_jobs, templates
from roost.api.bodies import JsonBody
from roost.api.cron import MissedRuns, OverlapRule, Runs, Zone
from roost.api.mags import Stopped
from roost.api.plane import ControlPlane, Plane
from roost.clock import rfc3339
from roost.errors import Invalid, NotFound
from roost.jobs import cron as cron_rows
from roost.jobs import cron_times as times
from roost.jobs import saved
from roost.jobs import schedules as rows
from roost.jobs import templates as template_rows
from roost.jobs.cron import Cron, Listed, Overlap
from roost.jobs.cron_times import Missed
from roost.jobs.saved import SavedJob
from roost.jobs.schedules import Schedule, Wanted

Caller = Request[Account, str, State]
ScheduleId = Annotated[str, Parameter(description="Id of a schedule")]


def _note(text: str) -> Meta:
    return Meta(description=text)


class NewSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """null counts as absent."""

    job_id: Annotated[str | None, _note("A saved job or a template (required)")] = None
    cron: Annotated[str | None, _note("Five fields: minute, hour, day of month, month, day of week (required)")] = None
    revision: Annotated[int | None, _note("Of a template; default always the newest")] = None
    enabled: bool | None = None
    timezone: Zone = None
    missed: MissedRuns = None
    overlap: OverlapRule = None


class ScheduleChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is absent or null stays."""

    cron: str | None = None
    enabled: bool | None = None
    timezone: Zone = None
    missed: MissedRuns = None
    overlap: OverlapRule = None


class ScheduleRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    job_id: str
    job_name: str
    cron: str
    timezone: str
    enabled: bool
    missed: Missed
    overlap: Overlap
    created_at: str
    updated_at: str
    next_run_at: str | None  # null: disabled
    last_run_at: str | None  # null: never
    revision: int | None = None
    last_status: str | None = None
    last_request_id: str | None = None


class Schedules(msgspec.Struct, frozen=True):
    schedules: list[ScheduleRecord]
    total: int


@post(
    "/schedules", status_code=201, dto=JsonBody, return_dto=None, summary="Run a saved job or a template on a schedule"
)
async def create(request: Caller, plane: Plane, data: NewSchedule) -> ScheduleRecord:
    if not data.job_id:
        raise Invalid("job_id: missing; give the id of a saved job or of a template")
    if not data.cron:
        raise Invalid(f"cron: missing; give {times.HOW}")
    now_ns, id, zone = plane.scheduler.clock.now_ns(), ids.cron_id(), data.timezone or "UTC"
    times.check(data.cron, zone, now_ns)
    async with plane.scheduler.defining:
        wanted = await _wanted(request, plane, data.job_id, data.revision)
        expression, enabled = " ".join(data.cron.split()), data.enabled is not False
        cron = Cron(
            id=id, account_id=request.user.id, name=wanted.order.name or "", expression=expression, timezone=zone,
            workspace=None, persistent=False, work=b"", enabled=enabled, missed=data.missed or "latest",
            overlap=data.overlap or "skip", created_ns=now_ns, updated_ns=now_ns,
            next_ns=times.next_after(expression, zone, now_ns) if enabled else None,
        )  # fmt: skip
        cron = msgspec.structs.replace(cron, **rows.copied(plane.secret, cron, wanted.order))
        pinned = data.revision is not None
        schedule = Schedule(
            cron=cron, job_id=wanted.job_id, ip_lease=wanted.ip_lease, revision=wanted.revision, pinned=pinned
        )
        await rows.create(plane.database, schedule)
    plane.scheduler.changed()
    return _record(schedule, Listed(cron, None))


@get("/schedules", summary="List schedules, the newest first")
async def list_schedules(
    request: Caller,
    plane: Plane,
    job_id: Annotated[str | None, Parameter(description="Of this saved job or template only")] = None,
) -> Schedules:
    found = await rows.of_account(plane.database, request.user.id, job_id)
    listed = await cron_rows.with_last(plane.database, [one.cron for one in found])
    return Schedules([_record(one, last) for one, last in zip(found, listed, strict=True)], len(found))


@get("/schedules/{id:str}", summary="Show a schedule")
async def show(request: Caller, plane: Plane, id: ScheduleId) -> ScheduleRecord:
    return await _shown(request, plane, id)


@route(
    "/schedules/{id:str}", http_method=[HttpMethod.PUT, HttpMethod.PATCH], status_code=200, dto=JsonBody,
    return_dto=None, summary="Change when a schedule runs, enable or disable it",
    operation_id=lambda _handler, method, _path: f"{method.title()}Schedule",
)  # fmt: skip
async def change(request: Caller, plane: Plane, id: ScheduleId, data: ScheduleChange) -> ScheduleRecord:
    schedule = await rows.find(plane.database, request.user.id, id)
    old, now_ns = schedule.cron, plane.scheduler.clock.now_ns()
    new = msgspec.structs.replace(
        old,
        expression=" ".join((data.cron or old.expression).split()),
        timezone=data.timezone or old.timezone,
        enabled=old.enabled if data.enabled is None else data.enabled,
        missed=data.missed or old.missed,
        overlap=data.overlap or old.overlap,
    )
    times.check(new.expression, new.timezone, now_ns)
    values: dict[str, Any] = {
        name: getattr(new, name) for name in ("expression", "timezone", "enabled", "missed", "overlap")
    }
    if (new.expression, new.timezone, new.enabled) != (old.expression, old.timezone, old.enabled):
        values["next_ns"] = times.next_after(new.expression, new.timezone, now_ns) if new.enabled else None
    await cron_rows.change(plane.database, old, **values)
    plane.scheduler.changed()
    return await _shown(request, plane, id)


@delete("/schedules/{id:str}", status_code=200, summary="Delete a schedule; what it started goes on")
async def remove(request: Caller, plane: Plane, id: ScheduleId) -> Stopped:
    schedule = await rows.find(plane.database, request.user.id, id)
    await cron_rows.remove(plane.database, schedule.cron)
    return Stopped(True, f"Schedule '{schedule.cron.id}' deleted")


@get("/schedules/{id:str}/runs", summary="What became of a schedule's runs, the newest first")
async def list_runs(
    request: Caller, plane: Plane, id: ScheduleId, limit: Annotated[int, Parameter(ge=1, le=cron_rows.KEPT_RUNS)] = 100
) -> Runs:
    schedule = await rows.find(plane.database, request.user.id, id)
    return Runs([crons.run_of(one) for one in await cron_rows.history(plane.database, schedule.cron, limit)])


async def _shown(request: Caller, plane: ControlPlane, id: str) -> ScheduleRecord:
    schedule = await rows.find(plane.database, request.user.id, id)
    return _record(schedule, (await cron_rows.with_last(plane.database, [schedule.cron]))[0])


async def _wanted(request: Caller, plane: ControlPlane, job_id: str, revision: int | None) -> Wanted:
    """Raises NotFound, Invalid for what a schedule cannot run."""
    runnable, number = await _runnable(request, plane, job_id, revision)
    definition = runnable.definition
    if definition.persist and definition.ip_lease:
        raise Invalid("job_id: this job opens a URL when it is run (persist and ip_lease); a schedule does not do that")
    order = crons.checked(saved_jobs.order_for(plane, runnable, {}))
    if order.image_source is None:
        await plane.images.require(order.image)
    return Wanted(runnable.id, order, definition.ip_lease, number)


async def _runnable(
    request: Caller, plane: ControlPlane, job_id: str, revision: int | None
) -> tuple[SavedJob, int | None]:
    try:
        template = await template_rows.find(plane.database, plane.secret, request.user.id, job_id)
    except NotFound:
        job = await saved.find(plane.database, plane.secret, request.user.id, job_id)
        if revision is not None:
            raise Invalid("revision: goes with a template; a saved job has none") from None
        return job, None
    chosen = template.latest
    if revision is not None:
        chosen = await template_rows.revision(plane.database, plane.secret, template, revision)
    return templates.runnable(template, chosen), chosen.number


def _record(schedule: Schedule, listed: Listed) -> ScheduleRecord:
    cron, last = schedule.cron, listed.last
    return ScheduleRecord(
        id=cron.id,
        job_id=schedule.job_id,
        job_name=cron.name,
        cron=cron.expression,
        timezone=cron.timezone,
        enabled=cron.enabled,
        missed=cron.missed,
        overlap=cron.overlap,
        created_at=rfc3339(cron.created_ns),
        updated_at=rfc3339(cron.updated_ns),
        next_run_at=_instant(cron.next_ns),
        last_run_at=_instant(last.started_ns if last else None),
        revision=schedule.revision,
        last_status=last.status if last else None,
        last_request_id=last.request_id if last else None,
    )


def _instant(instant_ns: int | None) -> str | None:
    return None if instant_ns is None else rfc3339(instant_ns)
