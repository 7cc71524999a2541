"""The Mags dialect: jobs as the official clients submit, follow, list, stop and enter them.

Field names and shapes are the wire contract; what is unknown is left out rather than filled in.
"""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, get, post
from litestar.datastructures import State
from litestar.params import Parameter
from litestar.response import Stream

from roost.accounts.tokens import Account
from roost.api import one_shot, output
from roost.api.bodies import JsonBody
from roost.api.plane import ControlPlane, Plane
from roost.api.script_source import fetched
from roost.api.submission import INLINE, URL, Submission, order_of
from roost.clock import now_ns, rfc3339
from roost.errors import Invalid
from roost.jobs import job as jobs
from roost.jobs.job import Job, Order
from roost.node.protocol import Exec, ExecResult
from roost.workspaces import revisions, uploads

LOCAL = "Nothing to sync: this workspace is kept on its node, and saved when its job ends"
SYNC_WITHIN = 25.0  # seconds; clients wait 30 for an answer
STOP_WITHIN = 20.0  # seconds; clients wait 30 for an answer
EXEC_OUTPUT = 4_000_000  # bytes; a node's answer holds 4 MiB
EXEC_TIMEOUT = 30.0  # seconds
EXEC_WAKE_WITHIN = 90.0  # seconds
MAX_EXEC_TIMEOUT = 3600.0
MAX_COMMAND = 128 * 1024 - 1  # bytes: what the kernel takes as one argument
MAX_PAGE = 1_000_000

Listed = Literal["pending", "running", "sleeping", "completed", "error", "unfinished"]
Caller = Request[Account, str, State]
Id = Annotated[str, Parameter(description="Request id, name or workspace of a job")]


class Accepted(msgspec.Struct, frozen=True, omit_defaults=True):
    message: str
    request_id: str
    status: str
    pending_reason: str | None = None  # what it waits for before it can begin


class JobStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    request_id: str
    name: str
    status: Literal["pending", "running", "sleeping", "completed", "error"]
    persistent: bool
    sleeping: bool
    subdomain: str
    created_at: str
    url: str | None = None  # of a persistent job; it leads somewhere once `access` has opened a port
    workspace_id: str | None = None
    vm_id: str | None = None
    exit_code: int | None = None
    script_duration_ms: int | None = None
    started_at: str | None = None
    completed_at: str | None = None
    stopped: bool = False
    sleep_depth: Literal["frozen", "cooling", "cold", "waking"] | None = None
    asleep_since: str | None = None
    awake_until: str | None = None  # a lease
    error: str | None = None
    error_message: str | None = None
    pending_reason: str | None = None  # what a job waits for that has not begun


class JobRecord(JobStatus, frozen=True, kw_only=True, omit_defaults=True):
    script: str
    type: str
    rootfs_type: str
    vcpus: float
    memory_mb: int
    disk_gb: int
    timeout_seconds: int
    base_workspace_id: str | None = None
    base_revision: str | None = None
    no_sync: bool = False
    no_sleep: bool = False
    startup_command: str | None = None
    idle_minutes: float | None = None
    file_ids: list[str] | None = None


class JobPage(msgspec.Struct, frozen=True):
    jobs: list[JobStatus]
    total: int
    page: int
    page_size: int


class Stopped(msgspec.Struct, frozen=True):
    success: bool
    message: str


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str
    timeout: float | None = None  # seconds


class CommandResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    exit_code: int | None
    stdout: str
    stderr: str
    truncated: bool
    timed_out: bool
    duration_ms: int
    note: str | None = None


class PoolSize(msgspec.Struct, frozen=True):
    idle_vms: int
    busy_vms: int
    total_vms: int
    min_pool_size: int
    max_pool_size: int


@post("/mags-jobs", status_code=202, dto=JsonBody, return_dto=None, summary="Submit a job")
async def submit(request: Caller, plane: Plane, data: Submission) -> Accepted:
    if data.type == URL:
        text = await fetched((data.script or "").strip(), plane.outward)
        data = msgspec.structs.replace(data, type=INLINE, script=text)
    order = order_of(data, plane.placement.machine, plane.default_images.of(request.user.id))
    await plane.images.require(order.image)
    await require_files(plane, request.user.id, order)
    job = await plane.live.submit(request.user.id, order)
    return Accepted("Mags job submitted successfully", job.request_id, "accepted", _waits_for(plane, job))


async def require_files(plane: ControlPlane, account_id: int, order: Order) -> None:
    """That what the job begins with is there. Raises NotFound, Invalid, Conflict."""
    keeping = order.keeping
    if keeping.base_workspace is not None:
        await revisions.require_base(plane.database, account_id, keeping.base_workspace, keeping.base_revision)
    if order.file_ids:
        await uploads.require(plane.database, account_id, list(order.file_ids))


@get("/mags-jobs", summary="List jobs, newest first")
async def list_jobs(
    request: Caller,
    plane: Plane,
    page: Annotated[int, Parameter(ge=1, le=MAX_PAGE)] = 1,
    page_size: Annotated[int, Parameter(ge=1, le=100)] = 20,
    status: Annotated[Listed | None, Parameter(description="Only those; unfinished: that have not ended")] = None,
) -> JobPage:
    if status is None:
        found = await jobs.newest(plane.database, request.user.id, page, page_size)
    elif status in ("completed", "error"):
        found = await jobs.with_result(plane.database, request.user.id, status, page, page_size)
    else:
        now = [plane.live.as_now(job) for job in await jobs.unended(plane.database, request.user.id)]
        alike = [job for job in now if status == "unfinished" or job.status == status]
        found = jobs.Page(alike[(page - 1) * page_size : page * page_size], len(alike))
    return JobPage([status_of(plane, plane.live.as_now(job)) for job in found.jobs], found.total, page, page_size)


@get("/mags-jobs/pool-status", summary="Show the warm pool")
async def pool_status(plane: Plane) -> PoolSize:
    pool = (await plane.node.info()).pool
    total = pool.idle + pool.busy + pool.creating
    return PoolSize(pool.idle, pool.busy, total, pool.min_size, pool.max_size)


@get("/mags-jobs/{id:str}", summary="Show a job")
async def show(request: Caller, plane: Plane, id: Id) -> JobRecord:
    return await record_of(plane, plane.live.as_now(await jobs.find(plane.database, request.user.id, id)))


async def record_of(plane: ControlPlane, job: Job) -> JobRecord:
    script = (await jobs.script_of(plane.database, job)).decode("utf-8", "replace")
    return JobRecord(
        **_status_fields(plane, job),
        script=script,
        type="inline",
        rootfs_type=job.image,
        vcpus=job.vcpus,
        memory_mb=job.memory_mb,
        disk_gb=job.disk_gb,
        timeout_seconds=job.timeout_seconds,
        base_workspace_id=job.base_workspace,
        base_revision=job.base_revision,
        no_sync=job.no_sync,
        no_sleep=job.no_sleep,
        startup_command=job.startup_command,
        idle_minutes=round(job.idle_seconds / 60, 6) if job.persistent else None,
        file_ids=job.file_ids,
    )


@get("/mags-jobs/{id:str}/status", summary="Show how far a job is")
async def status(request: Caller, plane: Plane, id: Id) -> JobStatus:
    job = await jobs.find(plane.database, request.user.id, id)
    if await plane.live.just_ended(job):
        job = await jobs.find(plane.database, request.user.id, id)
    return status_of(plane, plane.live.as_now(job))


@get(
    "/mags-jobs/{id:str}/logs",
    summary="Read or follow a job's output",
    opt={"answers": ("text/event-stream", "application/octet-stream")},
    description=(
        "`{logs: [{timestamp, level, message, source}]}`, an entry for each line. `follow=true`: the same entries as "
        "server-sent events until `event: end` with the status. `raw=true`: `{records: [{timestamp, source, seq, "
        "data}]}`, undivided and in base64; with `follow=true` the same as events. "
        "`format=raw`: the exact bytes of one source."
    ),
)
async def logs(
    request: Caller,
    plane: Plane,
    id: Id,
    follow: bool = False,
    raw: bool = False,
    format: Literal["json", "raw"] = "json",
    source: Literal["stdout", "stderr", "system"] = "stdout",
    last_event_id: Annotated[str | None, Parameter(header="Last-Event-ID")] = None,
) -> Stream:
    job = await jobs.find(plane.database, request.user.id, id)
    if format == "raw":
        chunks = output.exact_bytes(output.records(plane, job, 0, follow), source)
        return Stream(await output.begun(chunks), media_type="application/octet-stream")
    if follow:
        events = output.chunk_events if raw else output.line_events
        stream = output.kept_alive(events(plane, job, output.last_seen(last_event_id)))
        return Stream(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    if raw:
        records = output.json_chunks(output.records(plane, job, 0, follow=False))
        return Stream(await output.begun(records), media_type="application/json")
    lines = output.json_lines(output.records(plane, job, 0, follow=False))
    return Stream(await output.begun(lines), media_type="application/json")


@post("/mags-jobs/{id:str}/stop", status_code=200, summary="Stop a job")
async def stop(request: Caller, plane: Plane, id: Id) -> Stopped:
    job = await jobs.find(plane.database, request.user.id, id)
    if job.final:
        return Stopped(True, "Job had already ended")
    ended = await plane.live.stop(job, STOP_WITHIN)
    return Stopped(True, "Job stopped" if ended else "Job will be stopped as soon as its node answers")


@post(
    "/mags-jobs/{id:str}/sync",
    status_code=200,
    summary="Save a running job's workspace now",
    description=(
        "Answers when the save is durable, or after 25 seconds, when it goes on by itself. A local workspace (no "
        "`persistent`, or `no_sync`) is saved when its job ends, which the answer says."
    ),
)
async def sync(request: Caller, plane: Plane, id: Id) -> Stopped:
    job = plane.live.as_now(await jobs.find(plane.database, request.user.id, id))
    local = await plane.live.sync(job, SYNC_WITHIN) == "local"
    return Stopped(True, LOCAL if local else "Sync initiated")


@post(
    "/mags-jobs/{id:str}/exec",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Run a command in a job's sandbox; one that sleeps is woken",
    description="It lives as long as the caller waits: who closes the connection ends it. At most 4 MB of output.",
)
async def execute(request: Caller, plane: Plane, id: Id, data: Command) -> CommandResult:
    call = exec_of(data)
    job = await jobs.find(plane.database, request.user.id, id)
    return _command_result(await one_shot.while_connected(request, executed(plane, job, call)))


@post(
    "/mags-jobs/{id:str}/exec/follow",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Run a command in a job's sandbox, and follow its output",
    opt={"answers": ("text/event-stream",)},
    description=(
        "Server-sent events of `{source, data}`, data in base64, as it writes them and without a limit, then `event: "
        "end` with `{exit_code, timed_out, duration_ms, note}`. Who closes the connection ends the command."
    ),
)
async def execute_followed(request: Caller, plane: Plane, id: Id, data: Command) -> Stream:
    call = exec_of(data)
    job = await jobs.find(plane.database, request.user.id, id)
    events = await one_shot.while_connected(request, one_shot.events_of(plane, job, call))
    return Stream(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def exec_of(command: Command) -> Exec:
    """Raises Invalid."""
    if not command.command.strip():
        raise Invalid("command: empty; give a shell command")
    if "\0" in command.command or len(command.command.encode()) > MAX_COMMAND:
        raise Invalid(f"command: at most {MAX_COMMAND} bytes, none of them NUL")
    timeout = EXEC_TIMEOUT if command.timeout is None else command.timeout
    if not 0 < timeout <= MAX_EXEC_TIMEOUT:
        raise Invalid(
            f"timeout: {timeout} is out of range; give seconds, more than 0 and at most {MAX_EXEC_TIMEOUT:.0f}"
        )
    return Exec(command=command.command, timeout_seconds=timeout, output_limit=EXEC_OUTPUT)


async def executed(plane: ControlPlane, job: Job, call: Exec) -> ExecResult:
    """Wakes the job. Cancel it to end the command."""
    run = await plane.live.awake(job, EXEC_WAKE_WITHIN)
    tracer, about = plane.live.tracer, {"request_id": run.job.request_id, "vm_id": run.job.vm_id}
    with run.use(), tracer.span("exec", about, "client") as span:
        result = await plane.node.exec(run.job.vm_id, call)
        span.set({"exit_code": result.exit_code, "timed_out": result.timed_out})
        return result


def _command_result(result: ExecResult) -> CommandResult:
    cut = "of output beyond 4 MB the middle was left out" if result.truncated else None
    return CommandResult(
        exit_code=result.exit_code,
        stdout=result.stdout.decode("utf-8", "replace"),
        stderr=result.stderr.decode("utf-8", "replace"),
        truncated=result.truncated,
        timed_out=result.timed_out,
        duration_ms=result.duration_ms,
        note="; ".join(note for note in (cut, result.reason) if note) or None,
    )


def status_of(plane: ControlPlane, job: Job) -> JobStatus:
    return JobStatus(**_status_fields(plane, job))


def _status_fields(plane: ControlPlane, job: Job) -> dict[str, Any]:
    attached = job.started_ns is not None and job.depth not in ("cold", "waking")
    return {
        "request_id": job.request_id,
        "name": job.name,
        "status": job.status,
        "persistent": job.persistent,
        "sleeping": job.status == "sleeping",
        "sleep_depth": job.depth,
        "asleep_since": _time(job.asleep_ns),
        "awake_until": _time(job.keepalive_ns) if (job.keepalive_ns or 0) > now_ns() else None,
        "subdomain": job.subdomain,
        "url": plane.routes.hosts.url(job.subdomain) if job.persistent else None,
        "workspace_id": job.workspace,
        "created_at": rfc3339(job.created_ns),
        "vm_id": job.vm_id if attached else None,
        "exit_code": job.exit_code,
        "script_duration_ms": job.script_duration_ms,
        "started_at": _time(job.started_ns),
        "completed_at": _time(job.ended_ns),
        "stopped": job.stopped,
        "error": job.error,
        "error_message": job.error,
        "pending_reason": _waits_for(plane, job),
    }


def _waits_for(plane: ControlPlane, job: Job) -> str | None:
    ahead = plane.live.waits_for(job) if job.status == "pending" else None
    return None if ahead is None else f"waits for job {ahead.request_id}, which has workspace '{job.workspace}'"


def _time(instant_ns: int | None) -> str | None:
    return None if instant_ns is None else rfc3339(instant_ns)
