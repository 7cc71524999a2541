"""A scheduler in front of a node that lives in memory, with a clock that tests move."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from roost import ids
from roost.clock import now_ns
from roost.db import secret
from roost.errors import Conflict, NotFound
from roost.jobs import cron as crons
from roost.jobs import cron_times as times
from roost.jobs.cron import Cron, CronRun
from roost.jobs.job import Keeping, Order, Work
from roost.jobs.live import LiveJobs
from roost.jobs.scheduler import Scheduler
from roost.node.protocol import ChangeProcess, LogRecord, ProcessState, StartProcess
from tests.jobs.memory_node import Node, opener, until

MINUTE = 60 * 10**9
NOON = int(datetime.fromisoformat("2027-03-01T12:00:00+00:00").timestamp()) * 10**9


@dataclass
class MovedClock:
    """Stands still until it is moved."""

    time_ns: int = NOON
    waiters: list[asyncio.Event] = field(default_factory=list)

    def now_ns(self) -> int:
        return self.time_ns

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        deadline = None if seconds is None else self.time_ns + int(seconds * 1e9)
        while not event.is_set() and (deadline is None or self.time_ns < deadline):
            moved = asyncio.Event()
            self.waiters.append(moved)
            waits = [asyncio.create_task(moved.wait()), asyncio.create_task(event.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self.waiters.remove(moved)
                for task in waits:
                    task.cancel()

    def move(self, nanoseconds: int) -> None:
        self.time_ns += nanoseconds
        for moved in self.waiters:
            moved.set()


class EnterableNode(Node):
    """Also runs kept processes, which end when the test says so; they go with their sandbox."""

    def __init__(self) -> None:
        super().__init__()
        self.processes_of: dict[str, dict[int, ProcessState]] = {}
        self.asked: list[tuple[str, StartProcess]] = []
        self.signals: list[int | None] = []

    async def start_process(self, id: str, number: int, request: StartProcess) -> ProcessState:
        self.reach()
        if id not in self.states or self.states[id].phase != "running" or self.states[id].frozen:
            raise Conflict("not running, or frozen")
        known = self.processes_of.setdefault(id, {})
        if number not in known:
            self.asked.append((id, request))
            known[number] = ProcessState(id=number, arguments=request.arguments, started_ns=now_ns())
            self._count(id)
        return known[number]

    async def process(self, id: str, number: int) -> ProcessState:
        self.reach()
        if id not in self.states or self.states[id].phase != "running" or number not in self.processes_of.get(id, {}):
            raise NotFound("no such process")
        return self.processes_of[id][number]

    async def process_output(
        self, id: str, number: int, after: int = 0, follow: bool = False
    ) -> AsyncIterator[LogRecord]:
        while (await self.process(id, number)).ended_ns is None:
            await asyncio.sleep(0.002)
        if after == 0:
            yield LogRecord(seq=5, time_ns=1, source="stdout", data=b"said\n")

    async def change_process(self, id: str, number: int, change: ChangeProcess) -> ProcessState:
        self.signals.append(change.signal)
        self.exit_process(id, 137)
        return await self.process(id, number)

    def exit_process(self, id: str, exit_code: int) -> None:
        """Those of the sandbox that run are over."""
        for number, state in self.processes_of[id].items():
            if state.ended_ns is None:
                over = msgspec.structs.replace(state, ended_ns=now_ns(), exit_code=exit_code)
                self.processes_of[id][number] = over
        self._count(id)

    def _count(self, id: str) -> None:
        running = [one for one in self.processes_of[id].values() if one.ended_ns is None]
        self.tell(msgspec.structs.replace(self.states[id], processes=len(running)))


@dataclass
class World:
    scheduler: Scheduler
    live: LiveJobs
    node: EnterableNode
    clock: MovedClock
    secret: secret.Secret

    @property
    def database(self) -> Any:
        return self.live.database  # type: ignore[attr-defined]

    async def cron(self, expression: str = "* * * * *", zone: str = "UTC", **more: Any) -> Cron:
        """A schedule whose script is its name."""
        keeping = Keeping(workspace=more.pop("workspace", None), persistent=more.pop("persistent", False))
        name, timeout, id = more.pop("name", "tick"), more.pop("timeout", 300), ids.cron_id()
        environment = more.pop("environment", {})
        order = Order(Work(name.encode(), environment), name, "standard", 1.0, 100, 2, timeout, keeping)
        now = self.clock.now_ns()
        told = {"enabled": True, "missed": "latest", "overlap": "skip", **more}
        made = Cron(
            id=id, account_id=1, name=name, expression=expression, timezone=zone, workspace=keeping.workspace,
            persistent=keeping.persistent, work=crons.seal(self.secret, id, order), created_ns=now, updated_ns=now,
            next_ns=times.next_after(expression, zone, now), **told,
        )  # fmt: skip
        await crons.create(self.database, made)
        self.scheduler.changed()
        return made

    async def runs(self, cron: Cron) -> list[CronRun]:
        """Oldest first."""
        return (await crons.history(self.database, cron, 1000))[::-1]

    async def statuses(self, cron: Cron) -> list[str]:
        return [run.status for run in await self.runs(cron)]

    async def until_runs(self, cron: Cron, *statuses: str) -> list[CronRun]:
        async def are() -> bool:
            return await self.statuses(cron) == list(statuses)

        try:
            await until(are)
        except TimeoutError:
            raise AssertionError(f"{[(one.status, one.reason) for one in await self.runs(cron)]}") from None
        return await self.runs(cron)

    async def sandbox(self, script: str, at: int = 0) -> str:
        """The id of the sandbox that was started `at`th with this script."""

        def found() -> list[str]:
            return [vm for vm, wanted in self.node.requests.items() if wanted.script.decode() == script]

        await until(lambda: len(found()) > at and found()[at] in self.node.states)
        return found()[at]


Started = Callable[[], Any]


def starter(directory: Path, node: EnterableNode, clock: MovedClock) -> Started:
    """Starts the same schedules again and again, as restarts do."""
    open_jobs = opener(directory, node)

    @asynccontextmanager
    async def start() -> AsyncIterator[World]:
        async with open_jobs() as live:
            await until(lambda: live.link.is_up)
            key = secret.load(directory / "secret.key")
            async with Scheduler(live.database, key, live, node, clock) as scheduler:  # type: ignore[arg-type]
                yield World(scheduler, live, node, clock, key)

    return start
