"""Runs that wait for a place, in the order in which their jobs were accepted.

`dispatch` places the head, and nobody else before it: a job that the node had no room for goes back to its old place,
and one that was woken comes before those that were submitted after it.
"""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable

from roost.jobs.run import Run
from roost.sandboxes.placement import Lease, Placement


class Queue:
    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._heap: list[tuple[int, int, Run]] = []  # by seq; those that left it otherwise are not in _waiting
        self._waiting: dict[str, Run] = {}  # by vm_id
        self._numbers = itertools.count()  # tells entries of the same job apart
        self._filled = asyncio.Event()
        self._placing: asyncio.Task[Lease] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, run: Run) -> bool:
        return self._waiting.get(run.job.vm_id) is run

    def put(self, run: Run) -> None:
        self._waiting[run.job.vm_id] = run
        heapq.heappush(self._heap, (run.job.seq, next(self._numbers), run))
        self._filled.set()
        if self._heap[0][2] is run:
            self._place_again()  # it goes before the one that is being placed

    def leave(self, run: Run) -> None:
        """It is stopped, or has turned out to have its sandbox already."""
        self._waiting.pop(run.job.vm_id, None)
        if self._heap and self._heap[0][2] is run:
            self._place_again()

    async def dispatch(
        self,
        ready: Callable[[], Awaitable[None]],
        prepare: Callable[[Run], Awaitable[None]],
        begin: Callable[[Run], None],
    ) -> None:
        """For ever: waits until all is `ready`, prepares the head, places it, and lets it begin with its lease."""
        while True:
            await ready()
            run = await self._head()
            await prepare(run)
            lease = await self._place(run)
            if lease is None:
                continue
            if run not in self or self._heap[0][2] is not run:
                self._placement.release(lease)
                continue
            heapq.heappop(self._heap)
            del self._waiting[run.job.vm_id]
            run.lease = lease
            begin(run)

    async def _head(self) -> Run:
        while True:
            while self._heap and self._heap[0][2] not in self:
                heapq.heappop(self._heap)
            if self._heap:
                return self._heap[0][2]
            self._filled.clear()
            await self._filled.wait()

    async def _place(self, run: Run) -> Lease | None:
        """None when the run left the head of the queue meanwhile."""
        self._placing = asyncio.create_task(self._placement.place(run.need))
        try:
            await asyncio.wait({self._placing})
            return None if self._placing.cancelled() else self._placing.result()
        finally:
            self._placing.cancel()
            self._placing = None

    def _place_again(self) -> None:
        if self._placing is not None:
            self._placing.cancel()
