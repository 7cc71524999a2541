"""The warm pool: identical members, ready before they are asked for, each used once.

`take` is the hot path and only pops. One task refills: it makes a member for everyone who waits, in order, and then up
to the target, which is the configured minimum or, while claims come fast, as many as came in the last seconds. A member
that dies idle is replaced.
"""

import asyncio
import errno
import heapq
import os
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

import structlog

from roost.errors import MachineFault, NoCapacity, RoostError, reason
from roost.node import member as members
from roost.node.capacity import FULL, CpuMeter, memory_is_full
from roost.node.guest.channel import GuestLost, GuestRefused
from roost.node.member import MEMBERS, Ground, Member
from roost.node.protocol import PoolStatus
from roost.node.runtimes import RuntimeFailed

QUIET = 0.02  # seconds after a claim or an end: making and destroying would take the CPU from who is being served
RECENT = 5.0  # seconds of claims that the target follows
LARGEST_TARGET = 32  # idle members, however fast claims come
SURPLUS = 60.0  # seconds after which idle members above the target go, one at a time
DYING = 5.0  # seconds that whoever gives a member back waits; what does not die delays nobody else
CLOSING = 20.0  # seconds that a pool which is closed waits for all ends
FAILURES = 3  # in a row, after which those who wait are told instead of waiting on
PATIENCE = 20.0  # seconds of failures in a row, after which they are told that it is the machine's fault

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Pool:
    def __init__(
        self,
        ground: Ground,
        min_size: int,
        max_size: int,
        in_use: set[int] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """`in_use`: numbers of members that sandboxes of an earlier node hold. `patience`: see PATIENCE."""
        self._ground = ground
        self._min, self._max = min_size, max_size
        self._idle: deque[Member] = deque()
        self._waiting: deque[asyncio.Future[Member]] = deque()
        self._numbers = [n for n in range(MEMBERS) if not in_use or n not in in_use]
        self._busy = len(in_use or ())
        self._creating = 0
        self._claims: deque[float] = deque(maxlen=LARGEST_TARGET)
        self._failures = 0
        self._failing_since: float | None = None
        self._patience = patience
        self._served = 0.0  # when a member was last claimed or given back
        self._cpu = CpuMeter()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refill: asyncio.Task[None] | None = None
        self._parallel = os.cpu_count() or 1
        self._closing = asyncio.Event()

    def open(self) -> None:
        self._refill = asyncio.create_task(self._keep_filled())

    def status(self) -> PoolStatus:
        return PoolStatus(
            idle=len(self._idle),
            busy=self._busy,
            creating=self._creating,
            min_size=self._min,
            max_size=self._max,
        )

    async def take(self) -> Member:
        """An idle member; without one, the next that is made, first come first served.

        Raises NoCapacity when the machine is full, or cannot make members. Give it back by `used`.
        """
        if self._max and self._busy + len(self._waiting) >= self._max:
            raise NoCapacity(f"all {self._max} sandboxes of this node are in use (max_pool_size)")
        if self._busy + len(self._waiting) >= MEMBERS:
            raise NoCapacity(f"all {MEMBERS} sandboxes of this node are in use")
        if memory_is_full():
            raise NoCapacity(f"{FULL:.0%} of this machine's memory are in use")
        self._served = time.monotonic()
        self._claims.append(self._served)
        while self._idle:
            member = self._idle.popleft()
            if not member.guest.lost.done():
                self._busy += 1
                self._changed.set()
                return member
            self._retire(member)
        place: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._changed.set()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                await self.used(place.result())
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    async def used(self, member: Member) -> None:
        """Destroys a member that was taken, for it is never used again. One that does not die goes on dying alone."""
        self._served = time.monotonic()
        await self._quiet()
        await self._patiently(member.number, member)

    async def destroyed(self, number: int) -> None:
        """The same for a member that an earlier node made."""
        await self._patiently(number)

    async def _patiently(self, number: int, member: Member | None = None) -> None:
        ending = self._own(self._give_back(number, member))
        await asyncio.wait({ending}, timeout=DYING)
        if not ending.done():
            log.error("member.undying", number=number)

    async def _give_back(self, number: int, member: Member | None) -> None:
        await self._destroy(number, member)
        self._busy -= 1
        self._changed.set()

    async def close(self) -> None:
        """Destroys the idle members; those that were taken are their takers'. Who waits is told."""
        self._closing.set()
        self._tell_waiting(NoCapacity("this node is being stopped"))
        if self._refill:
            self._refill.cancel()
            await asyncio.gather(self._refill, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        idle, self._idle = list(self._idle), deque[Member]()
        for some in range(0, len(idle), self._parallel):
            await asyncio.gather(*(self._destroy(one.number, one) for one in idle[some : some + self._parallel]))

    async def _quiet(self) -> None:
        """Returns when nobody is being served, or at once when the pool has run dry."""
        while self._idle and (left := self._served + QUIET - time.monotonic()) > 0:
            await asyncio.sleep(left)

    # refilling

    def _target(self) -> int:
        now = time.monotonic()
        recent = sum(1 for claim in self._claims if now - claim < RECENT)
        return self._min if recent <= self._min else recent

    def _wanted(self) -> bool:
        if self._closing.is_set() or self._creating >= self._parallel or not self._numbers:
            return False
        ready = len(self._idle) + self._creating
        if self._waiting:
            return self._creating < len(self._waiting)
        if self._max and self._busy + ready >= self._max:
            return False
        if ready < self._min:
            return not memory_is_full()
        return ready < self._target() and not memory_is_full() and self._cpu.share() < FULL

    async def _keep_filled(self) -> None:
        while True:
            self._changed.clear()
            await self._quiet()
            while self._wanted():
                self._creating += 1
                self._own(self._create(heapq.heappop(self._numbers)))
            if len(self._idle) > self._target():
                await self._trim()
            else:
                try:
                    async with asyncio.timeout(1.0 if self._target() > self._min else None):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    async def _trim(self) -> None:
        try:
            async with asyncio.timeout(SURPLUS):
                await self._changed.wait()
        except TimeoutError:
            if self._idle:  # not all taken in this very moment
                self._retire(self._idle.popleft())

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _create(self, number: int) -> None:
        try:
            member = await members.make(self._ground, number)
        except (RoostError, RuntimeFailed, GuestLost, GuestRefused, OSError) as error:
            log.error("member.failed", number=number, error=_words(error))
            self._creating -= 1
            self._own(self._destroy(number))  # on its own, for what hinders the making may hinder that too
            await self._failed(error)
            return
        except BaseException:
            self._creating -= 1
            raise
        self._creating -= 1
        self._failures, self._failing_since = 0, None
        self._hand_out(member)

    def _hand_out(self, member: Member) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(member)
                self._busy += 1
                self._changed.set()
                return
        self._idle.append(member)
        member.guest.lost.add_done_callback(lambda _: self._lost_idle(member))
        self._changed.set()

    def _lost_idle(self, member: Member) -> None:
        if member in self._idle and not self._closing.is_set():
            log.warning("member.lost", number=member.number, why=member.guest.lost.result())
            self._idle.remove(member)
            self._retire(member)

    def _retire(self, member: Member) -> None:
        self._own(self._destroy(member.number, member))

    async def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._failing_since = self._failing_since or time.monotonic()
        if self._failures >= FAILURES:
            self._tell_waiting(self._condition(error))
        await self._pause(min(5.0, 0.05 * 2**self._failures))
        self._changed.set()

    def _condition(self, error: Exception) -> RoostError:
        """Who waits is asked to wait on at first, for a full disk or a moment's load; what lasts is told."""
        text = f"this node cannot make sandboxes: {_words(error)}; `sudo roost doctor` does the same and names the cure"
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or not self._failing_since or time.monotonic() - self._failing_since < self._patience:
            return NoCapacity(text)
        return MachineFault(text)

    async def _pause(self, seconds: float) -> None:
        """Ends at once when the pool is closed."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    def _tell_waiting(self, why: RoostError) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(why)

    async def _destroy(self, number: int, member: Member | None = None) -> None:
        """Until it is really gone: its number is not used again before. A closing pool leaves it to the next node."""
        pause = 0.05
        while True:
            try:
                await (member.destroy() if member else members.destroy(self._ground, number))
            except (RuntimeFailed, OSError) as error:
                log.error("member.undestroyed", number=number, error=_words(error))
                if self._closing.is_set():
                    return
                await self._pause(pause)
                pause = min(10.0, 2 * pause)
            else:
                heapq.heappush(self._numbers, number)
                self._changed.set()
                return


def _words(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else str(error)
