"""Clients' connections to the API, bounded as the gateway's are: in number, and in the time that each may take.

uvicorn waits for ever for a head or a body, and takes as many connections as there are descriptors, which the gateways
need, too. Where all are taken, the one that has waited longest without a request makes room for the next.
"""

import asyncio
import time
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from roost.gateways.http import pages
from roost.listening import open_files

MOST = 4000  # connections in all, WebSockets among them
SHARE = 5  # of the descriptors that this process may have, at most one in so many
HEAD_SECONDS = 15.0  # for the head of a request to come whole; for the first byte of a connection
BODY_SECONDS = 60.0  # between two pieces of a body
STALL_SECONDS = 600.0  # that a client takes nothing of its answer
MAX_HEAD = 64 * 1024  # bytes
SWEEP = 1.0  # seconds between two looks at deadlines
NEVER = float("inf")


class Connections:
    """Those of one server; `watch` ends those that take too long."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most if most is not None else min(MOST, open_files() // SHARE)
        self.open: set[Connection] = set()
        self.waiting: dict[Connection, None] = {}  # for a request, the longest first

    def protocol(self, **given: Any) -> "Connection":
        """What uvicorn makes of each connection."""
        return Connection(self, **given)

    def make_room(self, taken: int) -> bool:
        """False: all have a request under way."""
        if taken <= self._most:
            return True
        longest = next((one for one in self.waiting if not one.transport.is_closing()), None)
        if longest is not None:
            longest.leave()
        return longest is not None

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            for connection in [one for one in self.open if one.deadline < now or one.stalls < now]:
                connection.expire(now)


class Connection(HttpToolsProtocol):
    def __init__(self, all_of_them: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.deadline = NEVER  # monotonic: of what the client is to send
        self.stalls = NEVER  # … and of what it is to take
        self._all = all_of_them
        self._head: int | None = None  # bytes of one that is not whole yet
        self._body = False  # one is coming

    # -- what the client does -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._all.open.add(self)
        if not self._all.make_room(len(self.connections)):
            self._turn_away(503, "the API has as many connections open as it can have; try again in a moment")
            return
        self._wait(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > MAX_HEAD and self._idle:
                self._turn_away(431, f"the head of the request is larger than {MAX_HEAD // 1024} KiB")
        elif self._body and not self._idle:
            self.deadline = time.monotonic() + BODY_SECONDS

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        if self._idle:
            self._wait(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        self._head, self._body = None, True
        self._all.waiting.pop(self, None)
        self.deadline = NEVER
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._body = False
        if not self._idle:
            self.deadline = NEVER

    def handle_websocket_upgrade(self) -> None:
        self._forget()  # it has pings of its own
        super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalls = time.monotonic() + STALL_SECONDS

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalls = NEVER

    def send_400_response(self, msg: str) -> None:
        if self._idle or not self.cycle.response_started:
            self._turn_away(400, "this is no HTTP/1.1 request")
        else:
            self.leave()

    # -- what becomes of it ---------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.pipeline:
            self._wait(HEAD_SECONDS)  # also for what is left of a body; uvicorn itself ends idle ones sooner

    def expire(self, now: float) -> None:
        if self.stalls < now or self.transport.is_closing():
            self.leave()
        elif self._idle and self._head is None:
            self.transport.close()
        elif self._idle:
            self._turn_away(408, f"the head of the request did not come whole within {HEAD_SECONDS:.0f} s")
        elif self.flow.read_paused:
            self.deadline = now + BODY_SECONDS  # it is we who do not read
        elif self.cycle.response_started:
            self.leave()
        else:
            self._turn_away(408, f"nothing came of the request's body for {BODY_SECONDS:.0f} s")

    def leave(self) -> None:
        self._forget()
        self.transport.abort()

    @property
    def _idle(self) -> bool:
        cycle = cast(Any, self.cycle)
        return cycle is None or cycle.response_complete

    def _wait(self, seconds: float) -> None:
        self._all.waiting.pop(self, None)
        self._all.waiting[self] = None
        self.deadline = time.monotonic() + seconds

    def _turn_away(self, status: int, text: str) -> None:
        """The rest of what it sends means nothing."""
        self._forget()
        if not self._idle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(pages.last_words(status, text))
        self.transport.close()

    def _forget(self) -> None:
        self._all.open.discard(self)
        self._all.waiting.pop(self, None)
        self.deadline = self.stalls = NEVER
