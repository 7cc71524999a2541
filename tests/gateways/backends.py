"""Applications in sandboxes, here on loopback: one that does what a test says byte by byte, and one by aiohttp."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web


@dataclass
class Received:
    """A request as it came over the wire."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int  # its number: the first is 1

    def header(self, name: str) -> str | None:
        return next((value for given, value in self.headers if given == name), None)


Answer = Callable[[Received], bytes | Awaitable[bytes | None] | None]


@dataclass
class Backend:
    """Reads requests as any server would; `answer` says what goes back, and closes the connection by None."""

    answer: Answer
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    connections: int = 0


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def backend(answer: Answer | bytes | None = OK, port: int = 0) -> AsyncIterator[Backend]:
    this = Backend(answer if callable(answer) else lambda _: answer)
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this.connections += 1
        number = this.connections
        writers.add(writer)
        try:
            while True:
                request = await _read(reader, number)
                this.requests.append(request)
                said = this.answer(request)
                back = await said if isinstance(said, Awaitable) else said
                if back is None:
                    return
                writer.write(back)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            writers.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1024 * 1024)
    this.port = server.sockets[0].getsockname()[1]
    try:
        yield this
    finally:
        server.close()
        for writer in list(writers):
            writer.close()


async def _read(reader: asyncio.StreamReader, number: int) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head[:-4].split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (text.partition(":") for text in rest)]
    told = dict(headers)
    body = b""
    if "content-length" in told:
        body = await reader.readexactly(int(told["content-length"]))
    elif told.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        while (line_ := await reader.readuntil(b"\r\n")) != b"\r\n":
            body += b"|" + line_.strip()
    return Received(line, headers, body, number)


async def _digest(request: web.Request) -> web.Response:
    seen, size = hashlib.sha256(), 0
    async for data in request.content.iter_any():
        seen.update(data)
        size += len(data)
    return web.json_response({"sha256": seen.hexdigest(), "size": size})


async def _download(request: web.Request) -> web.StreamResponse:
    count = int(request.query["mb"])
    response = web.StreamResponse(headers={"X-From": "sandbox"})
    if "length" in request.query:
        response.content_length = count * 1024 * 1024
    await response.prepare(request)
    block = bytes(range(256)) * 4096
    for _ in range(count):
        await response.write(block)
    await response.write_eof()
    return response


async def _events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(b"data: %d\n\n" % number)
        await asyncio.sleep(0.05)
    return response


async def _socket(request: web.Request) -> web.WebSocketResponse:
    channel = web.WebSocketResponse(max_msg_size=64 * 1024 * 1024)
    await channel.prepare(request)
    async for message in channel:
        if message.type is WSMsgType.TEXT:
            await channel.send_str(f"{message.data} from {request.host}")
        elif message.type is WSMsgType.BINARY:
            await channel.send_bytes(message.data)
    return channel


async def _slow(request: web.Request) -> web.Response:
    await asyncio.sleep(float(request.query["s"]))
    return web.Response(text="late")


@contextlib.asynccontextmanager
async def application(port: int = 0) -> AsyncIterator[int]:
    """The port of a server by aiohttp: /digest, /download?mb=N, /events, /socket, /devtools/x, /slow?s=N."""
    app = web.Application(client_max_size=1 << 31)
    app.router.add_route("*", "/digest", _digest)
    app.router.add_get("/download", _download)
    app.router.add_get("/events", _events)
    app.router.add_get("/socket", _socket)
    app.router.add_get("/devtools/x", _socket)
    app.router.add_get("/slow", _slow)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
