"""Usage is counted once: over repeated readings, ends, cold sleeps, crashes and accounts; and shown by day."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select, update

from roost.accounts import usage
from roost.clock import now_ns
from roost.db.schema import jobs, metered, usage_days
from roost.jobs.metering import DAY_NS
from roost.node.protocol import Usage
from tests.workspaces.conftest import Api, an_api, another_account

from .memory_node import until

SECOND = 10**9


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as api:
        yield api


async def told(api: Api, days: int = 30) -> dict[str, Any]:
    return await api.json(f"/mags-jobs/usage?window_days={days}")


async def gone(api: Api, vm_id: str) -> None:
    await until(lambda: vm_id not in api.node.states)


async def test_an_account_without_jobs_has_used_nothing(api: Api) -> None:
    shown = await told(api)
    assert shown.pop("since").endswith("T00:00:00.000000Z")
    assert shown == {
        "total_jobs": 0, "vm_seconds": 0.0, "frozen_seconds": 0.0, "cpu_seconds": 0.0, "memory_mb_seconds": 0.0,
        "bytes_in": 0, "bytes_out": 0, "stored_bytes": 0, "window_days": 30, "workspaces": [],
    }  # fmt: skip


async def test_what_a_sandbox_used_is_told_when_it_has_ended(api: Api) -> None:
    vm_id = await api.run()
    api.node.use(vm_id, cpu_ns=SECOND, memory_mb_seconds=3.5, rx_bytes=70, tx_bytes=60, awake_ns=4 * SECOND)
    api.node.end(vm_id)
    await gone(api, vm_id)
    shown = await told(api)
    assert (shown["total_jobs"], shown["cpu_seconds"], shown["memory_mb_seconds"]) == (1, 1.0, 3.5)
    assert (shown["bytes_in"], shown["bytes_out"], shown["vm_seconds"]) == (70, 60, 4.0)


async def test_a_sandbox_that_ended_between_two_readings_is_not_counted_twice(api: Api) -> None:
    vm_id = await api.run()
    api.node.use(vm_id, cpu_ns=2 * SECOND)
    await api.live.metering.read()
    await api.live.metering.read()
    assert (await told(api))["cpu_seconds"] == 2.0
    api.node.use(vm_id, cpu_ns=5 * SECOND)
    api.node.end(vm_id)
    await gone(api, vm_id)
    assert (await told(api))["cpu_seconds"] == 5.0


async def test_a_reading_that_comes_late_takes_nothing_back_and_adds_nothing(api: Api) -> None:
    vm_id = await api.run()
    api.node.use(vm_id, cpu_ns=5 * SECOND)
    await api.live.metering.read()
    api.node.use(vm_id, cpu_ns=3 * SECOND)
    await api.live.metering.read()
    assert (await told(api))["cpu_seconds"] == 5.0
    api.node.use(vm_id, cpu_ns=6 * SECOND)
    await api.live.metering.read()
    assert (await told(api))["cpu_seconds"] == 6.0


async def test_a_sandbox_that_the_node_has_forgotten_is_forgotten_here_too(api: Api) -> None:
    vm_id = await api.run()
    api.node.use(vm_id, cpu_ns=SECOND)
    await api.live.metering.read()
    api.node.end(vm_id)
    await gone(api, vm_id)
    assert len(await api.database.read(select(metered))) == 1
    await api.live.metering.read()
    assert await api.database.read(select(metered)) == []
    assert (await told(api))["cpu_seconds"] == 1.0


async def test_a_job_that_slept_cold_is_counted_over_all_its_sandboxes(api: Api) -> None:
    vm_id = await api.run(persistent=True, workspace_id="w")
    api.node.use(vm_id, cpu_ns=SECOND, awake_ns=SECOND, frozen_ns=9 * SECOND)
    await api.json("/mags-jobs/w/sleep", method="POST", json={"depth": "cold"})
    await api.json("/mags-jobs/w/wake", method="POST")
    (second,) = set(api.node.requests) - {vm_id}
    api.node.use(second, cpu_ns=SECOND, awake_ns=SECOND)
    await api.live.metering.read()
    shown = await told(api)
    assert (shown["cpu_seconds"], shown["vm_seconds"], shown["frozen_seconds"]) == (2.0, 2.0, 9.0)
    assert (shown["total_jobs"], shown["workspaces"][0]["workspace_id"]) == (1, "w")
    assert shown["workspaces"][0]["cpu_seconds"] == 2.0


async def test_workspaces_are_told_apart_and_with_what_they_store(api: Api) -> None:
    for name, files in (("a", {"root/x": b"x" * 100}), ("b", {})):
        vm_id = await api.run(workspace_id=name)
        api.node.files[vm_id] |= files
        api.node.use(vm_id, cpu_ns=SECOND)
        api.node.end(vm_id)
        await gone(api, vm_id)
    shown = await told(api)
    told_of = [(one["workspace_id"], one["total_jobs"], one["stored_bytes"]) for one in shown["workspaces"]]
    assert told_of == [("a", 1, 100), ("b", 1, 0)]
    assert (shown["total_jobs"], shown["stored_bytes"], shown["cpu_seconds"]) == (2, 100, 2.0)


async def test_another_account_sees_none_of_it(api: Api) -> None:
    vm_id = await api.run(workspace_id="w")
    api.node.use(vm_id, cpu_ns=SECOND)
    await api.live.metering.read()
    async with another_account(api) as stranger:
        shown = (await stranger.get("/mags-jobs/usage")).json()
    assert (shown["total_jobs"], shown["cpu_seconds"], shown["workspaces"]) == (0, 0.0, [])


async def test_only_days_of_the_window_count(api: Api) -> None:
    vm_id = await api.run()
    api.node.use(vm_id, cpu_ns=SECOND)
    await api.live.metering.read()
    today = now_ns() // DAY_NS
    ten_days_ago = {"account_id": 1, "workspace": "", "rx_bytes": 0, "tx_bytes": 0, "awake_ns": 0, "frozen_ns": 0}
    ten_days_ago |= {"day": today - 10, "cpu_ns": 7 * SECOND, "memory_mb_seconds": 0.0}
    await api.database.write(insert(usage_days).values(**ten_days_ago))
    shown = {days: (await told(api, days))["cpu_seconds"] for days in (1, 10, 11, 365)}
    assert shown == {1: 1.0, 10: 1.0, 11: 8.0, 365: 8.0}
    await api.database.write(update(jobs).values(created_ns=(today - 10) * DAY_NS))
    assert [(await told(api, days))["total_jobs"] for days in (1, 10, 11)] == [0, 0, 1]


@pytest.mark.parametrize("days", ["0", "366", "-1", "x", "1.5"])
async def test_a_window_that_is_none_is_refused(api: Api, days: str) -> None:
    answer = await api.client.get(f"/mags-jobs/usage?window_days={days}")
    assert answer.status_code == 400
    assert "window_days" in answer.json()["error"]


async def test_usage_is_told_although_a_job_is_called_usage(api: Api) -> None:
    await api.run(name="usage")
    assert (await told(api))["total_jobs"] == 1


async def test_a_node_that_is_away_delays_counting_and_loses_nothing(api: Api) -> None:
    vm_id = await api.run()
    api.node.use(vm_id, cpu_ns=SECOND)
    await api.live.metering.read()
    api.node.go()
    await until(lambda: not api.live.link.is_up)
    api.node.use(vm_id, cpu_ns=4 * SECOND)
    api.node.up = True
    await until(lambda: api.live.link.is_up)
    api.node.end(vm_id)
    await gone(api, vm_id)
    assert (await told(api))["cpu_seconds"] == 4.0


async def test_a_control_plane_that_died_before_the_node_forgot_counts_once(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        vm_id = await api.run()
        api.node.use(vm_id, cpu_ns=SECOND)
        await api.live.metering.read()
        api.node.use(vm_id, cpu_ns=3 * SECOND)
        ended = msgspec.structs.replace(api.node.states[vm_id], usage=api.node.used[vm_id])
        for _ in range(2):  # written, and again by whoever finds the sandbox
            await api.live.metering.record_end(ended)
        api.node.end(vm_id)
        await gone(api, vm_id)
        assert (await told(api))["cpu_seconds"] == 3.0


async def test_a_sandbox_of_no_job_counts_for_nobody(api: Api) -> None:
    state = msgspec.structs.replace(api.node.end("strange1"), usage=Usage(sandbox="strange1", at_ns=1, cpu_ns=9))
    await api.live.metering.record_end(state)
    assert (await usage.of_account(api.database, 1, 365)).total.cpu_ns == 0
    assert await api.database.read(select(metered)) == []


async def test_what_was_read_of_a_sandbox_that_was_lost_stays_counted(api: Api) -> None:
    vm_id = await api.run()
    api.node.use(vm_id, cpu_ns=2 * SECOND)
    await api.live.metering.read()
    del api.node.used[vm_id]
    api.node.end(vm_id, "lost", None)
    await gone(api, vm_id)
    await api.live.metering.read()
    assert await api.database.read(select(metered)) == []
    assert (await told(api))["cpu_seconds"] == 2.0
