"""Connections into sandboxes: idle ones to be used again, and new ones, dialled until the application listens.

They are kept by sandbox and port, and a sandbox's id is never given twice, so no request reaches another sandbox.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from roost.errors import Busy, NoCapacity, Refused
from roost.gateways.http.routing import Dialer, Run
from roost.gateways.http.upstream import Key, Upstream

IDLE = 20.0  # seconds that an unused connection is kept
MOST_IDLE = 512  # of one sandbox and port
MOST_DIALS = 16  # connections that are being made to one port at once; a listener's queue may take 5
AGAIN = 0.02  # seconds between two tries to reach an application that does not listen yet


class Pool:
    """`room` says whether one more socket may be opened."""

    def __init__(self, dialer: Dialer, room: Callable[[], bool]) -> None:
        self._dialer = dialer
        self._room = room
        self._idle: dict[Key, list[Upstream]] = {}
        self._open: set[Upstream] = set()
        self._trying: dict[Key, asyncio.Event] = {}  # one at a time tries to reach what does not listen yet
        self._lines: dict[Key, _Line] = {}

    def __len__(self) -> int:
        return len(self._open)

    def take(self, key: Key, unused: float) -> Upstream | None:
        """An idle connection that was last used at most `unused` seconds ago."""
        idle = self._idle.get(key)
        while idle:
            upstream = idle.pop()
            if not upstream.usable:
                continue
            if time.monotonic() - upstream.idle_since > unused:
                idle.append(upstream)
                return None
            return upstream
        return None

    def give(self, upstream: Upstream) -> None:
        """It is idle: whoever waits in line has it, else it is kept."""
        line = self._lines.get(upstream.key)
        if line is not None and line.hand_over(upstream):
            upstream.reused = True
            upstream.idle_since = time.monotonic()
            return
        idle = self._idle.get(upstream.key)
        if idle is None:
            idle = self._idle[upstream.key] = []
        if len(idle) >= MOST_IDLE:
            upstream.close()
            return
        upstream.reused = True
        upstream.idle_since = time.monotonic()
        idle.append(upstream)

    def drop(self, upstream: Upstream) -> None:
        """It is idle and must not be used again."""
        idle = self._idle.get(upstream.key)
        if idle and upstream in idle:
            idle.remove(upstream)

    def lost(self, upstream: Upstream) -> None:
        self.drop(upstream)
        self._open.discard(upstream)

    def sweep(self) -> None:
        """Closes what was not used for long."""
        before = time.monotonic() - IDLE
        for key, idle in list(self._idle.items()):
            old = [upstream for upstream in idle if upstream.idle_since < before]
            for upstream in old:
                idle.remove(upstream)
                upstream.close()
            if not idle:
                del self._idle[key]
        for key in [key for key, line in self._lines.items() if not line.dialling]:
            del self._lines[key]

    def close(self) -> None:
        for upstream in list(self._open):
            upstream.close()
        self._idle.clear()

    async def reach(self, run: Run, port: int, deadline: float) -> Upstream:
        """A new connection, or one that another request has done with in the meantime.

        Tries again while the application may still be starting or takes no more just now, until `deadline` (monotonic).
        Raises Refused, Busy, NotFound, Conflict, NodeUnavailable, NoCapacity.
        """
        key = (run.job.vm_id, port)
        while True:
            trying = self._trying.get(key)
            if trying is not None:
                await trying.wait()
            try:
                return await self._in_turn(key)
            except Busy:
                if not run.awake or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(AGAIN)
                if (upstream := self.take(key, AGAIN)) is not None:
                    return upstream
                continue
            except Refused as error:
                if not _may_listen_soon(run, deadline):
                    raise _why(run, error) from error
            if key not in self._trying and (upstream := await self._try_until_it_listens(key, run, deadline)):
                return upstream

    async def _try_until_it_listens(self, key: Key, run: Run, deadline: float) -> Upstream | None:
        """One tries, however many wait: a thousand requests for an application that starts are one dial each 20 ms.

        None: it listens, and takes no more just now.
        """
        told = self._trying[key] = asyncio.Event()
        try:
            while True:
                await asyncio.sleep(AGAIN)
                try:
                    return await self._connect(key)
                except Busy:
                    return None
                except Refused as error:
                    if not _may_listen_soon(run, deadline):
                        raise _why(run, error) from error
        finally:
            del self._trying[key]
            told.set()

    async def _in_turn(self, key: Key) -> Upstream:
        """At most MOST_DIALS at once; the others wait in the order in which they came."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        if (handed := await line.join()) is not None:
            return handed
        try:
            return await self._connect(key)
        finally:
            line.leave()
            if not line.dialling:
                self._lines.pop(key, None)

    async def _connect(self, key: Key) -> Upstream:
        if not self._room():
            raise NoCapacity("the gateway has as many connections open as it can have; try again in a moment")
        socket = await self._dialer.dial(*key)
        upstream = Upstream(self, key)
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, sock=socket)
        except BaseException:
            socket.close()
            raise
        self._open.add(upstream)
        return upstream


class _Line:
    """Those who want a connection to one port. Whoever dials leaves; whoever waits is told or handed what is free."""

    __slots__ = ("_waiting", "dialling")

    def __init__(self) -> None:
        self.dialling = 0
        self._waiting = deque[asyncio.Future[Upstream | None]]()

    async def join(self) -> Upstream | None:
        """None: it is one's turn to dial."""
        if self.dialling < MOST_DIALS:
            self.dialling += 1
            return None
        turn: asyncio.Future[Upstream | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            self._give_up(turn)
            raise

    def leave(self) -> None:
        if not self._tell(None):
            self.dialling -= 1

    def hand_over(self, upstream: Upstream) -> bool:
        """False: nobody waits."""
        return self._tell(upstream)

    def _tell(self, what: Upstream | None) -> bool:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(what)
                return True
        return False

    def _give_up(self, turn: asyncio.Future[Upstream | None]) -> None:
        if turn.cancelled():
            with contextlib.suppress(ValueError):
                self._waiting.remove(turn)
        elif (upstream := turn.result()) is None:  # it came in the same moment
            self.leave()
        elif not self.hand_over(upstream):
            upstream.close()


def _may_listen_soon(run: Run, deadline: float) -> bool:
    left = min(run.listens_by() - time.time(), deadline - time.monotonic())
    return run.awake and left > AGAIN


def _why(run: Run, refused: Refused) -> Refused:
    return Refused(f"{run.failed}, and {refused}") if run.failed else refused
