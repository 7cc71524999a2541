"""The control plane's side of `dial.sock`: asks by number, and gets sockets in whatever order they come.

One connection is kept, and made again after the node was restarted. A socket that nobody waits for any more, because
its caller was cancelled or the answer came late, is closed as it arrives.
"""

import array
import asyncio
import errno
import itertools
import os
import socket
from pathlib import Path

import msgspec

from roost import errors
from roost.node.protocol import MAX_DIAL, Dial, Dialled

LIMIT = 20.0  # seconds without an answer; the node itself gives up after ten
BATCH = 32  # answers taken at a time
_ROOM = socket.CMSG_SPACE(array.array("i").itemsize)
_FLAGS = socket.MSG_CMSG_CLOEXEC
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Dialled).decode


class Dialling:
    """Close it: whoever still waits gets NodeUnavailable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: _Connection | None = None
        self._numbers = itertools.count(1)

    async def ask(self, sandbox: str, port: int, host: str | None, listen: bool) -> socket.socket:
        """Non-blocking; the caller closes it. Raises the condition that the node tells, NodeUnavailable."""
        asked = Dial(number=next(self._numbers), sandbox=sandbox, port=port, host=host, listen=listen)
        packet = _encode(asked)
        if len(packet) > MAX_DIAL:
            raise errors.Invalid("the address or the sandbox's id is too long")
        return await self._open().ask(asked.number, packet)

    def _open(self) -> "_Connection":
        if self._connection is None or self._connection.closed:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                connection.connect(str(self._path))
            except OSError as error:  # BlockingIOError: the node is behind with accepting
                connection.close()
                raise errors.NodeUnavailable(f"the node does not hand out connections: {error.strerror}") from error
            self._connection = _Connection(connection)
        return self._connection

    def close(self) -> None:
        if self._connection:
            self._connection.close("the connection to the node was closed")


class _Connection:
    def __init__(self, connection: socket.socket) -> None:
        self.closed = False
        self._connection = connection
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}
        self._sending = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._readable)

    async def ask(self, number: int, packet: bytes) -> socket.socket:
        answer = self._waiting[number] = self._loop.create_future()
        try:
            async with asyncio.timeout(LIMIT):
                await self._send(packet)
                return await answer
        except TimeoutError:
            _close_unwanted(answer)
            raise errors.NodeUnavailable(f"the node did not answer a dial within {LIMIT:g} s") from None
        except asyncio.CancelledError:
            _close_unwanted(answer)
            raise
        finally:
            self._waiting.pop(number, None)

    async def _send(self, packet: bytes) -> None:
        async with self._sending:
            while not self.closed:
                try:
                    self._connection.send(packet)
                    return
                except BlockingIOError:
                    await self._writable()
                except OSError as error:
                    self.close(error.strerror or "it is gone")
        # closed: the answer says so

    async def _writable(self) -> None:
        room = self._room = self._loop.create_future()
        self._loop.add_writer(self._connection, lambda: room.done() or room.set_result(None))
        try:
            await room
        finally:
            if not self.closed:
                self._loop.remove_writer(self._connection)

    def _readable(self) -> None:
        for _ in range(BATCH):
            if self.closed:
                return
            try:
                packet, ancillary, flags, _ = self._connection.recvmsg(MAX_DIAL, _ROOM, _FLAGS)
            except BlockingIOError:
                return
            except OSError as error:
                self.close(error.strerror or "it is gone")
                return
            if not packet:
                self.close("it is gone")
                return
            self._answered(packet, _descriptors(ancillary), bool(flags & socket.MSG_CTRUNC))

    def _answered(self, packet: bytes, descriptors: list[int], cut_off: bool) -> None:
        made = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        try:
            told = _decode(packet)
        except msgspec.DecodeError as error:
            self.close(f"it sent no answer: {error}")
        else:
            waiting = self._waiting.get(told.number)
            if waiting and not waiting.done():
                self._settle(waiting, told, made, cut_off)
        for unwanted in made:
            unwanted.close()

    def _settle(
        self, waiting: asyncio.Future[socket.socket], told: Dialled, made: list[socket.socket], cut_off: bool
    ) -> None:
        if told.fault:
            condition = getattr(errors, told.fault.kind, errors.RoostError)
            waiting.set_exception(condition(told.fault.message))
        elif made:
            ours = made.pop()
            ours.setblocking(False)
            waiting.set_result(ours)
        else:
            why = os.strerror(errno.EMFILE) if cut_off else "the node sent no socket"
            waiting.set_exception(errors.NodeUnavailable(f"the connection could not be received: {why}"))

    def close(self, why: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        if self._room and not self._room.done():
            self._room.set_result(None)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(errors.NodeUnavailable(f"the node does not hand out connections: {why}"))


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close_unwanted(answer: asyncio.Future[socket.socket]) -> None:
    """It came in the same moment in which its caller was cancelled."""
    if answer.done() and not answer.cancelled() and answer.exception() is None:
        answer.result().close()
