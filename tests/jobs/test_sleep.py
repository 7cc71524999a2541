"""Persistent jobs fall asleep, go cold and wake, with a node that lives in memory and does what it is told."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from roost.clock import now_ns
from roost.errors import Asleep, Conflict
from roost.jobs import idle, sleep
from roost.jobs import job as jobs
from roost.jobs.job import Depth, Job
from roost.jobs.live import LiveJobs
from roost.jobs.run import Run
from roost.node.protocol import NodeInfo
from tests.jobs.fresh import fresh_database
from tests.jobs.memory_node import Node, Open, ended, keeping, opener, order, reread, until


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture
async def opened(tmp_path: Path, node: Node) -> Open:
    fresh_database(tmp_path / "roost.db")
    return opener(tmp_path, node)


async def running(live: LiveJobs, node: Node, **keeps: object) -> tuple[Job, Run]:
    """A persistent job whose script is over; the sandbox stays."""
    job = await live.submit(1, keeping(persistent=True, **keeps))
    await until(lambda: job.vm_id in node.states)
    node.exit_script(job.vm_id, 0)

    async def known() -> bool:
        return (await reread(live, job)).script_ended_ns is not None

    await until(known)
    run = live.run_of(job)
    assert run is not None
    return await reread(live, job), run


async def frozen(live: LiveJobs, node: Node, **keeps: object) -> tuple[Job, Run]:
    job, run = await running(live, node, **keeps)
    assert (await live.sleep(job, "frozen", 5)).status == "sleeping"
    return await reread(live, job), run


async def cold(live: LiveJobs, node: Node, **keeps: object) -> Job:
    job, _ = await running(live, node, **keeps)
    await live.sleep(job, "cold", 5)
    return await reread(live, job)


def unused(run: Run, seconds: float) -> None:
    run.used = time.monotonic() - seconds


# ---- falling asleep ----------------------------------------------------------------------------------------


async def test_a_job_that_nobody_uses_is_frozen_and_holds_no_lease(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await running(live, node, idle_seconds=60)
        unused(run, 59)
        idle.fall_asleep([run])
        assert run.sleep_wanted is None
        unused(run, 61)
        idle.fall_asleep([run])
        await until(lambda: node.states[job.vm_id].frozen and run.rests.is_set())
        shown = live.as_now(await reread(live, job))
        assert (shown.status, shown.depth, shown.exit_code) == ("sleeping", "frozen", 0)
        assert run.lease is None and not run.awake


@pytest.mark.parametrize("why", ["in use", "no_sleep", "leased"])
async def test_what_is_used_or_leased_or_never_sleeps_stays_awake(opened: Open, node: Node, why: str) -> None:
    async with opened() as live:
        job, run = await running(live, node, no_sleep=why == "no_sleep")
        if why == "leased":
            await live.keep_awake(job, 3600)
        unused(run, 10**6)
        with run.use():
            unused(run, 10**6)
            if why != "in use":
                run.uses = 0
            idle.fall_asleep([run])
            run.uses = 1
        assert run.sleep_wanted is None


async def test_a_lease_that_is_over_keeps_nobody_awake(opened: Open, node: Node) -> None:
    async with opened() as live:
        _, run = await running(live, node)
        run.become(keepalive_ns=now_ns() - 1)
        unused(run, 10**6)
        idle.fall_asleep([run])
        assert run.sleep_wanted == "frozen"


async def test_ordinary_jobs_never_sleep(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await live.submit(1, order())
        await until(lambda: job.vm_id in node.states)
        run = live.run_of(job)
        assert run is not None
        unused(run, 10**6)
        idle.fall_asleep([run])
        assert run.sleep_wanted is None
        with pytest.raises(Conflict, match="not persistent"):
            await live.sleep(job, "frozen", 1)


async def test_access_while_it_is_being_frozen_cancels_an_automatic_sleep(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await running(live, node)
        node.may_freeze.clear()
        run.sleep("frozen", automatic=True)
        await until(lambda: run.drowsy)
        access = asyncio.create_task(live.awake(job, 5))
        await asyncio.sleep(0)
        assert not access.done()
        node.may_freeze.set()
        assert (await access) is run and run.awake
        assert not node.states[job.vm_id].frozen
        assert live.as_now(await reread(live, job)).status == "running"


@pytest.mark.parametrize("depth", ["frozen", "cold"])
async def test_what_was_begun_before_a_wish_to_sleep_ends_first(opened: Open, node: Node, depth: Depth) -> None:
    async with opened() as live:
        job, run = await running(live, node)
        with run.use():
            asleep = asyncio.create_task(live.sleep(job, depth, 5))
            await until(lambda: run.drowsy)
            later = asyncio.create_task(live.awake(job, 5))
            await asyncio.sleep(0.05)
            assert not (asleep.done() or later.done() or node.states[job.vm_id].frozen or job.vm_id in node.stops)
        assert (await later).awake
        await asleep


async def test_what_does_not_end_stands_still_with_its_sandbox(
    opened: Open, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleep, "LAST_USES", 0.05)
    async with opened() as live:
        job, run = await running(live, node)
        with run.use():
            assert (await live.sleep(job, "frozen", 5)).status == "sleeping"


async def test_a_sleeper_goes_cold_after_a_while_and_its_files_are_the_workspace(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await frozen(live, node, workspace="w")
        idle.go_cold([run], after=10)
        assert run.sleep_wanted is None
        run.become(asleep_ns=now_ns() - 11 * 10**9)
        idle.go_cold([run], after=10)
        await until(lambda: live.run_of(job) is None)
        shown = await reread(live, job)
        assert (shown.status, shown.depth, shown.wakes, shown.exit_code) == ("sleeping", "cold", 1, 0)
        assert shown.vm_id != job.vm_id and shown.log == job.vm_id
        await until(lambda: job.vm_id not in node.states)


async def test_where_memory_is_short_sleepers_give_it_back_and_then_go(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await frozen(live, node)
        info: NodeInfo = await node.info()
        reclaimed: set[str] = set()
        await idle.make_room([run], reclaimed, live._means, info)  # pyright: ignore[reportPrivateUsage]
        assert node.reclaimed == [] and run.sleep_wanted is None
        short = msgspec.structs.replace(info, memory_available_mb=info.memory_mb // 10)
        await idle.make_room([run], reclaimed, live._means, short)  # pyright: ignore[reportPrivateUsage]
        assert node.reclaimed == [job.vm_id] and run.sleep_wanted is None
        await idle.make_room([run], reclaimed, live._means, short)  # pyright: ignore[reportPrivateUsage]
        await until(lambda: live.run_of(job) is None)


# ---- waking ------------------------------------------------------------------------------------------------


async def test_a_hundred_who_ask_at_once_wake_a_frozen_job_once(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await frozen(live, node)
        runs = await asyncio.gather(*(live.awake(job, 5) for _ in range(100)))
        assert all(one is run for one in runs) and node.thawed == 1
        assert live.as_now(await reread(live, job)).status == "running"
        assert run.lease is not None


async def test_a_hundred_who_ask_at_once_wake_a_cold_job_once(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node, startup_command="serve")
        started = len(node.started)
        runs = await asyncio.gather(*(live.awake(job, 5) for _ in range(100)))
        assert len({id(run) for run in runs}) == 1
        assert node.started[started:] == ["serve"]
        woken = node.requests[runs[0].job.vm_id]
        assert (woken.log, woken.limits.timeout_seconds, woken.linger) == (job.log, 0, True)
        shown = live.as_now(await reread(live, job))
        assert (shown.status, shown.exit_code, shown.vm_id) == ("running", 0, runs[0].job.vm_id)


async def test_a_cold_job_without_a_workspace_keeps_its_files(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, _ = await running(live, node)
        node.files[job.vm_id]["root/kept"] = b"here"
        await live.sleep(job, "cold", 5)
        run = await live.awake(job, 5)
        assert node.files[run.job.vm_id] == {"root/kept": b"here"}


async def test_a_job_whose_files_could_not_be_saved_sleeps_on_and_wakes_with_them_when_they_can(
    opened: Open, node: Node
) -> None:
    async with opened() as live:
        job, _ = await running(live, node)
        node.files[job.vm_id]["root/kept"] = b"here"
        node.kept_raw = "the disk is full"
        await live.sleep(job, "cold", 5)
        shown = await reread(live, job)
        assert (shown.status, shown.depth, shown.error) == ("sleeping", "cold", "the disk is full")
        for _ in range(2):
            with pytest.raises(Conflict, match=r"could not be woken.*the disk is full; they are kept"):
                await live.awake(job, 5)
            shown = await reread(live, job)
            assert (shown.status, shown.depth) == ("sleeping", "cold")
            assert shown.error and "could not be woken" in shown.error
            await until(lambda: live.run_of(job) is None)
        node.kept_raw = None
        run = await live.awake(job, 5)
        assert node.files[run.job.vm_id]["root/kept"] == b"here"


async def test_a_request_while_it_goes_cold_waits_and_wakes_it(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, old = await frozen(live, node)
        node.may_stop.clear()
        old.sleep("cold", automatic=True)
        await until(lambda: job.vm_id in node.stops)
        access = asyncio.create_task(live.awake(job, 5))
        await asyncio.sleep(0)
        node.may_stop.set()
        run = await access
        assert run is not old and run.awake and not old.awake
        assert run.job.vm_id != job.vm_id


async def test_a_caller_who_does_not_wait_long_enough_is_told(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node)
        node.up = False
        with pytest.raises(Asleep, match="failed to wake"):
            await live.awake(job, 0.05)
        node.up = True
        assert (await live.awake(job, 5)).awake


async def test_a_cold_wake_that_finds_no_room_waits_for_it(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node)
        node.room = 0
        access = asyncio.create_task(live.awake(job, 10))
        await asyncio.sleep(0.05)
        assert not access.done()
        node.room = 1000
        assert (await access).awake


async def test_the_environment_is_the_same_after_a_wake(opened: Open, node: Node) -> None:
    async with opened() as live:
        wanted = keeping(persistent=True)
        wanted.work.environment["KEY"] = "value"
        job = await live.submit(1, wanted)
        await until(lambda: job.vm_id in node.states)
        await live.sleep(job, "cold", 5)
        await live.awake(job, 5)
        assert node.environments == [{"KEY": "value"}] * 2


# ---- stopping ----------------------------------------------------------------------------------------------


async def test_a_frozen_job_can_be_stopped(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, _ = await frozen(live, node, workspace="w")
        assert await live.stop(job, 5)
        result = await reread(live, job)
        assert (result.status, result.exit_code, result.stopped, result.depth) == ("completed", 0, True, None)


async def test_a_cold_job_can_be_stopped_and_its_workspace_is_free(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node, workspace="w")
        with pytest.raises(Conflict, match="already in use"):
            await live.submit(1, keeping(workspace="w"))
        assert await live.stop(job, 5)
        result = await reread(live, job)
        assert (result.status, result.exit_code, result.stopped) == ("completed", 0, True)
        with pytest.raises(Conflict, match="not running"):
            await live.awake(result, 1)
        await live.submit(1, keeping(workspace="w"))


async def test_a_stop_during_a_wake_ends_well(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node)
        node.up = False
        access = asyncio.create_task(live.awake(job, 5))
        await until(lambda: live.run_of(job) is not None)
        stop = asyncio.create_task(live.stop(job, 5))
        await until(lambda: (run := live.run_of(job)) is None or run.stop_requested)
        node.up = True
        assert await stop
        with pytest.raises(Conflict):
            await access
        result = await reread(live, job)
        assert (result.status, result.stopped, result.exit_code) == ("completed", True, 0)


async def test_a_stop_while_it_goes_cold_ends_the_job(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await frozen(live, node)
        node.may_stop.clear()
        run.sleep("cold", automatic=True)
        await until(lambda: job.vm_id in node.stops)
        stop = asyncio.create_task(live.stop(job, 5))
        await until(lambda: run.stop_requested)
        node.may_stop.set()
        assert await stop
        assert (await reread(live, job)).status == "completed"


async def test_after_a_stop_of_a_woken_job_the_first_scripts_exit_status_stands(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await live.submit(1, keeping(persistent=True, startup_command="serve"))
        await until(lambda: job.vm_id in node.states)
        node.exit_script(job.vm_id, 3)
        await live.sleep(job, "cold", 5)
        run = await live.awake(job, 5)
        node.exit_script(run.job.vm_id, 77)
        assert await live.stop(job, 5)
        result = await reread(live, job)
        assert (result.status, result.exit_code) == ("completed", 3)


# ---- no_sleep ----------------------------------------------------------------------------------------------


async def test_a_no_sleep_job_is_started_again_when_its_sandbox_ends(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await running(live, node, no_sleep=True, startup_command="serve", workspace="w")
        node.end(job.vm_id, "oom", None, "out of memory")
        await until(lambda: node.started[-1] == "serve")
        await until(lambda: live.run_of(job) is not None and live.run_of(job) is not run)

        async def shows_running() -> bool:
            return (await reread(live, job)).status == "running"

        await until(shows_running)
        shown = await reread(live, job)
        assert shown.error is not None and "out of memory" in shown.error


async def test_a_no_sleep_job_refuses_to_sleep_until_it_is_changed(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await running(live, node, no_sleep=True)
        with pytest.raises(Conflict, match="no_sleep"):
            await live.sleep(job, "frozen", 1)
        changed = await live.change(job, no_sleep=False)
        await live.sleep(changed, "frozen", 5)
        assert run.rests.is_set()
        await live.change(changed, no_sleep=True)
        assert run.awake


async def test_a_no_sleep_job_wakes_by_itself_after_a_restart(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, _ = await running(live, node, no_sleep=True, startup_command="serve")
        await live.shut_down()
        assert (await reread(live, job)).depth == "cold"
    async with opened() as live:
        await until(lambda: node.started[-1] == "serve")
        await until(lambda: (run := live.run_of(job)) is not None and run.awake)


# ---- crashes -----------------------------------------------------------------------------------------------


async def test_a_frozen_job_sleeps_on_after_a_kill_and_wakes(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, _ = await frozen(live, node)
    async with opened() as live:
        await until(lambda: live.link.is_up)
        assert live.as_now(await reread(live, job)).status == "sleeping"
        assert (await live.awake(job, 5)).job.vm_id == job.vm_id
        assert node.thawed == 1


async def test_killed_between_freezing_and_writing_it_down_it_is_found_asleep(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, _ = await running(live, node)
    node.states[job.vm_id] = msgspec.structs.replace(node.states[job.vm_id], frozen=True)
    async with opened() as live:
        await until(lambda: live.link.is_up)
        await until(lambda: (run := live.run_of(job)) is not None and run.rests.is_set())
        assert live.as_now(await reread(live, job)).status == "sleeping"


async def test_killed_while_it_goes_cold_the_next_start_finishes_it(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, run = await frozen(live, node, workspace="w")
        node.may_stop.clear()
        run.sleep("cold", automatic=True)
        await until(lambda: job.vm_id in node.stops)
    node.may_stop.set()
    node.end(job.vm_id, "exited", 0)
    async with opened() as live:

        async def is_cold() -> bool:
            return (await reread(live, job)).depth == "cold"

        await until(is_cold)
        run = await live.awake(job, 5)
        assert node.requests[run.job.vm_id].start_from == job.save_revision


async def test_killed_before_a_cold_sandbox_was_stopped_the_next_start_stops_it(opened: Open, node: Node) -> None:
    async with opened() as live:
        job, _ = await running(live, node)
        await jobs.record_cooling(live._means.database, job, 1)  # pyright: ignore[reportPrivateUsage]
    async with opened() as live:

        async def is_cold() -> bool:
            return (await reread(live, job)).depth == "cold"

        await until(is_cold)
        assert node.stops == [job.vm_id]


async def test_killed_during_a_wake_the_next_start_goes_on_with_it(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node, startup_command="serve")
        run = await live.awake(job, 5)
    async with opened() as live:
        await until(lambda: live.link.is_up)
        again = await live.awake(job, 5)
        assert again.job.vm_id == run.job.vm_id
        assert node.started.count("serve") == 1


async def test_killed_before_a_wake_was_written_down_its_sandbox_is_adopted(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node, startup_command="serve")
        run = await live.awake(job, 5)
        await until(lambda: run.job.status == "running")
        await jobs.change(live._means.database, job, status="sleeping", depth="cold")  # pyright: ignore[reportPrivateUsage]
    async with opened() as live:
        await until(lambda: (run := live.run_of(job)) is not None and run.awake)
        assert node.started.count("serve") == 1
        assert await live.stop(job, 5)
        assert (await ended(live, job)).status == "completed"


async def test_a_cold_job_costs_nothing_after_a_restart_and_wakes(opened: Open, node: Node) -> None:
    async with opened() as live:
        job = await cold(live, node)
    async with opened() as live:
        await until(lambda: live.link.is_up)
        assert live.run_of(job) is None
        assert (await live.awake(job, 5)).awake
