"""What real sandboxes use: the kernel's counters, over freezes, ends and restarts of the node."""

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from roost.node.protocol import Freeze, SandboxState, Usage

from .guest_world import LIMIT
from .node_world import Box, RealNode

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]
SECOND = 10**9
BURN = "ulimit -t 1; while :; do :; done"  # until the kernel ends it, after a second of CPU by its clock's ticks
BURNT = SECOND // 2  # that it took at least: ticks are samples
SEND = "for i in 1 2 3; do nslookup x$i.test. ; done; nc -w 1 192.0.2.1 9 < /dev/null"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


async def used(box: Box) -> Usage:
    (usage,) = [one for one in await box.node.client.usage() if one.sandbox == box.id]
    return usage


async def ended(box: Box) -> SandboxState:
    async with asyncio.timeout(LIMIT):
        while (state := await box.node.client.state(box.id)).phase != "ended":
            await asyncio.sleep(0.02)
    return state


async def own_count(box: Box) -> tuple[int, int]:
    """Bytes received and sent, as the sandbox's own end of the link has counted them."""
    output, _ = await box.run("cat /proc/net/dev")
    (line,) = [line.split() for line in output.decode().splitlines() if "eth0:" in line]
    return int(line[1]), int(line[9])


async def test_cpu_that_was_burnt_is_told_with_the_end(node: RealNode) -> None:
    state = await ended(await node.box(BURN))
    assert state.usage
    assert BURNT < state.usage.cpu_ns < 3 * SECOND
    assert state.ended_ns and state.started_ns
    assert 0 < state.usage.awake_ns <= state.ended_ns - state.started_ns + SECOND
    assert state.usage.memory_mb_seconds > 0
    assert state.usage.frozen_ns == 0


async def test_what_the_member_used_before_it_was_claimed_is_not_counted(node: RealNode) -> None:
    box = await node.box("exec sleep 1000")
    usage = await used(box)
    assert usage.cpu_ns < SECOND // 2
    received, sent = await own_count(box)
    assert usage.rx_bytes <= received and usage.tx_bytes <= sent
    await box.stop()


async def test_traffic_is_counted_from_the_sandboxs_side(node: RealNode) -> None:
    box = await node.box("exec sleep 1000")
    counted, before = await used(box), await own_count(box)
    await box.run(SEND)
    after, usage = await own_count(box), await used(box)
    assert after[1] - before[1] > 100
    assert abs((usage.tx_bytes - counted.tx_bytes) - (after[1] - before[1])) < 2000  # what came between two looks
    assert abs((usage.rx_bytes - counted.rx_bytes) - (after[0] - before[0])) < 2000
    assert usage.tx_bytes > counted.tx_bytes
    await box.stop()


async def test_frozen_time_is_told_apart(node: RealNode) -> None:
    box = await node.box("exec sleep 1000")
    await node.client.freeze(box.id, Freeze())
    frozen = await used(box)
    await asyncio.sleep(0.3)
    later = await used(box)
    assert later.awake_ns == frozen.awake_ns
    assert later.frozen_ns - frozen.frozen_ns >= 0.3 * SECOND
    assert later.memory_mb_seconds > frozen.memory_mb_seconds
    assert later.cpu_ns - frozen.cpu_ns < SECOND // 10
    await node.client.thaw(box.id)
    thawed = await used(box)
    await asyncio.sleep(0.1)
    awake = await used(box)
    assert awake.frozen_ns == thawed.frozen_ns
    assert awake.awake_ns > thawed.awake_ns
    await box.stop()


@pytest.mark.parametrize("orderly", [False, True])
async def test_counters_survive_the_node(node: RealNode, orderly: bool) -> None:
    box = await node.box("(ulimit -t 1; while :; do :; done); exec sleep 1000")
    await node.client.freeze(box.id, Freeze())
    await node.client.thaw(box.id)
    async with asyncio.timeout(LIMIT):
        while (before := await used(box)).cpu_ns < BURNT:
            await asyncio.sleep(0.05)
    await node.terminate() if orderly else await node.kill()
    await node.start()
    after = await used(box)
    assert after.cpu_ns >= before.cpu_ns
    assert after.awake_ns >= before.awake_ns  # the time without a node is time all the same
    assert after.frozen_ns == before.frozen_ns
    assert after.rx_bytes >= before.rx_bytes and after.tx_bytes >= before.tx_bytes
    state = await box.stop()
    assert state.usage and state.usage.cpu_ns >= after.cpu_ns
    await node.client.forget(box.id)
    assert box.id not in [one.sandbox for one in await node.client.usage()]


async def test_what_a_sandbox_used_that_was_lost_with_its_node_is_in_its_record(node: RealNode) -> None:
    box = await node.box(f"({BURN}); exec sleep 1000")
    async with asyncio.timeout(LIMIT):
        while (await used(box)).cpu_ns < BURNT:
            await asyncio.sleep(0.05)
    await node.client.freeze(box.id, Freeze())  # each change of its state writes what it has used
    await node.kill()
    record = json.loads((node.directory / f"state/sandboxes/{box.id}.json").read_text())
    record["boot"] = "another"
    (node.directory / f"state/sandboxes/{box.id}.json").write_text(json.dumps(record))
    await node.start()
    state = await node.client.state(box.id)
    assert (state.phase, state.cause) == ("ended", "lost")
    assert state.usage and state.usage.cpu_ns >= BURNT
    assert [one.cpu_ns for one in await node.client.usage() if one.sandbox == box.id] == [state.usage.cpu_ns]
    await node.client.forget(box.id)
