"""One job on its way: each state is a small function that returns the next one.

    (queued) -> starting -> running -> [stopping] -> finishing -> leaving

Every step is safe to run again after a crash: the node knows a sandbox by the id that was chosen at submission, and
is told to forget it only after its result is durable. `live.py` decides when a run begins and tells it the news.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import structlog
from structlog.typing import FilteringBoundLogger

from roost.db.database import Database
from roost.db.secret import Secret
from roost.errors import NoCapacity, NodeUnavailable, NotFound, RoostError, StateUnwritable
from roost.jobs import job as jobs
from roost.jobs.job import Job, Result, Status, Work
from roost.node.protocol import Limits, SandboxState, StartSandbox, StopSandbox
from roost.sandboxes.placement import Lease, Need, Placement

if TYPE_CHECKING:
    from roost.node.client import NodeClient

PIDS = 1024  # processes and threads of one sandbox
STOPPED = "stopped by its owner"
SHUT_DOWN = "Roost was shut down"
LOST = "lost: the node no longer knows this sandbox, so its exit status is unknown"
SHUT_DOWN_GRACE = 2.0  # seconds between TERM and KILL when Roost itself is stopping
SHORT = 0.1  # seconds that a script runs before the database is told that it does
WRITE_AGAIN = 1.0  # seconds until a result that could not be written is tried again

log: FilteringBoundLogger = structlog.get_logger()


class Link(Protocol):
    """Whether the node answers."""

    async def up(self) -> None:
        """Returns once the node has told everything it knows."""

    async def again(self) -> None:
        """After a call that failed: returns when another try makes sense."""


@dataclass(frozen=True)
class Means:
    """What a run works with."""

    database: Database
    secret: Secret
    node: "NodeClient"
    placement: Placement
    link: Link
    requeue: Callable[["Run"], None]


class Run:
    """A job that has not ended, and what is known of its sandbox."""

    def __init__(self, job: Job, work: Work | None = None) -> None:
        self.job = job
        self.work = work  # None: read from the database when it starts
        self.lease: Lease | None = None
        self.state: SandboxState | None = None  # None: no sandbox that we know of
        self.asked = False  # the node was asked to start it, so there may be one that we do not know of
        self.stop_requested = job.stop_requested
        self.shutting_down = False
        self.result: Result | None = None
        self.news = asyncio.Event()  # state, stop_requested or shutting_down has changed
        self.attached = asyncio.Event()  # there is a sandbox, or never will be
        self.done = asyncio.Event()  # the result is durable

    @property
    def need(self) -> Need:
        return Need(self.job.memory_mb)

    def hear(self, state: SandboxState) -> None:
        """`ended` is final; nothing that arrives late takes it back."""
        if self.state is None or self.state.phase != "ended":
            self.state = state
        if state.phase != "starting":
            self.attached.set()
        self.news.set()

    def stop(self) -> None:
        self.stop_requested = True
        self.news.set()

    def shut_down(self) -> None:
        self.shutting_down = True
        self.news.set()


Move: TypeAlias = Callable[[Run, Means], Awaitable["Move | None"]]


async def starting(run: Run, means: Means) -> Move | None:
    if run.state is not None:
        return running
    if run.shutting_down:
        return None  # it stays pending, for the next start
    if run.stop_requested and not run.asked:
        return finishing
    try:
        work = run.work or await jobs.work_of(means.database, means.secret, run.job)
        run.asked = True
        state = await means.node.start(run.job.vm_id, start_sandbox(run.job, work))
    except NoCapacity:
        return _refused(run, means)
    except NodeUnavailable:
        await means.link.again()
        return starting
    except RoostError as refusal:
        run.result = Result("error", error=str(refusal))
        return finishing
    run.work = None
    run.hear(state)
    return running


def _refused(run: Run, means: Means) -> None:
    run.asked = False
    run.work = None  # read again when it is its turn: a long queue must not fill our memory
    if run.lease is not None:
        means.placement.refuse(run.lease)
        run.lease = None
    means.requeue(run)


def start_sandbox(job: Job, work: Work) -> StartSandbox:
    return StartSandbox(
        image=job.image,
        script=work.script,
        environment=work.environment,
        hostname=job.vm_id,
        limits=Limits(
            vcpus=job.vcpus,
            memory_mb=job.memory_mb,
            disk_gb=job.disk_gb,
            pids=PIDS,
            timeout_seconds=job.timeout_seconds,
        ),
    )


async def running(run: Run, means: Means) -> Move:
    """Waits for the node to say that the script has ended, or for somebody to stop it."""
    if not await _ends_at_once(run) and run.job.status == "pending" and run.state is not None:
        jobs.record_running(means.database, run.job, run.state.started_ns or run.job.created_ns)
    while True:
        run.news.clear()
        if run.state is not None and script_ended(run.state):
            return finishing
        if run.stop_requested or run.shutting_down:
            return stopping
        await run.news.wait()


async def _ends_at_once(run: Run) -> bool:
    """Most scripts are over within milliseconds: their one write is the result."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SHORT):
            while not (run.state is not None and script_ended(run.state)):
                if run.stop_requested or run.shutting_down:
                    return False
                run.news.clear()
                await run.news.wait()
            return True
    return False


async def stopping(run: Run, means: Means) -> Move:
    by_owner = StopSandbox(reason=STOPPED)
    stop = by_owner if run.stop_requested else StopSandbox(reason=SHUT_DOWN, grace_seconds=SHUT_DOWN_GRACE)
    try:
        run.hear(await means.node.stop(run.job.vm_id, stop))
    except NodeUnavailable:
        await means.link.again()
    except NotFound:
        run.hear(lost(run.job))
    return stopping if run.state is None or not script_ended(run.state) else finishing


async def finishing(run: Run, means: Means) -> Move | None:
    """Makes the result durable; a full disk delays it and loses nothing, for the node still knows it."""
    result = run.result = run.result or result_of(run.state, run.stop_requested)
    try:
        await jobs.record_end(means.database, run.job, result)
    except StateUnwritable as error:
        log.warning("job.unrecorded", request_id=run.job.request_id, error=str(error))
        await asyncio.sleep(WRITE_AGAIN)
        return finishing
    log.info(
        "job.end",
        request_id=run.job.request_id,
        vm_id=run.job.vm_id,
        status=result.status,
        exit_code=result.exit_code,
        error=result.error,
    )
    run.attached.set()
    run.done.set()
    return leaving


async def leaving(run: Run, means: Means) -> Move | None:
    """The sandbox goes, then its memory is free for another, then the node need not remember it."""
    while run.state is not None and run.state.phase != "ended":
        await run.news.wait()
        run.news.clear()
    if run.lease is not None:
        means.placement.release(run.lease)
    if run.state is None:
        return None
    try:
        await means.node.forget(run.job.vm_id)
    except NotFound:
        pass
    except NodeUnavailable:
        await means.link.again()
        return leaving
    return None


def script_ended(state: SandboxState) -> bool:
    """Whether the result is known; the sandbox itself may still be on its way out."""
    return state.phase == "ended" or (state.script_ended_ns is not None and state.cause is not None)


def lost(job: Job) -> SandboxState:
    return SandboxState(id=job.vm_id, phase="ended", started_ns=job.started_ns, cause="lost", reason=LOST)


def result_of(state: SandboxState | None, stop_requested: bool) -> Result:
    """What an ended sandbox means for its job; no state: it was stopped before it had one."""
    if state is None:
        return Result("completed", stopped=True)
    status, error, stopped = _verdict(state, stop_requested)
    return Result(status, state.exit_code, error, stopped, state.started_ns, state.script_ended_ns)


def _verdict(state: SandboxState, stop_requested: bool) -> tuple[Status, str | None, bool]:
    if state.cause == "stopped" and stop_requested and state.exit_code is not None:
        return "completed", None, True
    if state.cause in ("exited", None) and state.exit_code is not None:
        return ("completed" if state.exit_code == 0 else "error"), state.reason, False
    return "error", state.reason or _UNSAID.get(state.cause or "lost", LOST), False


_UNSAID = {
    "timeout": "the script ran into its timeout",
    "oom": "the script ran out of memory; give it more with memory_mb",
    "disk": "the disk of the sandbox failed",
    "stopped": "stopped",
    "failed": "the sandbox failed",
}
