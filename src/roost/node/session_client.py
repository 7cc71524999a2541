"""The control plane's end of a session: one process in a sandbox that lives as long as the connection.

`NodeClient.session` makes it. A task reads the connection at all times; what it reads is bounded by the window of
`protocol.py`, whose room grows only as the caller takes output, so back-pressure reaches the process.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal

import aiohttp
import msgspec

from roost.errors import Conflict, NodeUnavailable, said
from roost.node.protocol import (
    SESSION_CHUNK,
    SESSION_WINDOW,
    ChangeProcess,
    FromSession,
    SessionChange,
    SessionEnd,
    SessionInput,
    SessionOutput,
    SessionStart,
    SessionStarted,
    SessionTaken,
    StartProcess,
    ToSession,
)

Source = Literal["stdout", "stderr"]
TELL = SESSION_WINDOW // 4  # bytes that may be taken before the node is told
START = 60.0  # seconds

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FromSession).decode


class Session:
    """Any number of tasks may write and change; one takes the output, then asks for the end."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._output: deque[tuple[Source, bytes]] = deque()
        self._taken = 0  # bytes that the node has not been told of
        self._room = SESSION_WINDOW  # bytes of input that may be sent
        self._roomy = asyncio.Event()
        self._came = asyncio.Event()
        self._writing = asyncio.Lock()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end: SessionEnd | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self, process: StartProcess) -> None:
        """Raises Conflict (not running, frozen, no such program), NodeUnavailable."""
        self._reader = asyncio.create_task(self._read())
        await self._send(SessionStart(process=process))
        try:
            async with asyncio.timeout(START):
                await asyncio.wait({self._started, self._reader}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise NodeUnavailable(f"the node did not start the process within {START:.0f} s") from None
        if self._started.done():
            return
        end = await self.end()
        raise Conflict(end.refused or "the node ended the session before it began")

    async def write(self, data: bytes) -> None:
        """Waits while the process does not read. What comes after the process's end is dropped."""
        async with self._writing:
            view = memoryview(data)
            while view and not self._over:
                if not self._room:
                    self._roomy.clear()
                    await self._roomy.wait()
                    continue
                part, view = view[: min(self._room, SESSION_CHUNK)], view[min(self._room, SESSION_CHUNK) :]
                self._room -= len(part)
                await self._send(SessionInput(data=bytes(part)))

    async def write_eof(self) -> None:
        """The end of its input, behind all that was written."""
        async with self._writing:
            await self._send(SessionInput(data=b""))

    async def change(self, change: ChangeProcess) -> None:
        """A signal to its process group, or its terminal's new size; overtakes input that waits."""
        await self._send(SessionChange(change=change))

    async def output(self) -> AsyncIterator[tuple[Source, bytes]]:
        """Until the process has ended; a chunk is taken when the next is asked for. Raises NodeUnavailable."""
        while True:
            while self._output:
                source, data = self._output.popleft()
                yield source, data
                await self._take(len(data))
            if self._over:
                await self.end()
                return
            self._came.clear()
            await self._came.wait()

    async def end(self) -> SessionEnd:
        """How the process ended. Take all output first. Raises NodeUnavailable: it is not known, and was hung up."""
        assert self._reader
        await asyncio.wait({self._reader})
        if self._end is None:
            self._reader.result()
            raise NodeUnavailable("the node closed the session before the process had ended")
        return self._end

    async def close(self) -> None:
        """The node hangs up on the process, if it still runs."""
        if self._reader:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await self._connection.close()

    @property
    def _over(self) -> bool:
        return self._reader is None or self._reader.done() or self._end is not None

    async def _take(self, count: int) -> None:
        self._taken += count
        if (self._taken >= TELL or not self._output) and not self._over:
            taken, self._taken = self._taken, 0
            await self._send(SessionTaken(count=taken))

    async def _send(self, message: ToSession) -> None:
        if self._over and self._reader is not None:
            return  # whoever writes learns it where the output ends
        try:
            await self._connection.send_bytes(_encode(message))
        except (aiohttp.ClientError, OSError) as error:
            raise NodeUnavailable(f"the node does not answer: {said(error)}") from error

    async def _read(self) -> None:
        try:
            async for message in self._connection:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    raise NodeUnavailable(f"the node sent a message of type {message.type.name}")
                self._hear(_decode(message.data))
                if self._end is not None:
                    return
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            raise NodeUnavailable(f"the node does not answer: {said(error)}") from error
        finally:
            self._roomy.set()
            self._came.set()

    def _hear(self, message: FromSession) -> None:
        match message:
            case SessionStarted():
                if not self._started.done():
                    self._started.set_result(None)
            case SessionOutput(source=source, data=data):
                self._output.append((source, data))
                self._came.set()
            case SessionTaken(count=count):
                self._room += count
                self._roomy.set()
            case SessionEnd():
                self._end = message
