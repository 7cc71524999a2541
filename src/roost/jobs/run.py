"""A job that has not ended, and what its states (`states.py`, `sleep.py`) work with.

`live.py` keeps the runs, begins them and tells them the node's news; whoever waits for one waits for its events.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from roost.db.database import Database
from roost.db.secret import Secret
from roost.errors import RoostError
from roost.jobs.job import Depth, Job, Result, Work
from roost.jobs.metering import Metering
from roost.jobs.result import script_ended
from roost.node.protocol import SandboxState
from roost.sandboxes.placement import Lease, Need, Placement
from roost.sandboxes.pulls import Pulls
from roost.tracing import OFF, Tracer

if TYPE_CHECKING:
    from roost.node.client import NodeClient


READY_BY_COMMAND = 90.0  # seconds that an application with a startup command has until it listens
READY = 10.0  # others


class Link(Protocol):
    """Whether the node answers."""

    async def up(self) -> None:
        """Returns once the node has told everything it knows."""

    async def again(self) -> None:
        """After a call that failed: returns when another try makes sense."""


@dataclass
class Tally:
    """What has happened since this process started, for metrics."""

    ended: Counter[str] = field(default_factory=Counter[str])  # by status
    wakes: Counter[str] = field(default_factory=Counter[str])  # by depth: frozen, cold


@dataclass(frozen=True)
class Means:
    """What a run works with."""

    database: Database
    secret: Secret
    node: "NodeClient"
    placement: Placement
    link: Link
    metering: Metering
    pulls: Pulls
    requeue: Callable[["Run"], None]
    save_before_sleep: Callable[["Run"], Awaitable[None]]
    went_cold: Callable[["Run", Job], None]  # with the job as its next run will find it
    ended: Callable[[Job], None]  # its end is durable, and its workspace somebody else's
    tally: Tally = field(default_factory=Tally)
    tracer: Tracer = OFF


class Run:
    """A job that has not ended, and what is known of its sandbox.

    A job that went cold has no run; waking it makes another one, whose sandbox is another one too.
    """

    def __init__(self, job: Job, work: Work | None = None) -> None:
        self.job = job
        self.work = work  # None: read from the database when it starts
        self.lease: Lease | None = None
        self.state: SandboxState | None = None  # None: no sandbox that we know of
        self.asked = False  # the node was asked to start it, so there may be one that we do not know of
        self.stop_requested = job.stop_requested
        self.shutting_down = False
        self.result: Result | None = None
        self.refusal: RoostError | None = None  # why it could not be woken; it sleeps cold again
        self.woken_by: str | None = None  # `traceparent` of what woke it from cold
        self.metered = False  # all that its sandbox has used is in the database
        self.asked_after = False  # somebody wanted to know how far it is
        self.uses = 0  # requests, connections, sessions, commands and readers that are open
        self._begun = time.monotonic()
        self.used = time.monotonic()  # when the last of them ended
        self.drowsy = False  # it is being frozen, thawed or saved
        self.sleep_wanted: Depth | None = None  # how deep somebody wants it to sleep
        self.sleep_automatic = False  # … only if nobody uses it
        self.wake_wanted = False
        self.restarts = 0  # of this job's sandboxes in a row that ended soon and by themselves
        self.entered = asyncio.Event()  # set while its sandbox can be entered
        self.rests = asyncio.Event()  # set while it is frozen
        self.left = asyncio.Event()  # this run is over: the job has ended, or sleeps cold
        self.recorded: str | None = None  # the newest save that the database knows of
        self.saving = asyncio.Lock()  # one save on demand at a time
        self.news = asyncio.Event()  # state, stop_requested or shutting_down has changed
        self.attached = asyncio.Event()  # there is a sandbox, or never will be
        self.done = asyncio.Event()  # the result is durable

    @property
    def need(self) -> Need:
        return Need(self.job.memory_mb)

    @property
    def lived(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._begun

    @contextlib.contextmanager
    def use(self) -> Generator[None]:
        """Counts as activity while it is open: the sandbox does not fall asleep by itself."""
        self.begin_use()
        try:
            yield
        finally:
            self.end_use()

    def begin_use(self) -> None:
        """The same, for those who count each microsecond; `end_use` must follow."""
        self.uses += 1

    def end_use(self) -> None:
        self.uses -= 1
        self.used = time.monotonic()

    @property
    def awake(self) -> bool:
        """Whether its sandbox can be entered right now."""
        state = self.state
        unentered = self.drowsy or self.stop_requested or self.job.halted
        return self.serves and state is not None and not (state.frozen or unentered)

    @property
    def failed(self) -> str | None:
        """What it began with ended, and not well: then nothing that does not listen yet is about to."""
        state = self.state
        if state is None or state.script_ended_ns is None or not state.exit_code:
            return None
        what = "the startup command" if self.job.wakes else "the script"
        return f"{what} ended with exit status {state.exit_code}"

    def listens_by(self) -> float:
        """Until when (seconds of the wall clock) an application that does not listen yet may still be starting."""
        state = self.state
        if state is None or state.started_ns is None or self.failed:
            return 0.0
        if state.script_ended_ns is not None:  # it may have left a server behind that is about to listen
            return state.script_ended_ns / 1e9 + READY
        return state.started_ns / 1e9 + (READY_BY_COMMAND if self.job.startup_command else READY)

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
            self._count_processes(state.processes)
            self.state = state
        if state.phase != "starting":
            self.attached.set()
        self.note()

    def _count_processes(self, running: int) -> None:
        """Each kept process that runs is activity, whoever watches it."""
        before = 0 if self.state is None else self.state.processes
        if running != before:
            self.uses += running - before
            self.used = time.monotonic()

    def note(self) -> None:
        """Something about it has changed: tells who waits for it."""
        if self.awake:
            self.entered.set()
        else:
            self.entered.clear()
        self.news.set()

    def become(self, **changes: Any) -> None:
        self.job = msgspec.structs.replace(self.job, **changes)

    def sleep(self, depth: Depth, automatic: bool) -> None:
        """`automatic`: unless somebody uses it before it does."""
        self.sleep_wanted, self.sleep_automatic, self.wake_wanted = depth, automatic, False
        self.news.set()

    def wake(self) -> None:
        self.wake_wanted = True
        self.used = time.monotonic()
        if self.sleep_automatic or self.rests.is_set():
            self.sleep_wanted = None
        self.news.set()

    def stop(self) -> None:
        self.stop_requested = True
        self.note()

    def shut_down(self) -> None:
        self.shutting_down = True
        self.news.set()
