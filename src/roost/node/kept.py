"""One kept process: its record, its log file, its input by position, and how its end becomes durable.

`processes.py` has them by number. The record is replaced whole; an exit status is in it before it is told or released.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from roost.clock import now_ns
from roost.errors import Conflict
from roost.node.commands import UNKNOWN, apply
from roost.node.guest.channel import Guest, GuestProcess
from roost.node.guest.frames import Exited
from roost.node.log import LogWriter
from roost.node.protocol import ChangeProcess, ProcessState, Taken
from roost.node.record import write_whole

INPUT_WITHIN = 20.0  # seconds that a call may wait for a process to read

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Kept(msgspec.Struct, frozen=True):
    """What is on the disk of one."""

    state: ProcessState
    output_limit: int


class KeptProcess:
    def __init__(self, place: Path, kept: Kept) -> None:
        self.path = place / f"{kept.state.id}.log"
        self.size = self.path.stat().st_size if self.path.exists() else 0
        self.log: LogWriter | None = None
        self.process: GuestProcess | None = None
        self.follower: asyncio.Task[None] | None = None
        self._place = place
        self._kept = kept
        self._taken = kept.state.input_taken  # what guest init surely has
        self._input_closed = kept.state.input_closed
        self._writing = asyncio.Lock()

    @property
    def id(self) -> int:
        return self._kept.state.id

    @property
    def ended(self) -> bool:
        return self._kept.state.ended_ns is not None

    @property
    def state(self) -> ProcessState:
        dropped = self.log.dropped if self.log else self._kept.state.dropped
        return msgspec.structs.replace(
            self._kept.state, input_taken=self._taken, input_closed=self._input_closed, dropped=dropped
        )

    # beginning

    def record(self) -> LogWriter:
        """Raises OSError."""
        self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log = LogWriter(self.path, self._kept.output_limit)
        self._write()
        return self.log

    def adopt(self, guest: Guest, number: int, take: Callable[["KeptProcess", list[tuple[int, bytes]]], None]) -> None:
        """After a restart of the node. It may have ended, and its record say so, before guest init was told."""
        known, stdin = guest.known[number], guest.known_stdin.get(number)
        writer = self.log = LogWriter(self.path, self._kept.output_limit)
        writer.taken(known.acknowledged)
        self.size = writer.size
        if stdin:
            self._taken, self._input_closed = stdin.received, stdin.ended
        self.process = guest.adopt(number, lambda pairs: take(self, pairs), writer.output)
        self.process.stdin_sent = self._taken

    # while it runs

    async def write(self, guest: Guest, at: int, data: bytes) -> Taken:
        async with self._writing:
            if at > self._taken:
                raise Conflict(f"input from position {at} leaves a gap; {self._taken} bytes were taken, go on there")
            fresh = data[self._taken - at :]
            if fresh and self._input_closed:
                raise Conflict(f"the input of process {self.id} is closed")
            if fresh:
                await self._feed(guest, fresh)
        return Taken(position=self._taken)

    async def close_input(self, guest: Guest) -> None:
        async with self._writing:
            if not self._input_closed:
                await self._running().write_stdin(b"")
                await guest.ping()
                self._input_closed = True

    async def _feed(self, guest: Guest, data: bytes) -> None:
        """As much as the process reads in time; a caller that goes away leaves no doubt about how much that was."""
        process = self._running()
        if data := data[process.stdin_sent - self._taken :]:  # before: sent for one who went before it was certain
            feeding = asyncio.ensure_future(process.write_stdin(data))
            try:
                waiting = {feeding, process.exited}
                await asyncio.wait(waiting, timeout=INPUT_WITHIN, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    feeding.result()
                elif process.exited.done():
                    raise Conflict(f"process {self.id} has ended and read no more")
            finally:
                feeding.cancel()
        sent = process.stdin_sent
        await guest.ping()
        self._taken = sent

    def change(self, change: ChangeProcess) -> None:
        apply(change, self._running())

    def _running(self) -> GuestProcess:
        if self.ended or not self.process or self.process.exited.done():
            raise Conflict(f"process {self.id} has ended")
        return self.process

    # end

    async def finish(self, exited: Exited | None) -> None:
        """Durable first, then guest init may forget it, then it is told. A full disk only delays that."""
        ends = {"reason": UNKNOWN}
        if exited:
            ends = {"exit_code": exited.exit_code, "signal": exited.signal or None}
        if self.log and self.log.dropped:
            with contextlib.suppress(OSError):
                self.log.remark(f"{self.log.dropped} bytes of output were dropped at the limit")
        told = msgspec.structs.replace(self.state, **({"ended_ns": now_ns()} | ends))
        while True:
            try:
                self._write(told)
                break
            except OSError as error:
                log.warning("process.unwritten", id=self.id, error=str(error))
                await asyncio.sleep(0.5)
        self.let_loose()
        self.close()

    def let_loose(self) -> None:
        """Guest init forgets it as soon as it has ended, and its output goes nowhere."""
        if self.process:
            self.process.discard()
            self.process.release()

    def close(self) -> None:
        if self.log:
            self.size = self.log.size
            self.log.close()

    def forget(self) -> None:
        self.close()
        (self._place / f"{self.id}.json").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _write(self, state: ProcessState | None = None) -> None:
        kept = Kept(state or self._kept.state, self._kept.output_limit)
        write_whole(self._place / f"{self.id}.json", msgspec.json.encode(kept))
        self._kept = kept
