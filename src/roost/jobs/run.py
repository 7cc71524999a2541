"""One job on its way: each state is a small function that returns the next one.

    (queued) -> starting -> running -> [stopping] -> finishing -> leaving

Every step is safe to run again after a crash: the node knows a sandbox by the id that was chosen at submission, and
is told to forget it only after its result is durable. `live.py` decides when a run begins and tells it the news.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from roost.db.database import Database
from roost.db.secret import Secret
from roost.errors import NoCapacity, NodeUnavailable, NotFound, RoostError, StateUnwritable
from roost.jobs import job as jobs
from roost.jobs.job import Job, Result, Status, Work
from roost.node.protocol import File, Limits, SandboxState, SaveRequest, StartSandbox, StopSandbox
from roost.sandboxes.placement import Lease, Need, Placement
from roost.workspaces import revisions, uploads
from roost.workspaces.revisions import Start
from roost.workspaces.uploads import Upload

if TYPE_CHECKING:
    from roost.node.client import NodeClient

PIDS = 1024  # processes and threads of one sandbox
STOPPED = "stopped by its owner"
SHUT_DOWN = "Roost was shut down"
LOST = "lost: the node no longer knows this sandbox, so its exit status is unknown"
SHUT_DOWN_GRACE = 2.0  # seconds between TERM and KILL when Roost itself is stopping
ENDED_ALONE = "the sandbox of this persistent job ended by itself"
UNSAVED = "the node told of no save of the workspace"
STAYS = "{}; the workspace stays as it was"
SYNC_SECONDS = 30  # between the saves of a persistent job; documented
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
        self.uses = 0  # requests, connections, sessions, commands and readers that are open
        self.used = time.monotonic()  # when the last of them ended
        self.drowsy = False  # it is being frozen, thawed or saved
        self.recorded: str | None = None  # the newest save that the database knows of
        self.saving = asyncio.Lock()  # one save on demand at a time
        self.news = asyncio.Event()  # state, stop_requested or shutting_down has changed
        self.attached = asyncio.Event()  # there is a sandbox, or never will be
        self.done = asyncio.Event()  # the result is durable

    @property
    def need(self) -> Need:
        return Need(self.job.memory_mb)

    @contextlib.contextmanager
    def use(self) -> Generator[None]:
        """Counts as activity while it is open: the sandbox does not fall asleep by itself."""
        self.uses += 1
        try:
            yield
        finally:
            self.uses -= 1
            self.used = time.monotonic()

    @property
    def awake(self) -> bool:
        """Whether its sandbox can be entered right now."""
        return self.serves and self.state is not None and not self.state.frozen and not self.drowsy

    @property
    def over(self) -> bool:
        """Whether the job's result is known; the sandbox itself may still be on its way out."""
        if self.state is None or not self.job.settles_with_sandbox:
            return self.state is not None and script_ended(self.state)
        return self.state.phase == "ended"

    @property
    def serves(self) -> bool:
        """Whether commands can be run in its sandbox."""
        if self.state is None or self.state.phase == "ended":
            return False
        return self.job.persistent or not script_ended(self.state)

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
        start, files = await _files_of(run.job, means)
        run.asked = True
        state = await means.node.start(run.job.vm_id, start_sandbox(run.job, work, start, files))
    except NoCapacity:
        return _refused(run, means)
    except NodeUnavailable:
        await means.link.again()
        return starting
    except StateUnwritable as error:
        log.warning("job.unpinned", request_id=run.job.request_id, error=str(error))
        await asyncio.sleep(WRITE_AGAIN)
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


async def _files_of(job: Job, means: Means) -> tuple[Start, list[Upload]]:
    """What its file system begins with; most jobs begin with nothing, which nobody needs to be asked for."""
    start, files = Start(None, upload=False), list[Upload]()
    if job.workspace is not None or job.base_workspace is not None:
        start = await revisions.pin(means.database, job)
    if job.file_ids:
        files = await uploads.of_job(means.database, job.account_id, job.file_ids)
    return start, files


def start_sandbox(job: Job, work: Work, start: Start, files: list[Upload]) -> StartSandbox:
    save = None
    if job.save_revision is not None:
        save = SaveRequest(revision=job.save_revision, account=job.account_id, upload=start.upload)
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
        account=job.account_id,
        linger=job.persistent,
        start_from=start.revision,
        save=save,
        sync_seconds=SYNC_SECONDS if job.persistent and save is not None and save.upload else 0,
        files=[File(id=file.id, name=file.name, size=file.size) for file in files],
    )


async def running(run: Run, means: Means) -> Move:
    """Waits for the node to say how the job ended, or for somebody to stop it; records what is saved meanwhile."""
    if not await _ends_at_once(run) and run.job.status == "pending" and run.state is not None:
        jobs.record_running(means.database, run.job, run.state.started_ns or run.job.created_ns)
    while True:
        run.news.clear()
        if run.over:
            return finishing
        if run.stop_requested or run.shutting_down:
            return stopping
        await _record_news(run, means)
        await run.news.wait()


async def _record_news(run: Run, means: Means) -> None:
    """What a sandbox that lives on has come to: its script's exit, and its saves."""
    state = run.state
    if state is None:
        return
    if run.job.persistent and script_ended(state) and run.job.script_ended_ns is None:
        jobs.record_script_end(means.database, run.job, state.exit_code, state.script_ended_ns)
        ended = {"exit_code": state.exit_code, "script_ended_ns": state.script_ended_ns}
        run.job = msgspec.structs.replace(run.job, **ended)
    newest = state.revision
    if newest is None or newest.id in (run.recorded, run.job.save_revision):
        return  # the last save goes with the result
    try:
        await jobs.record_save(means.database, run.job, newest)
        run.recorded = newest.id
    except StateUnwritable as error:  # the next save, or the end, makes up for it
        log.warning("save.unrecorded", request_id=run.job.request_id, revision=newest.id, error=str(error))


async def _ends_at_once(run: Run) -> bool:
    """Most scripts are over within milliseconds: their one write is the result."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SHORT):
            while not run.over:
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
    return finishing if run.over else stopping


async def finishing(run: Run, means: Means) -> Move | None:
    """Makes the result durable; a full disk delays it and loses nothing, for the node still knows it."""
    result = run.result or result_of(run.job, run.state, run.stop_requested)
    if run.shutting_down and result.error == ENDED_ALONE:
        result = replace(result, error=SHUT_DOWN)
    revision = None if run.state is None else run.state.revision
    try:
        result = run.result = await jobs.record_end(means.database, run.job, result, revision)
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


def result_of(job: Job, state: SandboxState | None, stop_requested: bool) -> Result:
    """What an ended sandbox means for its job; no state: it was stopped before it had one."""
    if state is None:
        return Result("completed", stopped=True)
    status, error, stopped = _verdict(job, state, stop_requested)
    unsaved = _unsaved(job, state)
    if unsaved is not None and (status == "completed" or state.save_error is not None):
        status, error = "error", f"{error}; {unsaved}" if error else unsaved
    return Result(status, state.exit_code, error, stopped, state.started_ns, state.script_ended_ns)


def _verdict(job: Job, state: SandboxState, stop_requested: bool) -> tuple[Status, str | None, bool]:
    if stop_requested and (job.persistent or state.cause == "stopped") and _known(job, state):
        return "completed", None, True
    if job.persistent and state.cause in ("exited", None):
        return "error", state.reason or ENDED_ALONE, False
    if state.cause in ("exited", None) and state.exit_code is not None:
        return ("completed" if state.exit_code == 0 else "error"), state.reason, False
    return "error", state.reason or _UNSAID.get(state.cause or "lost", LOST), False


def _known(job: Job, state: SandboxState) -> bool:
    """Whether its end is the one that was asked for, with nothing lost."""
    return state.exit_code is not None and (not job.persistent or state.cause in ("stopped", "exited"))


def _unsaved(job: Job, state: SandboxState) -> str | None:
    """Why the end state of its files is not the workspace's."""
    if state.save_error is not None:
        return STAYS.format(state.save_error)
    if job.workspace is None or (state.revision is not None and state.revision.id == job.save_revision):
        return None
    return STAYS.format(UNSAVED)


_UNSAID = {
    "timeout": "the script ran into its timeout",
    "oom": "the script ran out of memory; give it more with memory_mb",
    "disk": "the disk of the sandbox failed",
    "stopped": "stopped",
    "failed": "the sandbox failed",
}
