"""A client's HTTP/1 connection: its requests in order, each an Exchange, and the answers as they come.

Reading stops while nobody takes what was read: bytes of a next request wait until the last one is answered, so that
a client cannot make us keep more than one buffer.
"""

import asyncio
import time
from typing import TYPE_CHECKING, cast

from roost.gateways.http import pages
from roost.gateways.http.exchange import Exchange
from roost.gateways.http.framing import LAST_CHUNK, BadChunks, Chunks, chunk
from roost.gateways.http.request import MAX_HEAD, Framing, Origin, Refusal, Request, RequestReader
from roost.gateways.http.response import Response, lines
from roost.gateways.http.upstream import HIGH_WATER

if TYPE_CHECKING:
    from roost.gateways.http.server import Gateway

HEAD_SECONDS = 15.0  # for a head to come whole
IDLE_SECONDS = 75.0  # between two requests
BODY_SECONDS = 60.0  # between two pieces of a body
STALL_SECONDS = 600.0  # that one side takes nothing of what the other one sends
LINGER_SECONDS = 2.0  # that a client may read our last answer while it is still sending
HALF_CLOSED_SECONDS = 100.0  # without a byte, for a client that has ended its side and may be gone; a wake fits in
JOINED = 16 * 1024  # bytes that are copied to go out with their head
NEVER = float("inf")


class Connection(asyncio.Protocol):
    """`scheme` and address are of the client; see Origin."""

    __slots__ = (
        "_body",
        "_buffer",
        "_chunks",
        "_client_ended",
        "_exchange",
        "_framed",
        "_gateway",
        "_head",
        "_keep",
        "_left",
        "_lingering",
        "_paused",
        "_reader",
        "_request",
        "_sandbox_ended",
        "_sandbox_full",
        "_transport",
        "_tunnel",
        "deadline",
        "takes_chunks",
    )

    def __init__(self, gateway: "Gateway", origin: Origin) -> None:
        self.takes_chunks = True
        self.deadline = NEVER  # monotonic; looked at by the gateway once a second
        self._gateway = gateway
        self._reader = RequestReader(origin)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._exchange: Exchange | None = None
        self._request: Request | None = None
        self._buffer = b""  # what came of the next head, or behind the present request
        self._left = 0  # of the body, with LENGTH
        self._chunks: Chunks | None = None
        self._body = False  # the present request's is still coming
        self._head = b""  # of the answer
        self._framed = False  # the answer is chunked by us
        self._tunnel = False
        self._keep = True
        self._client_ended = False
        self._sandbox_ended = False  # its side of a tunnel
        self._lingering = False
        self._paused = False
        self._sandbox_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self.deadline = time.monotonic() + HEAD_SECONDS
        self._gateway.connections.add(self)

    @property
    def idle(self) -> bool:
        return self._exchange is None and not self._buffer

    # -- what the client does -------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._body:
            self._take_body(data)
        elif self._exchange is None:
            self._take_head(data)
        elif self._tunnel:
            self._touch()
            self._exchange.body(data)
        else:
            self._buffer += data
            self._pause()

    def eof_received(self) -> bool:
        """A client may end its side and still wait for its answer."""
        self._client_ended = True
        exchange = self._exchange
        if exchange is None or self._body:
            return False
        self._keep = False
        self._touch()
        if self._tunnel:
            exchange.body_end()
            if self._sandbox_ended:
                return False
        return self._transport.can_write_eof()  # TLS has no half

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.connections.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandon()

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self.deadline = time.monotonic() + STALL_SECONDS
            self._exchange.pause()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self.deadline = time.monotonic() + BODY_SECONDS if self._body and not self._paused else NEVER
            self._touch()
            self._exchange.resume()

    def expire(self) -> None:
        """Its deadline has passed."""
        if self._exchange is None and self._buffer and not self._lingering:
            self._turn_away(408, f"the head of the request did not come whole within {HEAD_SECONDS:.0f} s")
        else:
            self._transport.abort()

    def finish(self) -> None:
        """No further request; the one under way goes on."""
        self._keep = False
        if self._exchange is None:
            self._transport.close()

    def close(self) -> None:
        self._transport.abort()

    def _take_head(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        else:
            self.deadline = time.monotonic() + HEAD_SECONDS
            data = data.lstrip(b"\r\n") if data[:1] in b"\r\n" else data
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            self._buffer = data
            if len(data) > MAX_HEAD:
                self._turn_away(431, f"the head of the request is larger than {MAX_HEAD // 1024} KiB")
            elif b"\n\n" in data or b"\0" in data:
                self._turn_away(400, "the request is not HTTP/1.1: its lines must end with CR LF")
            return
        head, data = (data, b"") if end + 4 == len(data) else (data[: end + 4], data[end + 4 :])
        self._buffer = b""
        try:
            request = self._reader.read(head)
        except Refusal as refusal:
            self._turn_away(refusal.status, str(refusal))
            return
        self._begin(request, data)

    def _begin(self, request: Request, data: bytes) -> None:
        self._request = request
        self._keep = request.keep and self._keep and not self._gateway.stopping
        self.takes_chunks = not request.old
        self.deadline = NEVER
        exchange = self._exchange = Exchange(self._gateway, request, self)
        self._body = request.framing is not Framing.NONE
        if self._body:
            self._left = request.length
            self._chunks = Chunks(raw=True) if request.framing is Framing.CHUNKED else None
            exchange.begin()
            if self._exchange is not exchange:
                return
            if not self._paused:
                self.deadline = time.monotonic() + BODY_SECONDS
            if data:
                self._take_body(data)
        else:
            if data:
                self._buffer = data
                self._pause()
            exchange.body_end()
            exchange.begin()

    def _take_body(self, data: bytes) -> None:
        exchange, chunks, rest = self._exchange, self._chunks, b""
        if exchange is None:
            return
        if chunks is not None:
            try:
                data = chunks.feed(data)
            except BadChunks as error:
                exchange.abandon()
                self._exchange = None
                if exchange.relayed:
                    self._transport.abort()
                    return
                self._turn_away(400, f"the request's body is broken: {error}")
                return
            ended, rest = chunks.done, chunks.rest
        else:
            ended = len(data) >= self._left
            if ended:
                data, rest = data[: self._left], data[self._left :]
            self._left -= len(data)
        if not self._paused:
            self.deadline = time.monotonic() + BODY_SECONDS
        if data:
            exchange.body(data)
        if ended and self._exchange is exchange:
            self._body = False
            self.deadline = NEVER
            if rest:
                self._buffer = rest
                self._pause()
            exchange.body_end()

    # -- what the sandbox answers: see exchange.Answer ------------------------------------------------------

    def interim(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._transport.write(b"HTTP/1.1 %d %b%b\r\n\r\n" % (status, pages.reason(status), lines(headers)))

    def head(self, response: Response) -> None:
        """Kept until the first bytes of the body can go with it."""
        request = cast(Request, self._request)
        framing, end = response.framing, b"\r\n\r\n"
        if response.status == 101:
            end = b"\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (response.upgrade or request.upgrade or b"")
            self._switch()
        else:
            if framing is Framing.STREAM:
                self._framed = not request.old
                self._keep = self._keep and not request.old
            if not self._keep or not request.keep:
                self._keep = False
                end = b"\r\nConnection: close\r\n\r\n"
            elif request.old:
                end = b"\r\nConnection: keep-alive\r\n\r\n"
            if framing is Framing.CHUNKED or self._framed:
                end = b"\r\nTransfer-Encoding: chunked" + end
        self._head = b"HTTP/1.1 %d %b%b%b" % (response.status, response.reason, response.lines, end)

    def data(self, data: bytes) -> None:
        if self._client_ended:
            self._touch()
        if self._framed:
            data = chunk(data)
        if self._head:
            head, self._head = self._head, b""
            if len(data) > JOINED:
                self._transport.write(head)
            else:
                data = head + data
        self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        if self._tunnel:
            self._sandbox_ended = True
            if self._client_ended:
                self._transport.close()
            elif self._transport.can_write_eof():
                self._transport.write_eof()
                self._touch(both=True)
            else:
                self._transport.close()
            return
        self.flush()
        if self._framed:
            self._framed = False
            self._transport.write(LAST_CHUNK)
        self._exchange = None
        if self._body:
            self._linger()
        elif self._client_ended or not self._keep:
            self._transport.close()
        else:
            self._next()

    def broken(self) -> None:
        request = self._request
        self._exchange = None
        self.flush()
        if request is not None and request.old:
            self._transport.abort()  # nothing but a reset tells an HTTP/1.0 client that this is not the end
        else:
            self._transport.close()

    def pause_body(self) -> None:
        self._sandbox_full = True
        self._pause()
        self.deadline = time.monotonic() + STALL_SECONDS

    def resume_body(self) -> None:
        self._sandbox_full = False
        self.deadline = time.monotonic() + BODY_SECONDS if self._body else NEVER
        if self._body or self._tunnel:
            self._resume()
        self._touch()

    # -- the connection itself ------------------------------------------------------------------------------

    def _switch(self) -> None:
        """From here on bytes pass both ways; those that came early go first."""
        self._tunnel = True
        if self._buffer and self._exchange is not None:
            early, self._buffer = self._buffer, b""
            self._exchange.body(early)
        if not self._sandbox_full:
            self._resume()

    def _next(self) -> None:
        self._request = self._chunks = None
        self._sandbox_full = False
        if self._buffer:
            self.deadline = time.monotonic() + HEAD_SECONDS
            asyncio.get_running_loop().call_soon(self._take_buffered)
        else:
            self.deadline = time.monotonic() + IDLE_SECONDS
            self._resume()

    def _take_buffered(self) -> None:
        if self._exchange is None and not self._transport.is_closing() and not self._lingering:
            data, self._buffer = self._buffer, b""
            self._resume()
            self._take_head(data)

    def _turn_away(self, status: int, text: str) -> None:
        """Where nobody can say any more what the next bytes of this connection mean."""
        self._transport.write(pages.last_words(status, text))
        self._linger()

    def _linger(self) -> None:
        """Closing with unread bytes would be a reset, which overtakes the answer."""
        self._buffer = b""
        self._body = False
        self._keep = False
        if self._client_ended or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._lingering = True
        self._transport.write_eof()
        self._resume()
        self.deadline = time.monotonic() + LINGER_SECONDS

    def _touch(self, both: bool = False) -> None:
        if self._client_ended or self._sandbox_ended or both:
            self.deadline = time.monotonic() + HALF_CLOSED_SECONDS

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
