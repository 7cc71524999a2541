"""Schedules over HTTP: read strictly, and told with when they run next and what became of their runs.

Scripts are shown to their owner, environments never: only the names of their variables.
"""

from typing import Annotated, Any, Literal, cast

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import Parameter
from msgspec import Meta

from roost import ids
from roost.accounts.tokens import Account
from roost.api.bodies import JsonBody
from roost.api.mags import Stopped
from roost.api.plane import Plane
from roost.api.submission import Submission, order_of
from roost.clock import rfc3339
from roost.errors import Invalid, TooLarge
from roost.jobs import cron as rows
from roost.jobs import cron_times as times
from roost.jobs.cron import Cron, CronRun, Listed, Overlap
from roost.jobs.cron_times import Missed
from roost.jobs.execs import exec_id
from roost.jobs.job import Order

Caller = Request[Account, str, State]
CronId = Annotated[str, Parameter(description="Id of a cron job")]

MAX_SCRIPT = 64 * 1024  # bytes; it may be one argument of a process
MAX_ENVIRONMENT = 60 * 1024  # bytes; with the script it must fit a process's arguments
MAGIC = {"__MAGS_ROOTFS_TYPE": "rootfs_type", "__MAGS_MEM_GB": "memory_mb", "__MAGS_IDLE_MIN": "idle_minutes"}


def _note(text: str) -> Meta:
    return Meta(description=text)


Expression = Annotated[str | None, _note("Five fields: minute, hour, day of month, month, day of week")]
Script = Annotated[str | None, _note("Shell script; at most 64 KiB")]
Workspace = Annotated[str | None, _note("Its workspace; one that a persistent job holds is entered, and woken")]
Environment = Annotated[dict[str, str] | None, _note("Variables; at most 60 KiB in all")]
Zone = Annotated[str | None, _note("An IANA name; default UTC")]
MissedRuns = Annotated[
    Missed | None,
    _note("Runs whose time came while Roost was down: none, latest (default) or all (the newest 24)"),
]
OverlapRule = Annotated[
    Overlap | None, _note("While an earlier run, or another job, is in the way: skip (default), queue, or parallel")
]
Timeout = Annotated[int | None, _note("Seconds, 1 to 86400; default 300, or none when persistent")]


class NewCron(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """null counts as absent."""

    name: Annotated[str | None, _note("Of the cron job and of its jobs (required); at most 128 characters")] = None
    cron_expression: Expression = None
    script: Script = None
    workspace_id: Workspace = None
    environment: Environment = None
    persistent: Annotated[bool | None, _note("The first run's sandbox stays, and later runs enter it")] = None
    enabled: bool | None = None
    timezone: Zone = None
    missed: MissedRuns = None
    overlap: OverlapRule = None
    timeout: Timeout = None
    rootfs_type: str | None = None
    vcpus: float | None = None
    memory_mb: int | None = None
    disk_gb: int | None = None


class CronChange(NewCron, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is absent or null stays; an empty workspace_id is none."""


class CronJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    cron_expression: str
    timezone: str
    script: str
    persistent: bool
    enabled: bool
    missed: Missed
    overlap: Overlap
    environment_names: list[str]
    rootfs_type: str
    vcpus: float
    memory_mb: int
    disk_gb: int
    timeout_seconds: int
    created_at: str
    updated_at: str
    workspace_id: str | None
    next_run_at: str | None  # null: disabled
    last_run_at: str | None  # null: never
    last_status: str | None = None
    last_request_id: str | None = None


class CronJobs(msgspec.Struct, frozen=True):
    cron_jobs: list[CronJob]
    total: int


class CronRunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    scheduled_at: str
    status: Literal["queued", "running", "completed", "error", "skipped"]
    request_id: str | None = None  # of the job that it is, or whose sandbox it entered
    exec_id: str | None = None  # of its process there
    started_at: str | None = None
    ended_at: str | None = None
    exit_code: int | None = None
    reason: str | None = None


class Runs(msgspec.Struct, frozen=True):
    runs: list[CronRunRecord]


@post(
    "/mags-cron", status_code=201, dto=JsonBody, return_dto=None, summary="Run a script on a schedule",
    description="It begins within a second of its time. At most 1000 for an account.",
)  # fmt: skip
async def create(request: Caller, plane: Plane, data: NewCron) -> CronJob:
    if not data.name:
        raise Invalid("name: missing; give the cron job a name")
    if not data.cron_expression:
        raise Invalid(f"cron_expression: missing; give {times.HOW}")
    order = checked(order_of(_submission(data), plane.placement.machine, plane.default_images.of(request.user.id)))
    await plane.images.require(order.image)
    now_ns, id, zone = plane.scheduler.clock.now_ns(), ids.cron_id(), data.timezone or "UTC"
    times.check(data.cron_expression, zone, now_ns)
    cron = Cron(
        id=id, account_id=request.user.id, name=data.name, expression=_spaced(data.cron_expression), timezone=zone,
        workspace=order.keeping.workspace, persistent=order.keeping.persistent,
        work=rows.seal(plane.secret, id, order), enabled=data.enabled is not False, missed=data.missed or "latest",
        overlap=data.overlap or "skip", created_ns=now_ns, updated_ns=now_ns, next_ns=None,
    )  # fmt: skip
    cron = msgspec.structs.replace(cron, next_ns=_next(cron, now_ns))
    await rows.create(plane.database, cron)
    plane.scheduler.changed()
    return _record(plane, Listed(cron, None))


@get("/mags-cron", summary="List cron jobs, the newest first")
async def list_crons(request: Caller, plane: Plane) -> CronJobs:
    found = await rows.with_last(plane.database, await rows.of_account(plane.database, request.user.id))
    return CronJobs([_record(plane, one) for one in found], len(found))


@get("/mags-cron/{id:str}", summary="Show a cron job")
async def show(request: Caller, plane: Plane, id: CronId) -> CronJob:
    return await _shown(plane, await rows.find(plane.database, request.user.id, id))


@patch(
    "/mags-cron/{id:str}", dto=JsonBody, return_dto=None, summary="Change a cron job, enable or disable it",
    description="A run that is under way goes on as it was; one that waits is skipped when the cron job is disabled.",
)  # fmt: skip
async def change(request: Caller, plane: Plane, id: CronId, data: CronChange) -> CronJob:
    cron = await rows.find(plane.database, request.user.id, id)
    old = rows.order_of(plane.secret, cron)
    order = checked(order_of(_changed(_as_submitted(cron, old), data), plane.placement.machine, old.image))
    if order.image != old.image:
        await plane.images.require(order.image)
    now_ns = plane.scheduler.clock.now_ns()
    new = msgspec.structs.replace(
        cron, name=data.name or cron.name, expression=_spaced(data.cron_expression or cron.expression),
        timezone=data.timezone or cron.timezone, workspace=order.keeping.workspace,
        persistent=order.keeping.persistent, work=rows.seal(plane.secret, cron.id, order),
        enabled=cron.enabled if data.enabled is None else data.enabled, missed=data.missed or cron.missed,
        overlap=data.overlap or cron.overlap,
    )  # fmt: skip
    times.check(new.expression, new.timezone, now_ns)
    values = {name: getattr(new, name) for name in _CHANGEABLE}
    if (new.expression, new.timezone, new.enabled) != (cron.expression, cron.timezone, cron.enabled):
        values["next_ns"] = _next(new, now_ns)
    await rows.change(plane.database, cron, **values)
    plane.scheduler.changed()
    return await _shown(plane, await rows.find(plane.database, request.user.id, id))


@delete(
    "/mags-cron/{id:str}", status_code=200, summary="Delete a cron job",
    description="With its history. Jobs that it started go on.",
)  # fmt: skip
async def remove(request: Caller, plane: Plane, id: CronId) -> Stopped:
    cron = await rows.find(plane.database, request.user.id, id)
    await rows.remove(plane.database, cron)
    return Stopped(True, f"Cron job '{cron.name}' deleted")


@get("/mags-cron/{id:str}/runs", summary="What became of a cron job's runs, the newest first")
async def list_runs(
    request: Caller, plane: Plane, id: CronId, limit: Annotated[int, Parameter(ge=1, le=rows.KEPT_RUNS)] = 100
) -> Runs:
    cron = await rows.find(plane.database, request.user.id, id)
    return Runs([run_of(one) for one in await rows.history(plane.database, cron, limit)])


_CHANGEABLE = ("name", "expression", "timezone", "workspace", "persistent", "work", "enabled", "missed", "overlap")


def _next(cron: Cron, now_ns: int) -> int | None:
    return times.next_after(cron.expression, cron.timezone, now_ns) if cron.enabled else None


def _spaced(expression: str) -> str:
    return " ".join(expression.split())


def _submission(data: NewCron) -> Submission:
    return Submission(
        script=data.script, name=data.name, environment=data.environment, workspace_id=data.workspace_id,
        persistent=data.persistent, timeout=data.timeout, rootfs_type=data.rootfs_type, vcpus=data.vcpus,
        memory_mb=data.memory_mb, disk_gb=data.disk_gb,
    )  # fmt: skip


def _as_submitted(cron: Cron, order: Order) -> Submission:
    keeping = order.keeping
    return Submission(
        script=order.work.script.decode(), name=cron.name, environment=order.work.environment,
        workspace_id=keeping.workspace, persistent=keeping.persistent, timeout=order.timeout_seconds or None,
        rootfs_type=order.image, vcpus=order.vcpus, memory_mb=order.memory_mb, disk_gb=order.disk_gb,
        no_sleep=keeping.no_sleep or None,
        idle_minutes=None if keeping.idle_seconds is None else keeping.idle_seconds / 60,
    )  # fmt: skip


def _changed(submission: Submission, data: CronChange) -> Submission:
    """What the caller names takes the old one's place; so does what an environment's magic variables stand for."""
    wanted = _submission(data)
    told = {name: getattr(wanted, name) for name in Submission.__struct_fields__ if getattr(wanted, name) is not None}
    if told.get("persistent", submission.persistent) != submission.persistent:
        told = {"timeout": None, "no_sleep": None, "idle_minutes": None} | told  # their defaults are others
    anew = cast("dict[str, Any]", {field: None for name, field in MAGIC.items() if name in (data.environment or {})})
    return msgspec.structs.replace(submission, **(anew | told))


def checked(order: Order) -> Order:
    """Raises TooLarge, Invalid."""
    if len(order.work.script) > MAX_SCRIPT:
        raise TooLarge(f"script: {len(order.work.script)} bytes; at most {MAX_SCRIPT}: keep the rest in its workspace")
    size = sum(len(name) + len(value.encode()) + 2 for name, value in order.work.environment.items())
    if size > MAX_ENVIRONMENT:
        raise Invalid(f"environment: {size} bytes in all; at most {MAX_ENVIRONMENT}: keep the rest in its workspace")
    return order


async def _shown(plane: Plane, cron: Cron) -> CronJob:
    return _record(plane, (await rows.with_last(plane.database, [cron]))[0])


def _record(plane: Plane, listed: Listed) -> CronJob:
    cron, last = listed.cron, listed.last
    order = rows.order_of(plane.secret, cron)
    return CronJob(
        id=cron.id,
        name=cron.name,
        cron_expression=cron.expression,
        timezone=cron.timezone,
        script=order.work.script.decode(),
        persistent=cron.persistent,
        enabled=cron.enabled,
        missed=cron.missed,
        overlap=cron.overlap,
        environment_names=sorted(order.work.environment),
        rootfs_type=order.image,
        vcpus=order.vcpus,
        memory_mb=order.memory_mb,
        disk_gb=order.disk_gb,
        timeout_seconds=order.timeout_seconds,
        created_at=rfc3339(cron.created_ns),
        updated_at=rfc3339(cron.updated_ns),
        workspace_id=cron.workspace,
        next_run_at=_instant(cron.next_ns),
        last_run_at=_instant(last.started_ns if last else None),
        last_status=last.status if last else None,
        last_request_id=last.request_id if last else None,
    )


def run_of(run: CronRun) -> CronRunRecord:
    return CronRunRecord(
        scheduled_at=rfc3339(run.scheduled_ns),
        status=run.status,
        request_id=run.request_id,
        exec_id=None if run.exec_number is None else exec_id(run.exec_number),
        started_at=_instant(run.started_ns),
        ended_at=_instant(run.ended_ns),
        exit_code=run.exit_code,
        reason=run.reason,
    )


def _instant(instant_ns: int | None) -> str | None:
    return None if instant_ns is None else rfc3339(instant_ns)
