"""The jobs that have not ended: their queue, their runs, and the node's news for them.

`submit` queues a durable job; the queue (`queue.py`) places its head, whose run begins (`states.py`); `_listen` follows
the node's events and hands each state to its run. `awake` and `sleep` are for jobs that stay.
"""

import asyncio
import dataclasses
import time
from collections.abc import Coroutine, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from roost.accounts.quotas import Quotas, Use, require_room
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.secret import Secret
from roost.errors import (
    Asleep,
    Conflict,
    Invalid,
    NoCapacity,
    NodeUnavailable,
    NotFound,
    RoostError,
    SetupMissing,
    StateUnwritable,
)
from roost.jobs import idle, sleep, spans, states
from roost.jobs import job as jobs
from roost.jobs.idle import Patience
from roost.jobs.job import Also, Depth, Job, Order, Result
from roost.jobs.metering import Metering
from roost.jobs.queue import Queue
from roost.jobs.result import lost, script_ended
from roost.jobs.run import Means, Run, Tally
from roost.jobs.states import Move
from roost.node.protocol import VERSION, NodeInfo, SandboxState, SaveRequest, StopSandbox
from roost.sandboxes.placement import Placement
from roost.sandboxes.pulls import Pulls, Registries
from roost.tracing import OFF, Tracer, current
from roost.workspaces import revisions, workspace
from roost.workspaces.revisions import Unrecorded

if TYPE_CHECKING:
    from roost.node.client import NodeClient

MAX_WAITING = 10_000  # queued jobs; each costs about 1 KB here
CARRIED_BYTES = 64 * 1024  # a larger script is not kept in memory while its job waits
CARRIED_JOBS = 256
BACKOFF = (0.05, 1.0)  # seconds between attempts to reach the node: the first, the longest
HELD = 0.05  # seconds that the first question after a job may wait for its end
YOUNG = 0.5  # seconds since it began; who asks later was not waiting for an end that is near
WAKE_LIMIT = 90.0  # seconds that a wake may take for those who ask for it by name
SHUT_DOWN_LIMIT = 25.0  # seconds for all sandboxes to be stopped when Roost is

Synced: TypeAlias = Literal["saved", "saving", "local"]  # what came of a wish to save

log: FilteringBoundLogger = structlog.get_logger()


class NodeLink:
    """Up from the end of the node's snapshot to the end of its event stream."""

    def __init__(self) -> None:
        self._up = asyncio.Event()
        self.told: set[str] = set()  # sandboxes heard of on this connection

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def up(self) -> None:
        await self._up.wait()

    async def again(self) -> None:
        await asyncio.sleep(BACKOFF[0])
        await self._up.wait()

    def raised(self) -> None:
        self._up.set()

    def lowered(self) -> None:
        self._up.clear()
        self.told = set()


class LiveJobs:
    """Enter it to recover what the last process left behind; leave it with `shut_down` for an orderly end."""

    def __init__(
        self,
        database: Database,
        secret: Secret,
        node: "NodeClient",
        placement: Placement,
        patience: Patience | None = None,
        registries: Registries | None = None,
        quotas: Quotas | None = None,
        tracer: Tracer = OFF,
    ) -> None:
        self.patience = patience or Patience()
        self.link = NodeLink()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unrecorded = Unrecorded()
        self.metering = Metering(database, node, self._job_of)
        self._placement = placement
        self._quotas = quotas or Quotas(database)
        self._of_account: dict[int, set[Run]] = {}  # those of `_present`
        self._incoming: dict[int, Use] = {}  # what is being submitted
        self._means = Means(
            database,
            secret,
            node,
            placement,
            self.link,
            self.metering,
            Pulls(node, registries or Registries()),
            self._enqueue,
            self._save_before_sleep,
            self._went_cold,
            self._call_next,
            tracer=tracer,
        )
        self.tracer = tracer
        self._runs: dict[str, Run] = {}  # by vm_id
        self._present: dict[int, Run] = {}  # by the job's seq: the one that stands for it now
        self._ending: set[int] = set()  # jobs that are stopped while they sleep cold
        self._queue = Queue(placement)
        self._lines: dict[tuple[int, str], dict[int, Run]] = {}  # by account and workspace: who waits for it, by seq
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._recover()
        dispatch = self._queue.dispatch(self.link.up, self._fetch_work, self._begin)
        sleepers = idle.watch(self._present.values, self._means, self.patience)
        loops = dispatch, self._listen(), sleepers, self.metering.watch(lambda: self.link.is_up)
        self._loops = [asyncio.create_task(loop) for loop in loops]
        for loop in self._loops:
            loop.add_done_callback(self._loop_ended)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        remaining = [*self._loops, *self._tasks]
        for task in remaining:
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)

    # -- what the API asks ---------------------------------------------------------------------------------

    async def submit(
        self,
        account_id: int,
        order: Order,
        also: Also | None = None,
        request_id: str | None = None,
        in_line: bool = True,
    ) -> Job:
        """`in_line`: it waits while another job writes to its workspace, unless that one stays.

        Raises NodeUnavailable while shutting down, NoCapacity (too many wait; a quota), Invalid, StateUnwritable,
        Conflict (its workspace is in use).
        """
        if self._closing:
            raise NodeUnavailable("Roost is shutting down; submit again after its restart")
        if self.waiting >= MAX_WAITING:
            raise NoCapacity(f"{MAX_WAITING} jobs are waiting already; submit again when some have ended")
        if order.keeping.idle_seconds is None:
            keeping = dataclasses.replace(order.keeping, idle_seconds=self.patience.idle)
            order = dataclasses.replace(order, keeping=keeping)
        with await self._room(account_id, Use(1, order.vcpus, order.memory_mb, order.disk_gb)):
            if order.keeping.workspace is not None or order.keeping.persistent:
                await self._quotas.require_storage(account_id)
            submitter = current()
            with self.tracer.span("job.submit", {"image": order.image}) as span:
                trace = submitter or span.context
                job = await jobs.submit(
                    self._means.database, self._means.secret, account_id, order, also, request_id, trace, in_line
                )
                span.set({"request_id": job.request_id, "vm_id": job.vm_id})
        log.info("job.submit", request_id=job.request_id, account=account_id, image=job.image)
        carried = order.work.size <= CARRIED_BYTES and len(self._queue) < CARRIED_JOBS
        self._enqueue(Run(job, order.work if carried else None))
        return job

    async def _room(self, account_id: int, wanted: Use) -> AbstractContextManager[None]:
        """Held while a submission is on its way. Raises NoCapacity, Invalid."""
        limits = await self._quotas.of(account_id)
        if not limits.of_sandboxes:
            return nullcontext()
        require_room(limits, self.using(account_id), wanted)
        self._incoming[account_id] = self._incoming.get(account_id, Use()) + wanted
        return self._holding(account_id, wanted)

    @contextmanager
    def _holding(self, account_id: int, wanted: Use) -> Generator[None]:
        try:
            yield
        finally:  # from here on its run counts, for nothing is awaited in between
            self._incoming[account_id] -= wanted

    async def _require_room(self, job: Job) -> None:
        """Before it is woken. Raises NoCapacity."""
        limits = await self._quotas.of(job.account_id)
        if limits.of_sandboxes:
            require_room(limits, self.using(job.account_id), _use_of(job))

    def using(self, account_id: int) -> Use:
        """What an account's sandboxes have, those that wait included, those that sleep not."""
        used = self._incoming.get(account_id, Use())
        for run in self._of_account.get(account_id, ()):
            if not run.rests.is_set():
                used += _use_of(run.job)
        return used

    async def stop(self, job: Job, within: float) -> bool:
        """Whether the job has ended after at most `within` seconds; if not, it will be stopped all the same."""
        if await self._end_cold(job):
            return True
        run = self._present.get(job.seq)
        if run is None or run.done.is_set():
            return True
        await jobs.request_stop(self._means.database, job)
        run.stop()
        if self._in_line(run) and run.state is None:
            self._leave_line(run)
            self._carry(run, states.finishing)
        elif run in self._queue and run.state is None:
            self._queue.leave(run)
            self._carry(run, states.starting if run.asked else states.finishing)
        try:
            await asyncio.wait_for(run.left.wait(), within)
        except TimeoutError:
            return False
        return run.done.is_set() or await self._end_cold(job)

    async def _end_cold(self, job: Job) -> bool:
        """A job that sleeps cold has no sandbox to stop; its files are saved."""
        if job.seq in self._present:
            return False
        self._ending.add(job.seq)
        try:
            job = await jobs.reread(self._means.database, job)
            if job.status != "sleeping" or job.seq in self._present:
                return False
            result = Result("completed", job.exit_code, None, True, None, job.script_ended_ns)
            await jobs.record_end(self._means.database, job, result)
            self._call_next(job)
            self.tally.ended[result.status] += 1
            spans.ended(self.tracer, job, result)
            log.info("job.end", request_id=job.request_id, status=result.status, exit_code=result.exit_code)
            return True
        finally:
            self._ending.discard(job.seq)

    async def sync(self, job: Job, within: float) -> Synced:
        """Saves a running job's workspace to the object store; it goes on if that takes longer than `within` seconds.

        A local workspace is saved when its job ends, and only then. Raises Invalid for a job without a workspace,
        Conflict for one that is not running.
        """
        if job.workspace is None:
            raise Invalid(f"job {job.name!r} has no workspace to save to; submit it with workspace_id")
        run = self._present.get(job.seq)
        if run is None or not run.serves:
            raise Conflict(f"job {job.name!r} is not running (status: {job.status}); what it saved is its workspace")
        if run.rests.is_set():
            return "saved"  # it was, before it fell asleep
        if not (await revisions.pin(self._means.database, run.job)).upload:
            return "local"
        saving = self._own(self._save(run))
        await asyncio.wait({saving}, timeout=within)
        if saving.done():
            saving.result()
            return "saved"
        saving.add_done_callback(_log_failure)
        return "saving"

    async def awake(self, job: Job, within: float) -> Run:
        """The job's run, once its sandbox can be entered; one that sleeps is woken, once for all who ask.

        Raises Conflict for a job that has ended or cannot be entered, Asleep after `within` seconds; NodeUnavailable
        while shutting down.
        """
        run = self._present.get(job.seq)
        if run is not None and run.awake:
            run.used = time.monotonic()
            return run
        try:
            async with asyncio.timeout(within):
                with self.tracer.span("sandbox.wake", {"request_id": job.request_id}) as span:
                    run = await self._awoken(job)
                    span.set({"vm_id": run.job.vm_id})
                    return run
        except TimeoutError:
            job = await jobs.reread(self._means.database, job)
            raise Asleep(f"job failed to wake (status: {job.status}) within {within:g} s; try again") from None

    async def _awoken(self, job: Job) -> Run:
        while True:
            run = self._present.get(job.seq) or await self._roused(job)
            if run.awake:
                run.used = time.monotonic()
                return run
            if self._closing:
                raise NodeUnavailable("Roost is shutting down; try again after its restart")
            if not run.left.is_set():
                self._require_enterable(run)
                if run.rests.is_set():
                    await self._require_room(job)
                run.wake()
                await _first(run.entered.wait(), run.left.wait())
                if run.awake:
                    continue
                if run.refusal is not None:
                    raise Conflict(f"job {job.name!r} could not be woken: {run.refusal}")
            if self._present.get(job.seq) is run:
                await asyncio.sleep(0)  # its last steps

    def _require_enterable(self, run: Run) -> None:
        job = run.job
        if run.state is None and not job.persistent:
            raise Conflict(f"job {job.name!r} is not running (status: pending); try again when it has started")
        if run.state is not None and script_ended(run.state) and not job.persistent:
            raise Conflict(f"job {job.name!r} is not running: its script has ended, and it is not persistent")
        if run.stop_requested:
            raise Conflict(f"job {job.name!r} is being stopped")
        _require_unhalted(job)

    async def _roused(self, job: Job) -> Run:
        """A job without a run: it sleeps cold, or has ended."""
        job = await jobs.reread(self._means.database, job)
        if (run := self._present.get(job.seq)) is not None:
            return run
        if job.final or job.seq in self._ending:
            how = f": {job.error}" if job.error else ""
            raise Conflict(f"job {job.name!r} is not running (status: {job.status}{how}); submit it again")
        _require_unhalted(job)
        if self._closing:
            raise NodeUnavailable("Roost is shutting down; try again after its restart")
        await self._require_room(job)
        if (run := self._present.get(job.seq)) is not None:
            return run
        return self._rouse(job)

    def _rouse(self, job: Job, restarts: int = 0) -> Run:
        run = Run(job)
        run.restarts, run.woken_by = restarts, current()
        run.become(depth="waking")
        jobs.record_waking(self._means.database, job)
        log.info("job.wake", request_id=job.request_id, vm_id=job.vm_id)
        self._enqueue(run)
        return run

    def _went_cold(self, run: Run, job: Job) -> None:
        """From here on the job is another sandbox's; the old one is only forgotten."""
        self._leave(run)
        if self._closing or job.halted:
            return
        if run.wake_wanted and not job.no_sleep:
            self._rouse(job)
        elif job.no_sleep:
            self._own(self._restart(run, job))

    async def _restart(self, run: Run, job: Job) -> None:
        restarts = 0 if run.lived > sleep.LIVED else run.restarts + 1
        await asyncio.sleep(sleep.pause_before_restart(run, run.restarts))
        job = await jobs.reread(self._means.database, job)
        wanted = job.status == "sleeping" and not job.halted
        if wanted and not self._closing and job.seq not in {*self._present, *self._ending}:
            self._rouse(job, restarts)

    async def sleep(self, job: Job, depth: Depth, within: float) -> Job:
        """Puts it to sleep, in use or not; the job as it is then. Raises Conflict, Asleep if it takes longer."""
        self._require_sleeper(job)
        run = self._present.get(job.seq)
        if run is not None:
            run.sleep(depth, automatic=False)
            until = (run.rests.wait(), run.left.wait()) if depth == "frozen" else (run.left.wait(),)
            try:
                async with asyncio.timeout(within):
                    await _first(*until)
            except TimeoutError:
                raise Asleep(f"job {job.name!r} is on its way to sleep; look at its status") from None
        return self.as_now(await jobs.reread(self._means.database, job))

    def _require_sleeper(self, job: Job) -> None:
        if not job.persistent:
            raise Conflict(f"job {job.name!r} is not persistent: it ends with its script and never sleeps")
        if job.final:
            raise Conflict(f"job {job.name!r} has ended (status: {job.status})")
        if job.no_sleep:
            raise Conflict(f"job {job.name!r} has no_sleep; PATCH it with no_sleep: false first")
        run = self._present.get(job.seq)
        if run is not None and (run.state is None or not run.serves):
            raise Conflict(f"job {job.name!r} has not started yet, or is being stopped")

    async def keep_awake(self, job: Job, seconds: float) -> int:
        """A lease of that many seconds, in place of an earlier one; until when (ns). Wakes a job that sleeps."""
        until_ns = now_ns() + int(seconds * 1e9)
        run = await self.awake(job, WAKE_LIMIT)
        await jobs.keep_awake(self._means.database, job, until_ns)
        run.become(keepalive_ns=until_ns)
        return until_ns

    async def change(self, job: Job, **settings: Any) -> Job:
        """no_sleep, startup_command, idle_seconds: hold from now on. Raises Conflict for a job that has ended."""
        if job.final:
            raise Conflict(f"job {job.name!r} has ended (status: {job.status}); nothing of it can be changed")
        await jobs.change(self._means.database, job, **settings)
        job = await jobs.reread(self._means.database, job)
        run = self._present.get(job.seq)
        if run is not None:
            run.become(**settings)
        if job.no_sleep and job.status == "sleeping" and not job.halted:
            await self.awake(job, WAKE_LIMIT)
        return self.as_now(await jobs.reread(self._means.database, job))

    async def halt(self, job: Job, within: float) -> Job:
        """Goes cold and stays so, whatever anybody asks of it, until `resume`; the job after at most `within` seconds.

        The wish is durable first, and what is left of it is done after any crash. Raises Conflict for a job that ended.
        """
        run = await self._set_halted(job, True)
        if run is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(run.left.wait(), within)
        return self.as_now(await jobs.reread(self._means.database, job))

    async def resume(self, job: Job, within: float) -> Job:
        """The end of `halt`: it begins anew from its files, unless it still runs.

        Raises Conflict, Asleep; NoCapacity and Invalid for its account's quota, and then it is halted.
        """
        await self._set_halted(job, False)
        try:
            await self.awake(job, within)
        except (NoCapacity, Invalid):  # its account's quota
            await self._set_halted(job, True)
            raise
        return self.as_now(await jobs.reread(self._means.database, job))

    async def restart(self, job: Job, within: float) -> Job:
        """Its sandbox ends and another one begins from its files. Raises Conflict, Asleep: it goes on by itself."""
        run = self._present.get(job.seq)
        if run is not None and not job.halted and run.state is not None:
            run.sleep("cold", automatic=False)
            try:
                await asyncio.wait_for(run.left.wait(), within)
            except TimeoutError:
                raise Asleep(f"{job.name!r} is on its way to be restarted; look at its state") from None
        return await self.resume(job, within)

    async def _set_halted(self, job: Job, halted: bool) -> Run | None:
        await jobs.change(self._means.database, job, halted=halted)
        job = await jobs.reread(self._means.database, job)
        if job.final:
            raise Conflict(f"{job.name!r} has ended (status: {job.status}); delete it, and create another one")
        run = self._present.get(job.seq)
        if run is not None:
            run.become(halted=halted)
            run.note()
        return run

    async def _save_before_sleep(self, run: Run) -> None:
        if run.job.workspace is not None and (await revisions.pin(self._means.database, run.job)).upload:
            await self._save(run, wished=False)

    async def _save(self, run: Run, wished: bool = True) -> None:
        async with run.saving:
            with self.unrecorded.chosen() as revision:
                wanted = SaveRequest(revision=revision, account=run.job.account_id, upload=True)
                made = await self._means.node.save(run.job.vm_id, wanted)
                await jobs.record_save(self._means.database, run.job, made, wished)

    @property
    def closing(self) -> bool:
        return self._closing

    def as_now(self, job: Job) -> Job:
        """The job as it is at this moment; the database is told a little later that it runs."""
        run = self._present.get(job.seq)
        if job.final or run is None:
            return job
        if run.job.depth is not None:
            asleep = {"depth": run.job.depth, "asleep_ns": run.job.asleep_ns, "keepalive_ns": run.job.keepalive_ns}
            return msgspec.structs.replace(job, status="sleeping", **asleep)
        if run.state is None or run.state.started_ns is None:
            return job
        running = {"depth": None, "asleep_ns": None, "started_ns": job.started_ns or run.state.started_ns}
        job = msgspec.structs.replace(job, status="running", **running)
        if job.wakes:
            return msgspec.structs.replace(job, error=run.failed or job.error)
        if not (job.persistent and script_ended(run.state)):
            return job
        ended = {"exit_code": run.state.exit_code, "script_ended_ns": run.state.script_ended_ns}
        return msgspec.structs.replace(job, **ended)

    async def just_ended(self, job: Job) -> bool:
        """Whether it ended while the first question after it was held back: clients ask again only a second later."""
        run = self._present.get(job.seq)
        if run is None or run.asked_after or job.persistent:
            return False
        run.asked_after = True
        if run.lived > YOUNG:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(HELD):
                await run.done.wait()
        return run.done.is_set()

    def run_of(self, job: Job) -> Run | None:
        """The run of a job that has not ended and does not sleep cold."""
        return self._present.get(job.seq)

    @property
    def pulls(self) -> Pulls:
        """Images that are pulled for jobs."""
        return self._means.pulls

    @property
    def registries(self) -> Registries:
        """Whose images jobs may name."""
        return self._means.pulls.registries

    @property
    def tally(self) -> Tally:
        return self._means.tally

    @property
    def waiting(self) -> int:
        """Jobs that nothing of has begun."""
        return len(self._queue) + sum(map(len, self._lines.values()))

    def waits_for(self, job: Job) -> Job | None:
        """Which job has to end before this one gets their workspace; None: it waits for none."""
        run = self._present.get(job.seq)
        if run is None or not self._in_line(run):
            return None
        before = [seq for seq in self._lines[_place(job)] if seq < job.seq]
        if before:
            return self._lines[_place(job)][max(before)].job
        others = self._of_account.get(job.account_id, set[Run]())
        return next((one.job for one in others if one.job.workspace == job.workspace and not self._in_line(one)), None)

    def _job_of(self, vm_id: str) -> Job | None:
        run = self._runs.get(vm_id)
        return run.job if run else None

    def runs(self) -> Iterable[Run]:
        """Of all jobs that have not ended and do not sleep cold."""
        return self._present.values()

    # -- beginning -----------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        for job in await jobs.unfinished(self._means.database):
            run = Run(job)
            if job.status == "pending" or job.depth == "waking":
                self._enqueue(run)
            elif job.depth == "cold":
                self._rouse(job)
            else:
                state = SandboxState(id=job.vm_id, phase="running", started_ns=job.started_ns)
                self._adopt(run, msgspec.structs.replace(state, frozen=job.depth == "frozen"))
        if self._runs:
            log.info("jobs.recover", jobs=len(self._runs), waiting=len(self._queue))

    def _adopt(self, run: Run, state: SandboxState) -> None:
        """It has a sandbox already."""
        run.hear(state)
        self._enter(run)
        run.lease = self._placement.adopt(run.need)
        self._carry(run, states.running)

    def _enqueue(self, run: Run) -> None:
        self._enter(run)
        if run.job.waits:
            self._lines.setdefault(_place(run.job), {})[run.job.seq] = run
            self._call_next(run.job)  # whom it waits for may have ended just then
        else:
            self._queue.put(run)

    def _in_line(self, run: Run) -> bool:
        return run.job.waits and run.job.seq in self._lines.get(_place(run.job), {})

    def _leave_line(self, run: Run) -> None:
        line = self._lines.get(_place(run.job), {})
        line.pop(run.job.seq, None)
        if not line:
            self._lines.pop(_place(run.job), None)

    def _call_next(self, job: Job) -> None:
        """The job has ended, or looks whether it is its turn."""
        if job.workspace is not None and _place(job) in self._lines:
            self._own(self._call(_place(job)))

    async def _call(self, place: tuple[int, str]) -> None:
        """Whom the database has handed the workspace to comes into the queue."""
        seq = await workspace.writer_seq(self._means.database, *place)
        run = self._lines.get(place, {}).get(seq or 0)
        if run is not None:
            self._leave_line(run)
            run.become(waits=False)
            self._queue.put(run)

    def _enter(self, run: Run) -> None:
        self._leave(run)
        self._runs[run.job.vm_id] = self._present[run.job.seq] = run
        self._of_account.setdefault(run.job.account_id, set()).add(run)

    def _leave(self, run: Run) -> None:
        """Another one may stand for its job."""
        if self._present.get(run.job.seq) is run:
            del self._present[run.job.seq]
        of_account = self._of_account.get(run.job.account_id, set[Run]())
        of_account.discard(run)
        if not of_account:
            self._of_account.pop(run.job.account_id, None)

    def _begin(self, run: Run) -> None:
        self._carry(run, states.starting)

    async def _fetch_work(self, run: Run) -> None:
        """Before its turn, because starts that each read first would reach the node out of order."""
        if run.work is None:
            with suppress(RoostError):  # its run meets it again, and ends with it
                run.work = await jobs.work_of(self._means.database, self._means.secret, run.job)

    def _carry(self, run: Run, move: Move) -> None:
        self._own(self._carry_out(run, move))

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _carry_out(self, run: Run, move: Move | None) -> None:
        try:
            while move is not None:
                move = await move(run, self._means)
        except Exception:
            log.exception("job.fault", request_id=run.job.request_id)
            await self._give_up(run)
        if run.left.is_set():
            self._runs.pop(run.job.vm_id, None)
            self._leave(run)

    async def _give_up(self, run: Run) -> None:
        """A fault of ours: the job ends as an error and its sandbox goes, the other jobs are not touched."""
        if not run.done.is_set():
            run.result = Result("error", error="internal error; the log of the control plane has the details")
            await jobs.record_end(self._means.database, run.job, run.result)
            self._call_next(run.job)
            self.tally.ended["error"] += 1
            spans.ended(self.tracer, run.job, run.result)
            run.attached.set()
            run.done.set()
            run.left.set()
        await self._remove(run.job.vm_id)
        if run.lease is not None:
            self._placement.release(run.lease)

    # -- the node's news -----------------------------------------------------------------------------------

    async def _listen(self) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                self._learn(await self._means.node.info())
                async for event in self._means.node.events():
                    if event.state is not None:
                        self._hear(event.state)
                    if event.snapshot is not None:
                        self._snapshot_told()
                        pause = BACKOFF[0]
            except NodeUnavailable as error:
                if self.link.is_up:
                    log.warning("node.gone", error=str(error))
            self.link.lowered()
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACKOFF[1])

    def _learn(self, info: NodeInfo) -> None:
        if info.protocol != VERSION:
            raise SetupMissing(
                f"the node speaks protocol {info.protocol} and this control plane {VERSION}; "
                "install the same release of Roost for both and restart them"
            )
        self._placement.learn(info)

    def _hear(self, state: SandboxState) -> None:
        self.link.told.add(state.id)
        run = self._runs.get(state.id)
        if run is None:
            if not self.link.is_up:
                self._own(self._settle_orphan(state))
            return
        run.hear(state)
        if run in self._queue:  # the last process had started it, and died before it wrote that down
            self._queue.leave(run)
            run.lease = self._placement.adopt(run.need)
            self._carry(run, states.running)

    def _snapshot_told(self) -> None:
        for vm_id, run in list(self._runs.items()):
            if run.state is not None and run.state.phase != "ended" and vm_id not in self.link.told:
                run.hear(lost(run.job))
        self.link.raised()
        log.info("node.up", sandboxes=len(self.link.told))

    async def _settle_orphan(self, state: SandboxState) -> None:
        """A sandbox whose job has ended, or that no job knows: the last process died before it was forgotten."""
        job = await jobs.find_by_vm(self._means.database, state.id)
        if job is not None and job.status == "sleeping" and job.seq not in self._present:
            self._adopt(Run(job), state)  # the last process was waking it, and died before it wrote that down
            return
        log.info("sandbox.orphan", vm_id=state.id, request_id=None if job is None else job.request_id)
        await self._remove(state.id)

    async def _remove(self, vm_id: str) -> None:
        while True:
            try:
                stop = StopSandbox(reason="no job needs it", grace_seconds=0)
                await self.metering.record_end(await self._means.node.stop(vm_id, stop))
                return await self._means.node.forget(vm_id)
            except NodeUnavailable:
                await self.link.again()
            except NotFound:
                return None
            except StateUnwritable:
                await asyncio.sleep(states.WRITE_AGAIN)
            except RoostError as error:
                log.warning("sandbox.unremoved", vm_id=vm_id, error=str(error))
                return None

    def _loop_ended(self, loop: asyncio.Task[None]) -> None:
        """Neither loop ends by itself: what it raised ends the program."""
        if not loop.cancelled() and (error := loop.exception()) is not None and not self.failure.done():
            self.failure.set_exception(error)

    # -- end -----------------------------------------------------------------------------------------------

    async def shut_down(self) -> None:
        """Stops what runs and records how it ended; what waits stays pending. Without a node all stays as it is."""
        self._closing = True
        begun = now_ns()
        self._loops[0].cancel()
        self._loops[2].cancel()  # nobody falls asleep any more but by this
        for run in self._runs.values():
            run.shut_down()
        if self.link.is_up and self._tasks:
            await asyncio.wait(set(self._tasks), timeout=SHUT_DOWN_LIMIT)
        for run in self._runs.values():
            run.attached.set()  # nobody waits any longer for what begins after the next start
        log.info("jobs.shut_down", left=len(self._runs), milliseconds=(now_ns() - begun) // 1_000_000)


def _require_unhalted(job: Job) -> None:
    if job.halted:
        raise Conflict(f"microVM {job.name!r} is stopped; start it with POST /api/v1/microvms/{job.request_id}/start")


def _place(job: Job) -> tuple[int, str]:
    return job.account_id, job.workspace or ""


def _use_of(job: Job) -> Use:
    return Use(1, job.vcpus, job.memory_mb, job.disk_gb)


async def _first(*events: Coroutine[Any, Any, Any]) -> None:
    """Returns when one of them does."""
    tasks = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _log_failure(saving: asyncio.Task[None]) -> None:
    if not saving.cancelled() and (error := saving.exception()) is not None:
        log.warning("save.failed", error=str(error))
