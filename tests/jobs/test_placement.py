"""Room on a node is given in the order it was asked for, and never more than there is."""

import asyncio

import pytest

from roost.sandboxes import placement
from roost.sandboxes.placement import Machine, Need, SingleNode

SMALL = Machine(cpus=2, memory_mb=1000)  # promises 3600 MB


async def settled(*tasks: asyncio.Task[object]) -> list[bool]:
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_what_fits_is_placed_at_once_and_the_rest_when_something_ends() -> None:
    node = SingleNode(SMALL)
    leases = [await node.place(Need(900)) for _ in range(4)]
    waiting = asyncio.create_task(node.place(Need(900)))
    assert await settled(waiting) == [False]
    node.release(leases[0])
    node.release(leases[0])
    assert await settled(waiting) == [True]


async def test_a_large_one_at_the_head_is_not_overtaken() -> None:
    node = SingleNode(SMALL)
    leases = [await node.place(Need(900)) for _ in range(4)]
    large = asyncio.create_task(node.place(Need(1800)))
    small = asyncio.create_task(node.place(Need(32)))
    node.release(leases[0])
    assert await settled(large, small) == [False, False]
    node.release(leases[1])
    assert await settled(large) == [True]


async def test_one_that_gives_up_lets_the_next_one_in() -> None:
    node = SingleNode(SMALL)
    await node.place(Need(3000))
    large = asyncio.create_task(node.place(Need(900)))
    small = asyncio.create_task(node.place(Need(32)))
    await settled()
    large.cancel()
    assert await settled(small) == [True]


async def test_no_more_than_the_hard_cap_of_sandboxes() -> None:
    node = SingleNode(Machine(cpus=2, memory_mb=10**6))
    for _ in range(placement.MAX_SANDBOXES):
        await asyncio.wait_for(node.place(Need(1)), 1)
    waiting = asyncio.create_task(node.place(Need(1)))
    assert await settled(waiting) == [False]
    waiting.cancel()


async def test_after_a_refusal_nothing_is_placed_until_something_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    node = SingleNode(SMALL)
    running, refused = await node.place(Need(32)), await node.place(Need(32))
    node.refuse(refused)
    waiting = asyncio.create_task(node.place(Need(32)))
    assert await settled(waiting) == [False]
    node.release(running)
    assert await settled(waiting) == [True]
    monkeypatch.setattr(placement, "RETRY", 0.01)
    node.refuse(waiting.result())
    await asyncio.wait_for(node.place(Need(32)), 1)
