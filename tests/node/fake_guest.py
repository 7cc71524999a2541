"""The guest's end of the socket in a test's hands: it may say anything, at any time, or nothing."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from roost.node.guest import frames
from roost.node.guest.channel import Guest
from roost.node.guest.frames import FromGuest, ToGuest

LIMIT = 10.0  # seconds that anything may take here


def raw(kind: int, id: int = 0, payload: bytes = b"", detail: int = 0) -> bytes:
    return frames.HEADER.pack(len(payload), kind, detail, 0, id) + payload


def encode(frame: frames.Frame) -> bytes:
    """What guest init would send."""
    match frame:
        case frames.Hello(protocol, attached, processes):
            return raw(FromGuest.HELLO, 0, struct.pack("<III", protocol, attached, processes))
        case frames.Process(id, exited, pid, acknowledged, produced, waiting):
            return raw(FromGuest.PROCESS, id, struct.pack("<IQQI", pid, acknowledged, produced, waiting), exited)
        case frames.Done(id):
            return raw(FromGuest.DONE, id)
        case frames.Failed(id, errno, message):
            return raw(FromGuest.FAILED, id, struct.pack("<I", errno) + message.encode())
        case frames.Started(id, pid):
            return raw(FromGuest.STARTED, id, struct.pack("<I", pid))
        case frames.Output(id, stream, offset, data):
            return raw(FromGuest.OUTPUT, id, struct.pack("<Q", offset) + data, stream)
        case frames.Exited(id, code, signal, produced):
            return raw(FromGuest.EXITED, id, struct.pack("<iiQ", code, signal, produced))
        case frames.StdinTaken(id, count):
            return raw(FromGuest.STDIN_TAKEN, id, struct.pack("<I", count))
        case frames.Pong(id):
            return raw(FromGuest.PONG, id)


HELLO = encode(frames.Hello(frames.PROTOCOL, True, 0))


@dataclass
class Request:
    kind: int
    id: int
    payload: bytes


@dataclass
class FakeGuest:
    """Listens at `path`; `reader` and `writer` are the connection, once a node has come."""

    path: Path
    greeting: bytes = HELLO
    _met: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    reader: asyncio.StreamReader = field(init=False)
    writer: asyncio.StreamWriter = field(init=False)

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, path: Path) -> AsyncGenerator["FakeGuest"]:
        fake = cls(path)
        server = await asyncio.start_unix_server(fake._meet, path)
        try:
            yield fake
        finally:
            server.close()
            if fake._met.done():
                fake.writer.close()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        writer.write(self.greeting)
        self._met.set_result(None)

    async def guest(self, *known: frames.Process, answer_within: float = LIMIT) -> Guest:
        """A node's connection to this guest, which tells of the processes that it has."""
        self.greeting = HELLO + b"".join(map(encode, known))
        guest = await Guest.connect(self.path, answer_within)
        await self._met
        assert (await self.asked()).kind == ToGuest.HELLO
        return guest

    async def asked(self) -> Request:
        async with asyncio.timeout(LIMIT):
            length, kind, _, _, id = frames.HEADER.unpack(await self.reader.readexactly(frames.HEADER.size))
            return Request(kind, id, await self.reader.readexactly(length))

    def say(self, *said: bytes | frames.Frame) -> None:
        for one in said:
            self.writer.write(one if isinstance(one, bytes) else encode(one))

    async def left(self) -> None:
        """Returns when the node has gone."""
        async with asyncio.timeout(LIMIT):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass
