"""The Jobs API (Magpie Cloud): jobs that are saved when they are first run, and run again.

An id may be a saved job's or a run's; the first run has the job's own. What is run goes through the same checks as any
submission (`submission.py`), and runs are ordinary jobs.
"""

import contextlib
import dataclasses
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, delete, get, post, put
from litestar.datastructures import State
from litestar.params import Parameter
from litestar.response import Stream
from msgspec import Meta

from roost import ids
from roost.accounts.tokens import Account
from roost.api import cron, job_runs, output
from roost.api.access import port_of
from roost.api.bodies import JsonBody
from roost.api.job_runs import JobRun, RunStatus, VmInfo
from roost.api.mags import STOP_WITHIN, Command, Stopped, exec_of, executed, require_files
from roost.api.one_shot import while_connected
from roost.api.plane import ControlPlane, Plane
from roost.api.script_source import fetched
from roost.api.submission import MAX_TIMEOUT, Submission, order_of
from roost.clock import now_ns, rfc3339
from roost.db.database import Statement
from roost.errors import Invalid, NotFound, Refused
from roost.gateways import openings
from roost.jobs import job as jobs
from roost.jobs import saved as rows
from roost.jobs import schedules, templates
from roost.jobs.job import Job, Order
from roost.jobs.saved import Definition, Kind, SavedJob
from roost.jobs.schedules import Wanted
from roost.sandboxes.pulls import image_of

Caller = Request[Account, str, State]
JobId = Annotated[str, Parameter(description="Id of a saved job or of a run of it")]
MAX_PAGE = 2**31
MAX_RUNS = 100  # that `details` lists
MAX_TEXT = 4096  # characters of a description
PYTHON = "#!/usr/bin/env python3\n"
KINDS: tuple[Kind, ...] = ("inline", "python", "docker")


def _note(text: str) -> Meta:
    return Meta(description=text)


class NewJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """null counts as absent."""

    script: Annotated[str | None, _note("What to run (required); at most 1 MiB. With type url its URL")] = None
    name: Annotated[str | None, _note("At most 128 characters, no slashes; made up when absent")] = None
    type: Annotated[str | None, _note('"inline" (default), "python", "docker" or "url"')] = None
    script_type: Annotated[str | None, _note("The same as type")] = None
    description: str | None = None
    docker_image: Annotated[str | None, _note("With type docker: like python:3.12-slim")] = None
    vcpus: Annotated[int | None, _note("Default 2")] = None
    memory_mb: Annotated[int | None, _note("Default 512")] = None
    environment: dict[str, str] | None = None
    stateful: Annotated[bool | None, _note("Keep files in a workspace, which has a directory /workspace")] = None
    workspace_id: Annotated[str | None, _note("Of a stateful job; default the job's id")] = None
    workspace_size_gb: Annotated[int | None, _note("Of a stateful job: 1 to 64; default 2")] = None
    persist: Annotated[bool | None, _note("The sandbox stays when the script has ended")] = None
    ip_lease: Annotated[bool | None, _note("Tell the sandbox's addresses; with persist also open a URL")] = None
    proxy_port: Annotated[int | None, _note("What the URL leads to; default 8080")] = None
    file_ids: Annotated[list[str] | None, _note("Uploads to place in /root before the script")] = None


class JobChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is absent stays. Runs that have begun are not changed."""

    name: str | None = None
    description: str | None = None
    script: str | None = None
    vcpus: int | None = None
    memory_mb: int | None = None
    environment: dict[str, str] | None = None
    docker_image: str | None = None
    proxy_port: int | None = None


class RunWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    environment: Annotated[dict[str, str] | None, _note("For this run, over the job's own")] = None


class SshCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str
    timeout_seconds: Annotated[float | None, _note("Default 30")] = None


class BegunRun(msgspec.Struct, frozen=True, kw_only=True):
    """What both generations of callers read."""

    request_id: str
    id: str
    job_id: str
    job_name: str
    status: Literal["not_started"]
    message: str


class SavedJobRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    script: str
    script_type: str
    type: str
    vcpus: int
    memory_mb: int
    environment: dict[str, str]
    stateful: bool
    persist: bool
    ip_lease: bool
    user_id: str
    created_at: str
    updated_at: str
    description: str | None = None
    docker_image: str | None = None
    workspace_id: str | None = None
    workspace_size_gb: int | None = None
    proxy_port: int | None = None


class SavedJobPage(msgspec.Struct, frozen=True):
    jobs: list[SavedJobRecord]
    total: int
    page: int
    page_size: int


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run, with the job that it is of, unless that was deleted."""

    request_id: str
    status: str
    run: JobRun
    workspace_id: str | None = None
    job: SavedJobRecord | None = None
    runs: list[JobRun] = []


class SshResult(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    command: str
    exit_code: int
    stdout: str
    stderr: str
    duration_ms: int


@post("/jobs", status_code=202, dto=JsonBody, return_dto=None, summary="Save a job and run it")
async def create(request: Caller, plane: Plane, data: NewJob) -> BegunRun:
    id = ids.request_id()
    definition = await definition_of(plane, data, id)
    now = now_ns()
    saved = SavedJob(
        id=id,
        account_id=request.user.id,
        name=data.name or f"job-{id[:8]}",
        definition=definition,
        created_ns=now,
        updated_ns=now,
    )
    job = await begin(plane, saved, {}, id, rows.created(plane.secret, saved))
    return _begun(saved, job)


@get("/jobs", summary="List saved jobs, newest first")
async def list_jobs(
    request: Caller,
    plane: Plane,
    page: Annotated[int, Parameter(ge=1, le=MAX_PAGE)] = 1,
    page_size: Annotated[int, Parameter(ge=1, le=100)] = 20,
    template_id: Annotated[str | None, Parameter(description="List the runs of this template instead")] = None,
) -> SavedJobPage:
    if template_id is not None:
        return await _runs_of(request, plane, template_id, page, page_size)
    found = await rows.newest(plane.database, plane.secret, request.user.id, page, page_size)
    return SavedJobPage([record_of(one) for one in found.jobs], found.total, page, page_size)


@get("/jobs/{id:str}", summary="Show a saved job")
async def show(request: Caller, plane: Plane, id: JobId) -> SavedJobRecord:
    return record_of(await rows.find(plane.database, plane.secret, request.user.id, id))


@put("/jobs/{id:str}", dto=JsonBody, return_dto=None, summary="Change a saved job")
async def change(request: Caller, plane: Plane, id: JobId, data: JobChange) -> SavedJobRecord:
    saved = await rows.find(plane.database, plane.secret, request.user.id, id)
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not None}
    name = given.pop("name", saved.name)
    check_texts(data.description, saved.definition.kind, data.docker_image or saved.definition.docker_image)
    changed = msgspec.structs.replace(
        saved, name=name, definition=msgspec.structs.replace(saved.definition, **given), updated_ns=now_ns()
    )
    order = order_for(plane, changed, {})  # refuses what could not be run
    async with plane.scheduler.defining:
        wanted = Wanted(saved.id, order, saved.definition.ip_lease, None)
        followed = await schedules.follow(plane.database, plane.secret, saved.account_id, wanted)
        if followed:
            cron.checked(order)
        await rows.change(plane.database, plane.secret, changed, *followed)
    return record_of(changed)


@delete(
    "/jobs/{id:str}",
    status_code=200,
    summary="Delete a saved job",
    description="Runs of it that have not ended are cancelled; their records stay.",
)
async def remove(request: Caller, plane: Plane, id: JobId) -> Stopped:
    saved = await rows.find(plane.database, plane.secret, request.user.id, id)
    for request_id in await rows.unended(plane.database, saved):
        await plane.live.stop(await jobs.find(plane.database, request.user.id, request_id), STOP_WITHIN)
    async with plane.scheduler.defining:
        await rows.remove(plane.database, saved, schedules.removed_with(saved.id))
    return Stopped(True, f"Job {saved.name!r} deleted")


@post("/jobs/{id:str}/run", status_code=202, dto=JsonBody, return_dto=None, summary="Run a saved job again")
async def run_again(request: Caller, plane: Plane, id: JobId, data: RunWish | None = None) -> JobRun:
    saved = await rows.find(plane.database, plane.secret, request.user.id, id)
    job = await begin(plane, saved, (data and data.environment) or {})
    return job_runs.run_view(job, await rows.run_of(plane.database, job))


@get("/jobs/{id:str}/status", summary="Show how far a run is, with its output")
async def status(request: Caller, plane: Plane, id: JobId) -> RunStatus:
    job = await _run(request, plane, id)
    if await plane.live.just_ended(job):
        job = await _run(request, plane, id)
    return await job_runs.status_view(plane, job, await rows.run_of(plane.database, job))


@get(
    "/jobs/{id:str}/logs",
    summary="Read or follow a run's output",
    description="As GET /mags-jobs/{id}/logs: `follow=true` streams server-sent events until `event: end`.",
    opt={"answers": ("text/event-stream",)},
)
async def logs(
    request: Caller,
    plane: Plane,
    id: JobId,
    follow: bool = False,
    last_event_id: Annotated[str | None, Parameter(header="Last-Event-ID")] = None,
) -> Stream:
    job = await jobs.find(plane.database, request.user.id, id)
    if follow:
        stream = output.kept_alive(output.line_events(plane, job, output.last_seen(last_event_id)))
        return Stream(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    lines = output.json_lines(output.records(plane, job, 0, follow=False))
    return Stream(await output.begun(lines), media_type="application/json")


@get(
    "/jobs/{id:str}/vm-info",
    summary="Show a run's sandbox",
    description="Empty until there is one; addresses are told of jobs with `ip_lease`.",
)
async def vm_info(request: Caller, plane: Plane, id: JobId) -> VmInfo:
    job = await _run(request, plane, id)
    return job_runs.vm_info(plane, job, await rows.run_of(plane.database, job))


@post(
    "/jobs/{id:str}/ssh",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Run a command in a run's sandbox; one that sleeps is woken",
)
async def run_command(request: Caller, plane: Plane, id: JobId, data: SshCommand) -> SshResult:
    call = exec_of(Command(data.command, data.timeout_seconds))
    job = await jobs.find(plane.database, request.user.id, id)
    result = await while_connected(request, executed(plane, job, call))
    if result.exit_code is None:
        raise Refused(f"the command's exit status was lost: {result.reason or 'the sandbox ended'}")
    return SshResult(
        request_id=job.request_id,
        command=data.command,
        exit_code=result.exit_code,
        stdout=result.stdout.decode("utf-8", "replace"),
        stderr=result.stderr.decode("utf-8", "replace"),
        duration_ms=result.duration_ms,
    )


@post("/jobs/{id:str}/cancel", status_code=200, summary="Cancel a run")
async def cancel(request: Caller, plane: Plane, id: JobId) -> Stopped:
    job = await jobs.find(plane.database, request.user.id, id)
    if job.final:
        return Stopped(True, "The run had already ended")
    ended = await plane.live.stop(job, STOP_WITHIN)
    return Stopped(True, "Cancelled" if ended else "It will be cancelled as soon as its node answers")


@get("/jobs/{id:str}/details", summary="Show a run, its job and that job's newest runs")
async def details(request: Caller, plane: Plane, id: JobId) -> Details:
    job = await _run(request, plane, id)
    view = job_runs.run_view(job, await rows.run_of(plane.database, job))
    told: dict[str, Any] = {}
    with contextlib.suppress(NotFound):
        saved = await rows.find(plane.database, plane.secret, request.user.id, id)
        listed = await rows.runs(plane.database, saved, MAX_RUNS)
        each = [await _run(request, plane, one) for one in listed]
        told["job"] = record_of(saved)
        told["runs"] = [job_runs.run_view(one, await rows.run_of(plane.database, one)) for one in each]
    return Details(request_id=job.request_id, status=view.status, run=view, workspace_id=job.workspace, **told)


async def _runs_of(request: Caller, plane: ControlPlane, template_id: str, page: int, page_size: int) -> SavedJobPage:
    """Each as the job that it was begun as."""
    template = await templates.find(plane.database, plane.secret, request.user.id, template_id)
    found = await templates.runs(plane.database, template, page, page_size)
    each = {one.number: one for one in await templates.revisions(plane.database, plane.secret, template)}
    told = [
        SavedJob(
            id=job.request_id,
            account_id=job.account_id,
            name=job.name,
            definition=each[number].definition,
            created_ns=job.created_ns,
            updated_ns=job.ended_ns or job.created_ns,
        )
        for job, number in found.runs
    ]
    return SavedJobPage([record_of(one) for one in told], found.total, page, page_size)


# ---- running -----------------------------------------------------------------------------------------------


async def begin(
    plane: ControlPlane,
    saved: SavedJob,
    environment: dict[str, str],
    request_id: str | None = None,
    *also: Statement,
) -> Job:
    """A run of it, with this over its own environment; `also` takes effect with it.

    Raises Invalid, NotFound (an upload), Conflict (its workspace is in use).
    """
    order = order_for(plane, saved, environment)
    if order.image_source is None:
        await plane.images.require(order.image)
    await require_files(plane, saved.account_id, order)

    def with_it(request_id: str) -> tuple[Statement, ...]:
        return (*also, rows.begun(saved, request_id))

    job = await plane.live.submit(saved.account_id, order, with_it, request_id)
    definition = saved.definition
    if definition.persist and definition.ip_lease:
        await openings.open_port(plane.database, job, port_of("proxy_port", definition.proxy_port), None, None)
        plane.routes.job_changed(job)
    return job


def order_for(plane: ControlPlane, saved: SavedJob, environment: dict[str, str]) -> Order:
    """Raises Invalid."""
    definition = saved.definition
    script = definition.script
    if definition.kind == "python" and not script.startswith("#!") and script.strip():
        script = PYTHON + script
    submission = Submission(
        script=script,
        name=saved.name,
        environment=definition.environment | environment,
        vcpus=definition.vcpus,
        memory_mb=definition.memory_mb,
        disk_gb=definition.workspace_gb,
        workspace_id=definition.workspace,
        persistent=definition.persist,
        timeout=None if definition.persist else MAX_TIMEOUT,
        file_ids=definition.file_ids,
    )
    order = order_of(submission, plane.placement.machine, plane.default_images.of(saved.account_id))
    port_of("proxy_port", definition.proxy_port)
    order = dataclasses.replace(order, keeping=dataclasses.replace(order.keeping, stateful=definition.stateful))
    if definition.kind != "docker":
        return order
    source = plane.live.registries.source("docker_image", definition.docker_image or "")
    return dataclasses.replace(order, image=image_of(source), image_source=source)


async def definition_of(plane: ControlPlane, data: NewJob, id: str) -> Definition:
    """Raises Invalid."""
    if data.type and data.script_type and data.type != data.script_type:
        raise Invalid("type and script_type say different things; give one of them")
    kind, script = data.type or data.script_type or "inline", data.script or ""
    if kind == "url":
        kind, script = "inline", await fetched(script.strip(), plane.outward)
    if kind not in KINDS:
        raise Invalid(f"type: {kind[:40]!r} is none of {', '.join(KINDS)}, url")
    for field in ("workspace_id", "workspace_size_gb"):
        if getattr(data, field) is not None and not data.stateful:
            raise Invalid(f"{field}: needs stateful: true; other jobs keep no files")
    check_texts(data.description, kind, data.docker_image)
    return Definition(
        script=script,
        kind=kind,
        description=data.description,
        docker_image=data.docker_image or None,
        vcpus=2 if data.vcpus is None else data.vcpus,
        memory_mb=512 if data.memory_mb is None else data.memory_mb,
        environment=data.environment or {},
        stateful=bool(data.stateful),
        workspace=(data.workspace_id or id) if data.stateful else None,
        workspace_gb=data.workspace_size_gb,
        persist=bool(data.persist),
        ip_lease=bool(data.ip_lease),
        proxy_port=data.proxy_port,
        file_ids=data.file_ids or [],
    )


def check_texts(description: str | None, kind: str, image: str | None) -> None:
    if description is not None and len(description) > MAX_TEXT:
        raise Invalid(f"description: {len(description)} characters; at most {MAX_TEXT}")
    if kind == "docker" and not image:
        raise Invalid("docker_image: missing; give one like python:3.12-slim, or leave type docker out")
    if kind != "docker" and image:
        raise Invalid("docker_image: goes with type docker only")


def _begun(saved: SavedJob, job: Job) -> BegunRun:
    return BegunRun(
        request_id=job.request_id,
        id=job.request_id,
        job_id=saved.id,
        job_name=saved.name,
        status="not_started",
        message="Job submitted successfully",
    )


async def _run(request: Caller, plane: ControlPlane, id: str) -> Job:
    """As it is now. Raises NotFound."""
    return plane.live.as_now(await jobs.find(plane.database, request.user.id, id))


def record_of(saved: SavedJob) -> SavedJobRecord:
    definition = saved.definition
    return SavedJobRecord(
        id=saved.id,
        name=saved.name,
        script=definition.script,
        script_type=definition.kind,
        type=definition.kind,
        vcpus=definition.vcpus,
        memory_mb=definition.memory_mb,
        environment=definition.environment,
        stateful=definition.stateful,
        persist=definition.persist,
        ip_lease=definition.ip_lease,
        user_id=str(saved.account_id),
        created_at=rfc3339(saved.created_ns),
        updated_at=rfc3339(saved.updated_ns),
        description=definition.description,
        docker_image=definition.docker_image,
        workspace_id=definition.workspace,
        workspace_size_gb=definition.workspace_gb,
        proxy_port=definition.proxy_port,
    )
