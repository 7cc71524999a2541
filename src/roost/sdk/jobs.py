"""Jobs: run, wait, look, follow, sleep and stop. A job is named by its request id, its name or its workspace."""

import base64
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal, NotRequired, TypedDict, Unpack, cast

from roost.sdk import wire
from roost.sdk.errors import Conflict, JobFailed, NotFound, RoostError, TimedOut
from roost.sdk.results import (
    Accepted,
    AccountUsage,
    CommandResult,
    JobPage,
    JobRecord,
    JobStatus,
    Leased,
    PoolSize,
    Stopped,
)
from roost.sdk.wire import Call, Flow, Json, Request, Wait, given, quoted

JOBS = "/mags-jobs"
FINAL = ("completed", "error")
SETTLE = 30.0  # seconds that a stop may take before a new sandbox is begun
WAKE_WITHIN = 100.0  # seconds; the server gives itself 90


class RunOptions(TypedDict, total=False):
    """What `run` takes besides the script."""

    name: str | None
    workspace_id: str | None
    base_workspace_id: str | None
    base_revision: str | None
    persistent: bool
    no_sleep: bool
    no_sync: bool
    ephemeral: bool
    startup_command: str | None
    idle_minutes: float | None
    environment: Mapping[str, str] | None
    file_ids: Sequence[str] | None
    disk_gb: int | None
    vcpus: float | None
    memory_mb: int | None
    rootfs_type: str | None
    timeout_seconds: int | None
    type: Literal["inline", "url"]


class LogEntry(TypedDict):
    """A line. `source` system: a remark of Roost."""

    timestamp: str
    level: Literal["info", "error"]
    message: str
    source: Literal["stdout", "stderr", "system"]


class Logs(TypedDict):
    logs: list[LogEntry]


class Output(TypedDict):
    """Bytes as they were written; `seq` is where to go on."""

    timestamp: str
    source: Literal["stdout", "stderr", "system"]
    seq: int
    data: bytes


class Result(TypedDict):
    """exit_code None: it was lost; the status is then error."""

    request_id: str
    status: str
    exit_code: int | None
    duration_ms: int
    logs: list[LogEntry]


class Running(TypedDict):
    request_id: str
    status: Literal["running"]


class ExecResult(TypedDict):
    exit_code: int | None
    output: str
    stderr: str
    truncated: bool
    timed_out: bool
    note: NotRequired[str]


def path_of(job: str) -> str:
    return JOBS + quoted(job)


def run(
    script: str,
    *,
    name: str | None = None,
    workspace_id: str | None = None,
    base_workspace_id: str | None = None,
    base_revision: str | None = None,
    persistent: bool = False,
    no_sleep: bool = False,
    ephemeral: bool = False,
    startup_command: str | None = None,
    idle_minutes: float | None = None,
    environment: Mapping[str, str] | None = None,
    file_ids: Sequence[str] | None = None,
    disk_gb: int | None = None,
    vcpus: float | None = None,
    memory_mb: int | None = None,
    no_sync: bool = False,
    rootfs_type: str | None = None,
    timeout_seconds: int | None = None,
    type: Literal["inline", "url"] = "inline",
) -> Call[Accepted]:
    """Submit a job and return at once. It is not sent twice, for it might then run twice.

    `timeout_seconds` is what the script may take; `type="url"`: `script` is the URL of its text.
    """
    flags = {"no_sleep": no_sleep, "no_sync": no_sync, "ephemeral": ephemeral}
    body = {"script": script, "type": type, "persistent": persistent} | {key: True for key, on in flags.items() if on}
    body |= given(
        name=name or None,
        workspace_id=workspace_id or None,
        base_workspace_id=base_workspace_id or None,
        base_revision=base_revision,
        startup_command=startup_command,
        idle_minutes=idle_minutes,
        environment=None if environment is None else dict(environment),
        file_ids=None if file_ids is None else list(file_ids),
        disk_gb=disk_gb,
        vcpus=vcpus,
        memory_mb=memory_mb,
        rootfs_type=rootfs_type,
        timeout_seconds=timeout_seconds,
    )
    return (yield from wire.call("POST", JOBS, body))


def run_and_wait(
    script: str, *, timeout: float = 60.0, poll_interval: float = 1.0, **run_kwargs: Unpack[RunOptions]
) -> Call[Result]:
    """Submit a job and wait for its script. Raises TimedOut after `timeout` seconds, when the job goes on.

    Who goes away meanwhile (Ctrl-C, the cancellation of the task) stops it, unless its sandbox is to stay.
    """
    accepted = yield from run(script, **run_kwargs)
    try:
        return (yield from wait(accepted["request_id"], timeout=timeout, poll_interval=poll_interval))
    except wire.Left:
        if not run_kwargs.get("persistent"):
            with suppress(RoostError):  # whoever goes away is told of that, and of nothing else
                yield from stop(accepted["request_id"])
        raise


def wait(request_id: str, *, timeout: float = 60.0, poll_interval: float = 1.0) -> Call[Result]:
    """Wait until a job has ended. Raises TimedOut after `timeout` seconds."""
    found = yield from _until(request_id, FINAL, timeout, poll_interval, f"timed out after {timeout}s")
    told = yield from logs(request_id)
    return {
        "request_id": found["request_id"],
        "status": found["status"],
        "exit_code": found.get("exit_code"),
        "duration_ms": found.get("script_duration_ms") or 0,
        "logs": told["logs"],
    }


def _until(job: str, wanted: tuple[str, ...], timeout: float, poll_interval: float, words: str) -> Call[JobStatus]:
    """Its status once that is one of `wanted`, or final."""
    deadline = time.monotonic() + timeout
    for pause in wire.pauses(poll_interval):
        found = yield from status(job)
        if found["status"] in FINAL or (
            found["status"] in wanted and (found["status"] != "running" or found.get("vm_id"))
        ):
            return found
        left = deadline - time.monotonic()
        if left <= 0:
            break
        yield Wait(min(pause, left))
    raise TimedOut(f"Job {job} {words}")


def status(request_id: str) -> Call[JobStatus]:
    """Show how far a job is."""
    return (yield from wire.call("GET", f"{path_of(request_id)}/status"))


def get_job(name_or_id: str) -> Call[JobRecord]:
    """Show a job whole. Raises NotFound."""
    return (yield from wire.call("GET", path_of(name_or_id)))


def find_job(name_or_id: str) -> Call[JobRecord | None]:
    """Show a job of that name, workspace or id, one that has not ended before one that has; None: there is none."""
    try:
        return (yield from get_job(name_or_id))
    except NotFound:
        return None


def logs(request_id: str) -> Call[Logs]:
    """Read all lines that there are by now."""
    return (yield from wire.call("GET", f"{path_of(request_id)}/logs"))


def output(request_id: str, source: str = "stdout") -> Flow[bytes]:
    """Read the exact bytes of `stdout` or `stderr` that there are by now, in pieces."""
    return (
        yield from wire.read_all(Request("GET", f"{path_of(request_id)}/logs", {"format": "raw", "source": source}))
    )


def follow_logs(request_id: str, *, after: int = 0) -> Flow[LogEntry]:
    """Each line as it comes, until the job has ended; `end` then says how: `{"status", "exit_code", …}`.

    A connection that breaks is made again, and no line is lost or repeated. `after` skips that many lines.
    """
    return (yield from wire.follow(f"{path_of(request_id)}/logs", {"follow": True}, after, _itself))


def _itself(data: Json) -> LogEntry:
    return data


def follow_output(request_id: str, *, after: int = 0) -> Flow[Output]:
    """As follow_logs, with bytes as they were written; `after` is the seq of the last one that was seen."""
    return (yield from wire.follow(f"{path_of(request_id)}/logs", {"follow": True, "raw": True}, after, output_of))


def output_of(data: Json) -> Output:
    return cast(Output, data | {"data": base64.b64decode(data["data"])})


def list_jobs(*, page: int = 1, page_size: int = 20) -> Call[JobPage]:
    """List jobs, newest first."""
    return (yield from wire.call("GET", JOBS, query={"page": page, "page_size": page_size}))


def update_job(
    request_id: str,
    *,
    startup_command: str | None = None,
    no_sleep: bool | None = None,
    idle_minutes: float | None = None,
) -> Call[JobRecord]:
    """Change how a persistent job sleeps. An empty startup_command removes it."""
    body = given(startup_command=startup_command, no_sleep=no_sleep, idle_minutes=idle_minutes)
    return (yield from wire.call("PATCH", path_of(request_id), body, timeout=WAKE_WITHIN, repeatable=True))


def stop(name_or_id: str) -> Call[Stopped]:
    """Stop a job."""
    return (yield from wire.call("POST", f"{path_of(name_or_id)}/stop", repeatable=True))


def sync(request_id: str) -> Call[Stopped]:
    """Save a running job's workspace now."""
    return (yield from wire.call("POST", f"{path_of(request_id)}/sync", repeatable=True))


def sleep(name_or_id: str, *, depth: Literal["frozen", "cold"] = "frozen") -> Call[JobStatus]:
    """Put a persistent job to sleep; frozen: in memory; cold: saved, without a sandbox."""
    return (yield from wire.call("POST", f"{path_of(name_or_id)}/sleep", {"depth": depth}, repeatable=True))


def wake(name_or_id: str) -> Call[JobStatus]:
    """Wake a job; answers when its sandbox can be entered."""
    path = f"{path_of(name_or_id)}/wake"
    return (yield from wire.call("POST", path, timeout=WAKE_WITHIN, repeatable=True))


def keepalive(name_or_id: str, *, seconds: float = 600) -> Call[Leased]:
    """Keep a job awake for that long; at most 3600. Renew it before it is over."""
    body = {"seconds": seconds}
    path = f"{path_of(name_or_id)}/keepalive"
    return (yield from wire.call("POST", path, body, timeout=WAKE_WITHIN, repeatable=True))


def new(
    name: str,
    *,
    persistent: bool = False,
    base_workspace_id: str | None = None,
    disk_gb: int | None = None,
    timeout: float = 30.0,
    poll_interval: float = 1.0,
    rootfs_type: str | None = None,
    vcpus: float | None = None,
    memory_mb: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Call[Running]:
    """Make a sandbox that stays, and wait until it runs. `persistent`: its files go to the object store, too."""
    accepted = yield from run(
        "sleep infinity",
        workspace_id=name,
        persistent=True,
        no_sync=not persistent,
        base_workspace_id=base_workspace_id,
        disk_gb=disk_gb,
        rootfs_type=rootfs_type,
        vcpus=vcpus,
        memory_mb=memory_mb,
        environment=environment,
    )
    return (yield from started(accepted["request_id"], timeout, poll_interval))


def started(request_id: str, timeout: float, poll_interval: float) -> Call[Running]:
    words = f"did not start within {timeout}s"
    found = yield from _until(request_id, ("running", "sleeping"), timeout, poll_interval, words)
    if found["status"] in FINAL:
        raise JobFailed(f"Job {request_id} ended unexpectedly: {found.get('error') or found['status']}")
    return {"request_id": request_id, "status": "running"}


def resize(workspace: str, disk_gb: int, *, timeout: float = 30.0, poll_interval: float = 1.0) -> Call[Running]:
    """Give a workspace another disk: its sandbox is saved, stopped and made anew."""
    found = yield from find_job(workspace)
    if found and found["status"] not in FINAL:
        if found["status"] == "running":
            yield from sync(found["request_id"])
        yield from stop(found["request_id"])
        yield from _until(found["request_id"], FINAL, SETTLE, poll_interval, "did not stop in time")
    return (yield from new(workspace, persistent=True, disk_gb=disk_gb, timeout=timeout, poll_interval=poll_interval))


def exec(name_or_id: str, command: str, *, timeout: int = 30) -> Call[ExecResult]:
    """Run a command in a job's sandbox, which is woken, and return what it said; at most 4 MB.

    It is killed after `timeout` seconds. `start_exec` is for what takes input, says more or lasts longer.
    """
    body = {"command": command, "timeout": timeout}
    try:
        told: CommandResult = yield from wire.call(
            "POST", f"{path_of(name_or_id)}/exec", body, timeout=timeout + WAKE_WITHIN
        )
    except NotFound as error:
        raise NotFound(f"No running or sleeping VM found for '{name_or_id}': {error}", 404) from error
    except Conflict as error:
        raise Conflict(f"VM for '{name_or_id}' needs to be running or sleeping: {error}", 409) from error
    found: ExecResult = {
        "exit_code": told["exit_code"],
        "output": told["stdout"],
        "stderr": told["stderr"],
        "truncated": told["truncated"],
        "timed_out": told["timed_out"],
    }
    if note := told.get("note"):
        found["note"] = note
    return found


def usage(*, window_days: int = 30) -> Call[AccountUsage]:
    """Show what the account has used."""
    return (yield from wire.call("GET", f"{JOBS}/usage", query={"window_days": window_days}))


def pool_status() -> Call[PoolSize]:
    """Show the warm pool."""
    return (yield from wire.call("GET", f"{JOBS}/pool-status"))
