"""The warm pool with real members: taken once, made in order, replaced, and gone without a trace."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from roost.errors import NoCapacity
from roost.node import member as members
from roost.node.member import Member
from roost.node.pool import Pool
from roost.node.runtimes.oci import OciRuntime

from .guest_world import LIMIT, World

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes containers"),
    pytest.mark.timeout(60),
]
ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with World.open() as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def clean_world(world: World) -> AsyncIterator[World]:
    """A world without members, whose pools must leave none."""
    await world.sweep()
    yield world
    left = await world.emptied()
    await world.sweep()
    assert not left


@asynccontextmanager
async def opened(world: World, min_size: int, max_size: int = 0) -> AsyncGenerator[Pool]:
    pool = Pool(world.ground, min_size, max_size)
    pool.open()
    try:
        yield pool
    finally:
        async with asyncio.timeout(LIMIT):
            await pool.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not what():
            await asyncio.sleep(0.005)


async def take(pool: Pool) -> Member:
    async with asyncio.timeout(LIMIT):
        return await pool.take()


def counts(pool: Pool) -> tuple[int, int, int]:
    status = pool.status()
    return status.idle, status.busy, status.creating


async def test_a_pool_fills_is_used_and_fills_again(clean_world: World) -> None:
    async with opened(clean_world, 2) as pool:
        await until(lambda: counts(pool) == (2, 0, 0))
        begun = time.monotonic()
        member = await take(pool)
        assert time.monotonic() - begun < 0.02
        assert counts(pool)[:2] == (1, 1)
        await until(lambda: pool.status().idle == 2)
        await clean_world.attach(member)
        await pool.used(member)
        assert pool.status().busy == 0
        assert not [name for name in clean_world.leftovers() if f"/{member.number}/" in name]
        other = await take(pool)
        assert other is not member
        await pool.used(other)


async def test_a_burst_larger_than_the_pool_is_served_in_order(clean_world: World) -> None:
    async with opened(clean_world, 1) as pool:
        await until(lambda: pool.status().idle == 1)
        served: list[int] = []

        async def claim(number: int) -> Member:
            member = await take(pool)
            served.append(number)
            return member

        taken = await asyncio.gather(*(claim(number) for number in range(6)))
        assert served == list(range(6))
        assert len({member.number for member in taken}) == 6
        await asyncio.gather(*(pool.used(member) for member in taken))
        assert pool.status().busy == 0


async def test_a_member_that_dies_idle_is_replaced(clean_world: World) -> None:
    async with opened(clean_world, 1) as pool:
        await until(lambda: pool.status().idle == 1)
        pid = int((clean_world.ground.site(0).directory / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pool.status().idle == 0)
        await until(lambda: pool.status().idle == 1)
        member = await take(pool)
        assert member.pid != pid
        await member.guest.ping()
        await pool.used(member)


async def test_more_than_the_largest_size_is_refused_until_one_is_used(clean_world: World) -> None:
    async with opened(clean_world, 1, max_size=2) as pool:
        first, second = await take(pool), await take(pool)
        with pytest.raises(NoCapacity, match="max_pool_size"):
            await pool.take()
        await pool.used(first)
        third = await take(pool)
        await pool.used(second)
        await pool.used(third)


async def test_numbers_of_an_earlier_nodes_members_are_left_alone(clean_world: World) -> None:
    pool = Pool(clean_world.ground, 2, 0, in_use={0, 2})
    pool.open()
    await until(lambda: pool.status().idle == 2)
    assert pool.status().busy == 2
    assert {path.name for path in (clean_world.directory / "run/members").iterdir()} == {"1", "3"}
    await pool.close()


async def test_who_gives_up_waiting_takes_nothing_and_no_place(clean_world: World) -> None:
    async with opened(clean_world, 0, max_size=1) as pool:
        waiting = asyncio.ensure_future(pool.take())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        member = await take(pool)
        assert pool.status().busy == 1
        await pool.used(member)


async def test_who_gives_up_as_the_member_comes_gives_it_back(clean_world: World) -> None:
    async with opened(clean_world, 0) as pool:
        waiting = asyncio.ensure_future(pool.take())
        await until(lambda: pool.status().busy == 1)
        if not waiting.done():
            waiting.cancel()
        (came,) = await asyncio.gather(waiting, return_exceptions=True)
        if isinstance(came, Member):
            await pool.used(came)
        await until(lambda: pool.status().busy == 0)


async def test_a_machine_that_cannot_make_members_says_so(clean_world: World) -> None:
    broken = replace(clean_world.ground, runtime=OciRuntime("/bin/false", clean_world.directory / "run/oci"))
    pool = Pool(broken, 0, 0)
    pool.open()
    with pytest.raises(NoCapacity, match="cannot make sandboxes"):
        await take(pool)
    async with asyncio.timeout(LIMIT):
        await pool.close()
    await clean_world.sweep()  # what its runtime could not remove is the next node's


async def test_closing_tells_those_who_wait(clean_world: World) -> None:
    pool = Pool(clean_world.ground, 0, 0)
    waiting = asyncio.ensure_future(pool.take())
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(NoCapacity):
        async with asyncio.timeout(1):
            await waiting


async def test_closing_amid_the_making_leaves_nothing(clean_world: World) -> None:
    for delay in (0, 0.01, 0.04, 0.1):
        async with opened(clean_world, 3):
            await asyncio.sleep(delay)
        assert not await clean_world.emptied()


async def test_a_node_that_is_killed_while_it_makes_a_member_leaves_what_can_be_removed(clean_world: World) -> None:
    arguments = [sys.executable, "-m", "tests.node.half_made", str(clean_world.directory)]
    maker = subprocess.Popen(
        [*arguments, str(clean_world.ground.instance)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdin
    assert maker.stdout
    outcomes: set[str] = set()
    try:
        for milliseconds in (*range(0, 120, 6), 1000):
            print(milliseconds, file=maker.stdin, flush=True)
            outcomes.add((await asyncio.to_thread(maker.stdout.readline)).strip())
            await members.destroy(clean_world.ground, 0)
            assert not await clean_world.emptied(), f"killed after {milliseconds} ms"
    finally:
        maker.stdin.close()
        maker.wait(timeout=5)
        maker.stdout.close()
    assert outcomes == {"made", "killed"}


async def test_a_member_is_destroyed_whatever_has_been_destroyed_already(clean_world: World) -> None:
    ground = clean_world.ground
    for part in ("runtime", "network", "directory", "guest"):
        member = await clean_world.member()
        match part:
            case "runtime":
                await ground.runtime.destroy(member.site.container_id)
            case "network":
                await ground.network.disconnect(0)
            case "directory":
                (member.site.directory / "pid").unlink()
                (member.site.directory / "config.json").unlink()
            case _:
                os.kill(member.pid, signal.SIGKILL)
        await member.destroy()
        await member.destroy()
        assert not await clean_world.emptied(), part
