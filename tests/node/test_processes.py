"""Kept processes with a real node: they live whoever watches, and survive the node."""

import asyncio
import hashlib
import itertools
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from roost.errors import Conflict, Invalid, NodeUnavailable, NotFound
from roost.node.protocol import ChangeProcess, Freeze, ProcessState, StartProcess, StopSandbox, Terminal

from .guest_world import LIMIT
from .node_world import Box, RealNode, shell

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes sandboxes"),
    pytest.mark.timeout(120),
]
numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


@pytest_asyncio.fixture(loop_scope="module")
async def own_node() -> AsyncIterator[RealNode]:
    """For a test that kills it."""
    async with RealNode.running() as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(node: RealNode) -> Box:
    """Shared by tests that leave no running process in it."""
    return await node.box()


async def start(box: Box, process: StartProcess | str) -> int:
    number = next(numbers)
    wanted = shell(process) if isinstance(process, str) else process
    await box.node.client.start_process(box.id, number, wanted)
    return number


async def output(box: Box, number: int, follow: bool = True) -> bytes:
    async with asyncio.timeout(LIMIT):
        records = box.node.client.process_output(box.id, number, follow=follow)
        return b"".join([record.data async for record in records if record.source != "system"])


async def ended(box: Box, number: int) -> ProcessState:
    await output(box, number)
    state = await box.node.client.process(box.id, number)
    assert state.ended_ns
    return state


async def said(box: Box, number: int, words: bytes) -> None:
    """Returns when it has said them."""
    async with asyncio.timeout(LIMIT):
        async for record in box.node.client.process_output(box.id, number, follow=True):
            if words in record.data:
                return
    raise AssertionError(f"it did not say {words!r}")


async def send(box: Box, number: int, content: bytes, step: int = 300_000) -> None:
    """All of it, however often the node goes away meanwhile."""
    at = 0
    while at < len(content):
        try:
            at = await box.node.client.write_input(box.id, number, at, content[at : at + step])
        except NodeUnavailable:
            await asyncio.sleep(0.05)


# ---- a process's life


async def test_a_process_is_started_once_however_often_it_is_asked_for(box: Box) -> None:
    number, client = next(numbers), box.node.client
    process = shell("echo x >> /tmp/once; exit 3")
    await asyncio.gather(*(client.start_process(box.id, number, process) for _ in range(5)))
    assert (await ended(box, number)).exit_code == 3
    await client.start_process(box.id, number, process)
    assert await box.run("cat /tmp/once") == (b"x\n", 0)
    with pytest.raises(Conflict, match="another"):
        await client.start_process(box.id, number, shell("true"))


async def test_its_output_and_exit_status_are_kept(box: Box) -> None:
    number = await start(box, "echo out; echo err >&2; kill -9 $$")
    state = await ended(box, number)
    assert (state.exit_code, state.signal, state.reason) == (137, 9, None)
    records = [r async for r in box.node.client.process_output(box.id, number)]
    assert {(r.source, r.data) for r in records} == {("stdout", b"out\n"), ("stderr", b"err\n")}
    rest = [r async for r in box.node.client.process_output(box.id, number, after=records[0].seq)]
    assert rest == records[1:]
    assert state in await box.node.client.processes(box.id)


async def test_the_sandbox_tells_how_many_run(box: Box) -> None:
    number = await start(box, "cat")
    assert (await box.node.client.state(box.id)).processes == 1
    await box.node.client.change_process(box.id, number, ChangeProcess(close_input=True))
    await ended(box, number)
    async with asyncio.timeout(LIMIT):
        while (await box.node.client.state(box.id)).processes:
            await asyncio.sleep(0.01)


async def test_a_signal_goes_to_its_group_and_removing_kills_it(box: Box) -> None:
    number = await start(box, "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    await said(box, number, b"ready")
    await box.node.client.change_process(box.id, number, ChangeProcess(signal=signal.SIGTERM))
    assert (await ended(box, number)).exit_code == 5
    number = await start(box, "sleep 99881 & sleep 99882; true")
    await box.node.client.remove_process(box.id, number)
    await box.until_gone("sleep 9988")
    with pytest.raises(NotFound):
        await box.node.client.process(box.id, number)
    await start(box, "true")


async def test_a_terminal_can_be_resized(box: Box) -> None:
    number = await start(box, shell("echo ready; read x; stty size", terminal=Terminal(rows=10, columns=20)))
    await said(box, number, b"ready")
    await box.node.client.change_process(box.id, number, ChangeProcess(terminal=Terminal(rows=44, columns=155)))
    await box.node.client.write_input(box.id, number, 0, b"\n")
    assert b"44 155" in await output(box, number)


@pytest.mark.parametrize("number", [0, -1, 2**30, 2**40, "x"])
async def test_numbers_out_of_range_are_refused(box: Box, number: int) -> None:
    with pytest.raises((Invalid, NotFound)):
        await box.node.client.start_process(box.id, number, shell("true"))


async def test_what_cannot_be_started_leaves_nothing(box: Box) -> None:
    for process in (StartProcess(arguments=[]), shell("true", output_limit=2**40)):
        number = next(numbers)
        with pytest.raises(Invalid):
            await box.node.client.start_process(box.id, number, process)
        with pytest.raises(NotFound):
            await box.node.client.process(box.id, number)


# ---- input


async def test_input_that_is_repeated_changes_nothing_and_a_gap_is_refused(box: Box) -> None:
    client, number = box.node.client, await start(box, "cat")
    assert await client.write_input(box.id, number, 0, b"hello ") == 6
    assert await client.write_input(box.id, number, 0, b"hello ") == 6
    assert await client.write_input(box.id, number, 3, b"lo world\n") == 12
    with pytest.raises(Conflict, match="12 bytes were taken"):
        await client.write_input(box.id, number, 13, b"x")
    await client.change_process(box.id, number, ChangeProcess(close_input=True))
    await client.change_process(box.id, number, ChangeProcess(close_input=True))
    state = await ended(box, number)
    assert (state.input_taken, state.input_closed) == (12, True)
    assert await output(box, number) == b"hello world\n"
    with pytest.raises(Conflict, match=r"has ended|closed"):
        await client.write_input(box.id, number, 12, b"x")


async def test_callers_who_go_away_leave_no_doubt_about_the_position(box: Box) -> None:
    client, number = box.node.client, await start(box, "sleep 0.5; exec sha256sum")
    content = os.urandom(500_000)
    calls = [asyncio.create_task(client.write_input(box.id, number, 0, content)) for _ in range(3)]
    await asyncio.sleep(0.1)
    calls[0].cancel()
    await send(box, number, content)
    await client.change_process(box.id, number, ChangeProcess(close_input=True))
    await asyncio.gather(*calls, return_exceptions=True)
    assert (await output(box, number)).split()[0] == hashlib.sha256(content).hexdigest().encode()


async def test_input_that_a_process_never_reads_ends_with_it(box: Box) -> None:
    number = await start(box, "sleep 0.5")
    with pytest.raises(Conflict, match="has ended"):
        await send(box, number, bytes(1_000_000))


# ---- limits


async def test_of_output_beyond_its_limit_the_beginning_and_the_end_are_kept(box: Box) -> None:
    number = await start(box, shell("echo begin; head -c 3000000 /dev/zero; echo end; exit 4", output_limit=1_000_000))
    state = await ended(box, number)
    assert state.exit_code == 4 and state.dropped > 1_900_000
    kept = await output(box, number)
    assert kept.startswith(b"begin\n") and kept.endswith(b"end\n")
    assert len(kept) + state.dropped == 3_000_010
    remarks = [r.data async for r in box.node.client.process_output(box.id, number) if r.source == "system"]
    assert b"MB of output are left out here" in remarks[0] and b"were dropped" in remarks[-1]


async def test_beyond_64_the_oldest_that_has_ended_is_forgotten(node: RealNode) -> None:
    box = await node.box()
    first, second = await start(box, "cat"), await start(box, "true")
    await ended(box, second)
    for _ in range(63):
        await start(box, "cat")
    with pytest.raises(NotFound):
        await node.client.process(box.id, second)
    assert not (await node.client.process(box.id, first)).ended_ns
    with pytest.raises(Conflict, match="64 processes run"):
        await start(box, "true")
    await box.stop()


async def test_all_output_of_a_sandbox_is_bounded(node: RealNode) -> None:
    box = await node.box()
    limit = 200 * 1024 * 1024
    old = await start(box, shell("head -c 150000000 /dev/zero", output_limit=limit))
    await ended(box, old)
    new = await start(box, shell("head -c 150000000 /dev/zero", output_limit=limit))
    assert (await ended(box, new)).dropped == 0
    with pytest.raises(NotFound):
        await node.client.process(box.id, old)
    await box.stop()


# ---- the sandbox's end


async def test_when_the_sandbox_ends_no_exit_code_is_invented(node: RealNode) -> None:
    box = await node.box("sleep 0.3")
    number = await start(box, "exec sleep 1000")
    state = await ended(box, number)
    assert (state.exit_code, state.reason) == (None, "the sandbox ended, so the exit status is unknown")
    with pytest.raises(Conflict, match="ended"):
        await start(box, "true")
    with pytest.raises(Conflict, match="ended"):
        await node.client.write_input(box.id, number, 0, b"x")
    await box.stop()
    assert await node.client.process(box.id, number) == state
    await node.client.forget(box.id)
    with pytest.raises(NotFound):
        await node.client.process(box.id, number)
    assert not (node.directory / "state/processes" / box.id).exists()


async def test_the_exit_code_of_a_process_that_ends_with_its_sandbox_is_the_real_one(node: RealNode) -> None:
    box = await node.box(linger=True)
    number = await start(box, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
    await said(box, number, b"ready")
    await node.client.stop(box.id, StopSandbox(grace_seconds=2))
    state = await node.client.process(box.id, number)
    assert state.exit_code == 9 or (state.exit_code is None and state.reason)


async def test_a_frozen_sandbox_takes_nothing(node: RealNode) -> None:
    box = await node.box()
    number = await start(box, "cat")
    await node.client.freeze(box.id, Freeze())
    for call in (
        start(box, "true"),
        node.client.write_input(box.id, number, 0, b"x"),
        node.client.change_process(box.id, number, ChangeProcess(signal=1)),
        node.client.remove_process(box.id, number),
        box.run("true"),
    ):
        with pytest.raises(Conflict, match="frozen"):
            await call
    assert not (await node.client.process(box.id, number)).ended_ns
    await node.client.thaw(box.id)
    assert await node.client.write_input(box.id, number, 0, b"x") == 1
    await box.stop()


# ---- the node's end


async def test_processes_survive_the_node_with_their_output_input_and_status(own_node: RealNode) -> None:
    box, client = await own_node.box(), own_node.client
    talker = await start(box, "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.05; done; exit 6")
    reader = await start(box, "echo ready; exec sha256sum")
    finished = await start(box, "echo done; exit 8")
    await ended(box, finished)
    content = os.urandom(5_000_000)
    sending = asyncio.create_task(send(box, reader, content))
    for _ in range(3):
        await asyncio.sleep(0.3)
        await own_node.restart()
    async with asyncio.timeout(LIMIT):
        await sending
    await client.change_process(box.id, reader, ChangeProcess(close_input=True))
    assert (await output(box, reader)).split()[1] == hashlib.sha256(content).hexdigest().encode()
    assert (await ended(box, reader)).exit_code == 0
    assert (await ended(box, talker)).exit_code == 6
    assert await output(box, talker) == b"".join(b"line %d\n" % i for i in range(60))
    assert (await client.process(box.id, finished)).exit_code == 8
    assert await output(box, finished) == b"done\n"


async def test_a_process_that_ends_while_there_is_no_node_keeps_its_status(own_node: RealNode) -> None:
    box = await own_node.box()
    number = await start(box, "sleep 0.5; head -c 100000 /dev/zero; exit 11")
    await own_node.kill()
    await asyncio.sleep(0.8)
    await own_node.start()
    assert (await ended(box, number)).exit_code == 11
    assert len(await output(box, number)) == 100_000
    assert await box.run("echo others; exit 1") == (b"others\n", 1)


async def test_ten_megabytes_of_output_are_whole_after_kills(own_node: RealNode) -> None:
    box = await own_node.box()
    number = await start(box, "i=0; while [ $i -lt 10000 ]; do printf '%01023d\\n' $i; i=$((i+1)); done")
    for _ in range(3):
        await asyncio.sleep(0.05)
        await own_node.restart()
    expected = b"".join(b"%01023d\n" % i for i in range(10000))
    assert (await ended(box, number)).exit_code == 0
    assert hashlib.sha256(await output(box, number)).digest() == hashlib.sha256(expected).digest()


async def test_a_sandbox_lost_with_the_node_leaves_its_processes_without_a_code(own_node: RealNode) -> None:
    box = await own_node.box()
    number = await start(box, "echo before; exec sleep 1000")
    await said(box, number, b"before")
    await own_node.kill()
    for pid in (own_node.directory / "run/members").glob("*/pid"):
        os.kill(int(pid.read_text()), signal.SIGKILL)
    await own_node.start()
    state = await own_node.client.process(box.id, number)
    assert (state.exit_code, state.reason) == (None, "the sandbox ended, so the exit status is unknown")
    assert await output(box, number) == b"before\n"
    assert (await own_node.client.state(box.id)).processes == 0
    await own_node.client.forget(box.id)


async def test_an_orderly_restart_of_the_node_keeps_processes_too(own_node: RealNode) -> None:
    box = await own_node.box()
    number = await start(box, "cat; exit 2")
    assert await own_node.client.write_input(box.id, number, 0, b"one ") == 4
    await own_node.terminate()
    await own_node.start()
    assert (await own_node.client.process(box.id, number)).input_taken == 4
    assert await own_node.client.write_input(box.id, number, 0, b"one two") == 7
    await own_node.client.change_process(box.id, number, ChangeProcess(close_input=True))
    assert (await ended(box, number)).exit_code == 2
    assert await output(box, number) == b"one two"
