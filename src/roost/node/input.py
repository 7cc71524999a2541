"""What a process is given to read, by position: what was taken already is skipped, so any call may be repeated.

Input counts as taken when guest init has it, which a restarted node is told by guest init.
"""

import asyncio

from roost.errors import Conflict
from roost.node.guest.channel import Guest, GuestProcess
from roost.node.protocol import Taken

WITHIN = 20.0  # seconds that a call may wait for a process to read


class Input:
    """`what` names the process in refusals."""

    def __init__(self, what: str, taken: int = 0, closed: bool = False) -> None:
        self.process: GuestProcess | None = None
        self.taken = taken  # bytes that guest init surely has
        self.closed = closed
        self._what = what
        self._writing = asyncio.Lock()

    def adopt(self, process: GuestProcess) -> None:
        """After a restart of the node."""
        self.process = process
        process.stdin_sent = self.taken

    async def write(self, guest: Guest, at: int, data: bytes) -> Taken:
        """As much as the process reads in time. Raises Conflict (a gap, closed, ended)."""
        async with self._writing:
            if at > self.taken:
                raise Conflict(f"input from position {at} leaves a gap; {self.taken} bytes were taken, go on there")
            fresh = data[self.taken - at :]
            if fresh and self.closed:
                raise Conflict(f"the input of {self._what} is closed")
            if fresh:
                await self._feed(guest, fresh)
        return Taken(position=self.taken)

    async def close(self, guest: Guest) -> None:
        async with self._writing:
            if not self.closed:
                await self._running().write_stdin(b"")
                await guest.ping()
                self.closed = True

    async def _feed(self, guest: Guest, data: bytes) -> None:
        """As much as the process reads in time; a caller that goes away leaves no doubt about how much that was."""
        process = self._running()
        if data := data[process.stdin_sent - self.taken :]:  # before: sent for one who went before it was certain
            feeding = asyncio.ensure_future(process.write_stdin(data))
            try:
                waiting = {feeding, process.exited}
                await asyncio.wait(waiting, timeout=WITHIN, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    feeding.result()
                elif process.exited.done():
                    raise Conflict(f"{self._what} has ended and read no more")
            finally:
                feeding.cancel()
        sent = process.stdin_sent
        await guest.ping()
        self.taken = sent

    def _running(self) -> GuestProcess:
        if self.process is None or self.process.exited.done():
            raise Conflict(f"{self._what} has ended")
        return self.process
