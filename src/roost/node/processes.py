"""Kept processes of one sandbox: they live whoever watches, and what became of them is on this node's disk.

Each has a record, replaced whole, and a log file of its output. The record is there before guest init is asked to
start the process, so that a restarted node knows which of guest init's processes are kept; the exit status is in it
before it is told or released. Input counts as taken when guest init has it.
"""

import asyncio
import contextlib
import errno
import shutil
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import msgspec
import structlog

from roost.clock import now_ns
from roost.errors import Conflict, Invalid, NoCapacity, NotFound
from roost.node import log as logs
from roost.node.commands import command_of
from roost.node.guest.channel import Guest, GuestLost, GuestProcess, GuestRefused, OutputSink
from roost.node.guest.frames import Command, Exited
from roost.node.images.config import Config
from roost.node.kept import Kept, KeptProcess
from roost.node.protocol import ChangeProcess, LogRecord, ProcessState, StartProcess, Taken

KEPT = 1 << 30  # guest init's number of a kept process is its own and this; below are the script and its companions
MAX_KEPT = 64  # of one sandbox; beyond, those that have ended are forgotten, oldest first
MAX_OUTPUT = 256 * 1024 * 1024  # bytes of output of all of them; the same
KILL_WITHIN = 3.0  # seconds

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Processes:
    """`enter` gives guest init or says by Conflict why nothing can be done; `changed` gets the number that run.

    `config` tells what the sandbox's image says of processes.
    """

    def __init__(
        self, place: Path, enter: Callable[[], Guest], changed: Callable[[int], None], config: Callable[[], Config]
    ) -> None:
        self._place = place
        self._enter = enter
        self._changed = changed
        self._config = config
        self._kept: dict[int, KeptProcess] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}

    # what the protocol asks

    async def start(self, id: int, request: StartProcess) -> ProcessState:
        """Raises Conflict, Invalid, NoCapacity. A caller that goes away does not undo it."""
        if not 0 < id < KEPT:
            raise Invalid(f"{id} is no number of a process: 1 to {KEPT - 1}")
        if id not in self._kept and id not in self._starting:
            self._starting[id] = asyncio.create_task(self._start(id, request))
        if id in self._starting:
            await asyncio.shield(self._starting[id])
        state = self._known(id).state
        if state.arguments != request.arguments:
            raise Conflict(f"process {id} is another one; choose another number")
        return state

    async def _start(self, id: int, request: StartProcess) -> None:
        try:
            guest, command = self._enter(), command_of(request, self._config())
            if not 0 < request.output_limit <= MAX_OUTPUT:
                raise Invalid(f"output_limit: 1 to {MAX_OUTPUT} bytes")
            self._make_place()
            state = ProcessState(
                id=id,
                arguments=request.arguments,
                started_ns=now_ns(),
                terminal=request.terminal is not None,
                input_closed=not request.input and request.terminal is None,
            )
            kept = KeptProcess(self._place, Kept(state, request.output_limit))
            try:
                kept.record()
            except OSError as error:
                kept.forget()
                raise NoCapacity(f"the node's state directory cannot be written: {error.strerror}") from error
            try:
                kept.process = await _started(guest, id, command, lambda pairs: self._take(kept, pairs))
            except BaseException:
                kept.forget()
                raise
            self._kept[id] = kept
            self._follow(kept)
        finally:
            del self._starting[id]

    def list(self) -> "list[ProcessState]":
        """In the order of their starts."""
        return sorted((kept.state for kept in self._kept.values()), key=lambda state: state.started_ns)

    def state(self, id: int) -> ProcessState:
        return self._known(id).state

    async def write(self, id: int, at: int, data: bytes) -> Taken:
        """As much as the process reads in time. Raises Conflict (a gap, closed, ended, frozen), NotFound."""
        kept, guest = self._known(id), self._enter()
        with _alive(kept):
            return await kept.write(guest, at, data)

    async def change(self, id: int, change: ChangeProcess) -> ProcessState:
        kept, guest = self._known(id), self._enter()
        with _alive(kept):
            if change.signal is not None or change.terminal:
                kept.change(change)
            if change.close_input:
                await kept.close_input(guest)
        return kept.state

    async def read(self, id: int, after: int, follow: bool) -> AsyncGenerator["list[LogRecord]"]:
        """With `follow` until it has ended; its state tells how by then."""
        kept = self._known(id)
        try:
            async for batch in logs.follow(kept.path, kept.log if follow else None, after):
                yield batch
        except FileNotFoundError:
            raise NotFound(f"process {id} was removed") from None

    async def remove(self, id: int) -> None:
        kept = self._known(id)
        if not kept.ended and kept.process and kept.follower:
            self._enter()
            with contextlib.suppress(Conflict):  # it has just ended
                kept.change(ChangeProcess(signal=signal.SIGKILL))
            await asyncio.wait({kept.follower}, timeout=KILL_WITHIN)
        self._forget(kept)

    def _known(self, id: int) -> KeptProcess:
        try:
            return self._kept[id]
        except KeyError:
            raise NotFound(f"there is no process {id} in this sandbox") from None

    def has(self, number: int) -> bool:
        """Whether guest init's process of that number is one of these."""
        return number - KEPT in self._kept

    # their lives

    def _follow(self, kept: KeptProcess) -> None:
        kept.follower = asyncio.create_task(self._see_end(kept))
        self._count()

    async def _see_end(self, kept: KeptProcess) -> None:
        assert kept.process
        exited: Exited | None = None
        with contextlib.suppress(GuestLost):
            exited = await kept.process.wait()
        if kept.ended:  # an earlier node had written that down
            kept.let_loose()
            kept.close()
            return
        await kept.finish(exited)
        self._count()

    def _count(self) -> None:
        self._changed(sum(1 for kept in self._kept.values() if not kept.ended))

    def _take(self, kept: KeptProcess, pairs: "list[tuple[int, bytes]]") -> None:
        assert kept.log
        if kept.log.closed:
            raise OSError(errno.EBADF, "this node is leaving")
        if not self._has_room(sum(len(data) for _, data in pairs)):
            kept.log.cap()
        kept.log.write(pairs)
        kept.size = kept.log.size

    def _has_room(self, count: int) -> bool:
        """Forgets the oldest that have ended until there is."""
        while sum(kept.size for kept in self._kept.values()) + count > MAX_OUTPUT:
            if not self._forget_oldest():
                return False
        return True

    def _make_place(self) -> None:
        while len(self._kept) + len(self._starting) > MAX_KEPT:
            if not self._forget_oldest():
                raise Conflict(f"{MAX_KEPT} processes run in this sandbox already; end one first")

    def _forget_oldest(self) -> bool:
        ended = [kept for kept in self._kept.values() if kept.ended]
        if ended:
            self._forget(min(ended, key=lambda kept: kept.state.ended_ns or 0))
        return bool(ended)

    def _forget(self, kept: KeptProcess) -> None:
        self._kept.pop(kept.id, None)
        if kept.follower and not kept.ended:
            kept.follower.cancel()
            kept.let_loose()
        kept.forget()
        self._count()

    # the sandbox's and the node's life

    def _read_all(self) -> None:
        for path in self._place.glob("*.json"):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=Kept)
            except msgspec.DecodeError as error:  # what a power cut may leave; it goes with its sandbox
                log.error("process.unreadable", path=str(path), error=str(error))
                continue
            self._kept[kept.state.id] = KeptProcess(self._place, kept)

    def adopt(self, guest: Guest) -> None:
        """After a restart of the node: what guest init does not know was never started; whoever asked asks again."""
        self._read_all()
        for kept in list(self._kept.values()):
            if KEPT + kept.id in guest.known:
                kept.adopt(guest, KEPT + kept.id, self._take)
                self._follow(kept)
            elif not kept.ended:
                self._forget(kept)
        self._count()

    async def find_ended(self) -> None:
        """After a restart of the node that found no sandbox any more."""
        self._read_all()
        await self.end()

    async def end(self) -> None:
        """The sandbox ends; what has not told its end by now has none that is known."""
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        for kept in list(self._kept.values()):
            if kept.follower:
                told = kept.process is not None and kept.process.exited.done()
                if not told:
                    kept.follower.cancel()
                await asyncio.gather(kept.follower, return_exceptions=True)
            if not kept.ended:
                await kept.finish(None)
        self._count()

    async def let_go(self) -> None:
        """The node goes, they stay for the next one."""
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        for kept in self._kept.values():
            if kept.follower:
                kept.follower.cancel()
                await asyncio.gather(kept.follower, return_exceptions=True)
            kept.close()

    def remove_all(self) -> None:
        """The sandbox is forgotten."""
        for kept in self._kept.values():
            kept.close()
        self._kept.clear()
        shutil.rmtree(self._place, ignore_errors=True)


async def _started(guest: Guest, id: int, command: Command, take: OutputSink) -> GuestProcess:
    try:
        return await guest.start(KEPT + id, command, take)
    except GuestRefused as refusal:
        raise Conflict(f"the sandbox could not start the process: {refusal}") from None
    except GuestLost as lost:
        raise Conflict(f"the sandbox ended before the process was started: {lost}") from None
    except ValueError as error:
        raise Invalid(f"the process cannot be started: {error}") from None


@contextlib.contextmanager
def _alive(kept: KeptProcess) -> Generator[None]:
    try:
        yield
    except GuestLost:
        raise Conflict(f"the sandbox of process {kept.id} has ended") from None
