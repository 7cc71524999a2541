"""A client that speaks HTTP/2 frame by frame, so that tests can be slow, rude or wrong on purpose."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)

Fields = list[tuple[str, str]]


@dataclass
class Reply:
    """What has come on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    interim: list[int] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None  # the error code

    @property
    def status(self) -> int:
        return int(self.headers.get(":status", 0))


class H2Client:
    """`generous`: windows open again as data comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.wire = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.host = host
        self.replies: dict[int, Reply] = {}
        self.events: list[Event] = []
        self.gone: int | None = None  # the error code of GOAWAY
        self.closed = False
        self.generous = True
        self._reader = reader
        self._writer = writer
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._read())
        self.wire.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self._writer.write(self.wire.data_to_send())

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    def begin(self, method: str = "GET", path: str = "/", headers: Fields | None = None, end: bool = True) -> int:
        number = self.wire.get_next_available_stream_id()
        self.replies[number] = Reply()
        head = [(":method", method), (":scheme", "https"), (":authority", self.host), (":path", path)]
        self.wire.send_headers(number, head + (headers or []), end_stream=end)
        self.flush()
        return number

    async def send(self, number: int, data: bytes, end: bool = True) -> None:
        """Within the windows that the server gives."""
        rest = memoryview(data)
        while rest:
            room = min(self.wire.local_flow_control_window(number), self.wire.max_outbound_frame_size)
            if self.replies[number].reset is not None:
                return
            if not room:
                await self.news()
                continue
            self.wire.send_data(number, bytes(rest[:room]), end_stream=end and len(rest) <= room)
            rest = rest[room:]
            self.flush()
            await self._writer.drain()

    async def news(self) -> None:
        """Something has come."""
        self._news.clear()
        if not self.closed:
            await asyncio.wait_for(self._news.wait(), 20)

    async def reply(self, number: int) -> Reply:
        """The whole of it, or up to the reset or the connection's end."""
        reply = self.replies[number]
        while not reply.ended and reply.reset is None and not self.closed:
            await self.news()
        return reply

    async def head(self, number: int) -> Reply:
        reply = self.replies[number]
        while not reply.headers and reply.reset is None and not self.closed:
            await self.news()
        return reply

    async def get(self, path: str = "/", headers: Fields | None = None) -> Reply:
        return await self.reply(self.begin(path=path, headers=headers))

    async def end(self) -> None:
        while not self.closed:
            await self.news()

    async def close(self) -> None:
        self._task.cancel()
        self._writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(65536):
                for event in self.wire.receive_data(data):
                    self._take(event)
                self.flush()
                self._news.set()
        except (OSError, ssl.SSLError):
            pass
        self.closed = True
        self._news.set()

    def _take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, ConnectionTerminated):
            self.gone = int(event.error_code or 0)
            return
        number = getattr(event, "stream_id", None)
        reply = self.replies.get(number) if number else None
        if reply is None or number is None:
            return
        match event:
            case ResponseReceived():
                reply.headers = dict(event.headers or [])  # type: ignore[arg-type]
            case InformationalResponseReceived():
                reply.interim.append(int(dict(event.headers or [])[":status"]))  # type: ignore[call-overload]
            case DataReceived():
                reply.body += event.data or b""
                if self.generous and event.flow_controlled_length:
                    self.wire.acknowledge_received_data(event.flow_controlled_length, number)
            case TrailersReceived():
                reply.trailers = dict(event.headers or [])  # type: ignore[arg-type]
            case StreamEnded():
                reply.ended = True
            case StreamReset():
                reply.reset = int(event.error_code or 0)
            case WindowUpdated():
                pass
            case _:
                pass


@contextlib.asynccontextmanager
async def connected(port: int, host: str, trust: ssl.SSLContext) -> AsyncGenerator[H2Client]:
    trust.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=host)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    client = H2Client(reader, writer, f"{host}:{port}")
    try:
        yield client
    finally:
        await client.close()
