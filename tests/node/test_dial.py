"""Connections into sandboxes through a real node: what is reached, what is refused, and that no descriptor is lost."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from roost.errors import Conflict, Invalid, NodeUnavailable, NotFound, Refused
from roost.node.client import NodeClient
from roost.node.protocol import Dial, Dialled, Freeze

from .guest_world import LIMIT
from .node_world import Box, RealNode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root")
SERVE = "mkdir -p /tmp/w; echo hello > /tmp/w/word; exec httpd -f -h /tmp/w -p {address}:{port}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


pytestmark = [pytestmark, pytest.mark.asyncio(loop_scope="module")]


async def dial(box: Box, port: int, host: str | None = None) -> socket.socket:
    """Once somebody listens there."""
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                return await box.node.client.dial(box.id, port, host)
            except Refused:
                await asyncio.sleep(0.02)


async def ask(connection: socket.socket) -> bytes:
    """The word that the sandbox's web server has."""
    loop = asyncio.get_running_loop()
    answer = b""
    async with asyncio.timeout(LIMIT):
        with connection:
            await loop.sock_sendall(connection, b"GET /word HTTP/1.0\r\n\r\n")
            while part := await loop.sock_recv(connection, 1000):
                answer += part
    return answer.rpartition(b"\r\n\r\n")[2].strip()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def sockets_of(node: RealNode) -> int:
    """Without those by which it speaks to guests, which come and go with its pool."""
    assert node.process
    pool = (await node.client.info()).pool
    found = -pool.idle - pool.busy
    for entry in Path(f"/proc/{node.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("socket:")
    return found


async def test_an_app_that_listens_on_the_loopback_only_is_reached(node: RealNode) -> None:
    box = await node.box(SERVE.format(port=8080, address="127.0.0.1"))
    connection = await dial(box, 8080)
    assert not connection.getblocking()
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert connection.getpeername() == ("127.0.0.1", 8080)
    assert await ask(connection) == b"hello"
    await box.stop()


async def test_an_app_is_found_at_whichever_of_its_addresses_it_listens(node: RealNode) -> None:
    box = await node.box()
    state = await node.client.state(box.id)
    assert state.ipv4 and state.ipv6
    for port, address in enumerate(("[::1]", state.ipv4, f"[{state.ipv6}]"), 9000):
        listening = asyncio.create_task(box.run(SERVE.format(port=port, address=address)))
        connection = await dial(box, port)
        assert connection.getpeername()[0] == address.strip("[]")
        assert await ask(connection) == b"hello"
        assert await ask(await dial(box, port, address.strip("[]"))) == b"hello"
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    await box.stop()
    ended = await node.client.state(box.id)
    assert (ended.ipv4, ended.ipv6) == (None, None)


async def test_where_nobody_listens_the_refusal_names_the_port_and_all_addresses(node: RealNode) -> None:
    box = await node.box()
    state = await node.client.state(box.id)
    with pytest.raises(Refused) as refused:
        await node.client.dial(box.id, 4444)
    for named in ("4444", "127.0.0.1", "::1", str(state.ipv4), str(state.ipv6)):
        assert named in str(refused.value)
    await box.stop()


async def test_an_app_whose_backlog_is_full_refuses_in_the_end(node: RealNode) -> None:
    box = await node.box()
    listening = await node.client.listen(box.id, 0, "127.0.0.1")
    listening.listen(0)
    port = listening.getsockname()[1]
    held: list[socket.socket] = []
    with pytest.raises(Refused, match="did not accept within"):
        for _ in range(10):
            held.append(await node.client.dial(box.id, port))
    for connection in (listening, *held):
        connection.close()
    await box.stop()


async def test_sandboxes_are_not_confused_when_many_are_dialled_at_once(node: RealNode) -> None:
    boxes = [await node.box() for _ in range(3)]
    listeners = [await node.client.listen(box.id, 7000, "127.0.0.1") for box in boxes]

    async def dialled(at: int) -> None:
        with await node.client.dial(boxes[at].id, 7000) as connection:
            accepted, peer = await asyncio.get_running_loop().sock_accept(listeners[at])
            accepted.close()
            assert peer[1] in range(1, 65536)
            assert os.stat(connection.fileno())

    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(dialled(number % 3) for number in range(300)))
    for listener in listeners:
        with pytest.raises(BlockingIOError):
            listener.accept()  # each got exactly those that were meant for it
        listener.close()
    for box in boxes:
        await box.stop()


async def test_a_listening_socket_takes_what_the_guest_itself_sends(node: RealNode) -> None:
    box = await node.box()
    for host, target in (("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")):
        with await node.client.listen(box.id, 0, host) as listening:
            port = listening.getsockname()[1]
            asking = asyncio.create_task(box.run(f"echo hi | nc {target} {port}"))
            async with asyncio.timeout(LIMIT):
                accepted, _ = await asyncio.get_running_loop().sock_accept(listening)
                with accepted:
                    assert await asyncio.get_running_loop().sock_recv(accepted, 10) == b"hi\n"
                await asking
    await box.stop()


async def test_a_taken_port_is_a_conflict_and_other_addresses_are_invalid(node: RealNode) -> None:
    box = await node.box()
    with await node.client.listen(box.id, 80, "0.0.0.0"):
        with pytest.raises(Conflict, match="port 80"):
            await node.client.listen(box.id, 80, "0.0.0.0")
        with await node.client.listen(box.id, 80, "::"):
            pass  # the other family's is another port
    for host in ("10.0.0.1", "localhost", "", "::2"):
        with pytest.raises(Invalid):
            await node.client.listen(box.id, 0, host)
    await box.stop()


@pytest.mark.parametrize(
    ("port", "host"),
    [(0, None), (65536, None), (-1, None), (80, "example.com"), (80, "fe80::1%eth0"), (80, "x" * 5000)],
)
async def test_what_is_no_port_or_address_is_invalid(node: RealNode, port: int, host: str | None) -> None:
    box = await node.box()
    with pytest.raises(Invalid):
        await node.client.dial(box.id, port, host)
    await box.stop()


async def test_what_is_stopped_for_the_guest_is_stopped_for_a_dial(node: RealNode) -> None:
    """The host's own addresses, its side of the guest's link, other guests, private ranges, metadata services."""
    box, other = await node.box(), await node.box()
    state, others = await node.client.state(box.id), await node.client.state(other.id)
    assert state.ipv4 and others.ipv4 and others.ipv6
    gateway = str(ip_address(state.ipv4) - 1)
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("0.0.0.0", 0)))
        port = server.getsockname()[1]
        opened.enter_context(await node.client.listen(other.id, port, "0.0.0.0"))
        opened.enter_context(await node.client.listen(other.id, port, "::"))
        addresses = [gateway, *_host_addresses(), others.ipv4, others.ipv6]
        addresses += ["10.0.0.1", "192.168.1.1", "169.254.169.254", f"::ffff:{gateway}", "fd00:ec2::254"]
        for address in addresses:
            with pytest.raises(Refused):
                await node.client.dial(box.id, port, address)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        async with asyncio.timeout(LIMIT):  # it is the network that stops them, not the way of asking
            (await node.client.dial(other.id, port, others.ipv4)).close()
    await box.stop()
    await other.stop()


def _host_addresses() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


async def test_sandboxes_that_cannot_be_entered_say_so(node: RealNode) -> None:
    with pytest.raises(NotFound):
        await node.client.dial("nosuch", 80)
    box = await node.box()
    await node.client.freeze(box.id, Freeze())
    with pytest.raises(Conflict, match="frozen"):
        await node.client.dial(box.id, 80)
    with pytest.raises(Conflict, match="frozen"):
        await node.client.listen(box.id, 0, "127.0.0.1")
    await box.stop()
    with pytest.raises(Conflict, match="ended"):
        await node.client.dial(box.id, 80)


async def test_dials_go_on_after_the_node_was_killed_and_sockets_outlive_it(node: RealNode) -> None:
    box = await node.box(SERVE.format(port=8080, address="127.0.0.1"))
    before = await dial(box, 8080)
    await node.kill()
    with pytest.raises(NodeUnavailable):
        await node.client.dial(box.id, 8080)
    assert await ask(before) == b"hello"
    await node.start()
    assert await ask(await dial(box, 8080)) == b"hello"
    await box.stop()


async def test_no_descriptor_is_lost_whoever_goes_away(node: RealNode) -> None:
    box = await node.box()
    listening = await node.client.listen(box.id, 7000, "127.0.0.1")
    (await node.client.dial(box.id, 7000)).close()
    async with asyncio.timeout(LIMIT):
        while (await node.client.info()).pool.creating:
            await asyncio.sleep(0.02)
    ours, theirs = descriptors(), await sockets_of(node)
    for round in range(20):
        asked = [asyncio.create_task(node.client.dial(box.id, 7000)) for _ in range(5)]
        for _ in range(round % 7):
            await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        for made in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(made, socket.socket):
                made.close()
        with contextlib.suppress(BlockingIOError):
            while True:
                listening.accept()[0].close()
    with pytest.raises(Refused):
        await node.client.dial(box.id, 7001)  # answered behind all that came late
    async with asyncio.timeout(LIMIT):
        while descriptors() != ours or await sockets_of(node) != theirs:
            await asyncio.sleep(0.02)
    listening.close()
    await box.stop()


async def test_a_sandbox_that_has_ended_leaves_no_descriptor_of_its_network(node: RealNode) -> None:
    for _ in range(3):
        box = await node.box()
        (await node.client.listen(box.id, 0, "127.0.0.1")).close()
        await box.stop()
    async with asyncio.timeout(LIMIT):
        while network_descriptors(node) != 1 + (pool := (await node.client.info()).pool).idle + pool.busy:
            await asyncio.sleep(0.05)


def network_descriptors(node: RealNode) -> int:
    """Network namespaces that the node holds: its own and one of each member."""
    assert node.process
    found = 0
    for entry in Path(f"/proc/{node.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith("net:")
    return found


async def test_a_client_that_is_closed_tells_who_waits(node: RealNode) -> None:
    box = await node.box()
    async with NodeClient(node.directory / "run/node.sock") as client:
        waiting = asyncio.create_task(client.dial(box.id, 9, "192.0.2.1"))
        while not client._dialling._connection:  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises((NodeUnavailable, Refused)):
        await waiting
    await box.stop()


async def test_one_sandbox_has_only_so_many_dials_under_way(node: RealNode) -> None:
    """Its packets go nowhere, so that each dial takes its whole time."""
    box = await node.box()
    with await node.client.listen(box.id, 0, "127.0.0.1") as listening:
        listening.listen(0)
        port = listening.getsockname()[1]
        answers = await asyncio.gather(*(node.client.dial(box.id, port) for _ in range(300)), return_exceptions=True)
        told = [str(answer) for answer in answers if isinstance(answer, Refused)]
        assert 0 < sum("being made already" in text for text in told) <= 300 - 256
        for answer in answers:
            if isinstance(answer, socket.socket):
                answer.close()
            else:
                assert isinstance(answer, Refused)
    await box.stop()


async def test_whoever_sends_nonsense_loses_only_its_own_connection(node: RealNode) -> None:
    box = await node.box()
    loop = asyncio.get_running_loop()
    with await node.client.listen(box.id, 7000, "127.0.0.1") as listening:
        for nonsense in (
            b"x",
            bytes(10_000),
            msgspec.msgpack.encode({"number": "1"}),
            msgspec.msgpack.encode([1] * 900),
        ):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect(str(node.directory / "run/dial.sock"))
                connection.setblocking(False)
                connection.send(nonsense)
                async with asyncio.timeout(LIMIT):
                    assert await loop.sock_recv(connection, 100) == b""
        (await node.client.dial(box.id, 7000)).close()
        assert listening.fileno() >= 0
    await box.stop()


async def test_who_reads_no_answers_is_not_read_from_and_gets_all_of_them_later(node: RealNode) -> None:
    box, other = await node.box(), await node.box()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(node.directory / "run/dial.sock"))
        connection.setblocking(False)
        sent, read = 0, 0
        async with asyncio.timeout(LIMIT):
            while sent < 3000:
                try:
                    connection.send(msgspec.msgpack.encode(Dial(number=sent, sandbox=box.id, port=1)))
                    sent += 1
                except BlockingIOError:
                    await asyncio.sleep(0.3)
                    break
            with pytest.raises(Refused):
                await node.client.dial(other.id, 80)  # others are served meanwhile
            numbers: set[int] = set()
            while read < sent:
                answer = msgspec.msgpack.decode(await loop.sock_recv(connection, 5000), type=Dialled)
                numbers.add(answer.number)
                read += 1
            assert numbers == set(range(sent))
    await box.stop()
    await other.stop()
