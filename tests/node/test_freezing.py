"""Sandboxes that stand still: what goes on without them, what wakes them, and that no crash confuses them."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from roost import ids
from roost.errors import Conflict, NodeUnavailable, NotFound, RoostError
from roost.node.cgroup import Cgroup, Hierarchies
from roost.node.freezer import Freezer
from roost.node.guest.channel import Guest
from roost.node.protocol import Event, Exec, Freeze, Limits, SandboxState, SaveRequest, StopSandbox

from .guest_world import LIMIT, World
from .node_world import Box, RealNode, shell

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
LIMITS = Limits(vcpus=2, memory_mb=256, disk_gb=1, pids=256, timeout_seconds=0)
KEEP = Exec(command="true", timeout_seconds=5, output_limit=1000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT):
        while not await holds():
            await asyncio.sleep(0.02)


async def until_more(box: Box) -> None:
    """Returns when the script has said more than it had."""
    before = len(await box.said())

    async def grown() -> bool:
        return len(await box.said()) > before

    await until(grown)


async def freeze(box: Box, reclaim: bool = False) -> SandboxState:
    return await box.node.client.freeze(box.id, Freeze(reclaim=reclaim))


async def thaw(box: Box) -> SandboxState:
    return await box.node.client.thaw(box.id)


async def state(box: Box) -> SandboxState:
    return await box.node.client.state(box.id)


def record(box: Box) -> dict[str, Any]:
    return json.loads((box.node.directory / f"state/sandboxes/{box.id}.json").read_bytes())


def rewrite(box: Box, **changes: object) -> None:
    """The state in its record, as a node that was killed may have left it."""
    told = record(box)
    told["state"] |= changes
    (box.node.directory / f"state/sandboxes/{box.id}.json").write_text(json.dumps(told))


def cgroup(box: Box) -> Cgroup:
    number = box.node.number
    return Cgroup(Hierarchies.here(), f"/roost-{number}", f"roost-{number}-{record(box)['member']}")


def stands_still(box: Box) -> bool:
    group = cgroup(box)
    if group.hierarchies.version == "v2":
        return "frozen 1" in (group.hierarchies.mounts[""] / group.path[1:] / "cgroup.events").read_text()
    return (group.hierarchies.mounts["freezer"] / group.path[1:] / "freezer.state").read_text() != "THAWED\n"


def is_counted(said: bytes) -> bool:
    """Whether the output of COUNT is complete and in order."""
    numbers = [int(line) for line in said.split()]
    return numbers == list(range(1, len(numbers) + 1))


async def test_a_frozen_sandbox_stands_still_and_goes_on_where_it_was(node: RealNode) -> None:
    box = await node.box(COUNT)
    await until_more(box)
    assert (await freeze(box)).frozen
    assert (await freeze(box)).frozen
    assert stands_still(box)
    said = await box.said()
    assert not (await thaw(box)).frozen
    assert not (await thaw(box)).frozen
    await until_more(box)
    assert (await box.said()).startswith(said)
    assert is_counted(await box.said())
    await box.stop()


async def test_events_tell_each_change_once(node: RealNode) -> None:
    box = await node.box()
    told: list[bool] = []
    snapshot = asyncio.Event()

    async def listen() -> None:
        async for event in node.client.events():
            if event.snapshot:
                snapshot.set()
            elif snapshot.is_set():
                assert isinstance(event, Event) and event.state
                if event.state.id == box.id:
                    told.append(event.state.frozen)

    listening = asyncio.create_task(listen())
    await snapshot.wait()
    for call in (freeze, freeze, thaw, thaw, freeze):
        await call(box)
    await box.stop()

    async def all_told() -> bool:
        return len(told) >= 5

    await until(all_told)
    listening.cancel()
    assert told == [True, False, True, False, False, False][: len(told)]


async def test_nothing_is_asked_of_a_frozen_sandbox_but_its_files_are_there(node: RealNode) -> None:
    box = await node.box("echo text > /root/file; exec sleep 1000")

    async def written() -> bool:
        with contextlib.suppress(NotFound):
            return await content(box, "root/file") == b"text\n"
        return False

    await until(written)
    await freeze(box)
    with pytest.raises(Conflict, match="frozen"):
        await node.client.exec(box.id, KEEP)
    with pytest.raises(Conflict, match="frozen"):
        async with node.client.session(box.id, shell("true")):
            pass
    assert await content(box, "root/file") == b"text\n"
    assert (await state(box)).frozen
    await thaw(box)
    assert (await node.client.exec(box.id, KEEP)).exit_code == 0
    await box.stop()


async def content(box: Box, path: str) -> bytes:
    return b"".join([chunk async for chunk in box.node.client.read_file(box.id, 0, path, 0, 100)])


async def test_a_sandbox_that_is_stopped_in_its_sleep_gets_its_grace(node: RealNode) -> None:
    box = await node.box("trap 'echo bye; exit 7' TERM; while true; do sleep 0.02; done")
    await asyncio.sleep(0.2)
    await freeze(box)
    ended = await node.client.stop(box.id, StopSandbox(grace_seconds=10))
    assert (ended.exit_code, ended.cause, ended.frozen) == (7, "stopped", False)
    assert await box.said() == b"bye\n"
    with pytest.raises(Conflict):
        await freeze(box)
    with pytest.raises(Conflict):
        await thaw(box)


async def test_a_sandbox_whose_script_is_over_sleeps_and_is_stopped_too(node: RealNode) -> None:
    box = await node.box("exit 3", linger=True)

    async def over() -> bool:
        return (await state(box)).script_ended_ns is not None

    await until(over)
    await freeze(box)
    await node.restart()
    assert (await state(box)).frozen and stands_still(box)
    await thaw(box)
    assert (await box.run("echo alive"))[0] == b"alive\n"
    await freeze(box)
    ended = await box.stop()
    assert (ended.phase, ended.exit_code, ended.cause) == ("ended", 3, "exited")


async def test_the_time_of_the_script_runs_while_it_sleeps(node: RealNode) -> None:
    box = await node.box(limits=msgspec.structs.replace(LIMITS, timeout_seconds=1))
    await freeze(box)

    async def ended() -> bool:
        return (await state(box)).phase == "ended"

    await until(ended)
    told = await state(box)
    assert (told.cause, told.exit_code, told.frozen) == ("timeout", 137, False)


async def test_a_sandbox_that_dies_in_its_sleep_is_lost_when_it_wakes(node: RealNode) -> None:
    """On v1 a frozen process dies when it is thawed, on v2 at once."""
    box = await node.box()
    await freeze(box)
    pid = int((node.directory / f"run/members/{record(box)['member']}/pid").read_text())
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(Conflict):
        await thaw(box)

    async def ended() -> bool:
        return (await state(box)).phase == "ended"

    await until(ended)
    assert (await state(box)).cause == "lost"


async def test_a_sandbox_sleeps_through_the_death_of_its_node(node: RealNode) -> None:
    box = await node.box(COUNT)
    await until_more(box)
    await freeze(box)
    for _ in range(3):
        await node.restart()
        assert (await state(box)).frozen and stands_still(box)
    await thaw(box)
    await until_more(box)
    assert is_counted(await box.said())
    await box.stop()


async def test_a_node_that_ends_in_order_leaves_sleepers_to_the_next(node: RealNode) -> None:
    box = await node.box(COUNT)
    await until_more(box)
    await freeze(box)
    await node.terminate()
    await node.start()
    assert (await state(box)).frozen and stands_still(box)
    await thaw(box)
    await until_more(box)
    assert is_counted(await box.said())
    await freeze(box)
    await box.stop()


async def test_a_crash_between_the_record_and_the_freezing_ends_in_sleep(node: RealNode) -> None:
    box = await node.box(COUNT)
    await until_more(box)
    await node.kill()
    rewrite(box, frozen=True)
    await node.start()
    assert (await state(box)).frozen and stands_still(box)
    await thaw(box)
    await until_more(box)
    await box.stop()


async def test_what_stands_still_without_a_record_that_says_so_goes_on(node: RealNode) -> None:
    """A node that was killed during a save, or between a thawing's record and its effect."""
    box = await node.box(COUNT)
    await until_more(box)
    await node.kill()
    await cgroup(box).freeze()
    await node.start()
    assert not (await state(box)).frozen and not stands_still(box)
    await until_more(box)
    assert is_counted(await box.said())
    await box.stop()


async def test_a_node_killed_in_the_middle_of_it_tells_what_is_the_case(node: RealNode) -> None:
    box = await node.box(COUNT)
    for delay in (0.0, 0.001, 0.002, 0.004, 0.008):

        async def flip() -> None:
            with contextlib.suppress(NodeUnavailable):
                while True:
                    await freeze(box)
                    await thaw(box)

        flipping = asyncio.create_task(flip())
        await asyncio.sleep(0.02 + delay)
        await node.restart()
        await flipping
        assert (await state(box)).frozen == stands_still(box) == record(box)["state"]["frozen"]
        await thaw(box)
        await until_more(box)
    assert is_counted(await box.said())
    await box.stop()


async def test_callers_that_go_away_leave_it_frozen_or_not_but_known(node: RealNode) -> None:
    box = await node.box(COUNT)
    for turn in range(30):
        call = asyncio.create_task((freeze if turn % 2 else thaw)(box))
        await asyncio.sleep(0.0005 * (turn % 7))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    async def settled() -> bool:
        return (await state(box)).frozen == stands_still(box)

    await until(settled)
    await thaw(box)
    await until_more(box)
    await box.stop()


def save() -> SaveRequest:
    return SaveRequest(revision=ids.revision_id(), account=1, upload=True)


async def test_a_save_of_a_sleeping_sandbox_does_not_wake_it(node: RealNode) -> None:
    box = await node.box(f"echo 1 > /root/file; {COUNT}", account=1, save=save())
    await until_more(box)
    await freeze(box)
    said = await box.said()
    made = await node.client.save(box.id, save())
    assert made.stored
    assert (await state(box)).frozen and stands_still(box)
    assert await box.said() == said
    await thaw(box)
    await until_more(box)
    await box.stop()


async def test_a_sandbox_that_is_frozen_and_thawed_during_a_save_is_as_was_asked_last(node: RealNode) -> None:
    box = await node.box(COUNT, account=1, save=save())
    await until_more(box)
    for last in (freeze, thaw):
        saving = asyncio.create_task(node.client.save(box.id, save()))
        while not saving.done():
            await freeze(box)
            await thaw(box)
            await last(box)
        assert (await saving).stored
        assert (await state(box)).frozen == stands_still(box) == (last is freeze)
    await until_more(box)
    assert is_counted(await box.said())
    await box.stop()


async def test_a_sleeping_sandbox_is_synced_once_and_again_when_it_has_woken(node: RealNode) -> None:
    box = await node.box(COUNT, account=1, save=save(), sync_seconds=1)

    async def newest() -> str | None:
        told = await state(box)
        return told.revision.id if told.revision else None

    async def another(than: str | None) -> str | None:
        async with asyncio.timeout(LIMIT):
            while (now := await newest()) == than:
                await asyncio.sleep(0.02)
        return now

    await another(None)
    await freeze(box)
    before = await newest()
    last = await another(before)
    await asyncio.sleep(2.5)
    assert await newest() == last
    await thaw(box)
    await another(last)
    await box.stop()


async def test_reclaiming_gives_back_what_the_page_cache_took(node: RealNode) -> None:
    box = await node.box("dd if=/dev/zero of=/root/big bs=1M count=64; sync; echo written; exec sleep 1000")

    async def written() -> bool:
        return b"written" in await box.said()

    await until(written)
    await freeze(box)
    before = cgroup(box).usage().memory_bytes
    assert before > 60 * 1024 * 1024
    await freeze(box, reclaim=True)
    assert cgroup(box).usage().memory_bytes < before / 2
    assert stands_still(box)
    await thaw(box)
    assert (await box.run("wc -c < /root/big"))[0].strip() == b"%d" % (64 * 1024 * 1024)
    await box.stop()


async def test_a_full_disk_keeps_a_sandbox_from_sleep_but_not_in_it(node: RealNode) -> None:
    """Where its record cannot be written."""
    box = await node.box(COUNT)
    place = node.directory / f"state/sandboxes/{box.id}.new"
    place.mkdir()
    with pytest.raises(RoostError):
        await freeze(box)
    assert not (await state(box)).frozen and not stands_still(box)
    place.rmdir()
    await freeze(box)
    place.mkdir()
    assert not (await thaw(box)).frozen
    assert not stands_still(box)
    place.rmdir()
    await box.stop()


async def test_what_guest_init_was_asked_before_it_was_frozen_has_the_time_until_it_is_thawed() -> None:
    async with World.open() as world:
        member = await world.member()
        member.guest.close()
        member.guest = await Guest.connect(member.site.socket, answer_within=0.5)
        freezer = Freezer(member, False, lambda _: None)
        await freezer.freeze()
        asked = asyncio.create_task(member.guest.ping())
        await asyncio.sleep(1)
        assert not asked.done() and not member.guest.lost.done()
        await freezer.thaw()
        async with asyncio.timeout(LIMIT):
            await asked
        await member.destroy()
