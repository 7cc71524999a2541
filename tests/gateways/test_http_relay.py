"""Requests and answers pass the gateway as they are, whatever their framing; real clients, real servers."""

import asyncio
import hashlib
import json
import socket
import struct

import aiohttp
import pytest
import websockets

from tests.gateways.backends import OK, Received, application, backend
from tests.gateways.wire import get, post, wire
from tests.gateways.world import SETTINGS, front

pytestmark = pytest.mark.timeout(60)


async def curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-m", "20", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return out.decode()


async def test_curl_reaches_an_application_by_its_host_name() -> None:
    async with front() as here, backend() as app:
        here.world.add("app", app.port)
        said = await curl("-i", "--resolve", f"app.apps.localhost:{here.port}:127.0.0.1", here.url("app", "/a?b=c"))
        assert said.startswith("HTTP/1.1 200 OK\r\n")
        assert said.endswith("\r\n\r\nok")
        assert app.requests[0].line == "GET /a?b=c HTTP/1.1"
        assert app.requests[0].header("host") == f"app.apps.localhost:{here.port}"


async def test_a_connection_serves_requests_to_several_hosts() -> None:
    async with front() as here, backend() as one, backend(OK.replace(b"ok", b"no")) as other, wire(here) as client:
        here.world.add("one", one.port)
        here.world.add("other", other.port)
        for label, body in (("one", b"ok"), ("other", b"no"), ("one", b"ok")):
            client.send(get(label))
            assert (await client.answer()).body == body
        assert one.connections == other.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(request: Received) -> bytes:
        await asyncio.sleep(0.1 if "/0" in request.line else 0)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request.line), request.line.encode())

    async with front() as here, backend(slow_first) as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(
            b"".join(get("app", f"/{number}") for number in range(20)) + post("app", b"x" * 10) + get("app", "/z")
        )
        for number in range(20):
            assert (await client.answer()).body == f"GET /{number} HTTP/1.1".encode()
        assert (await client.answer()).body == b"POST / HTTP/1.1"
        assert (await client.answer()).body == b"GET /z HTTP/1.1"


async def test_a_thousand_pipelined_requests_to_nowhere_are_all_answered() -> None:
    async with front() as here, wire(here) as client:
        client.send(get("nowhere") * 1000)
        for _ in range(1000):
            assert (await client.answer()).status == 404


async def test_hop_by_hop_headers_and_those_that_connection_names_are_dropped() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n"
        b"x-mine: 2\r\nX-Yours: 2\r\nContent-Length: 2\r\n\r\nok"
    )
    async with front() as here, backend(answer) as app, wire(here) as client:
        here.world.add("app", app.port)
        lines = ("Connection: keep-alive, X-Secret", "X-Secret: 1", "Keep-Alive: 5", "TE: gzip, trailers")
        client.send(get("app", "/", *lines, "Proxy-Connection: close", "Upgrade: h2c", "X-Kept: 1"))
        back = await client.answer()
        assert not {"connection", "keep-alive", "x-mine"} & set(back.headers)
        assert back.headers["x-yours"] == "2"
        names = {name for name, _ in app.requests[0].headers}
        assert not {"connection", "keep-alive", "x-secret", "proxy-connection", "upgrade"} & names
        assert app.requests[0].header("te") == "trailers"
        assert app.requests[0].header("x-kept") == "1"


async def test_an_application_is_told_where_a_request_came_from_by_us_alone() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        lies = ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6")
        client.send(get("app", "/", *lies, "X-Forwarded-Host: evil", "X-Forwarded-Port: 1"))
        await client.answer()
        told = dict(app.requests[0].headers)
        assert told["x-forwarded-for"] == told["x-real-ip"] == "127.0.0.1"
        assert told["x-forwarded-proto"] == "http"
        assert told["x-forwarded-host"] == "app.apps.localhost"
        assert told["x-forwarded-port"] == "80"
        assert told["forwarded"] == "for=127.0.0.1;host=app.apps.localhost;proto=http"
        assert len(told) == len(app.requests[0].headers)


async def test_a_proxy_before_the_gateway_says_who_its_client_is() -> None:
    from dataclasses import replace

    async with front(replace(SETTINGS, gateway_url="https")) as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app", "/", "X-Forwarded-For: 9.9.9.9", "Forwarded: for=9.9.9.9"))
        await client.answer()
        told = dict(app.requests[0].headers)
        assert told["x-forwarded-for"] == "9.9.9.9, 127.0.0.1"
        assert told["forwarded"].startswith("for=9.9.9.9, for=127.0.0.1;")
        assert (told["x-forwarded-proto"], told["x-forwarded-port"]) == ("https", "443")


@pytest.mark.parametrize("path", ["/json", "/json/version", "/json/list?x", "/devtools/page/1"])
async def test_devtools_are_asked_as_localhost(path: str) -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app", path) + get("app", "/jsonp") + get("app", "http://app.apps.localhost/x?y"))
        for _ in range(3):
            await client.answer()
        assert [request.header("host") for request in app.requests] == ["localhost", *["app.apps.localhost"] * 2]
        assert app.requests[2].line == "GET /x?y HTTP/1.1"


async def test_answers_without_a_body_leave_the_connection_usable() -> None:
    def answer(request: Received) -> bytes:
        status = request.line.split()[1][1:]
        length = b"" if status == "204" else b"Content-Length: 5\r\n"
        return b"HTTP/1.1 %b X\r\n%b\r\n" % (status.encode(), length)

    async with front() as here, backend(answer) as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app", "/200").replace(b"GET", b"HEAD"))
        assert (await client.answer(bodiless=True)).headers["content-length"] == "5"
        for status in (204, 304):
            client.send(get("app", f"/{status}"))
            assert (await client.answer()).status == status
        client.send(get("nowhere").replace(b"GET", b"HEAD"))
        assert (await client.answer(bodiless=True)).status == 404
        client.send(get("app", "/304"))
        assert (await client.answer()).status == 304
        assert app.connections == 1


async def test_chunks_and_trailers_pass_both_ways_as_they_are() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2;a=b\r\nok\r\n0\r\nX-Sum: 9\r\n\r\n"
    )
    async with front() as here, backend(chunked) as app, wire(here) as client:
        here.world.add("app", app.port)
        head = b"POST / HTTP/1.1\r\nHost: app.apps.localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        for _ in range(2):
            client.send(head + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Mine: 7\r\n\r\n")
            reply = await client.reader.readuntil(b"X-Sum: 9\r\n\r\n")
            assert reply.endswith(b"\r\n\r\n2;a=b\r\nok\r\n0\r\nX-Sum: 9\r\n\r\n")
        assert [request.body for request in app.requests] == [b"abc0123456789|X-Mine: 7"] * 2


async def test_an_answer_that_ends_with_its_connection_is_chunked_for_new_clients_and_plain_for_old_ones() -> None:
    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nX: 1\r\n\r\nall ")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"of it")
        writer.close()

    server = await asyncio.start_server(until_closed, "127.0.0.1", 0)
    async with server, front() as here:
        here.world.add("app", server.sockets[0].getsockname()[1])
        async with wire(here) as client:
            for _ in range(2):
                client.send(get("app"))
                answer = await client.answer()
                assert (answer.body, answer.headers["transfer-encoding"]) == (b"all of it", "chunked")
        async with wire(here) as client:
            client.send(b"GET / HTTP/1.0\r\nHost: app.apps.localhost\r\n\r\n")
            answer = await client.answer()
            assert answer.body == b"all of it"
            assert "transfer-encoding" not in answer.headers


async def test_an_http_1_0_client_gets_a_chunked_answer_without_chunks() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 9\r\n\r\n"
    async with front() as here, backend(chunked) as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(b"GET / HTTP/1.0\r\nHost: app.apps.localhost\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert answer.body == b"ok"


async def test_an_http_1_0_client_may_keep_its_connection() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        for _ in range(2):
            client.send(b"GET / HTTP/1.0\r\nHost: app.apps.localhost\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.answer()
            assert (answer.body, answer.headers["connection"]) == (b"ok", "keep-alive")


async def test_a_client_that_ends_its_side_gets_its_answer() -> None:
    async def late(_: Received) -> bytes:
        await asyncio.sleep(0.1)
        return OK

    async with front() as here, backend(late) as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app"))
        client.writer.write_eof()
        assert (await client.answer()).body == b"ok"
        assert await client.rest() == b""


async def test_a_client_that_leaves_ends_its_request_and_the_sandbox_is_idle_again() -> None:
    left = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    async with server, front() as here:
        name = here.world.add("app", server.sockets[0].getsockname()[1])
        async with wire(here) as client:
            client.send(get("app"))
            await client.reader.readuntil(b"\r\n\r\n")
            assert name.run is not None
            assert name.run.users == 1
            raw = client.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            client.writer.transport.abort()
        await asyncio.wait_for(left.wait(), 10)
        assert name.run.users == 0
        assert not here.gateway.exchanges


async def test_expect_100_continue_is_the_applications_to_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/no" in head:
            writer.write(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(5)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n" + body)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, front() as here:
        here.world.add("app", server.sockets[0].getsockname()[1])
        expect = b" HTTP/1.1\r\nHost: app.apps.localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        async with wire(here) as client:
            client.send(b"POST /yes" + expect)
            assert (await client.answer()).status == 100
            client.send(b"hello")
            assert (await client.answer()).body == b"hello"
        async with wire(here) as client:
            client.send(b"POST /no" + expect)
            assert (await client.answer()).status == 417
            assert await client.rest() == b""


async def test_events_arrive_one_by_one() -> None:
    async with front() as here, application() as port, aiohttp.ClientSession() as session:
        here.world.add("app", port)
        headers = {"Host": "app.apps.localhost"}
        async with session.get(f"http://127.0.0.1:{here.port}/events", headers=headers) as response:
            assert [chunk async for chunk in response.content.iter_any()] == [b"data: %d\n\n" % n for n in range(3)]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_upload_arrives_whole(chunked: bool) -> None:
    block = bytes(range(256)) * 4096
    count = 64

    async def body() -> "asyncio.AsyncIterator[bytes]":  # type: ignore[name-defined]
        for _ in range(count):
            yield block

    headers = {"Host": "app.apps.localhost"} | ({} if chunked else {"Content-Length": str(count * len(block))})
    async with front() as here, application() as port, aiohttp.ClientSession() as session:
        here.world.add("app", port)
        async with session.post(f"http://127.0.0.1:{here.port}/digest", data=body(), headers=headers) as response:
            told = json.loads(await response.text())
    assert told == {"sha256": hashlib.sha256(block * count).hexdigest(), "size": count * len(block)}


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_large_download_arrives_whole_while_a_slow_reader_makes_it_wait(framing: str) -> None:
    async with front() as here, application() as port, aiohttp.ClientSession(read_bufsize=65536) as session:
        here.world.add("app", port)
        url = f"http://127.0.0.1:{here.port}/download?mb=64&{framing}"
        seen, size = hashlib.sha256(), 0
        async with session.get(url, headers={"Host": "app.apps.localhost"}) as response:
            await asyncio.sleep(0.3)
            (connection,) = here.gateway.connections
            held = connection._transport.get_write_buffer_size()  # type: ignore[attr-defined]
            assert held < 2 * 1024 * 1024
            async for data in response.content.iter_any():
                seen.update(data)
                size += len(data)
        assert size == 64 * 1024 * 1024
        assert seen.hexdigest() == hashlib.sha256(bytes(range(256)) * 4096 * 64).hexdigest()


async def test_an_upload_waits_for_an_application_that_does_not_read() -> None:
    reading = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reading.wait()
        await reader.readexactly(32 * 1024 * 1024)
        writer.write(OK)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, front() as here, wire(here) as client:
        here.world.add("app", server.sockets[0].getsockname()[1])
        client.send(post("app", bytes(32 * 1024 * 1024)))
        await asyncio.sleep(0.3)
        (upstream,) = here.gateway.pool._open  # type: ignore[attr-defined]
        assert upstream._transport.get_write_buffer_size() < 2 * 1024 * 1024  # type: ignore[attr-defined]
        reading.set()
        assert (await client.answer()).body == b"ok"


async def test_a_websocket_passes_text_and_large_messages() -> None:
    async with front() as here, application() as port:
        here.world.add("app", port)
        name = here.world.names["app.apps.localhost"]
        url = f"ws://app.apps.localhost:{here.port}/socket"
        async with websockets.connect(url, host="127.0.0.1", port=here.port, max_size=None) as channel:
            await channel.send("hello")
            assert await channel.recv() == f"hello from app.apps.localhost:{here.port}"
            await channel.send(bytes(8 * 1024 * 1024))
            assert await channel.recv() == bytes(8 * 1024 * 1024)
            assert name.run is not None
            assert name.run.users == 1
        async with asyncio.timeout(10):
            while name.run.users:
                await asyncio.sleep(0.01)
        url = f"ws://app.apps.localhost:{here.port}/devtools/x"
        async with websockets.connect(url, host="127.0.0.1", port=here.port) as channel:
            await channel.send("hello")
            assert await channel.recv() == "hello from localhost"


async def test_an_upgrade_that_the_application_declines_is_an_ordinary_answer() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        client.send(get("app", "/", "Connection: Upgrade", "Upgrade: websocket") + get("app", "/next"))
        assert (await client.answer()).body == b"ok"
        assert (await client.answer()).body == b"ok"
        assert app.requests[0].header("upgrade") == "websocket"


async def test_each_side_of_a_tunnel_ends_by_itself() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst ")
        everything = await reader.read()
        writer.write(everything)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, front() as here, wire(here) as client:
        here.world.add("app", server.sockets[0].getsockname()[1])
        client.send(get("app", "/", "Connection: upgrade", "Upgrade: echo") + b"early ")
        assert (await client.answer()).headers["upgrade"] == "echo"
        client.send(b"late")
        client.writer.write_eof()
        assert await client.rest() == b"first early late"
        async with asyncio.timeout(10):
            while here.gateway.exchanges or here.gateway.connections:
                await asyncio.sleep(0.01)


async def test_an_answer_that_breaks_off_is_not_taken_for_complete() -> None:
    for answer in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ):

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = answer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, front() as here, aiohttp.ClientSession() as session:
            here.world.add("app", server.sockets[0].getsockname()[1])
            with pytest.raises(aiohttp.ClientPayloadError):
                async with session.get(
                    f"http://127.0.0.1:{here.port}/", headers={"Host": "app.apps.localhost"}
                ) as response:
                    await response.read()


async def test_an_early_answer_to_an_upload_reaches_the_client() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, front() as here, wire(here) as client:
        here.world.add("app", server.sockets[0].getsockname()[1])
        client.send(
            b"POST / HTTP/1.1\r\nHost: app.apps.localhost\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000)
        )
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"big")
        assert await client.rest() == b""


async def test_a_repeated_head_is_the_same_request_and_another_method_gets_its_own_answer() -> None:
    async with front() as here, backend() as app, wire(here) as client:
        here.world.add("app", app.port)
        for _ in range(3):
            client.send(get("app"))
            assert (await client.answer()).body == b"ok"
            client.send(get("app").replace(b"GET", b"HEAD"))
            # this backend sends a body with it, which must go nowhere
            assert (await client.answer(bodiless=True)).status == 200
            client.send(post("app", b"x"))
            assert (await client.answer()).body == b"ok"
        assert [request.line.split()[0] for request in app.requests] == ["GET", "HEAD", "POST"] * 3


async def test_a_chunked_answer_on_one_connection_serves_old_and_new_clients_in_turn() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    async with front() as here, backend(chunked) as app:
        here.world.add("app", app.port)
        for _ in range(2):
            async with wire(here) as old:
                old.send(b"GET / HTTP/1.0\r\nHost: app.apps.localhost\r\n\r\n")
                assert (await old.answer()).body == b"ok"
            async with wire(here) as new:
                new.send(get("app"))
                answer = await new.answer()
                assert (answer.body, answer.headers["transfer-encoding"]) == (b"ok", "chunked")
        assert app.connections == 1
