"""Where a sandbox may go, and when: `place(need)` answers with a Lease as soon as there is room.

The single node admits by memory, because memory cannot be shared by waiting; CPU is shared by weight and never holds
a job back. Requests are admitted in the order they came: a large one at the head is not overtaken for ever.
"""

import asyncio
import os
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from roost.node.protocol import NodeInfo

OVERCOMMIT = 4  # times the machine's memory may be promised: scripts use a fraction of what they may
RESERVE = 0.10  # of the machine stays with the machine (the documented 90 % rule)
MAX_SANDBOXES = 1000  # of one node; it has 1,024 members' worth of addresses and user ids
RETRY = 1.0  # seconds until a node that said "full" is asked again, if nothing ends before


@dataclass(frozen=True)
class Need:
    """What a sandbox holds while it exists."""

    memory_mb: int


@dataclass(frozen=True, eq=False)
class Lease:
    """A hold on a node's capacity, until it is given back."""

    node: str
    need: Need


@dataclass(frozen=True)
class Machine:
    """The size of a node."""

    cpus: int
    memory_mb: int
    max_sandboxes: int = MAX_SANDBOXES

    @property
    def largest_memory_mb(self) -> int:
        """What one sandbox may have at most."""
        return int(self.memory_mb * (1 - RESERVE))

    @property
    def promised_memory_mb(self) -> int:
        """What all sandboxes together may have at most."""
        return int(OVERCOMMIT * self.memory_mb * (1 - RESERVE))


class Placement(Protocol):
    """Decides where; the node does the work."""

    @property
    def machine(self) -> Machine: ...

    def learn(self, info: NodeInfo) -> None: ...

    async def place(self, need: Need) -> Lease: ...

    def adopt(self, need: Need) -> Lease: ...

    def release(self, lease: Lease) -> None: ...

    def refuse(self, lease: Lease) -> None: ...


def this_machine() -> Machine:
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine(cpus=os.cpu_count() or 1, memory_mb=pages * page // (1024 * 1024))


class SingleNode:
    """The one node beside the control plane. Until it has told its size, it is taken to have this machine's."""

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or this_machine()
        self._leases: set[Lease] = set()
        self._promised_mb = 0
        self._waiting: deque[tuple[Need, asyncio.Future[Lease]]] = deque()
        self._paused: asyncio.TimerHandle | None = None

    def learn(self, info: NodeInfo) -> None:
        most = min(info.pool.max_size or MAX_SANDBOXES, MAX_SANDBOXES)
        self.machine = Machine(info.cpus, info.memory_mb, most)
        self._admit()

    async def place(self, need: Need) -> Lease:
        """Waits for room, first come first served; cancelling gives up the place in the queue."""
        waiting: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting.append((need, waiting))
        self._admit()
        try:
            return await waiting
        except asyncio.CancelledError:
            self._withdraw(waiting)
            raise

    def adopt(self, need: Need) -> Lease:
        """For a sandbox that exists already: it holds what it holds, even beyond the limit."""
        lease = Lease("local", need)
        self._leases.add(lease)
        self._promised_mb += need.memory_mb
        return lease

    def release(self, lease: Lease) -> None:
        """May be called again; the second time does nothing."""
        if lease in self._leases:
            self._give_back(lease)
            self._resume()

    def refuse(self, lease: Lease) -> None:
        """The node had no room after all: nothing is placed until a sandbox ends, or for a second."""
        if lease in self._leases:
            self._give_back(lease)
        if self._paused is None:
            self._paused = asyncio.get_running_loop().call_later(RETRY, self._resume)

    def _give_back(self, lease: Lease) -> None:
        self._leases.remove(lease)
        self._promised_mb -= lease.need.memory_mb

    def _resume(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        self._admit()

    def _fits(self, need: Need) -> bool:
        if not self._leases:
            return True  # a need that was accepted once must not wait for ever, should the machine have shrunk
        return (
            len(self._leases) < self.machine.max_sandboxes
            and self._promised_mb + need.memory_mb <= self.machine.promised_memory_mb
        )

    def _admit(self) -> None:
        while self._waiting and self._paused is None:
            need, waiting = self._waiting[0]
            if waiting.done():
                self._waiting.popleft()
            elif self._fits(need):
                self._waiting.popleft()
                waiting.set_result(self.adopt(need))
            else:
                return

    def _withdraw(self, waiting: asyncio.Future[Lease]) -> None:
        if waiting.done() and not waiting.cancelled():
            self.release(waiting.result())  # granted in the same moment
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not waiting)
        self._admit()
