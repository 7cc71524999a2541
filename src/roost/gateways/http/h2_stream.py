"""One HTTP/2 stream: what a sandbox answers becomes its frames, as fast as the client's windows allow.

WebSockets (RFC 8441) are a handshake that we make with the sandbox in the client's place; then bytes pass both ways.
"""

import base64
import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes

from roost.gateways.http import pages
from roost.gateways.http.exchange import Exchange
from roost.gateways.http.request import Framing
from roost.gateways.http.response import Response, lines

if TYPE_CHECKING:
    from roost.gateways.http.h2 import Http2Connection

MOST_UNACKNOWLEDGED = 32 * 1024  # bytes of a body, until the client's window is opened again
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3

Fields = list[tuple[bytes, bytes]]


class WebSocketHandshake:
    """What HTTP/1 has and HTTP/2 has not (RFC 8441, 5)."""

    def __init__(self) -> None:
        self._key = base64.b64encode(os.urandom(16))

    def request_headers(self, headers: Fields) -> Fields:
        return [*(field for field in headers if field[0] != b"sec-websocket-key"), (b"sec-websocket-key", self._key)]

    def accepts(self, response: Response) -> bool:
        right = base64.b64encode(hashlib.sha1(self._key + WEBSOCKET_GUID).digest())  # noqa: S324 - as the RFC has it
        given = [value.strip() for name, value in response.headers if name.lower() == b"sec-websocket-accept"]
        return response.status == 101 and given == [right]


class Http2Stream:
    """The Answer of its exchange; see `exchange.py`."""

    takes_chunks = False

    def __init__(self, connection: "Http2Connection", number: int) -> None:
        self.number = number
        self.exchange: Exchange | None = None
        self.handshake: WebSocketHandshake | None = None
        self.complete = False  # the client has ended its side
        self._connection = connection
        self._waiting: deque[memoryview] = deque()
        self._held = False  # the sandbox has been asked to wait
        self._ended = False  # … or it has said all
        self._trailers: Fields = []
        self._closed = False  # our side
        self._unacknowledged = 0  # bytes of the body
        self._body_paused = False
        self._tunnel = False
        self._early: list[bytes] = []  # what came before a WebSocket was accepted

    # -- the client's side ----------------------------------------------------------------------------------

    def take(self, data: bytes, size: int) -> None:
        """`size`: with padding, as the window counts."""
        self._unacknowledged += size
        if self.handshake and not self._tunnel:
            self._early.append(data)
        elif data and self.exchange is not None:
            self.exchange.body(data)
        self._acknowledge()

    def _acknowledge(self) -> None:
        waits = self._body_paused or bool(self._early)
        if self._unacknowledged >= MOST_UNACKNOWLEDGED and not waits and not self.complete and not self._over:
            size, self._unacknowledged = self._unacknowledged, 0
            self._connection.open_window(self, size)

    @property
    def _over(self) -> bool:
        return self._closed and self.complete

    def refuse(self, status: int, text: str) -> None:
        """What is not even a request."""
        headers, body = pages.answer(None, status, text)
        self.head(Response(status, b"", lines(headers), Framing.LENGTH, len(body), keep=True))
        self.data(body)
        self.end([])

    # -- the sandbox's side: see exchange.Answer ------------------------------------------------------------

    def interim(self, status: int, headers: Fields) -> None:
        self._connection.headers(self, _fields(status, headers), last=False)

    def head(self, response: Response) -> None:
        if self.handshake is not None and response.status < 300:
            self._accept(response, self.handshake)
            return
        fields = _fields(response.status, response.headers)
        if response.length is not None:
            fields.append((b"content-length", b"%d" % response.length))
        self._closed = response.framing is Framing.NONE
        self._connection.headers(self, fields, last=self._closed)

    def _accept(self, response: Response, handshake: WebSocketHandshake) -> None:
        """Any 2xx would tell the client that the WebSocket is open."""
        if not handshake.accepts(response):
            self.broken()
            if self.exchange is not None:
                self.exchange.abandon()
            return
        self._tunnel = True
        kept = [field for field in response.headers if field[0].lower() != b"sec-websocket-accept"]
        self._connection.headers(self, _fields(200, kept), last=False)
        early, self._early = self._early, []
        for data in early:
            if self.exchange is not None:
                self.exchange.body(data)
        self._acknowledge()

    def flush(self) -> None:
        """Heads go at once."""

    def data(self, data: bytes) -> None:
        if self._closed:
            return  # it was reset while the sandbox's bytes were read
        self._waiting.append(memoryview(data))
        self._connection.send(self)
        if self._waiting or self._connection.full:
            self.hold()

    def end(self, trailers: Fields) -> None:
        self._ended = True
        self._trailers = [(name.lower(), value) for name, value in trailers]
        if self._closed:
            self.leave_when_done()
        else:
            self._connection.send(self)

    def broken(self) -> None:
        self._closed = True
        self._connection.reset(self, ErrorCodes.INTERNAL_ERROR)

    def pause_body(self) -> None:
        self._body_paused = True

    def resume_body(self) -> None:
        self._body_paused = False
        self._acknowledge()

    # -- what the connection asks for -----------------------------------------------------------------------

    @property
    def nothing_waits(self) -> bool:
        return not self._waiting and (self._closed or not self._ended)

    def send_frame(self) -> bool:
        """One frame, if the windows allow; whether there may be more."""
        wire = self._connection.wire
        if self._closed:
            return False
        if not self._waiting:
            if self._ended:
                self._close()
            return False
        room = min(wire.local_flow_control_window(self.number), wire.max_outbound_frame_size)
        if room <= 0:
            return False
        piece = self._waiting.popleft()
        if len(piece) > room:
            self._waiting.appendleft(piece[room:])
            piece = piece[:room]
        last = self._ended and not self._waiting and not self._trailers
        wire.send_data(self.number, piece, end_stream=last)
        self._connection.unflushed += len(piece)
        if last:
            self._closed = True
            self.leave_when_done()
        elif not self._waiting:
            self.release_when_sent()
        return not self._closed and (bool(self._waiting) or self._ended)

    def _close(self) -> None:
        self._closed = True
        if self._trailers:
            self._connection.wire.send_headers(self.number, self._trailers, end_stream=True)
        else:
            self._connection.wire.end_stream(self.number)
        self.leave_when_done()

    def hold(self) -> None:
        """The client does not take more just now."""
        if not self._held and not self._ended and self.exchange is not None:
            self._held = True
            self.exchange.pause()

    def release_when_sent(self) -> None:
        if self._held and not self._waiting and not self._connection.full and self.exchange is not None:
            self._held = False
            self.exchange.resume()

    def leave_when_done(self) -> None:
        """An answer that came before the whole request ends the stream as well (RFC 9113, 8.1)."""
        if not self._closed:
            return
        if self.complete:
            self._connection.forget(self)
        elif self._ended:
            self._connection.reset(self, ErrorCodes.NO_ERROR)


def _fields(status: int, headers: Fields) -> Fields:
    return [(b":status", b"%d" % status), *((name.lower(), value.strip(b" \t")) for name, value in headers)]
