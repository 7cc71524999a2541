"""Sessions with a real node: one process, alive as long as the connection."""

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost.errors import Conflict, NodeUnavailable
from roost.node.guest import frames
from roost.node.guest.frames import Command, ToGuest
from roost.node.protocol import SESSION_WINDOW, ChangeProcess, StartProcess, Terminal
from roost.node.session_client import Session

from .fake_guest import FakeGuest
from .guest_world import LIMIT
from .node_world import Box, RealNode, shell

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes sandboxes"),
    pytest.mark.timeout(120),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(node: RealNode) -> Box:
    """Shared by tests that leave it as it was."""
    return await node.box()


async def said(session: Session) -> bytes:
    return b"".join([data async for _, data in session.output()])


async def until(session: Session, words: bytes) -> bytes:
    """What came up to these words."""
    seen = b""
    async with asyncio.timeout(LIMIT):
        async for _, data in session.output():
            seen += data
            if words in seen:
                return seen
    raise AssertionError(seen)


async def test_output_comes_apart_and_the_end_tells_the_exit_code(node: RealNode, box: Box) -> None:
    async with node.client.session(box.id, shell("echo out; echo err >&2; exit 7")) as session:
        assert {pair async for pair in session.output()} == {("stdout", b"out\n"), ("stderr", b"err\n")}
        end = await session.end()
    assert (end.exit_code, end.signal, end.reason) == (7, None, None)


async def test_a_process_gets_the_scripts_environment_with_its_own_changes(box: Box) -> None:
    output, _ = await box.run("echo $COLOR $SIZE; pwd", environment={"SIZE": "big"}, directory="/tmp")
    assert output == b"red big\n/tmp\n"
    assert (await box.run("echo $COLOR", environment={"COLOR": "blue"}))[0] == b"blue\n"
    assert (await box.run("echo $COLOR; pwd"))[0] == b"red\n/root\n"


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (StartProcess(arguments=[]), "arguments: empty"),
        (StartProcess(arguments=["sh", "a\0b"]), "NUL"),
        (StartProcess(arguments=["sh", "x" * 300_000]), "takes 262144"),
        (StartProcess(arguments=["sh"], environment={"A=B": "c"}), "environment"),
        (StartProcess(arguments=["sh"], terminal=Terminal(rows=0, columns=80)), "terminal"),
    ],
)
async def test_what_cannot_be_started_is_refused(node: RealNode, box: Box, process: StartProcess, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        async with node.client.session(box.id, process):
            pass


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (StartProcess(arguments=["/no/such"]), b"roost: /no/such: no such program\n"),
        (StartProcess(arguments=["sh"], directory="/nowhere"), b"roost: /nowhere: no such working directory\n"),
    ],
)
async def test_what_is_missing_ends_a_session_as_a_shell_ends(
    node: RealNode, box: Box, process: StartProcess, said: bytes
) -> None:
    async with node.client.session(box.id, process) as session:
        assert [pair async for pair in session.output()] == [("stderr", said)]
        assert (await session.end()).exit_code == 127


async def test_a_sandbox_that_is_not_there_is_refused(node: RealNode) -> None:
    with pytest.raises(Conflict, match="no sandbox nothere"):
        async with node.client.session("nothere", shell("true")):
            pass


async def test_input_goes_through_and_its_end_is_seen(node: RealNode, box: Box) -> None:
    async with node.client.session(box.id, shell("cat; echo end")) as session:
        await session.write(b"one\n")
        await session.write_eof()
        assert await said(session) == b"one\nend\n"


async def test_without_input_the_process_reads_nothing(box: Box) -> None:
    assert await box.run("cat; echo end", input=False) == (b"end\n", 0)


async def test_20_megabytes_go_both_ways_at_once_unharmed(node: RealNode, box: Box) -> None:
    content = os.urandom(20 * 1024 * 1024)
    async with asyncio.timeout(LIMIT), node.client.session(box.id, shell("cat")) as session:

        async def write() -> None:
            await session.write(content)
            await session.write_eof()

        writing = asyncio.create_task(write())
        back = hashlib.sha256()
        async for _, data in session.output():
            back.update(data)
        await writing
    assert back.digest() == hashlib.sha256(content).digest()


async def test_a_client_that_does_not_take_output_stops_the_process(node: RealNode, box: Box) -> None:
    script = "i=0; while [ $i -lt 64 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i > /tmp/progress; done"
    async with asyncio.timeout(LIMIT), node.client.session(box.id, shell(script)) as session:
        steady = before = b""
        while not before or steady != before:
            before = steady
            await asyncio.sleep(0.3)
            steady, _ = await box.run("cat /tmp/progress 2>/dev/null")
        assert int(steady) * 65536 < SESSION_WINDOW + 4 * 128 * 1024
        assert len(await said(session)) == 64 * 65536


async def test_input_that_is_not_read_waits_and_holds_up_neither_signals_nor_output(node: RealNode, box: Box) -> None:
    async with (
        asyncio.timeout(LIMIT),
        node.client.session(box.id, shell("trap 'echo usr1' USR1; while :; do sleep 0.05; done")) as session,
    ):
        await asyncio.sleep(0.2)  # for the trap
        writing = asyncio.create_task(session.write(bytes(2**20)))
        await asyncio.wait({writing}, timeout=0.3)
        assert not writing.done()
        await session.change(ChangeProcess(signal=signal.SIGUSR1))
        assert b"usr1" in await until(session, b"usr1")
        await session.change(ChangeProcess(signal=signal.SIGTERM))
        await asyncio.gather(writing, said(session))
        assert (await session.end()).signal == signal.SIGTERM


async def test_a_terminal_has_the_size_it_is_given(node: RealNode, box: Box) -> None:
    terminal = Terminal(rows=33, columns=101)
    process = shell("stty size; read x; stty size; tty", terminal=terminal)
    async with asyncio.timeout(LIMIT), node.client.session(box.id, process) as session:
        assert b"33 101" in await until(session, b"33 101\r\n")
        await session.change(ChangeProcess(terminal=Terminal(rows=50, columns=132)))
        await session.write(b"\n")
        assert b"50 132\r\n/dev/pts/" in await said(session)


async def test_control_c_on_a_terminal_interrupts_the_foreground(node: RealNode, box: Box) -> None:
    async with asyncio.timeout(LIMIT), node.client.session(box.id, shell("sleep 1000", terminal=Terminal())) as session:
        await asyncio.sleep(0.2)
        await session.write(b"\x03")
        await said(session)
        assert (await session.end()).exit_code == 128 + signal.SIGINT


async def test_leaving_hangs_up_on_the_process_and_its_group(node: RealNode, box: Box) -> None:
    async with node.client.session(box.id, shell("sleep 12321 & sleep 12322; true")) as session:
        await session.write(b"x")
    await box.until_gone("sleep 1232")


async def test_a_process_that_ignores_the_hang_up_is_killed(node: RealNode, box: Box) -> None:
    async with node.client.session(box.id, shell("trap '' HUP; while :; do sleep 0.1 ; : 5151; done")) as session:
        await asyncio.sleep(0.2)
        await session.change(ChangeProcess())
    await box.until_gone("5151")


async def test_what_a_process_leaves_in_the_background_outlives_its_orderly_end(box: Box) -> None:
    assert await box.run("sleep 777 >/dev/null 2>&1 & echo begun") == (b"begun\n", 0)
    assert b"sleep 777" in (await box.run("ps -o args"))[0]
    await box.run("pkill -f 'sleep 777'")


async def test_fifty_sessions_at_once(box: Box) -> None:
    answers = await asyncio.gather(*(box.run(f"sleep 0.1; echo {number}") for number in range(50)))
    assert answers == [(f"{number}\n".encode(), 0) for number in range(50)]


async def test_a_session_in_a_sandbox_that_ends_has_no_exit_code(node: RealNode) -> None:
    box = await node.box()
    async with asyncio.timeout(LIMIT), node.client.session(box.id, shell("trap '' TERM; sleep 1000")) as session:
        stopping = asyncio.create_task(box.stop())
        await said(session)
        end = await session.end()
        await stopping
    assert (end.exit_code, end.signal) in ((137, 9), (None, None))
    assert end.exit_code or "sandbox ended" in (end.reason or "")


async def test_after_the_script_of_a_sandbox_has_ended_the_refusal_says_so(node: RealNode) -> None:
    box = await node.box("exit 0")
    with pytest.raises(Conflict, match="ended"):
        while True:
            await box.run("true")


async def test_when_the_node_dies_the_client_is_told_and_the_process_does_not_stay() -> None:
    async with RealNode.running() as node:
        box = await node.box()
        with pytest.raises(NodeUnavailable):
            async with node.client.session(box.id, shell("sleep 4242")) as session:
                await node.kill()
                await said(session)
        await node.start()
        await box.until_gone("sleep 4242")
        assert await box.run("echo again") == (b"again\n", 0)


async def test_an_orderly_end_of_the_node_ends_its_sessions() -> None:
    async with RealNode.running() as node:
        box = await node.box()
        with pytest.raises(NodeUnavailable):
            async with node.client.session(box.id, shell("sleep 4343")) as session:
                began = time.monotonic()
                await node.terminate()
                assert time.monotonic() - began < LIMIT
                await said(session)
        await node.start()
        await box.until_gone("sleep 4343")


async def test_a_caller_that_goes_while_a_process_is_being_started_takes_it_along(tmp_path: Path) -> None:
    async with FakeGuest.listening(tmp_path / "guest.sock") as fake:
        guest = await fake.guest()
        starting = asyncio.create_task(guest.start(7, Command(["x"], {}), lambda _: None))
        assert (await fake.asked()).kind == ToGuest.EXEC
        starting.cancel()
        asked = await fake.asked()
        while asked.kind == ToGuest.ACK:
            asked = await fake.asked()
        assert (asked.kind, asked.id) == (ToGuest.SIGNAL, 7)
        fake.say(frames.Started(7, 10), frames.Exited(7, 0, signal.SIGKILL, 0))
        assert (await fake.asked()).kind == ToGuest.RELEASE
        guest.close()
