"""Applications that are no proper HTTP servers are answered for within seconds, and with what they sent."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from roost.gateways.http import exchange
from tests.gateways.wire import get, wire
from tests.gateways.world import front

pytestmark = pytest.mark.timeout(60)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncGenerator[int]:
    """Its port."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def saying(*pieces: bytes, ends: bool = False, reads: bool = True) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reads:
            await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if ends:
            writer.close()
        else:
            await reader.read()

    return serve


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.0 200 OK\n\nhello"],
        [b"HTTP/1.0 200 OK\nContent-Type: text/plain\nContent-Length: 5\n\nhello"],
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\n\r\nhello"],
        [b"HTTP/1.1 200 OK\nConnection: close\r\n\nhello"],
        [b"HTTP/1.0 200 OK\n", b"Content-Type: te", b"xt/plain\n", b"\n", b"hello"],
        [b"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 5\n\nhello"],
    ],
)
async def test_an_answer_whose_lines_end_with_lf_alone_is_relayed(pieces: list[bytes]) -> None:
    async with listening(saying(*pieces, ends=True)) as port, front() as here, wire(here) as client:
        here.world.add("app", port)
        client.send(get("app"))
        answer = await client.answer()
        while answer.status == 100:
            answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"hello")


async def test_an_empty_line_in_a_body_is_not_the_end_of_its_head() -> None:
    serve = saying(b"HTTP/1.0 200 OK\nX-Of: head\n\nhello\r\n\r\nX-Of: body\r\n\r\n", ends=True)
    async with listening(serve) as port, front() as here, wire(here) as client:
        here.world.add("app", port)
        client.send(get("app"))
        answer = await client.answer()
        assert answer.headers["x-of"] == "head"
        assert answer.body == b"hello\r\n\r\nX-Of: body\r\n\r\n"


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(
    ("banner", "shown"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", r"SSH-2.0-OpenSSH_9.2p1\r\n"),
        (b"220 mail ESMTP <b>\r\n", r"220 mail ESMTP <b>\r\n"),
        (b"J\x00\x00\x00\x0a8.0.36\x00", r"J\x00\x00\x00\n8.0.36\x00"),
        (b"-ERR unknown command 'GET'\r\n\r\n", "-ERR unknown command 'GET'"),
    ],
)
async def test_who_speaks_another_protocol_is_a_502_that_shows_what_it_sent(
    banner: bytes, shown: str, ends: bool, reads: bool
) -> None:
    async with listening(saying(banner, ends=ends, reads=reads)) as port, front() as here, wire(here) as client:
        here.world.add("app", port)
        client.send(get("app"))
        answer = await client.answer()
        error = json.loads(answer.body)["error"]
        assert answer.status == 502
        assert f"port {port}" in error
        assert shown in error


async def test_what_is_shown_of_a_flood_is_short() -> None:
    async with listening(saying(b"\xff" * 100_000)) as port, front() as here, wire(here) as client:
        here.world.add("app", port)
        client.send(get("app"))
        answer = await client.answer()
        assert answer.status == 502
        assert len(answer.body) < 1000


@pytest.mark.parametrize("beginning", [b"H", b"HTTP/1.1 200 OK\r\nContent-Ty"])
async def test_a_head_that_begins_and_does_not_go_on_is_a_502(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "HEAD", 0.1)
    async with listening(saying(beginning)) as port, front() as here, wire(here) as client:
        here.world.add("app", port)
        client.send(get("app"))
        answer = await client.answer()
        assert answer.status == 502
        assert repr(beginning)[2:-1] in json.loads(answer.body)["error"]


async def test_an_interim_answer_in_pieces_does_not_hurry_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "HEAD", 0.1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (b"HTTP/1.1 103 Early", b" Hints\r\n\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.05)
        await asyncio.sleep(2.5)  # longer than it takes the gateway to look at deadlines
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()

    async with listening(serve) as port, front() as here, wire(here) as client:
        here.world.add("app", port)
        client.send(get("app"))
        assert (await client.answer()).status == 103
        assert (await client.answer()).body == b"ok"
