"""The node's end of the connection to one guest init.

`Guest` sends requests and hands what arrives to the processes they belong to. It survives neither a protocol violation
nor the guest's death: then `lost` is set and every waiter gets `GuestLost`. A node that restarts makes a new `Guest`
on the same socket; guest init then repeats every byte of output that was not acknowledged and every exit that was not
released, so nothing is counted twice or missed.
"""

import asyncio
import itertools
import os
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, cast

from roost.errors import reason
from roost.node.guest import frames
from roost.node.guest.frames import Command, GuestMisbehaved, Sight

T = TypeVar("T")

ANSWER = 10.0  # seconds; guest init answers in well under one unless the sandbox is starved of CPU
SLICE = 0.05  # seconds
SLICE_BYTES = 4 * 1024 * 1024  # taken from one guest per slice (80 MB/s), so that a flood costs only itself


class GuestLost(Exception):
    """Guest init is gone, silent or mad; the sandbox with it."""


class GuestRefused(Exception):
    """Guest init could not do what it was asked; the text says why, as does the kernel's number, where it has one."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


def listening_socket(path: Path) -> socket.socket:
    """The socket that a guest init inherits as descriptor 3. Its path outlives the node, so that the next can connect.

    Bound through the directory's descriptor: a Unix socket's path may be 107 bytes, a state directory's longer.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        listening.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    listening.listen(4)
    return listening


OutputSink = Callable[[list[tuple[int, bytes]]], None]


def _ignore(_: list[tuple[int, bytes]]) -> None:
    pass


class GuestProcess:
    """A process in the guest. `on_output` gets its bytes once and in order, as (stream, bytes) pairs.

    What it has taken is acknowledged when it returns; where it `holds`, only when `acknowledge` is called, and guest
    init sends no more than OUTPUT_WINDOW ahead of that. It may raise OSError (a full disk): the guest is then held,
    the same bytes are offered again later, and nothing is lost.
    """

    def __init__(
        self,
        guest: "Guest",
        id: int,
        on_output: OutputSink,
        taken: int = 0,
        stdin_waiting: int = 0,
        holds: bool = False,
    ) -> None:
        self.id = id
        self.taken = taken  # bytes of output that `on_output` has got
        self._acknowledged = taken
        self._holds = holds
        self.exited: asyncio.Future[frames.Exited] = asyncio.get_running_loop().create_future()
        self._guest = guest
        self._on_output = on_output
        self._waiting: list[tuple[int, bytes]] = []
        self._waiting_bytes = 0
        self._exit: frames.Exited | None = None
        self.stdin_sent = 0  # bytes of input, in all
        self._stdin_room = frames.STDIN_WINDOW - stdin_waiting
        self._stdin_taken = asyncio.Event()

    def receive(self, frame: frames.Output) -> None:
        end = frame.offset + len(frame.data)
        expected = self.taken + self._waiting_bytes
        if end <= expected:
            return  # told again after a reconnection
        if frame.offset > expected:
            raise GuestMisbehaved(f"output at {frame.offset}, expected {expected}")
        if expected - self._acknowledged > frames.OUTPUT_WINDOW:
            raise GuestMisbehaved("more unacknowledged output than its window")
        fresh = frame.data[expected - frame.offset :]
        self._waiting.append((frame.stream, fresh))
        self._waiting_bytes += len(fresh)

    def receive_exit(self, frame: frames.Exited) -> None:
        self._exit = frame

    def settle(self) -> None:
        """Hand on what has arrived; raises OSError when it could not be kept."""
        if self._waiting:
            self._on_output(self._waiting)
            self.taken += self._waiting_bytes
            self._waiting, self._waiting_bytes = [], 0
            if not self._holds:
                self.acknowledge(self.taken - self._acknowledged)
        if self._exit and not self.exited.done():
            if self._exit.produced != self.taken:
                raise GuestMisbehaved(f"exit after {self._exit.produced} bytes, {self.taken} seen")
            self.exited.set_result(self._exit)

    def acknowledge(self, count: int) -> None:
        """Of one that holds: so many more bytes, whole chunks as they were handed on, need not be told again."""
        self._acknowledged += count
        self._guest.send(frames.acknowledge(self.id, self._acknowledged))

    def discard(self) -> None:
        """Its output matters to nobody any more, and holds nothing up."""
        self._holds, self._on_output = False, _ignore
        self.acknowledge(self.taken - self._acknowledged)

    def receive_stdin_taken(self, count: int) -> None:
        self._stdin_room += count
        if self._stdin_room > frames.STDIN_WINDOW:
            raise GuestMisbehaved("took more input than it was given")
        self._stdin_taken.set()

    async def write_stdin(self, data: bytes) -> None:
        """Waits while the process does not read. Empty data ends the input."""
        if not data:
            self._guest.send(frames.stdin(self.id, b""))
        while data:
            while not self._stdin_room:
                self._stdin_taken.clear()
                await self._guest.unless_lost(self._stdin_taken.wait())
            part, data = data[: self._stdin_room], data[self._stdin_room :]
            self._stdin_room -= len(part)
            self.stdin_sent += len(part)
            self._guest.send(frames.stdin(self.id, part))

    def signal(self, number: int) -> None:
        """To its whole process group."""
        self._guest.send(frames.signal_group(self.id, number))

    def resize(self, rows: int, columns: int) -> None:
        self._guest.send(frames.resize(self.id, rows, columns))

    async def wait(self) -> frames.Exited:
        """How it ended, after all its output. Raises GuestLost when that cannot be known any more."""
        return await self._guest.unless_lost(asyncio.shield(self.exited))

    def release(self) -> None:
        """Guest init forgets it, when it has ended: only after what became of it is safe, or matters to nobody."""
        if not self.exited.done():
            self.exited.add_done_callback(lambda _: self.release())
            return
        self._guest.forget(self.id)
        self._guest.send(frames.release(self.id))


class Guest(asyncio.Protocol):
    def __init__(self, answer_within: float = ANSWER) -> None:
        loop = asyncio.get_running_loop()
        self._answer_within = answer_within
        self.lost: asyncio.Future[str] = loop.create_future()
        self.attached = False
        self.known: dict[int, frames.Process] = {}  # processes that were there before this connection
        self.known_stdin: dict[int, frames.StdinState] = {}  # … and what had arrived of their input
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, deque[asyncio.Future[frames.Frame]]] = {}
        self._processes: dict[int, GuestProcess] = {}
        self._adoptable: dict[int, list[frames.Frame]] = {}
        self._adoptable_bytes: dict[int, int] = {}
        self._hello: asyncio.Future[frames.Hello] = loop.create_future()
        self._limits: set[asyncio.Timeout] = set()  # of requests under way
        self._paused = False
        self._requests = itertools.count(0x80000000)  # apart from process ids
        self._slice_ends = 0.0
        self._slice_bytes = 0
        self._held = False

    @classmethod
    async def connect(cls, path: Path, answer_within: float = ANSWER) -> "Guest":
        """Raises GuestLost when nobody listens there or what answers is no guest init of ours."""
        loop = asyncio.get_running_loop()
        guest = cls(answer_within)
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            async with asyncio.timeout(answer_within):
                await loop.create_unix_connection(lambda: guest, f"/proc/self/fd/{directory}/{path.name}")
                guest.send(frames.hello())
                hello = await guest.unless_lost(guest._hello)
        except BaseException as error:
            guest.close()
            if isinstance(error, OSError):  # TimeoutError is one too
                raise GuestLost(f"guest init does not answer: {reason(error)}") from error
            raise
        finally:
            os.close(directory)
        if hello.protocol != frames.PROTOCOL:
            guest.close()
            raise GuestLost(f"guest init speaks protocol {hello.protocol}, this node {frames.PROTOCOL}")
        guest.attached = hello.attached
        return guest

    # requests

    async def configure_network(self, plan: list[str]) -> None:
        await self._request(lambda id: [frames.network(id, plan)])

    async def prepare(self) -> None:
        await self._request(lambda id: [frames.prepare(id)])

    async def attach(self, hostname: str, sight: Sight, again: bool = False) -> None:
        try:
            await self._request(lambda id: [frames.attach(id, hostname, sight, again)])
        except GuestRefused as refusal:
            cure = "if other images fail as well, `sudo roost doctor` does the same and names the cure"
            raise GuestRefused(f"its root file system cannot be entered: {refusal}; {cure}", refusal.number) from None

    async def write_own(self, path: str, mode: int, data: bytes) -> None:
        await self._request(lambda id: [frames.write_own(id, path, mode, data)])

    async def write_file(self, path: str, mode: int, data: bytes) -> None:
        await self._request(lambda id: list(frames.write_file(id, path, mode, data)))

    async def start(self, id: int, command: Command, on_output: OutputSink, holds: bool = False) -> GuestProcess:
        """Ids are the caller's (below 2^31), each used once. Raises GuestRefused when it cannot be executed.

        A caller that is cancelled takes the process along.
        """
        process = self._processes[id] = GuestProcess(self, id, on_output, holds=holds)
        try:
            await self._answered(id, [frames.execute(id, command)])
        except GuestRefused:
            del self._processes[id]
            raise
        except asyncio.CancelledError:  # it may run by now; guest init obeys in order
            process.discard()
            process.signal(signal.SIGKILL)
            process.release()
            raise
        return process

    def adopt(self, id: int, on_output: OutputSink, taken: int) -> GuestProcess:
        """A process of before this connection (see `known`), of whose output `taken` bytes are safe already."""
        process = self._processes[id] = GuestProcess(self, id, on_output, taken, self.known[id].stdin_waiting)
        self._adoptable_bytes.pop(id, None)
        try:
            for frame in self._adoptable.pop(id, []):
                self._dispatch_process(process, frame)
        except GuestMisbehaved as misbehaved:
            self._lose(f"guest init misbehaved: {misbehaved}")
        self._settle()
        return process

    def pause(self) -> None:
        """Guest init is frozen: it has all the time to answer until `resume`."""
        self._paused = True
        self._reschedule(None)

    def resume(self) -> None:
        self._paused = False
        self._reschedule(asyncio.get_running_loop().time() + self._answer_within)

    def _reschedule(self, when: float | None) -> None:
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(when)

    def signal_everyone(self, number: int = signal.SIGKILL) -> None:
        """To every process of the sandbox but guest init."""
        self.send(frames.signal_everyone(number))

    async def ping(self) -> None:
        await self._request(lambda id: [frames.ping(id)])

    def forget(self, id: int) -> None:
        self._processes.pop(id, None)
        self.known.pop(id, None)
        self.known_stdin.pop(id, None)
        self._adoptable.pop(id, None)
        self._adoptable_bytes.pop(id, None)

    def send(self, data: bytes) -> None:
        if self._transport and not self.lost.done():
            self._transport.write(data)

    async def unless_lost(self, waiting: Awaitable[T]) -> T:
        task = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({task, self.lost}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise GuestLost(self.lost.result())
        finally:
            task.cancel()

    def close(self) -> None:
        self._lose("the node closed the connection")

    # the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("guest init is gone")

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._dispatch(frame)
            self._settle()
        except GuestMisbehaved as misbehaved:
            self._lose(f"guest init misbehaved: {misbehaved}")
            return
        self._pace(len(data))

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
        if self._transport:
            self._transport.abort()

    def _pace(self, count: int) -> None:
        """Reads no more than SLICE_BYTES in a SLICE."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._slice_ends:
            self._slice_ends, self._slice_bytes = now + SLICE, 0
        self._slice_bytes += count
        if self._slice_bytes > SLICE_BYTES and not self._held:
            self._hold(self._slice_ends - now)

    def _hold(self, seconds: float) -> None:
        assert self._transport
        self._held = True
        self._transport.pause_reading()
        asyncio.get_running_loop().call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._held = False
        if self._transport and not self.lost.done():
            self._transport.resume_reading()
            self._settle()

    def _settle(self) -> None:
        try:
            for process in list(self._processes.values()):
                process.settle()
        except GuestMisbehaved as misbehaved:
            self._lose(f"guest init misbehaved: {misbehaved}")
        except OSError:
            if not self._held:
                self._hold(0.5)  # the disk may have room again by then

    def _dispatch(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Hello():
                if not self._hello.done():
                    self._hello.set_result(frame)
            case frames.Process() if frame.id not in self._processes:
                if len(self.known) >= 256:
                    raise GuestMisbehaved("more processes than guest init can have")
                self.known[frame.id] = frame
            case frames.StdinState():
                if frame.id in self.known:
                    self.known_stdin[frame.id] = frame
            case frames.Output() | frames.Exited() | frames.StdinTaken():
                process = self._processes.get(frame.id)
                if process:
                    self._dispatch_process(process, frame)
                elif frame.id in self.known:
                    self._keep_for_adoption(frame)
                # else: of a process that was released meanwhile
            case _:
                answers = self._answers.get(frame.id)
                if answers and not (answer := answers.popleft()).done():
                    answer.set_result(frame)

    def _dispatch_process(self, process: GuestProcess, frame: frames.Frame) -> None:
        match frame:
            case frames.Output():
                process.receive(frame)
            case frames.Exited():
                process.receive_exit(frame)
            case frames.StdinTaken():
                process.receive_stdin_taken(frame.bytes)
            case _:
                pass

    def _keep_for_adoption(self, frame: frames.Output | frames.Exited | frames.StdinTaken) -> None:
        kept = self._adoptable.setdefault(frame.id, [])
        held = self._adoptable_bytes.get(frame.id, 0) + (len(frame.data) if isinstance(frame, frames.Output) else 0)
        if held > frames.OUTPUT_WINDOW or len(kept) > frames.OUTPUT_WINDOW // 20:
            raise GuestMisbehaved("more unacknowledged output than its window")
        self._adoptable_bytes[frame.id] = held
        kept.append(frame)

    async def _request(self, make: Callable[[int], list[bytes]]) -> None:
        id = next(self._requests)
        await self._answered(id, make(id))

    async def _answered(self, id: int, messages: list[bytes]) -> None:
        """Sends all and waits for as many answers, which come in order. So whoever asks next is obeyed next."""
        loop = asyncio.get_running_loop()
        answers = self._answers[id] = deque(loop.create_future() for _ in messages)
        expected = list(answers)
        self.send(b"".join(messages))
        limit = asyncio.timeout(None if self._paused else self._answer_within)
        try:
            async with limit:
                self._limits.add(limit)
                for answer in expected:
                    frame = await self.unless_lost(answer)
                    if isinstance(frame, frames.Failed):
                        raise GuestRefused(frame.message, frame.errno)
        except TimeoutError:
            self._lose(f"guest init was silent for {self._answer_within:g} s")
            raise GuestLost(self.lost.result()) from None
        finally:
            self._limits.discard(limit)
            self._answers.pop(id, None)
