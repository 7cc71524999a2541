"""Starts what is scheduled, when it is due: sleeps until the next instant of any schedule, and reads no rows meanwhile.

Each instant is recorded first (`cron.py:record_due`), then begun, in the order of its schedule: as a job of its own,
or inside the persistent job that holds its workspace (`entry.py`). What was recorded and not begun, or begun and not
seen to its end, is taken up again after a restart.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from roost.clock import Clock, SystemClock
from roost.db.database import Bound, Database
from roost.db.secret import Secret
from roost.errors import Conflict, Invalid, NodeUnavailable, RoostError
from roost.jobs import cron as crons
from roost.jobs import cron_times as times
from roost.jobs import job as jobs
from roost.jobs.cron import Cron, CronRun
from roost.jobs.entry import Entries, Outcome
from roost.jobs.execs import new_number
from roost.jobs.job import Job, Order
from roost.jobs.live import LiveJobs
from roost.jobs.result import script_ended

if TYPE_CHECKING:
    from roost.node.client import NodeClient

AT_ONCE = 256  # schedules that are begun together
LOOK_AT_CLOCK = 60.0  # seconds; the machine's clock may be set while we sleep
LOOK = 1.0  # seconds between looks, in memory, whether the script of a job that stays is over
LOOK_AT_ROWS = 60.0  # seconds; a schedule may be disabled while its run waits for another job
AGAIN = 1.0  # seconds after a failure
RESTARTED = "its sandbox went cold before the script had ended"

log: FilteringBoundLogger = structlog.get_logger()


class Scheduler:
    """Enter it after the jobs were recovered; leave it before them. `changed` is for whoever changes a schedule."""

    def __init__(
        self, database: Database, secret: Secret, live: LiveJobs, node: "NodeClient", clock: Clock | None = None
    ) -> None:
        self.clock = clock or SystemClock()
        self.defining = asyncio.Lock()  # held by who changes what schedules hold copies of
        self._database = database
        self._secret = secret
        self._live = live
        self._entries = Entries(live, node)
        self._schedules_changed = asyncio.Event()
        self._asked: set[str] = set()  # schedules that have runs to begin
        self._beginning: dict[str, asyncio.Task[None]] = {}  # by schedule
        self._under_way: dict[str, set[asyncio.Task[None]]] = {}
        self._time: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for run in await crons.unended(self._database):
            if run.status == "running":
                self._own(run.cron_id, self._resume(run))
            else:
                self._begin_soon(run.cron_id)
        self._time = asyncio.create_task(self._keep_time(), name="scheduler")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        tasks = {*self._beginning.values(), *(task for tasks in self._under_way.values() for task in tasks)}
        if self._time is not None:
            tasks.add(self._time)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def changed(self) -> None:
        """A schedule is new, or another one than it was."""
        self._schedules_changed.set()

    # -- time ----------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        while True:
            self._schedules_changed.clear()
            try:
                next_ns = await crons.next_due(self._database)
                if next_ns is None or next_ns > self.clock.now_ns():
                    await self._rest(next_ns)
                else:
                    await self._fire()
            except Exception:
                log.exception("cron.fault")
                await asyncio.sleep(AGAIN)

    async def _rest(self, until_ns: int | None) -> None:
        while not self._schedules_changed.is_set():
            left = None if until_ns is None else until_ns - self.clock.now_ns()
            if left is not None and left <= 0:
                return
            seconds = None if left is None else min(left / times.SECOND, LOOK_AT_CLOCK)
            await self.clock.wait(self._schedules_changed, seconds)

    async def _fire(self) -> None:
        now_ns = self.clock.now_ns()
        due = await crons.due(self._database, now_ns, AT_ONCE)
        failures = await asyncio.gather(*(self._fire_one(cron, now_ns) for cron in due), return_exceptions=True)
        for cron, failure in zip(due, failures, strict=True):
            if failure is not None:
                log.error("cron.unrecorded", cron=cron.id, exc_info=failure)
        if any(failures):
            await asyncio.sleep(AGAIN)

    async def _fire_one(self, cron: Cron, now_ns: int) -> None:
        assert cron.next_ns is not None
        try:
            instants = times.owed(cron.expression, cron.timezone, cron.next_ns, now_ns)
            next_ns = times.next_after(cron.expression, cron.timezone, now_ns)
        except Invalid as error:  # a time zone that this machine no longer knows
            log.warning("cron.disabled", cron=cron.id, error=str(error))
            return await crons.change(self._database, cron, enabled=False, next_ns=None)
        runs = await self._runs_of(cron, instants, now_ns)
        await crons.record_due(self._database, cron, runs, next_ns)
        return self._begin_soon(cron.id)

    async def _runs_of(self, cron: Cron, instants: list[int], now_ns: int) -> list[CronRun]:
        """What becomes of the instants that have come."""
        wanted = times.made_up_for(instants, cron.missed, now_ns)
        waits = cron.overlap != "skip" or len(wanted) > 1
        if not wanted:
            why = "missed: Roost was not running at that time"
            return [_skipped(crons.instant(cron, one, waits), why, now_ns) for one in instants[-1:]]
        runs = [crons.instant(cron, one, waits) for one in wanted]
        room = crons.MAX_QUEUED - len(await crons.queued(self._database, cron.id)) if waits else len(runs)
        return [run if at < room else _skipped(run, crons.FULL, now_ns) for at, run in enumerate(runs)]

    # -- beginning -----------------------------------------------------------------------------------------

    def _begin_soon(self, cron_id: str) -> None:
        self._asked.add(cron_id)
        if cron_id not in self._beginning:
            task = asyncio.create_task(self._begin_all(cron_id), name=f"cron {cron_id}")
            self._beginning[cron_id] = task
            task.add_done_callback(lambda _: self._beginning.pop(cron_id, None))

    async def _begin_all(self, cron_id: str) -> None:
        """The schedule's runs that wait, one after the other, until there are none."""
        while cron_id in self._asked:
            self._asked.discard(cron_id)
            try:
                while waiting := await crons.queued(self._database, cron_id):
                    cron = await crons.read(self._database, cron_id)
                    if cron is None or self._live.closing:
                        return
                    await self._begin(cron, waiting[0])
            except Exception:
                log.exception("cron.fault", cron=cron_id)
                await asyncio.sleep(AGAIN)
                self._asked.add(cron_id)

    async def _begin(self, cron: Cron, run: CronRun) -> None:
        """Begins or skips it, or returns when it may be worth another look."""
        if not cron.enabled:
            return await self._skip(run, "the cron job was disabled while it waited")
        earlier = self._under_way.get(cron.id)
        if earlier and cron.overlap != "parallel":
            if not run.waits:
                return await self._skip(run, "an earlier run has not ended")
            await asyncio.wait(earlier, return_when=asyncio.FIRST_COMPLETED)
            return None
        holder = await crons.holder(self._database, cron)
        if holder is None:
            return await self._start(cron, run)
        if holder.persistent:
            return await self._enter(cron, run, holder)
        if not run.waits:
            return await self._skip(run, f"workspace '{cron.workspace}' is in use by job {holder.request_id}")
        return await self._end_of(holder, LOOK_AT_ROWS)

    async def _start(self, cron: Cron, run: CronRun) -> None:
        """As a job: written in one transaction with the run's change."""
        now_ns = self.clock.now_ns()

        def also(request_id: str) -> tuple[Bound, ...]:
            return crons.begun(run, request_id, now_ns)

        try:
            order = crons.order_of(self._secret, cron)
            job = await self._live.submit(cron.account_id, order, also, in_line=False)
        except NodeUnavailable:  # shutting down: it is begun after the next start
            return
        except Conflict as error:
            if await crons.holder(self._database, cron) is None:
                await self._record(run, Outcome("error", reason=str(error)))
            return
        except RoostError as error:
            await self._record(run, Outcome("error", reason=str(error)))
            return
        log.info("cron.run", cron=cron.id, request_id=job.request_id, late_ms=(now_ns - run.scheduled_ns) // 1_000_000)
        self._own(cron.id, self._follow(run, job))

    async def _enter(self, cron: Cron, run: CronRun, holder: Job) -> None:
        """As a process of a sandbox that is there, or sleeps."""
        order, now_ns, number = crons.order_of(self._secret, cron), self.clock.now_ns(), new_number()
        await self._database.write(crons.started(run, holder.request_id, now_ns, number))
        log.info("cron.enter", cron=cron.id, request_id=holder.request_id, late_ms=(now_ns - run.scheduled_ns) // 10**6)
        run = msgspec.structs.replace(run, request_id=holder.request_id, exec_number=number, started_ns=now_ns)
        self._own(cron.id, self._inside(run, holder, order))

    # -- what is under way ---------------------------------------------------------------------------------

    def _own(self, cron_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"cron {cron_id}")
        self._under_way.setdefault(cron_id, set()).add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._disown(cron_id, task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("cron.fault", cron=cron_id, exc_info=error)

        task.add_done_callback(ended)

    def _disown(self, cron_id: str, task: asyncio.Task[None] | None) -> None:
        tasks = self._under_way.get(cron_id, set[asyncio.Task[None]]())
        if task is not None:
            tasks.discard(task)
        if not tasks:
            self._under_way.pop(cron_id, None)

    async def _resume(self, run: CronRun) -> None:
        """Whose beginning the last process has recorded."""
        job = None if run.request_id is None else await crons.job_of(self._database, run.request_id)
        if job is None:
            return await self._record(run, Outcome("error", reason="its job is gone"))
        if run.exec_number is None:
            return await self._follow(run, job)
        cron = await crons.read(self._database, run.cron_id)
        if cron is None:
            return None
        return await self._inside(run, job, crons.order_of(self._secret, cron))

    async def _follow(self, run: CronRun, job: Job) -> None:
        job = await self._script_end(job)
        if job.final:
            status = "completed" if job.status == "completed" else "error"
            return await self._record(run, Outcome(status, job.exit_code, job.error))
        if job.script_ended_ns is None:
            return await self._record(run, Outcome("error", reason=RESTARTED))
        return await self._record(run, Outcome("completed" if job.exit_code == 0 else "error", job.exit_code))

    async def _script_end(self, job: Job) -> Job:
        """The job when its script is over: it has ended or, if it stays, its script has."""
        while True:
            await self._end_of(job, None)
            job = self._live.as_now(await jobs.reread(self._database, job))
            if job.final or job.script_ended_ns is not None or job.wakes:
                return job
            await asyncio.sleep(LOOK)  # between two runs of a job that stays

    async def _end_of(self, job: Job, within: float | None) -> None:
        """Returns when the job has no run any more, its script is over, or the time is."""
        run = self._live.run_of(job)
        while run is not None and not run.left.is_set():
            if job.persistent and run.state is not None and script_ended(run.state):
                return
            try:
                async with asyncio.timeout(LOOK if job.persistent else within):
                    await run.left.wait()
            except TimeoutError:
                if within is not None:
                    return
        if run is None and within is not None:
            await asyncio.sleep(LOOK)  # it has just begun, or just ended

    async def _inside(self, run: CronRun, holder: Job, order: Order) -> None:
        async def entered(vm_id: str) -> None:
            await self._recorded(run, vm_id=vm_id)

        try:
            outcome = await self._entries.run(run, holder, order, entered)
        except Conflict as error:
            if run.vm_id is not None:
                outcome = Outcome("error", reason=str(error))
            else:  # it ended just then, and nothing was asked of it: another look
                await asyncio.sleep(AGAIN)
                self._disown(run.cron_id, asyncio.current_task())  # or it would be in its own way
                await self._recorded(run, status="queued", request_id=None, exec_number=None, started_ns=None)
                return self._begin_soon(run.cron_id)
        if outcome is not None:
            await self._record(run, outcome)
        return None

    # -- records -------------------------------------------------------------------------------------------

    async def _skip(self, run: CronRun, reason: str) -> None:
        log.info("cron.skip", cron=run.cron_id, reason=reason)
        await self._recorded(run, status="skipped", reason=reason, ended_ns=self.clock.now_ns())

    async def _record(self, run: CronRun, outcome: Outcome) -> None:
        log.info("cron.end", cron=run.cron_id, status=outcome.status, exit_code=outcome.exit_code)
        told = {"status": outcome.status, "exit_code": outcome.exit_code, "reason": outcome.reason}
        await self._recorded(run, **told, ended_ns=self.clock.now_ns())

    async def _recorded(self, run: CronRun, **values: Any) -> None:
        """A full disk delays it and loses nothing."""
        while True:
            try:
                return await crons.record(self._database, run, **values)
            except RoostError as error:
                log.warning("cron.unrecorded", cron=run.cron_id, error=str(error))
                await asyncio.sleep(AGAIN)


def _skipped(run: CronRun, reason: str, now_ns: int) -> CronRun:
    return msgspec.structs.replace(run, status="skipped", reason=reason, ended_ns=now_ns)
