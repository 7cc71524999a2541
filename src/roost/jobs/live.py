"""The jobs that have not ended: their queue, their runs, and the node's news for them.

`submit` queues a durable job; `_dispatch` places the head of the queue and starts its run; `_listen` follows the
node's events and hands each state to its run. The queue is in order of acceptance, and a job the node had no room
for goes back to its old place.
"""

import asyncio
import heapq
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.secret import Secret
from roost.errors import Conflict, Invalid, NoCapacity, NodeUnavailable, NotFound, RoostError, SetupMissing
from roost.jobs import job as jobs
from roost.jobs import run as states
from roost.jobs.job import Job, Order, Result
from roost.jobs.run import Means, Move, Run, script_ended
from roost.node.protocol import VERSION, NodeInfo, SandboxState, SaveRequest, StopSandbox
from roost.sandboxes.placement import Lease, Placement
from roost.workspaces import revisions
from roost.workspaces.revisions import Unrecorded

if TYPE_CHECKING:
    from roost.node.client import NodeClient

MAX_WAITING = 10_000  # queued jobs; each costs about 1 KB here
CARRIED_BYTES = 64 * 1024  # a larger script is not kept in memory while its job waits
CARRIED_JOBS = 256
BACKOFF = (0.05, 1.0)  # seconds between attempts to reach the node: the first, the longest
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

    def __init__(self, database: Database, secret: Secret, node: "NodeClient", placement: Placement) -> None:
        self.link = NodeLink()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unrecorded = Unrecorded()
        self._placement = placement
        self._means = Means(database, secret, node, placement, self.link, self._requeue)
        self._runs: dict[str, Run] = {}  # by vm_id
        self._queue: list[tuple[int, Run]] = []  # heap by seq; those that left it otherwise are not in _waiting
        self._waiting: set[str] = set()  # vm_ids in the queue
        self._queued = asyncio.Event()
        self._placing: asyncio.Task[Lease] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._recover()
        self._loops = [asyncio.create_task(self._dispatch()), asyncio.create_task(self._listen())]
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

    async def submit(self, account_id: int, order: Order) -> Job:
        """Raises NodeUnavailable while shutting down, NoCapacity when too many jobs wait, StateUnwritable."""
        if self._closing:
            raise NodeUnavailable("Roost is shutting down; submit again after its restart")
        if len(self._waiting) >= MAX_WAITING:
            raise NoCapacity(f"{MAX_WAITING} jobs are waiting already; submit again when some have ended")
        job = await jobs.submit(self._means.database, self._means.secret, account_id, order)
        log.info("job.submit", request_id=job.request_id, account=account_id, image=job.image)
        carried = order.work.size <= CARRIED_BYTES and len(self._waiting) < CARRIED_JOBS
        self._enqueue(Run(job, order.work if carried else None))
        return job

    async def stop(self, job: Job, within: float) -> bool:
        """Whether the job has ended after at most `within` seconds; if not, it will be stopped all the same."""
        run = self._runs.get(job.vm_id)
        if run is None or run.done.is_set():
            return True
        await jobs.request_stop(self._means.database, job)
        run.stop()
        if job.vm_id in self._waiting and run.state is None:
            self._leave_queue(run)
            self._carry(run, states.starting if run.asked else states.finishing)
        try:
            await asyncio.wait_for(run.done.wait(), within)
        except TimeoutError:
            return False
        return True

    async def sync(self, job: Job, within: float) -> Synced:
        """Saves a running job's workspace to the object store; it goes on if that takes longer than `within` seconds.

        A local workspace is saved when its job ends, and only then. Raises Invalid for a job without a workspace,
        Conflict for one that is not running.
        """
        if job.workspace is None:
            raise Invalid(f"job {job.name!r} has no workspace to save to; submit it with workspace_id")
        run = self._runs.get(job.vm_id)
        if run is None or not run.serves:
            raise Conflict(f"job {job.name!r} is not running (status: {job.status}); what it saved is its workspace")
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

        Raises Conflict for a job that has ended or cannot be entered, Asleep after `within` seconds.
        """
        run = self._runs.get(job.vm_id)
        if run is None or not run.serves:
            raise Conflict(f"job {job.name!r} is not running (status: {job.status})")
        return run

    async def _save(self, run: Run) -> None:
        async with run.saving:
            with self.unrecorded.chosen() as revision:
                wanted = SaveRequest(revision=revision, account=run.job.account_id, upload=True)
                made = await self._means.node.save(run.job.vm_id, wanted)
                await jobs.record_save(self._means.database, run.job, made, wished=True)

    @property
    def closing(self) -> bool:
        return self._closing

    def as_now(self, job: Job) -> Job:
        """The job as it is at this moment; the database is told a little later that it runs."""
        run = self._runs.get(job.vm_id)
        if job.final or run is None or run.state is None or run.state.started_ns is None:
            return job
        job = msgspec.structs.replace(job, status="running", started_ns=run.state.started_ns)
        if not (job.persistent and script_ended(run.state)):
            return job
        ended = {"exit_code": run.state.exit_code, "script_ended_ns": run.state.script_ended_ns}
        return msgspec.structs.replace(job, **ended)

    def run_of(self, job: Job) -> Run | None:
        """The run of a job that has not ended."""
        return self._runs.get(job.vm_id)

    # -- beginning -----------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        for job in await jobs.unfinished(self._means.database):
            run = Run(job)
            if job.status == "pending":
                self._enqueue(run)
            else:
                run.hear(SandboxState(id=job.vm_id, phase="running", started_ns=job.started_ns))
                self._runs[job.vm_id] = run
                run.lease = self._placement.adopt(run.need)
                self._carry(run, states.running)
        if self._runs:
            log.info("jobs.recover", jobs=len(self._runs), waiting=len(self._waiting))

    def _enqueue(self, run: Run) -> None:
        self._runs[run.job.vm_id] = run
        self._waiting.add(run.job.vm_id)
        heapq.heappush(self._queue, (run.job.seq, run))
        self._queued.set()
        if self._placing is not None and self._queue[0][1] is run:
            self._placing.cancel()  # it goes before the one that is being placed

    def _requeue(self, run: Run) -> None:
        self._enqueue(run)

    def _leave_queue(self, run: Run) -> None:
        self._waiting.discard(run.job.vm_id)
        if self._placing is not None and self._queue and self._queue[0][1] is run:
            self._placing.cancel()

    async def _head(self) -> Run:
        while True:
            while self._queue and self._queue[0][1].job.vm_id not in self._waiting:
                heapq.heappop(self._queue)
            if self._queue:
                return self._queue[0][1]
            self._queued.clear()
            await self._queued.wait()

    async def _dispatch(self) -> None:
        while True:
            await self.link.up()
            run = await self._head()
            await self._fetch_work(run)
            lease = await self._place(run)
            if lease is None:
                continue
            if not self.link.is_up or run.job.vm_id not in self._waiting or self._queue[0][1] is not run:
                self._placement.release(lease)
                continue
            heapq.heappop(self._queue)
            self._waiting.discard(run.job.vm_id)
            run.lease = lease
            self._carry(run, states.starting)

    async def _fetch_work(self, run: Run) -> None:
        """Before its turn, because starts that each read first would reach the node out of order."""
        if run.work is None:
            with suppress(RoostError):  # its run meets it again, and ends with it
                run.work = await jobs.work_of(self._means.database, self._means.secret, run.job)

    async def _place(self, run: Run) -> Lease | None:
        """None when the run left the head of the queue meanwhile."""
        self._placing = asyncio.create_task(self._placement.place(run.need))
        try:
            await asyncio.wait({self._placing})
            return None if self._placing.cancelled() else self._placing.result()
        finally:
            self._placing.cancel()
            self._placing = None

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
        if run.done.is_set():
            self._runs.pop(run.job.vm_id, None)

    async def _give_up(self, run: Run) -> None:
        """A fault of ours: the job ends as an error and its sandbox goes, the other jobs are not touched."""
        if not run.done.is_set():
            run.result = Result("error", error="internal error; the log of the control plane has the details")
            await jobs.record_end(self._means.database, run.job, run.result)
            run.attached.set()
            run.done.set()
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
        if state.id in self._waiting:  # the last process had started it, and died before it wrote that down
            self._leave_queue(run)
            run.lease = self._placement.adopt(run.need)
            self._carry(run, states.running)

    def _snapshot_told(self) -> None:
        for vm_id, run in list(self._runs.items()):
            if run.state is not None and run.state.phase != "ended" and vm_id not in self.link.told:
                run.hear(states.lost(run.job))
        self.link.raised()
        log.info("node.up", sandboxes=len(self.link.told))

    async def _settle_orphan(self, state: SandboxState) -> None:
        """A sandbox whose job has ended, or that no job knows: the last process died before it was forgotten."""
        job = await jobs.find_by_vm(self._means.database, state.id)
        log.info("sandbox.orphan", vm_id=state.id, request_id=None if job is None else job.request_id)
        await self._remove(state.id)

    async def _remove(self, vm_id: str) -> None:
        while True:
            try:
                await self._means.node.stop(vm_id, StopSandbox(reason="no job needs it", grace_seconds=0))
                return await self._means.node.forget(vm_id)
            except NodeUnavailable:
                await self.link.again()
            except NotFound:
                return None
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
        for run in self._runs.values():
            run.shut_down()
        if self.link.is_up and self._tasks:
            await asyncio.wait(set(self._tasks), timeout=SHUT_DOWN_LIMIT)
        for run in self._runs.values():
            run.attached.set()  # nobody waits any longer for what begins after the next start
        log.info("jobs.shut_down", left=len(self._runs), milliseconds=(now_ns() - begun) // 1_000_000)


def _log_failure(saving: asyncio.Task[None]) -> None:
    if not saving.cancelled() and (error := saving.exception()) is not None:
        log.warning("save.failed", error=str(error))
