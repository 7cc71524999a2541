"""Schedules fire once for each of their instants, whatever is in the way and however often Roost is restarted."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import func, select

from roost.db.database import Database
from roost.db.schema import jobs
from roost.errors import StateUnwritable
from roost.jobs import cron as crons
from roost.jobs.cron import KEPT_RUNS, MAX_QUEUED
from tests.jobs.cron_world import MINUTE, NOON, EnterableNode, MovedClock, Started, World, starter
from tests.jobs.fresh import fresh_database
from tests.jobs.memory_node import keeping, order, until


@pytest.fixture
async def node() -> EnterableNode:
    return EnterableNode()


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def start(tmp_path: Path, node: EnterableNode, clock: MovedClock) -> Started:
    fresh_database(tmp_path / "roost.db")
    return starter(tmp_path, node, clock)


async def how_many_jobs(world: World) -> int:
    return (await world.database.read(select(func.count()).select_from(jobs)))[0][0]


async def until_fired(world: World, cron: crons.Cron) -> None:
    """The present minute has its run; the first one of all has begun."""

    async def there() -> bool:
        runs = await world.runs(cron)
        begun = len(runs) > 1 or (bool(runs) and runs[0].status != "queued")
        return begun and runs[-1].scheduled_ns == world.clock.now_ns()

    await until(there)


# ---- firing ------------------------------------------------------------------------------------------------


async def test_a_script_runs_when_its_time_comes_and_not_before(start: Started, node: EnterableNode) -> None:
    async with start() as world:
        cron = await world.cron("* * * * *", environment={"SECRET": "s3cret"})
        world.clock.move(MINUTE - 1)
        await asyncio.sleep(0.05)
        assert await world.runs(cron) == [] and node.started == []
        world.clock.move(1)
        vm_id = await world.sandbox("tick")
        (run,) = await world.until_runs(cron, "running")
        assert run.scheduled_ns == NOON + MINUTE
        assert node.environments == [{"SECRET": "s3cret"}]
        node.end(vm_id, exit_code=3)
        (run,) = await world.until_runs(cron, "error")
        assert run.exit_code == 3
        known = await crons.job_of(world.database, run.request_id or "")
        assert known is not None and (known.name, known.account_id, known.exit_code) == ("tick", 1, 3)


async def test_the_environment_lies_sealed_in_the_file(start: Started, tmp_path: Path) -> None:
    async with start() as world:
        await world.cron(environment={"SECRET": "hunter2hunter2"}, name="script-text-of-mine", enabled=False)
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("roost.db*"))
    assert b"tick" in stored or b"script-text-of-mine" in stored
    assert b"hunter2hunter2" not in stored


async def test_no_rows_are_read_between_two_instants(start: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as world:
        await world.cron("0 0 1 1 *")
        await asyncio.sleep(0.05)
        reads: list[object] = []
        real = Database.read

        async def counted(self: Database, statement: object) -> object:
            reads.append(statement)
            return await real(self, statement)  # type: ignore[arg-type]

        monkeypatch.setattr(Database, "read", counted)
        for _ in range(50):
            world.clock.move(MINUTE)
            await asyncio.sleep(0.001)
        assert reads == []


async def test_a_schedule_that_is_disabled_or_removed_fires_no_more(start: Started) -> None:
    async with start() as world:
        off, gone = await world.cron(name="off"), await world.cron(name="gone")
        kept = await world.cron(name="kept")
        await crons.change(world.database, off, enabled=False, next_ns=None)
        await crons.remove(world.database, gone)
        world.scheduler.changed()
        world.clock.move(MINUTE)
        await world.until_runs(kept, "running")
        await world.sandbox("kept")
        assert await world.runs(off) == [] == await world.runs(gone)
        assert world.node.started == ["kept"]


async def test_many_that_are_due_at_once_all_begin(start: Started) -> None:
    async with start() as world:
        due = [await world.cron(name=f"many-{number}") for number in range(300)]
        world.clock.move(MINUTE)

        async def all_there() -> bool:
            return await how_many_jobs(world) == len(due)

        await until(all_there)
        assert [await world.statuses(cron) for cron in due[::50]] == [["running"]] * 6


# ---- in the way --------------------------------------------------------------------------------------------


async def test_skip_passes_over_a_run_while_the_one_before_is_under_way(start: Started, node: EnterableNode) -> None:
    async with start() as world:
        cron = await world.cron(overlap="skip")
        world.clock.move(MINUTE)
        vm_id = await world.sandbox("tick")
        world.clock.move(MINUTE)
        _, second = await world.until_runs(cron, "running", "skipped")
        assert second.reason == "an earlier run has not ended"
        node.end(vm_id)
        await world.until_runs(cron, "completed", "skipped")
        world.clock.move(MINUTE)
        await world.until_runs(cron, "completed", "skipped", "running")


async def test_queue_waits_until_the_one_before_has_ended(start: Started, node: EnterableNode) -> None:
    async with start() as world:
        cron = await world.cron(overlap="queue")
        world.clock.move(MINUTE)
        first = await world.sandbox("tick")
        world.clock.move(MINUTE)
        await world.until_runs(cron, "running", "queued")
        node.end(first)
        await world.until_runs(cron, "completed", "running")
        assert await world.sandbox("tick", at=1) != first


async def test_the_queue_has_an_end(start: Started) -> None:
    async with start() as world:
        cron = await world.cron(overlap="queue")
        for _ in range(MAX_QUEUED + 2):
            world.clock.move(MINUTE)
            await until_fired(world, cron)
        statuses = await world.statuses(cron)
        assert statuses == ["running", *["queued"] * MAX_QUEUED, "skipped"]
        assert (await world.runs(cron))[-1].reason == crons.FULL


async def test_parallel_runs_do_not_wait_for_each_other(start: Started) -> None:
    async with start() as world:
        cron = await world.cron(overlap="parallel")
        for _ in range(3):
            world.clock.move(MINUTE)
            await until_fired(world, cron)
        await world.until_runs(cron, "running", "running", "running")


async def test_skip_says_which_job_has_its_workspace(start: Started) -> None:
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w"))
        cron = await world.cron(workspace="w")
        world.clock.move(MINUTE)
        (run,) = await world.until_runs(cron, "skipped")
        assert run.reason == f"workspace 'w' is in use by job {job.request_id}"


@pytest.mark.parametrize("overlap", ["queue", "parallel"])
async def test_others_wait_for_the_writer_of_their_workspace(start: Started, node: EnterableNode, overlap: str) -> None:
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w"))
        cron = await world.cron(workspace="w", overlap=overlap)
        world.clock.move(MINUTE)
        await world.until_runs(cron, "queued")
        await until(lambda: job.vm_id in node.states)
        node.end(job.vm_id)
        await world.until_runs(cron, "running")
        assert (await crons.holder(world.database, cron)).workspace == "w"  # type: ignore[union-attr]


# ---- a sandbox that is there already -----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [None, "frozen", "cold"])
async def test_a_workspaces_sandbox_is_woken_and_the_script_runs_inside(
    start: Started, node: EnterableNode, depth: str | None
) -> None:
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w", persistent=True))
        await until(lambda: job.vm_id in node.states)
        node.exit_script(job.vm_id, 0)
        await until(lambda: world.live.run_of(job).awake)  # type: ignore[union-attr]
        if depth is not None:
            await world.live.sleep(job, depth, 5)  # type: ignore[arg-type]
        cron = await world.cron(workspace="w", environment={"A": "b"})
        world.clock.move(MINUTE)
        await until(lambda: len(node.asked) == 1)
        (vm_id, process) = node.asked[0]
        assert (vm_id == job.vm_id) == (depth != "cold")
        assert (process.arguments, process.environment) == (["/bin/sh", "-c", "tick"], {"A": "b"})
        (run,) = await world.until_runs(cron, "running")
        assert (run.request_id, run.vm_id) == (job.request_id, vm_id)
        live_run = world.live.run_of(job)
        assert live_run is not None and live_run.uses > 0
        node.exit_process(vm_id, 7)
        (run,) = await world.until_runs(cron, "error")
        assert run.exit_code == 7 and run.exec_number is not None
        await until(lambda: live_run.uses == 0)
        assert await how_many_jobs(world) == 1


async def test_later_runs_of_a_persistent_schedule_enter_the_first_ones_sandbox(
    start: Started, node: EnterableNode
) -> None:
    async with start() as world:
        cron = await world.cron(persistent=True, timeout=0)
        world.clock.move(MINUTE)
        vm_id = await world.sandbox("tick")
        node.exit_script(vm_id, 0)
        (first,) = await world.until_runs(cron, "completed")
        world.clock.move(MINUTE)
        await until(lambda: len(node.asked) == 1)
        node.exit_process(vm_id, 0)
        runs = await world.until_runs(cron, "completed", "completed")
        assert runs[1].request_id == first.request_id
        assert await how_many_jobs(world) == 1


async def test_a_script_inside_a_sandbox_has_its_timeout(start: Started, node: EnterableNode) -> None:
    node.states.clear()
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w", persistent=True))
        await until(lambda: job.vm_id in node.states)
        world.clock.time_ns = 10**9 * 1_700_000_000  # long ago, so that its time is over when it begins
        cron = await world.cron(workspace="w", timeout=1)
        world.clock.move(MINUTE)
        (run,) = await world.until_runs(cron, "error")
        assert run.reason == "the script ran into its timeout"
        assert node.signals == [9]


async def test_a_sandbox_that_ends_takes_the_script_with_it_and_that_is_said(
    start: Started, node: EnterableNode
) -> None:
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w", persistent=True))
        cron = await world.cron(workspace="w")
        await until(lambda: job.vm_id in node.states)
        world.clock.move(MINUTE)
        await until(lambda: len(node.asked) == 1)
        await world.live.stop(job, 5)
        (run,) = await world.until_runs(cron, "error")
        assert run.reason == "its sandbox ended before the script had"


async def test_a_sandbox_that_is_just_being_stopped_is_not_entered_and_the_run_becomes_a_job(
    start: Started, node: EnterableNode
) -> None:
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w", persistent=True))
        cron = await world.cron(workspace="w", overlap="queue")
        await until(lambda: job.vm_id in node.states)
        node.may_stop.clear()
        stop = asyncio.create_task(world.live.stop(job, 5))
        await until(lambda: node.stops == [job.vm_id])
        world.clock.move(MINUTE)
        await world.until_runs(cron, "running")
        node.may_stop.set()
        assert await stop
        await world.sandbox("tick")
        (run,) = await world.until_runs(cron, "running")
        assert run.request_id != job.request_id and run.exec_number is None
        assert node.asked == []


# ---- restarts ----------------------------------------------------------------------------------------------


async def test_a_run_that_is_under_way_is_followed_after_a_restart(start: Started, node: EnterableNode) -> None:
    async with start() as world:
        cron = await world.cron()
        world.clock.move(MINUTE)
        vm_id = await world.sandbox("tick")
        await world.until_runs(cron, "running")
    async with start() as world:
        node.end(vm_id)
        await world.until_runs(cron, "completed")
        assert await how_many_jobs(world) == 1


async def test_a_run_that_was_recorded_and_not_begun_is_begun_once(start: Started, clock: MovedClock) -> None:
    async with start() as world:
        cron = await world.cron(name="later")
        cron = (await crons.read(world.database, cron.id)) or cron
    async with start() as world:  # what a process that dies between the two transactions leaves behind
        due = crons.instant(cron, NOON + MINUTE, waits=False)
        await crons.record_due(world.database, cron, [due], NOON + 2 * MINUTE)
    clock.move(MINUTE)
    for _ in range(3):
        async with start() as world:
            await world.until_runs(cron, "running")
            assert await how_many_jobs(world) == 1


async def test_a_run_whose_record_fails_is_not_lost(start: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = Database.write, [2]

    async def full_disk(self: Database, *statements: object) -> object:
        if any("cron_runs" in str(one) for one in statements) and failures[0]:
            failures[0] -= 1
            raise StateUnwritable("full")
        return await real(self, *statements)  # type: ignore[arg-type]

    async with start() as world:
        cron = await world.cron()
        monkeypatch.setattr(Database, "write", full_disk)
        world.clock.move(MINUTE)
        await world.until_runs(cron, "running")
        assert await how_many_jobs(world) == 1


async def test_the_same_instant_never_fires_twice_though_the_clock_goes_back(start: Started) -> None:
    async with start() as world:
        cron = await world.cron()
        world.clock.move(MINUTE)
        await world.until_runs(cron, "running")
        await crons.change(world.database, cron, next_ns=NOON + MINUTE)
        world.scheduler.changed()
        await asyncio.sleep(0.1)
        assert len(await world.runs(cron)) == 1
        assert await how_many_jobs(world) == 1


async def test_a_script_inside_a_sandbox_is_followed_after_a_restart(start: Started, node: EnterableNode) -> None:
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w", persistent=True))
        cron = await world.cron(workspace="w")
        await until(lambda: job.vm_id in node.states)
        world.clock.move(MINUTE)
        await until(lambda: len(node.asked) == 1)
    async with start() as world:
        await world.until_runs(cron, "running")
        node.exit_process(job.vm_id, 0)
        await world.until_runs(cron, "completed")
        assert len(node.asked) == 1


async def test_a_script_inside_a_sandbox_that_went_cold_is_not_run_again(start: Started, node: EnterableNode) -> None:
    async with start() as world:
        job = await world.live.submit(1, keeping(workspace="w", persistent=True))
        cron = await world.cron(workspace="w")
        await until(lambda: job.vm_id in node.states)
        world.clock.move(MINUTE)
        await until(lambda: len(node.asked) == 1)
        await world.live.shut_down()
    async with start() as world:
        (run,) = await world.until_runs(cron, "error")
        assert run.reason == "its sandbox ended before the script had"
        assert len(node.asked) == 1


# ---- missed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missed", "count", "statuses"),
    [
        ("none", 5, ["skipped"]),
        ("latest", 5, ["completed"]),
        ("all", 5, ["completed"] * 5),
        ("all", 99, ["completed"] * 24),
    ],
)
async def test_what_was_missed_while_roost_was_down(
    start: Started, node: EnterableNode, missed: str, count: int, statuses: list[str]
) -> None:
    async with start() as world:
        cron = await world.cron(missed=missed)
    world.clock.move(count * MINUTE + 30 * 10**9)
    async with start() as world:
        for at in range(len(statuses) if missed != "none" else 0):
            node.end(await world.sandbox("tick", at))
        runs = await world.until_runs(cron, *statuses)
        newest = [NOON + number * MINUTE for number in range(count - len(statuses) + 1, count + 1)]
        assert [run.scheduled_ns for run in runs] == newest
        world.clock.move(MINUTE // 2)
        await world.until_runs(cron, *statuses, "running")


async def test_history_keeps_the_newest(start: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crons, "KEPT_RUNS", 3)
    assert KEPT_RUNS == 1000
    async with start() as world:
        await world.live.submit(1, keeping(workspace="w"))
        cron = await world.cron(workspace="w")
        for _ in range(5):
            world.clock.move(MINUTE)
            await until_fired(world, cron)
        await world.until_runs(cron, "skipped", "skipped", "skipped")


async def test_ordinary_jobs_are_untouched_by_schedules(start: Started, node: EnterableNode) -> None:
    async with start() as world:
        cron = await world.cron()
        await world.live.submit(1, order("mine"))
        world.clock.move(MINUTE)
        await world.until_runs(cron, "running")
        await until(lambda: sorted(node.started) == ["mine", "tick"])
