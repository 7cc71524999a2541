"""A client's HTTP/2 connection: each of its streams an Exchange, by the library `h2` (RFC 9113).

Nothing of a body is kept beyond the windows that were given: a stream's opens again when its sandbox has taken what
came, and an answer is read from the sandbox only while the client takes it. What costs us more than the client (resets,
pings, changes of settings, empty frames) is counted; who sends too many is disconnected. Sandboxes are spoken to in
HTTP/1, so trailers of a request and gRPC do not pass.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    UnknownFrameReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from roost.gateways.http.exchange import Exchange
from roost.gateways.http.h2_stream import Http2Stream, WebSocketHandshake
from roost.gateways.http.request import Framing, Origin, Refusal, Request
from roost.gateways.http.upstream import HIGH_WATER

if TYPE_CHECKING:
    from roost.gateways.http.server import Gateway

MOST_STREAMS = 128
MOST_HEADERS = 64 * 1024  # bytes of a header list
STREAM_WINDOW = 128 * 1024  # bytes of a request's body that are on their way or wait for the sandbox
CONNECTION_WINDOW = 1024 * 1024
HEAD_SECONDS = 15.0  # until the first request
IDLE_SECONDS = 75.0  # without a stream
PING_SECONDS = 60.0  # of silence while there are streams, until the client is asked whether it is there …
GONE_SECONDS = 120.0  # … and until it is taken for gone
CREDIT = 400  # frames that work against us, at once; a page that is left cancels a hundred streams
CREDIT_PER_SECOND = 50
FLUSH = 128 * 1024  # bytes, after which the transport may say that it is full
SMALL_WINDOW = 256  # bytes; updates below make us send frames that are mostly header


class Http2Connection(asyncio.Protocol):
    """Without `room` it only tells the client to try again."""

    def __init__(self, gateway: "Gateway", origin: Origin, room: bool = True) -> None:
        self.deadline = time.monotonic() + HEAD_SECONDS  # looked at by the gateway once a second
        self.wire = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,  # they come from a reader of ours
                normalize_outbound_headers=False,
            )
        )
        self.unflushed = 0  # bytes of answers that the library holds
        self._gateway = gateway
        self._origin = origin
        self._room = room
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._streams: dict[int, Http2Stream] = {}
        self._waiting: dict[int, Http2Stream] = {}  # have something to send
        self._flushing = False  # is planned
        self._full = False  # the transport takes no more
        self._reading = True
        self._finishing = False
        self._last = 0  # the newest stream
        self._received = 0  # bytes of bodies since the connection's window was opened
        self._credit = float(CREDIT)
        self._counted = self._heard = time.monotonic()
        self._events: dict[type, Callable[[Any], None]] = {
            RequestReceived: self._on_request,
            DataReceived: self._on_data,
            StreamEnded: self._on_end,
            StreamReset: self._on_reset,
            WindowUpdated: self._on_window,
            RemoteSettingsChanged: self._on_settings,
            PingReceived: self._count,
            UnknownFrameReceived: self._count,
            ConnectionTerminated: self._on_goaway,
        }

    # -- what the gateway asks for --------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self._streams

    def expire(self) -> None:
        """Its deadline has passed."""
        now = time.monotonic()
        silence = now - self._heard
        if not self._streams:
            self._leave(ErrorCodes.NO_ERROR)
        elif silence >= GONE_SECONDS:
            self._transport.abort()
        else:
            if silence >= PING_SECONDS:
                self.wire.ping(b"are you?")
                self.flush_soon()
            self.deadline = now + PING_SECONDS / 2

    def finish(self) -> None:
        """No further request; those under way go on."""
        if not self._finishing:
            self._finishing = True
            # by hand: the library sends nothing more once it has said goodbye
            goodbye = GoAwayFrame(0, last_stream_id=self._last, error_code=ErrorCodes.NO_ERROR)
            self._flush()
            self._transport.write(goodbye.serialize())
            self._close_when_done()

    def close(self) -> None:
        self._transport.abort()

    # -- the transport --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._gateway.connections.add(self)
        self.wire.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: MOST_HEADERS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        self.wire.initiate_connection()
        self.wire.increment_flow_control_window(CONNECTION_WINDOW - 65535)
        self._flush()
        if not self._room:
            self._leave(ErrorCodes.NO_ERROR)  # before any stream: all of them may be sent again

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        try:
            events = self.wire.receive_data(data)
            # what is reset by the same bytes can neither be answered nor acknowledged
            reset = {event.stream_id for event in events if isinstance(event, StreamReset)}
            for event in events:
                react = self._events.get(type(event))
                if react is not None and not (reset and self._is_void(event, reset)):
                    react(event)
                if self._transport.is_closing():
                    return
        except ProtocolError:
            self._end()  # the library has written why
            return
        self._send_waiting()
        self._flush()

    def _is_void(self, event: Event, reset: set[int]) -> bool:
        if isinstance(event, DataReceived) and event.stream_id in reset:
            self._open_connection(event.flow_controlled_length)
            return True
        return isinstance(event, (RequestReceived, StreamEnded)) and event.stream_id in reset

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.connections.discard(self)
        self._abandon_all()

    def pause_writing(self) -> None:
        """The client does not read: neither do we, or our acknowledgements would pile up."""
        self._full = True
        self._pause_reading(True)
        for stream in self._streams.values():
            stream.hold()

    def resume_writing(self) -> None:
        self._full = False
        self._pause_reading(False)
        self._send_waiting()
        for stream in list(self._streams.values()):
            stream.release_when_sent()
        self._flush()

    # -- what the client does -------------------------------------------------------------------------------

    def _on_request(self, event: RequestReceived) -> None:
        number = self._last = event.stream_id
        if self._finishing:
            self.wire.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        stream = self._streams[number] = Http2Stream(self, number)
        try:
            request = self._request(stream, event)
        except Refusal as refusal:
            stream.refuse(refusal.status, str(refusal))
            return
        exchange = stream.exchange = Exchange(self._gateway, request, stream)
        if self._full:
            exchange.pause()
        if request.framing is Framing.NONE:
            stream.complete = stream.handshake is None
            exchange.body_end()
        exchange.begin()

    def _request(self, stream: Http2Stream, event: RequestReceived) -> Request:
        pseudo: dict[bytes, bytes] = {}
        headers: list[tuple[bytes, bytes]] = []
        for name, value in cast(list[tuple[bytes, bytes]], event.headers):
            if name[:1] == b":":
                pseudo[name] = value
            else:
                headers.append((name, value))
        method = pseudo[b":method"]
        authority = pseudo.get(b":authority") or next((value for name, value in headers if name == b"host"), b"")
        framing = Framing.NONE if event.stream_ended is not None else Framing.STREAM
        if method != b"CONNECT":
            return Request.of(method, pseudo[b":path"], authority, headers, framing, self._origin)
        if pseudo.get(b":protocol") != b"websocket" or framing is Framing.NONE:
            raise Refusal(405, "CONNECT is offered for WebSockets only (RFC 8441)")
        stream.handshake = WebSocketHandshake()
        headers = stream.handshake.request_headers(headers)
        request = Request.of(b"GET", pseudo[b":path"], authority, headers, Framing.NONE, self._origin)
        request.upgrade = b"websocket"
        return request

    def _on_data(self, event: DataReceived) -> None:
        size = event.flow_controlled_length
        self._open_connection(size)
        if not event.data and event.stream_ended is None:
            self._count(event)
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.take(event.data, size)

    def _open_connection(self, size: int) -> None:
        """Its window is for all streams and opens again whoever waits: each stream has one of its own."""
        self._received += size
        if self._received >= CONNECTION_WINDOW // 2:
            self.wire.increment_flow_control_window(self._received)
            self._received = 0

    def _on_end(self, event: StreamEnded) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None and not stream.complete:
            stream.complete = True
            if stream.exchange is not None:
                stream.exchange.body_end()
            stream.leave_when_done()

    def _on_reset(self, event: StreamReset) -> None:
        self._count(event)
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self.forget(stream)
            if stream.exchange is not None:
                stream.exchange.abandon()

    def _on_window(self, event: WindowUpdated) -> None:
        if event.delta < SMALL_WINDOW:
            self._count(event)

    def _on_settings(self, event: RemoteSettingsChanged) -> None:
        self._count(event)

    def _on_goaway(self, event: ConnectionTerminated) -> None:
        self._end()

    def _count(self, event: object) -> None:
        now = time.monotonic()
        self._credit = min(CREDIT, self._credit + (now - self._counted) * CREDIT_PER_SECOND) - 1
        self._counted = now
        if self._credit < 0:
            self._leave(ErrorCodes.ENHANCE_YOUR_CALM)

    # -- what its streams send ------------------------------------------------------------------------------

    def headers(self, stream: Http2Stream, fields: list[tuple[bytes, bytes]], last: bool) -> None:
        self.wire.send_headers(stream.number, fields, end_stream=last)
        self.flush_soon()

    def send(self, stream: Http2Stream) -> None:
        """It has something to send, or has ended."""
        self._waiting[stream.number] = stream
        self._send_waiting()
        self.flush_soon()

    @property
    def full(self) -> bool:
        return self._full

    def open_window(self, stream: Http2Stream, size: int) -> None:
        self.wire.increment_flow_control_window(size, stream.number)
        self.flush_soon()

    def reset(self, stream: Http2Stream, code: ErrorCodes) -> None:
        if stream.number not in self._streams:
            return
        self.forget(stream)
        self.wire.reset_stream(stream.number, code)
        self.flush_soon()

    def forget(self, stream: Http2Stream) -> None:
        """It is over on both sides, or reset."""
        self._waiting.pop(stream.number, None)
        if self._streams.pop(stream.number, None) is not None and not self._streams:
            self.deadline = time.monotonic() + IDLE_SECONDS
            if self._finishing:
                self._close_when_done()
        elif self._streams:
            self.deadline = self._heard + PING_SECONDS

    def _send_waiting(self) -> None:
        """A frame of each in turn, as far as windows and transport allow."""
        going = list(self._waiting.values())
        while going and not self._full:
            going = [stream for stream in going if stream.send_frame()]
            if self.unflushed >= FLUSH:
                self._flush()
        for stream in list(self._waiting.values()):
            if stream.nothing_waits:
                del self._waiting[stream.number]

    def flush_soon(self) -> None:
        """What several streams have to say goes out together."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self.unflushed = 0
        data = self.wire.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # -- the end --------------------------------------------------------------------------------------------

    def _leave(self, code: ErrorCodes) -> None:
        self.wire.close_connection(code)
        self._end()

    def _end(self) -> None:
        self._flush()
        self._abandon_all()
        self._transport.close()

    def _abandon_all(self) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._waiting.clear()
        for stream in streams:
            if stream.exchange is not None:
                stream.exchange.abandon()

    def _close_when_done(self) -> None:
        if not self._streams:
            self._flush()
            self._transport.close()

    def _pause_reading(self, pause: bool) -> None:
        if pause is self._reading and not self._transport.is_closing():
            self._reading = not pause
            self._transport.pause_reading() if pause else self._transport.resume_reading()
