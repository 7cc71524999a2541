"""Clients of the API that send nothing, little, nonsense or leave cost it a bounded number of connections."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn

from roost.api import connection
from roost.api.connection import Connections
from roost.listening import bound
from roost.serve import Server
from tests.api.conftest import TOKEN, Served

pytestmark = pytest.mark.timeout(60)
GET = b"GET / HTTP/1.1\r\nHost: roost\r\n\r\n"
HALF_BODY = b"POST / HTTP/1.1\r\nHost: roost\r\nContent-Length: 100\r\n\r\nhalf"


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> int:
        """Its status."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await self.reader.readexactly(int(length.partition(b":")[2]))
            return int(head.split()[1])

    async def ended(self) -> bytes:
        """All that comes until the other side has closed."""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
            return b""


@dataclass
class Front:
    port: int
    connections: Connections
    left: int = 0  # requests whose client was told to have left

    @contextlib.asynccontextmanager
    async def client(self, sends: bytes = b"") -> AsyncGenerator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sends)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def front(most: int = 100) -> AsyncGenerator[Front]:
    """Answers a request with the length of its body once that has come whole."""
    this = Front(0, Connections(most))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        size, message = 0, {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                this.left += 1
                return
            size += len(message["body"])
        body = b"%d" % size
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with bound("127.0.0.1", 0, "--listen") as listener:
        this.port = listener.getsockname()[1]
        http: Any = this.connections.protocol
        config = uvicorn.Config(app, http=http, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        server = Server(config)
        tasks = [asyncio.create_task(server.serve([listener])), asyncio.create_task(this.connections.watch())]
        try:
            yield this
        finally:
            server.should_exit = True
            await tasks[0]
            tasks[1].cancel()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(connection, name, 0.2)
    monkeypatch.setattr(connection, "SWEEP", 0.05)


async def test_requests_one_behind_the_other_are_answered(hurried: None) -> None:
    async with front() as here, here.client(GET) as client:
        for _ in range(3):
            assert await client.answer() == 200
            client.writer.write(GET)
        assert await client.answer() == 200


@pytest.mark.parametrize(
    ("sends", "status"),
    [(b"", b""), (b"GET / HT", b"408"), (GET[:-2], b"408"), (HALF_BODY, b"408"), (GET + GET[:-2], b"408")],
)
async def test_who_does_not_go_on_is_ended(hurried: None, sends: bytes, status: bytes) -> None:
    async with front() as here, here.client(sends) as client:
        assert status in await client.ended()
        assert not here.connections.open
        assert not here.connections.waiting


async def test_who_sends_a_byte_now_and_then_has_no_longer_for_a_head(hurried: None) -> None:
    async with front() as here, here.client() as client:
        ended = asyncio.create_task(client.ended())
        for byte in GET * 10:
            if ended.done():
                break
            with contextlib.suppress(ConnectionError):
                client.writer.write(bytes([byte]))
                await client.writer.drain()
            await asyncio.sleep(0.05)
        said = await ended  # a reset may overtake the answer
        assert said == b"" or b" 408 " in said


async def test_a_body_that_comes_slowly_comes(hurried: None) -> None:
    async with front() as here, here.client(HALF_BODY) as client:
        for _ in range(96):
            client.writer.write(b"x")
            await asyncio.sleep(0.01)
        assert await client.answer() == 200


async def test_an_endless_head_is_refused() -> None:
    async with front() as here, here.client(b"GET / HTTP/1.1\r\n") as client:
        ended = asyncio.create_task(client.ended())
        for number in range(400):
            if ended.done():
                break
            with contextlib.suppress(ConnectionError):
                client.writer.write(b"X-%d: %b\r\n" % (number, b"x" * 1000))
                await client.writer.drain()
        said = await ended
        assert said == b"" or b" 431 " in said
        assert not here.connections.open


async def test_where_all_connections_are_taken_the_one_that_has_waited_longest_makes_room() -> None:
    async with front(most=3) as here, contextlib.AsyncExitStack() as clients:
        first, second, third = [await clients.enter_async_context(here.client()) for _ in range(3)]
        second.writer.write(GET)
        assert await second.answer() == 200
        async with here.client(GET) as new:
            assert await new.answer() == 200
        assert await first.ended() == b""
        for client in (third, second):
            client.writer.write(GET)
            assert await client.answer() == 200


async def test_where_all_have_a_request_under_way_the_next_is_told_so() -> None:
    async with front(most=2) as here, contextlib.AsyncExitStack() as clients:
        busy = [await clients.enter_async_context(here.client(HALF_BODY)) for _ in range(2)]
        async with asyncio.timeout(10):
            while here.connections.waiting or len(here.connections.open) < 2:
                await asyncio.sleep(0.01)
        async with here.client(GET) as new:
            assert await new.answer() == 503
        for client in busy:
            client.writer.write(b"x" * 96)
            assert await client.answer() == 200


async def test_many_idle_connections_keep_nobody_out() -> None:
    async with front(most=50) as here, contextlib.AsyncExitStack() as clients:
        for _ in range(300):
            await clients.enter_async_context(here.client())
        async with here.client(GET) as client:
            assert await client.answer() == 200
        assert len(here.connections.open) <= 51


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("path", ["/api/v1/mags-jobs", "/api/v1/mags-files"])
def test_who_leaves_in_the_middle_of_a_body_is_no_fault(served: Served, path: str, reset: bool) -> None:
    host, _, port = served.url.rpartition("/")[2].rpartition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: roost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n"
    head += "Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\n"
    for _ in range(5):
        with socket.create_connection((host, int(port)), 10) as client:
            client.sendall(head.encode() + b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf')
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with socket.create_connection((host, int(port)), 10) as client:  # a body that is broken
        client.sendall(head.replace("Content-Length: 1000", "Transfer-Encoding: chunked").encode() + b"zz\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    with served.client() as api:
        assert api.get("/api/v1/mags-jobs").status_code == 200
    assert served.stop() == 0
    events = [json.loads(line) for line in served.events.read_text().splitlines()]
    assert not [event for event in events if event["level"] not in ("info", "warning") or "exception" in event]
