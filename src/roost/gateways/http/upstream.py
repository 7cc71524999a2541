"""A connection into a sandbox: sends one request at a time and relays its answer as it comes.

It frames what the sandbox sends and trusts none of it: bytes behind an answer end the connection and go nowhere.
"""

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from roost.gateways.http.framing import BadChunks, Chunks
from roost.gateways.http.request import Framing
from roost.gateways.http.response import (
    MAX_ANSWER_HEAD,
    BadAnswer,
    Response,
    ResponseReader,
    end_of_head,
    may_begin_answer,
    shown,
    with_crlf,
)

if TYPE_CHECKING:
    from roost.gateways.http.pool import Pool

HIGH_WATER = 256 * 1024  # bytes that wait for a slow reader before the other side is told to pause
MAX_INTERIM = 32  # answers of status 1xx before the real one

Key: TypeAlias = tuple[str, int]  # vm_id and port: no two sandboxes share one, ever


class Listener(Protocol):
    """Who is told what the sandbox answers (`exchange.py:Exchange`)."""

    takes_chunks: bool

    def interim(self, response: Response) -> None: ...
    def answered(self, response: Response) -> None: ...
    def data(self, data: bytes) -> None: ...
    def flush(self) -> None:
        """Nothing more has come for now."""
        ...

    def head_begun(self, shown: str) -> None:
        """A part of its answer's head has come; `shown` is its beginning."""
        ...

    def ended(self, trailers: list[tuple[bytes, bytes]]) -> None: ...
    def failed(self, why: str) -> None:
        """The answer will not come, or not whole. The connection is closed."""
        ...

    def sandbox_full(self) -> None:
        """What was written waits; `sandbox_free` follows."""
        ...

    def sandbox_free(self) -> None: ...


class Upstream(asyncio.Protocol):
    __slots__ = (
        "_chunks",
        "_head",
        "_interims",
        "_left",
        "_listener",
        "_lost",
        "_method",
        "_pool",
        "_reader",
        "_response",
        "_sent",
        "_transport",
        "_tunnel",
        "_upgrade",
        "idle_since",
        "key",
        "reset",
        "reused",
    )

    def __init__(self, pool: "Pool", key: Key) -> None:
        self.key = key
        self.reused = False
        self.reset = False  # by the sandbox's kernel, as when more connections came than its application accepts
        self.idle_since = 0.0
        self._pool = pool
        self._reader = ResponseReader()
        self._listener: Listener | None = None
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._method = b""
        self._upgrade = False  # the request asks for another protocol
        self._tunnel = False
        self._sent = False  # a request, ever
        self._head = b""  # what has come of one
        self._interims = 0
        self._response: Response | None = None
        self._left = 0
        self._chunks: Chunks | None = None
        self._lost: str | None = None

    # -- what an exchange does with it ----------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return self._lost is None and not self._transport.is_closing()

    def send(self, listener: Listener, method: bytes, head: bytes, upgrade: bool) -> None:
        """Begins a request. Its body goes to `write`."""
        self._listener = listener
        self._method = method
        self._upgrade = upgrade
        self._sent = True
        self._transport.write(head)
        if self._head or not self.usable:
            asyncio.get_running_loop().call_soon(self._take_early, listener)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def write_eof(self) -> None:
        """Only of a tunnel: the client's side has ended."""
        if self.usable and self._transport.can_write_eof():
            self._transport.write_eof()

    def pause(self) -> None:
        if self._lost is None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._lost is None:
            self._transport.resume_reading()

    def release(self) -> None:
        """The exchange is over and nothing of it is under way: another may use the connection."""
        response = self._response
        self._listener = None
        self._response = self._chunks = None
        self._interims = 0
        if response is not None and response.keep and self.usable and not self._head:
            self._pool.give(self)
        else:
            self.close()

    def close(self) -> None:
        self._listener = None
        self._transport.close() if self._tunnel else self._transport.abort()

    # -- what the sandbox does ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        if listener is None:
            self._hold_early(data)
        elif self._tunnel:
            listener.data(data)
        elif self._response is None:
            self._take_head(listener, data)
        else:
            self._take_body(listener, data)

    def eof_received(self) -> bool:
        listener, response = self._listener, self._response
        if listener is None:
            self._lost = "it closed the connection"
            self._pool.drop(self)
            return False
        if self._head:
            self._fail(f"it closed the connection after {shown(self._head)}")
            return False
        if self._tunnel:
            listener.ended([])
            return True  # the client may still have something to say
        if response is not None and response.framing is Framing.STREAM:
            listener.ended([])
            return False
        self._fail("it closed the connection before its answer was complete")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        if self._lost is None:
            self.reset = exc is not None
            self._lost = "the connection to it was lost"
        if self._listener is not None:
            self._fail(self._lost)

    def pause_writing(self) -> None:
        if self._listener is not None:
            self._listener.sandbox_full()

    def resume_writing(self) -> None:
        if self._listener is not None:
            self._listener.sandbox_free()

    def _fail(self, why: str) -> None:
        self._lost = why
        listener, self._listener = self._listener, None
        self._transport.abort()
        if listener is not None:
            listener.failed(why)

    def _hold_early(self, data: bytes) -> None:
        """Nobody has asked it anything: some speak first, and what they are is said to whoever asks."""
        if self._sent or len(self._head) + len(data) > MAX_ANSWER_HEAD:
            self.close()
        else:
            self._head += data

    def _take_early(self, listener: Listener) -> None:
        """What came before the request was sent: bytes, or the end."""
        if self._listener is not listener or self._response is not None:
            return
        if self._head:
            data, self._head = self._head, b""
            self._take_head(listener, data)
        if not self.usable and self._listener is listener:
            self._fail(self._lost or "the connection to it was lost")

    def _take_head(self, listener: Listener, data: bytes) -> None:
        while True:
            begun = bool(self._head)
            if begun:
                data = self._head + data
            end = data.find(b"\r\n\r\n") + 4
            if end < 4 and not (end := end_of_head(data)):
                self._await_head(listener, data, begun)
                return
            self._head = b""
            head, data = (data, b"") if end == len(data) else (data[:end], data[end:])
            try:
                response, data = self._read_head(head, data)
            except BadAnswer as error:
                self._fail(f"its answer is not HTTP/1.1: {error}; it sent {shown(head)}")
                return
            if response.status >= 200 or response.status == 101:
                break
            self._interims += 1
            if self._interims > MAX_INTERIM:
                self._fail("it sent too many interim answers")
                return
            listener.interim(response)
            if not data:
                return
        self._response = response
        if response.status == 101:
            self._switch(listener, response, data)
        else:
            self._begin(listener, response, data)

    def _read_head(self, head: bytes, rest: bytes) -> tuple[Response, bytes]:
        """The answer and what came behind its head. Raises BadAnswer."""
        try:
            return self._reader.read(head, self._method), rest
        except BadAnswer:
            end = end_of_head(head)  # lines of it may end with LF alone, and then it ends earlier
            plain = with_crlf(head[:end])
            if plain == head:
                raise
            return self._reader.read(plain, self._method), head[end:] + rest

    def _await_head(self, listener: Listener, data: bytes, begun: bool) -> None:
        """For the rest of it, if it can become one."""
        self._head = data
        if not may_begin_answer(data):
            self._fail(f"it does not speak HTTP/1.1: it sent {shown(data)}")
        elif len(data) > MAX_ANSWER_HEAD:
            self._fail("the head of its answer is too large")
        elif not begun:
            listener.head_begun(shown(data))

    def _switch(self, listener: Listener, response: Response, data: bytes) -> None:
        if not self._upgrade:
            self._fail("it changed the protocol without being asked")
            return
        self._tunnel = True
        listener.answered(response)
        if data:
            listener.data(data)
        else:
            listener.flush()

    def _begin(self, listener: Listener, response: Response, data: bytes) -> None:
        framing = response.framing
        if framing is Framing.LENGTH:
            self._left = response.length or 0
        elif framing is Framing.CHUNKED:
            self._chunks = Chunks(raw=listener.takes_chunks)
        listener.answered(response)
        if framing is Framing.NONE or (framing is Framing.LENGTH and not self._left):
            self._end(listener, data)
        elif data:
            self._take_body(listener, data)
        else:
            listener.flush()

    def _take_body(self, listener: Listener, data: bytes) -> None:
        chunks = self._chunks
        if chunks is not None:
            try:
                content = chunks.feed(data)
            except BadChunks as error:
                self._fail(f"its answer is broken: {error}")
                return
            if content:
                listener.data(content)
            if chunks.done:
                self._end(listener, chunks.rest, chunks.trailers)
        elif cast(Response, self._response).framing is Framing.STREAM:
            listener.data(data)
        elif len(data) < self._left:
            self._left -= len(data)
            listener.data(data)
        else:
            surplus = data[self._left :]
            listener.data(data[: self._left] if surplus else data)
            self._left = 0
            self._end(listener, surplus)

    def _end(self, listener: Listener, surplus: bytes, trailers: list[tuple[bytes, bytes]] | None = None) -> None:
        if self._listener is not listener:
            return  # it was abandoned while it was told
        if surplus:
            cast(Response, self._response).keep = False
        listener.ended(trailers or [])
