"""Jobs from acceptance to their end, with a node that lives in memory and does what it is told.

It stands for the program on the other side of the socket, which the e2e tests run for real.
"""

import asyncio
from pathlib import Path

import pytest

from roost.errors import NodeUnavailable, SetupMissing
from roost.node.protocol import VERSION, SandboxState
from tests.jobs.fresh import fresh_database
from tests.jobs.memory_node import Node, Open, ended, opener, order, reread, until


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def opened(tmp_path: Path, node: Node) -> Open:
    fresh_database(tmp_path / "roost.db")
    return opener(tmp_path, node)


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
