"""Connections into sandboxes: idle ones to be used again, and new ones, dialled until the application listens.

They are kept by sandbox and port, and a sandbox's id is never given twice, so no request reaches another sandbox.
"""

import asyncio
import time
from collections.abc import Callable

from roost.errors import NoCapacity, Refused
from roost.gateways.http.routing import Dialer, Run
from roost.gateways.http.upstream import Key, Upstream

IDLE = 20.0  # seconds that an unused connection is kept
MOST_IDLE = 512  # of one sandbox and port
AGAIN = 0.02  # seconds between two tries to reach an application that does not listen yet


class Pool:
    """`room` says whether one more socket may be opened."""

    def __init__(self, dialer: Dialer, room: Callable[[], bool]) -> None:
        self._dialer = dialer
        self._room = room
        self._idle: dict[Key, list[Upstream]] = {}
        self._open: set[Upstream] = set()
        self._trying: dict[Key, asyncio.Event] = {}  # one at a time tries to reach what does not listen yet

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

    def close(self) -> None:
        for upstream in list(self._open):
            upstream.close()
        self._idle.clear()

    async def reach(self, run: Run, port: int, deadline: float) -> Upstream:
        """A new connection; tries again while the application may still be starting, until `deadline` (monotonic).

        Raises Refused, NotFound, Conflict, NodeUnavailable, NoCapacity.
        """
        key = (run.job.vm_id, port)
        while True:
            trying = self._trying.get(key)
            if trying is not None:
                await trying.wait()
            try:
                return await self._connect(key)
            except Refused as error:
                if not _may_listen_soon(run, deadline):
                    raise _why(run, error) from error
            if key not in self._trying:
                return await self._try_until_it_listens(key, run, deadline)

    async def _try_until_it_listens(self, key: Key, run: Run, deadline: float) -> Upstream:
        """One tries, however many wait: a thousand requests for an application that starts are one dial each 20 ms."""
        told = self._trying[key] = asyncio.Event()
        try:
            while True:
                await asyncio.sleep(AGAIN)
                try:
                    return await self._connect(key)
                except Refused as error:
                    if not _may_listen_soon(run, deadline):
                        raise _why(run, error) from error
        finally:
            del self._trying[key]
            told.set()

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


def _may_listen_soon(run: Run, deadline: float) -> bool:
    left = min(run.listens_by() - time.time(), deadline - time.monotonic())
    return run.awake and left > AGAIN


def _why(run: Run, refused: Refused) -> Refused:
    return Refused(f"{run.failed}, and {refused}") if run.failed else refused
