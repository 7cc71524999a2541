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
from roost.node.input import Input
from roost.node.log import LogWriter, remove, segments
from roost.node.protocol import ChangeProcess, ProcessState, Taken
from roost.node.record import write_whole

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Kept(msgspec.Struct, frozen=True):
    """What is on the disk of one."""

    state: ProcessState
    output_limit: int


class KeptProcess:
    def __init__(self, place: Path, kept: Kept) -> None:
        self.path = place / f"{kept.state.id}.log"
        self.size = sum(one.size for one in segments(self.path)) if self.path.exists() else 0
        self.log: LogWriter | None = None
        self.follower: asyncio.Task[None] | None = None
        self._place = place
        self._kept = kept
        self._input = Input(f"process {kept.state.id}", kept.state.input_taken, kept.state.input_closed)

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
            self._kept.state, input_taken=self._input.taken, input_closed=self._input.closed, dropped=dropped
        )

    @property
    def process(self) -> GuestProcess | None:
        return self._input.process

    @process.setter
    def process(self, process: GuestProcess) -> None:
        self._input.process = process

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
            self._input = Input(f"process {self.id}", stdin.received, stdin.ended)
        self._input.adopt(guest.adopt(number, lambda pairs: take(self, pairs), writer.output))

    # while it runs

    async def write(self, guest: Guest, at: int, data: bytes) -> Taken:
        return await self._input.write(guest, at, data)

    async def close_input(self, guest: Guest) -> None:
        await self._input.close(guest)

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
        remove(self.path)

    def _write(self, state: ProcessState | None = None) -> None:
        kept = Kept(state or self._kept.state, self._kept.output_limit)
        write_whole(self._place / f"{self.id}.json", msgspec.json.encode(kept))
        self._kept = kept
