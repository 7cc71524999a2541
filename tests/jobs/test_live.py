"""Jobs from acceptance to their end, with a node that lives in memory and does what it is told.

The node here keeps the protocol's promises (starting the same id again changes nothing, events begin with all that
exists); it stands for the program on the other side of the socket, which the e2e tests run for real.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from roost.db import migrate, secret
from roost.db.database import Database
from roost.db.schema import accounts
from roost.errors import NoCapacity, NodeUnavailable, NotFound, SetupMissing
from roost.jobs import job as jobs
from roost.jobs.job import Job, Order, Work
from roost.jobs.live import LiveJobs
from roost.node.protocol import VERSION, Event, NodeInfo, PoolStatus, SandboxState, Snapshot, StartSandbox, StopSandbox
from roost.sandboxes.placement import Machine, SingleNode


class Node:
    """A node in memory."""

    def __init__(self) -> None:
        self.up = True
        self.protocol = VERSION
        self.room = 1000
        self.states: dict[str, SandboxState] = {}
        self.scripts: dict[str, bytes] = {}
        self.started: list[str] = []  # scripts, in order
        self.environments: list[dict[str, str]] = []
        self.stops: list[str] = []
        self.listeners: list[asyncio.Queue[SandboxState | None]] = []

    async def __aenter__(self) -> "Node":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def reach(self) -> None:
        if not self.up:
            raise NodeUnavailable("the node does not answer")

    def go(self) -> None:
        """The node's program dies; its sandboxes live on."""
        self.up = False
        for listener in self.listeners:
            listener.put_nowait(None)

    def tell(self, state: SandboxState) -> SandboxState:
        self.states[state.id] = state
        for listener in self.listeners:
            listener.put_nowait(state)
        return state

    def end(
        self, vm_id: str, cause: Any = "exited", exit_code: int | None = 0, reason: str | None = None
    ) -> SandboxState:
        ended = SandboxState(
            id=vm_id, phase="ended", started_ns=10**18, script_ended_ns=10**18 + 5_000_000, exit_code=exit_code,
            cause=cause, reason=reason, ended_ns=10**18 + 6_000_000,
        )  # fmt: skip
        return self.tell(ended)

    async def info(self) -> NodeInfo:
        self.reach()
        pool = PoolStatus(idle=3, busy=0, creating=0, min_size=3, max_size=0)
        return NodeInfo(
            version="x", protocol=self.protocol, runtime="memory", cgroup="v1", cpus=2, memory_mb=4000,
            memory_available_mb=4000, pool=pool,
        )  # fmt: skip

    async def start(self, vm_id: str, wanted: StartSandbox) -> SandboxState:
        self.reach()
        if vm_id in self.states:
            return self.states[vm_id]
        if len([state for state in self.states.values() if state.phase != "ended"]) >= self.room:
            raise NoCapacity("full")
        if wanted.image == "missing":
            raise NotFound("there is no image 'missing'")
        self.started.append(wanted.script.decode())
        self.environments.append(wanted.environment)
        return self.tell(SandboxState(id=vm_id, phase="running", started_ns=10**18))

    async def stop(self, vm_id: str, wanted: StopSandbox) -> SandboxState:
        self.reach()
        if vm_id not in self.states:
            raise NotFound("no such sandbox")
        if self.states[vm_id].phase == "ended":
            return self.states[vm_id]
        self.stops.append(vm_id)
        return self.end(vm_id, "stopped", 143, wanted.reason)

    async def forget(self, vm_id: str) -> None:
        self.reach()
        if self.states.pop(vm_id, None) is None:
            raise NotFound("no such sandbox")

    async def events(self) -> AsyncIterator[Event]:
        self.reach()
        listener: asyncio.Queue[SandboxState | None] = asyncio.Queue()
        self.listeners.append(listener)
        for state in list(self.states.values()):
            yield Event(state=state)
        yield Event(snapshot=Snapshot(sandboxes=len(self.states)))
        while (state := await listener.get()) is not None:
            yield Event(state=state)
        self.listeners.remove(listener)
        raise NodeUnavailable("the node went away")


Open = Callable[[], Any]


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def opened(tmp_path: Path, node: Node) -> AsyncIterator[Open]:
    """Starts a control plane's jobs on the same files again and again, as restarts do."""
    migrate.upgrade(tmp_path / "roost.db")

    @asynccontextmanager
    async def open_jobs(memory_mb: int = 4000) -> AsyncIterator[LiveJobs]:
        async with Database(tmp_path / "roost.db") as database:
            await database.write(accounts.insert().prefix_with("OR IGNORE").values(id=1, name="a", created_ns=1))
            placement = SingleNode(Machine(2, memory_mb))
            key = secret.load(tmp_path / "secret.key")
            async with LiveJobs(database, key, node, placement) as live:  # type: ignore[arg-type]
                live.database = database  # type: ignore[attr-defined]
                yield live

    yield open_jobs


def order(script: str = "x", image: str = "standard", memory_mb: int = 100, **environment: str) -> Order:
    return Order(Work(script.encode(), environment), None, image, 1.0, memory_mb, 2, 300)


async def reread(live: LiveJobs, job: Job) -> Job:
    return await jobs.find(live.database, 1, job.request_id)  # type: ignore[attr-defined]


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits for what other tasks bring about, at most five seconds."""
    async with asyncio.timeout(5):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.002)


async def ended(live: LiveJobs, job: Job) -> Job:
    async def final() -> bool:
        return (await reread(live, job)).final

    await until(final)
    return await reread(live, job)


async def test_a_job_runs_and_its_result_is_recorded_before_the_node_forgets(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await live.submit(1, order("echo", KEY="value"))
        await until(lambda: node.started == ["echo"])
        assert node.environments == [{"KEY": "value"}]

        async def shows_running() -> bool:
            return (await reread(live, job)).status == "running"

        await until(shows_running)
        node.end(job.vm_id)
        result = await ended(live, job)
        assert (result.status, result.exit_code, result.script_duration_ms, result.error) == ("completed", 0, 5, None)
        await until(lambda: not node.states)
        assert live.run_of(job) is None


@pytest.mark.parametrize(
    ("cause", "exit_code", "reason", "expected"),
    [
        ("exited", 3, None, ("error", 3, None)),
        ("timeout", 137, "timeout after 300 s", ("error", 137, "timeout after 300 s")),
        ("oom", 137, "out of memory", ("error", 137, "out of memory")),
        ("lost", None, "lost: the machine restarted", ("error", None, "lost: the machine restarted")),
        ("stopped", 143, "somebody else", ("error", 143, "somebody else")),
    ],
)
async def test_how_a_sandbox_ended_decides_the_status(
    opened: Open, node: Node, cause: str, exit_code: int | None, reason: str | None, expected: tuple[object, ...]
) -> None:
    async with opened() as live:
        job = await live.submit(1, order())
        await until(lambda: job.vm_id in node.states)
        node.end(job.vm_id, cause, exit_code, reason)
        result = await ended(live, job)
        assert (result.status, result.exit_code, result.error) == expected


async def test_stopping_a_running_job_completes_it_with_its_real_exit_code(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await live.submit(1, order())
        await until(lambda: job.vm_id in node.states)
        assert await live.stop(job, 5)
        result = await reread(live, job)
        assert (result.status, result.exit_code, result.stopped) == ("completed", 143, True)


async def test_what_the_node_refuses_ends_the_job_with_the_reason(opened: Open) -> None:
    async with opened() as live:
        result = await ended(live, await live.submit(1, order(image="missing")))
        assert (result.status, result.exit_code, result.error) == ("error", None, "there is no image 'missing'")
        assert result.started_ns is None


async def test_jobs_wait_in_order_for_a_full_node(opened: Open, node: Node) -> None:
    node.room = 1
    async with opened() as live:
        submitted = [await live.submit(1, order(f"{number}")) for number in range(4)]
        for number, job in enumerate(submitted):
            await until(lambda count=number + 1: len(node.started) == count)
            node.end(job.vm_id)
        for job in submitted:
            assert (await ended(live, job)).status == "completed"
    assert node.started == ["0", "1", "2", "3"]


async def test_jobs_wait_in_order_for_memory_and_a_stopped_one_lets_the_next_pass(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await live.submit(1, order("first", memory_mb=14_000))  # of 14,400 that are promised at most
        large = await live.submit(1, order("large", memory_mb=5_000))
        small = await live.submit(1, order("small", memory_mb=50))
        await until(lambda: first.vm_id in node.states)
        assert node.started == ["first"]
        assert await live.stop(large, 5)
        await until(lambda: small.vm_id in node.states)
        assert (await reread(live, large)).exit_code is None
    assert node.started == ["first", "small"]


async def test_without_a_node_jobs_wait_and_then_run_in_order(opened: Open, node: Node) -> None:
    node.up = False
    async with opened() as live:
        for number in range(3):
            await live.submit(1, order(f"{number}"))
        node.up = True
        await until(lambda: len(node.started) == 3)
    assert node.started == ["0", "1", "2"]


async def test_after_a_kill_pending_jobs_run_in_order_with_their_environment(opened: Open, node: Node) -> None:
    node.up = False
    async with opened() as live:
        for number in range(3):
            await live.submit(1, order(f"{number}", NUMBER=f"{number}"))
    node.up = True
    async with opened():
        await until(lambda: len(node.started) == 3)
    assert node.started == ["0", "1", "2"]
    assert node.environments == [{"NUMBER": "0"}, {"NUMBER": "1"}, {"NUMBER": "2"}]


async def test_after_a_kill_a_running_job_is_adopted_and_not_run_twice(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await live.submit(1, order())
        await until(lambda: job.vm_id in node.states)
    async with opened() as live:
        await until(lambda: live.link.is_up)
        node.end(job.vm_id)
        assert (await ended(live, job)).status == "completed"
    assert len(node.started) == 1


async def test_after_a_kill_a_job_that_ended_meanwhile_has_its_result(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await live.submit(1, order())
        await until(lambda: job.vm_id in node.states)
    node.end(job.vm_id, exit_code=7)
    async with opened() as live:
        assert (await ended(live, job)).exit_code == 7
        await until(lambda: not node.states)


async def test_a_started_job_whose_row_still_says_pending_is_adopted(opened: Open, node: Node) -> None:
    node.up = False
    async with opened() as live:
        job = await live.submit(1, order())
    node.up = True
    node.tell(SandboxState(id=job.vm_id, phase="running", started_ns=5))
    async with opened() as live:
        await until(lambda: live.link.is_up)
        node.end(job.vm_id)
        assert (await ended(live, job)).status == "completed"
    assert node.started == []


async def test_a_running_job_that_the_node_does_not_know_is_lost_and_nothing_is_invented(
    opened: Open, node: Node
) -> None:
    async with opened() as live:
        job = await live.submit(1, order())

        async def shows_running() -> bool:
            return (await reread(live, job)).status == "running"

        await until(shows_running)
    node.states.clear()
    async with opened() as live:
        result = await ended(live, job)
    assert (result.status, result.exit_code) == ("error", None)
    assert result.error is not None and result.error.startswith("lost") and "unknown" in result.error
    assert len(node.started) == 1


async def test_a_node_that_goes_and_comes_back_loses_no_job(opened: Open, node: Node) -> None:
    async with opened() as live:
        first = await live.submit(1, order("first"))
        await until(lambda: first.vm_id in node.states)
        node.go()
        await until(lambda: not live.link.is_up)
        second = await live.submit(1, order("second"))
        node.states[first.vm_id] = SandboxState(
            id=first.vm_id, phase="ended", started_ns=1, script_ended_ns=2, exit_code=0, cause="exited", ended_ns=3
        )
        node.up = True
        assert (await ended(live, first)).status == "completed"
        await until(lambda: second.vm_id in node.states)


async def test_sandboxes_that_no_job_needs_are_removed(opened: Open, node: Node) -> None:
    node.tell(SandboxState(id="deadbeef", phase="running", started_ns=1))
    async with opened():
        await until(lambda: not node.states)
    assert node.stops == ["deadbeef"]


async def test_an_orderly_end_stops_what_runs_and_keeps_what_waits(opened: Open, node: Node) -> None:
    node.room = 1
    async with opened() as live:
        runs, waits = await live.submit(1, order("runs")), await live.submit(1, order("waits"))
        await until(lambda: runs.vm_id in node.states)
        await live.shut_down()
        with pytest.raises(NodeUnavailable):
            await live.submit(1, order())
        result = await reread(live, runs)
        assert (result.status, result.exit_code, result.error) == ("error", 143, "Roost was shut down")
        assert (await reread(live, waits)).status == "pending"
    async with opened():
        await until(lambda: node.started == ["runs", "waits"])


async def test_a_node_of_another_protocol_is_said_clearly(opened: Open, node: Node) -> None:
    node.protocol = VERSION + 1
    async with opened() as live:
        with pytest.raises(SetupMissing, match="protocol"):
            await asyncio.wait_for(asyncio.shield(live.failure), 5)


async def test_a_burst_ends_completely(opened: Open, node: Node) -> None:
    async with opened() as live:
        submitted = await asyncio.gather(*(live.submit(1, order(f"{number}")) for number in range(100)))
        await until(lambda: len(node.started) == 100)
        for job in submitted:
            node.end(job.vm_id)
        for job in submitted:
            assert (await ended(live, job)).status == "completed"
        await until(lambda: not node.states)
