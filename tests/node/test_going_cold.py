"""A sandbox that ends saved, and another that goes on from there: the save that a stop asks for, the log of both."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from roost import ids
from roost.errors import Conflict, NotFound
from roost.node.protocol import LogRecord, SandboxState, SaveRequest, StopSandbox

from .guest_world import LIMIT
from .node_world import Box, RealNode

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


def save(upload: bool = False) -> SaveRequest:
    return SaveRequest(revision=ids.revision_id(), account=1, upload=upload)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT):
        while not await holds():
            await asyncio.sleep(0.02)


async def says(box: Box, word: bytes, log: str | None = None) -> None:
    async def said() -> bool:
        return word in b"".join([record.data for record in await records(box, log)])

    await until(said)


async def records(box: Box, log: str | None = None, after: int = 0, follow: bool = False) -> list[LogRecord]:
    async with asyncio.timeout(LIMIT):
        return [record async for record in box.node.client.log(log or box.id, after, follow)]


async def output(box: Box, log: str | None = None) -> bytes:
    return b"".join([record.data for record in await records(box, log) if record.source == "stdout"])


async def stop(box: Box, wanted: SaveRequest | None = None) -> SandboxState:
    """As one that goes to sleep: without a word in its log."""
    return await box.node.client.stop(box.id, StopSandbox(grace_seconds=0, reason="", save=wanted))


# the save that a stop asks for


async def test_a_stop_may_ask_for_the_save_that_the_start_did_not(node: RealNode) -> None:
    box = await node.box("echo kept > /root/file; echo written; exec sleep 1000", account=1)
    await says(box, b"written")
    wanted = save()
    ended = await stop(box, wanted)
    assert ended.revision and ended.revision.id == wanted.revision
    again = await node.box("cat /root/file", account=1, start_from=wanted.revision)
    await says(again, b"kept")
    await again.stop()


async def test_the_save_of_the_first_stop_replaces_that_of_the_start(node: RealNode) -> None:
    first, second, third = save(), save(), save()
    box = await node.box("trap '' TERM; echo ready; while true; do sleep 0.02; done", account=1, save=first)
    await says(box, b"ready")
    stopping = asyncio.create_task(node.client.stop(box.id, StopSandbox(grace_seconds=1, save=second)))
    await asyncio.sleep(0.2)
    await stop(box, third)
    ended = await stopping
    assert ended.revision and ended.revision.id == second.revision


async def test_a_stop_without_a_save_leaves_that_of_the_start(node: RealNode) -> None:
    wanted = save()
    box = await node.box(account=1, save=wanted)
    ended = await stop(box)
    assert ended.revision and ended.revision.id == wanted.revision


async def test_the_save_of_a_stop_is_made_though_the_node_is_killed_meanwhile(node: RealNode) -> None:
    """It is in the record before anything is signalled."""
    wanted = save()
    script = "trap 'sleep 0.5; echo late > /root/file; exit' TERM; echo ready; while true; do sleep 0.02; done"
    box = await node.box(script, account=1, save=save())
    await says(box, b"ready")
    stopping = asyncio.create_task(node.client.stop(box.id, StopSandbox(grace_seconds=5, save=wanted)))
    path = node.directory / f"state/sandboxes/{box.id}.json"

    async def written() -> bool:
        return wanted.revision in path.read_text()

    await until(written)
    await node.kill()
    await asyncio.gather(stopping, return_exceptions=True)
    await node.start()
    ended = await stop(box)
    assert ended.revision and ended.revision.id == wanted.revision


async def test_a_sandbox_that_died_with_its_node_is_saved_as_its_stop_asked(node: RealNode) -> None:
    wanted = save()
    box = await node.box("echo kept > /root/file; echo ready; trap '' TERM; while true; do sleep 0.02; done", account=1)
    await says(box, b"ready")
    stopping = asyncio.create_task(node.client.stop(box.id, StopSandbox(grace_seconds=60, save=wanted)))
    path = node.directory / f"state/sandboxes/{box.id}.json"

    async def written() -> bool:
        return wanted.revision in path.read_text()

    await until(written)
    pid = int((node.directory / f"run/members/{json.loads(path.read_bytes())['member']}/pid").read_text())
    await node.kill()
    await asyncio.gather(stopping, return_exceptions=True)
    os.kill(pid, 9)
    await node.start()
    ended = await stop(box)
    assert ended.revision and ended.revision.id == wanted.revision


# the log of both


async def test_a_sandbox_continues_the_log_of_an_earlier_one(node: RealNode) -> None:
    first = await node.box("echo one; exec sleep 1000")
    await says(first, b"one")
    await stop(first)
    before = await records(first)
    second = await node.box("echo two; exec sleep 1000", log=first.id)
    await says(second, b"two", first.id)
    await stop(second)
    after = await records(first)
    assert after[: len(before)] == before
    assert [record.seq for record in after] == sorted({record.seq for record in after})
    assert await records(first, after=before[-1].seq) == after[len(before) :]
    assert await output(first) == b"one\ntwo\n"
    assert [record for record in after if record.source == "system"] == []
    with pytest.raises(NotFound):
        await records(second)


async def test_output_of_a_continued_log_comes_once_though_the_node_is_killed(node: RealNode) -> None:
    first = await node.box("seq 1 5000; exec sleep 1000")
    await says(first, b"5000")
    await node.client.stop(first.id, StopSandbox(grace_seconds=0))
    begin = await output(first)
    second = await node.box(COUNT, log=first.id)
    for _ in range(3):
        said = len(await output(first))

        async def more(said: int = said) -> bool:
            return len(await output(first)) > said + 10

        await until(more)
        await node.restart()
    await stop(second)
    said = await output(first)
    assert said.startswith(begin)
    numbers = [int(line) for line in said[len(begin) :].split()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 3


async def test_a_sandbox_that_ended_while_the_node_was_away_has_all_of_its_output(node: RealNode) -> None:
    first = await node.box("echo one")
    await records(first, follow=True)
    second = await node.box("echo start; sleep 1; seq 1 3000", log=first.id)
    await says(second, b"start", first.id)
    await node.kill()
    await asyncio.sleep(1.5)
    await node.start()
    await records(first, follow=True)
    assert await output(first) == b"one\nstart\n" + b"".join(b"%d\n" % number for number in range(1, 3001))


async def test_a_follower_follows_whoever_writes_it(node: RealNode) -> None:
    first = await node.box("echo one")
    await records(first, follow=True)
    second = await node.box("echo two; sleep 0.5; echo three", log=first.id)
    followed = await records(first, follow=True)
    assert b"".join(record.data for record in followed) == b"one\ntwo\nthree\n"
    assert followed == await records(first)
    await stop(second)


async def test_a_log_has_one_writer(node: RealNode) -> None:
    first = await node.box()
    with pytest.raises(Conflict, match="still writes"):
        await node.box(log=first.id)
    await stop(first)
    second = await node.box(log=first.id)
    with pytest.raises(Conflict, match="still writes"):
        await node.box(log=first.id)
    await stop(second)


async def test_a_log_belongs_to_the_first_of_its_writers(node: RealNode) -> None:
    first = await node.box("echo one; exec sleep 1000")
    await says(first, b"one")
    await stop(first)
    await node.client.forget(first.id)
    second = await node.box("echo two; exec sleep 1000", log=first.id)
    await says(second, b"two", first.id)
    with pytest.raises(Conflict, match=second.id):
        await node.client.remove_log(first.id)
    await stop(second)
    await node.client.remove_log(second.id)
    await node.client.forget(second.id)
    assert await output(first) == b"one\ntwo\n"
    await node.client.remove_log(first.id)
    with pytest.raises(NotFound):
        await records(first)


async def test_a_start_that_fails_leaves_the_log_as_it_was(node: RealNode) -> None:
    first = await node.box("echo one; exec sleep 1000")
    await says(first, b"one")
    await stop(first)
    before = await records(first)
    with pytest.raises(NotFound):
        await node.box(log=first.id, image="missing")
    second = await node.box("echo two; exec sleep 1000", log=first.id)
    await says(second, b"two", first.id)
    await node.kill()
    path = node.directory / f"state/sandboxes/{second.id}.json"
    told = json.loads(path.read_bytes())
    told["member"] = None  # as a node that was killed before it had claimed one
    told["state"] = {"id": second.id, "phase": "starting"}
    path.write_text(json.dumps(told))
    await node.start()
    with pytest.raises(NotFound):
        await node.client.state(second.id)
    assert (await records(first))[: len(before)] == before


async def test_a_sandbox_that_was_lost_says_so_in_the_log_that_it_wrote(node: RealNode) -> None:
    first = await node.box("echo one")
    await records(first, follow=True)
    second = await node.box("echo two; exec sleep 1000", log=first.id)
    await says(second, b"two", first.id)
    path = node.directory / f"state/sandboxes/{second.id}.json"
    pid = int((node.directory / f"run/members/{json.loads(path.read_bytes())['member']}/pid").read_text())
    await node.kill()
    os.kill(pid, 9)
    await node.start()
    assert (await node.client.state(second.id)).cause == "lost"
    assert b"exit status is unknown" in (await records(first))[-1].data
    assert not (node.directory / f"state/logs/{second.id}.log").exists()
