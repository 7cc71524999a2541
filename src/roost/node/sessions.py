"""Sessions: one process over one WebSocket, which lives no longer than the connection.

Output is acknowledged to guest init as the connection takes it, so that a slow client slows the process down and
costs the node no more than a window. In each direction at most SESSION_WINDOW bytes are under way; therefore the
connection is always read, and signals, the other direction and the client's going never wait behind them.
"""

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from roost.errors import Conflict, Invalid, RoostError
from roost.node.commands import UNKNOWN, apply, command_of
from roost.node.guest.channel import GuestLost, GuestProcess, GuestRefused
from roost.node.guest.frames import STDOUT, Command
from roost.node.protocol import (
    MAX_STREAM_MESSAGE,
    SESSION_WINDOW,
    FromSession,
    SessionChange,
    SessionEnd,
    SessionInput,
    SessionOutput,
    SessionStart,
    SessionStarted,
    SessionTaken,
    ToSession,
)
from roost.node.sandbox import Sandbox
from roost.node.tools import Tools

FIRST_MESSAGE = 10.0  # seconds
HANG_UP = 2.0  # seconds between HUP and KILL, when the connection has gone
LEAVE = 3.0  # seconds for the processes of open sessions to be told, when the node goes

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ToSession).decode


class Sessions:
    """The call of `protocol.py`; `find` gives a sandbox by id, or raises NotFound. Close it before the sandboxes."""

    def __init__(self, find: Callable[[str], Sandbox]) -> None:
        self._find = find
        self._tools = Tools()
        self._open: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/sandboxes/{id}/session", self.session)]

    async def session(self, request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse(compress=False, max_msg_size=MAX_STREAM_MESSAGE, timeout=1.0)
        await connection.prepare(request)
        session = _own(self._open, self._serve(connection, request.match_info["id"]))
        try:
            await asyncio.shield(session)
        finally:  # the handler is cancelled when the client goes
            session.cancel()
        return connection

    async def _serve(self, connection: web.WebSocketResponse, id: str) -> None:
        try:
            first = await _first(connection)
            if not isinstance(first, SessionStart):
                raise Invalid("a session begins with `start`")
            sandbox = self._find(id)
            command = command_of(first.process, sandbox.config)
            if first.process.tools:
                await self._tools.give(sandbox.enter(), first.process.tools)
            process, conversation = await self._start(connection, sandbox, command)
        except (RoostError, TimeoutError) as error:
            await _send(connection, SessionEnd(refused=str(error) or "no first message came"))
            await connection.close()
            return
        try:
            await _send(connection, SessionStarted())
            await conversation.hold()
        except Invalid as error:
            log.warning("session.violation", id=id, error=str(error))
            await connection.close(code=WSCloseCode.PROTOCOL_ERROR)
        finally:
            _own(self._ending, _hang_up(process))
        await connection.close()

    async def _start(
        self, connection: web.WebSocketResponse, sandbox: Sandbox, command: Command
    ) -> "tuple[GuestProcess, _Conversation]":
        conversation = _Conversation(connection)
        process = conversation.process = await start(sandbox, command, conversation.take)
        return process, conversation

    async def close(self) -> None:
        """Ends every session; what does not end in time, the next node kills."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._ending:
            await asyncio.wait(self._ending, timeout=LEAVE)


def _own(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ConnectionError):
            log.error("session.fault", exc_info=error)

    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(ended)
    return task


async def start(
    sandbox: Sandbox, command: Command, on_output: Callable[[list[tuple[int, bytes]]], None]
) -> GuestProcess:
    """A process whose output is acknowledged by whoever takes it. Raises Conflict."""
    try:
        return await sandbox.enter().start(sandbox.next_number(), command, on_output, holds=True)
    except GuestRefused as refusal:
        raise Conflict(f"the sandbox could not start the process: {refusal}") from None
    except GuestLost as lost:
        raise Conflict(f"the sandbox ended before the process was started: {lost}") from None
    except ValueError as error:
        raise Invalid(f"the process cannot be started: {error}") from None


class _Conversation:
    """What goes to and fro between a connection and its process."""

    process: GuestProcess

    def __init__(self, connection: web.WebSocketResponse) -> None:
        self._connection = connection
        self._output: deque[tuple[int, bytes]] = deque()
        self._room = SESSION_WINDOW  # bytes of output that may be sent
        self._news = asyncio.Event()  # output, room for it, or the process's end
        self._input: deque[bytes] = deque()
        self._untaken = 0  # bytes of input
        self._closed = False
        self._came = asyncio.Event()  # input

    def take(self, pairs: list[tuple[int, bytes]]) -> None:
        self._output += pairs
        self._news.set()

    async def hold(self) -> None:
        """Until the process's end has been told, or the client has gone. Raises Invalid when it breaks the rules."""
        telling, reading = asyncio.create_task(self._tell()), asyncio.create_task(self._read())
        feeding = asyncio.create_task(self._feed())
        try:
            await asyncio.wait({telling, reading}, return_when=asyncio.FIRST_COMPLETED)
            for task in (telling, reading):
                if task.done():
                    with contextlib.suppress(ConnectionError):
                        task.result()
        finally:
            for task in (telling, reading, feeding):
                task.cancel()
            await asyncio.gather(telling, reading, feeding, return_exceptions=True)

    async def _tell(self) -> None:
        ending = asyncio.ensure_future(self.process.wait())
        ending.add_done_callback(lambda _: self._news.set())
        try:
            while self._output or not ending.done():
                self._news.clear()
                while self._output and self._room > 0:
                    await self._tell_output(*self._output.popleft())
                if not ending.done() or self._output:
                    await self._news.wait()
            await _send(self._connection, _end_of(ending))
        finally:
            ending.cancel()

    async def _tell_output(self, stream: int, data: bytes) -> None:
        self._room -= len(data)
        await _send(self._connection, SessionOutput(source="stdout" if stream == STDOUT else "stderr", data=data))
        self.process.acknowledge(len(data))

    async def _feed(self) -> None:
        with contextlib.suppress(GuestLost, ConnectionError):
            while True:
                self._came.clear()
                while self._input:
                    data = self._input.popleft()
                    await self.process.write_stdin(data)
                    self._untaken -= len(data)
                    await _send(self._connection, SessionTaken(count=len(data)))
                await self._came.wait()

    async def _read(self) -> None:
        async for message in self._connection:
            if message.type is not WSMsgType.BINARY:
                raise Invalid(f"a message of type {message.type.name}")
            self._obey(_decoded(message.data))

    def _obey(self, message: ToSession) -> None:
        match message:
            case SessionInput(data=data):
                self._keep(data)
            case SessionChange(change=change):
                apply(change, self.process)
                if change.close_input:
                    self._keep(b"")
            case SessionTaken(count=count):
                self._room += count
                if count < 0 or self._room > SESSION_WINDOW:
                    raise Invalid("took more output than it was given")
                self._news.set()
            case SessionStart():
                raise Invalid("a second start")

    def _keep(self, data: bytes) -> None:
        self._untaken += len(data)
        if self._untaken > SESSION_WINDOW:
            raise Invalid("more input than its window")
        if not self._closed:
            self._closed = not data
            self._input.append(data)
            self._came.set()


async def _first(connection: web.WebSocketResponse) -> ToSession:
    async with asyncio.timeout(FIRST_MESSAGE):
        message = await connection.receive()
    if message.type is not WSMsgType.BINARY:
        raise Invalid("a session begins with a binary message")
    return _decoded(message.data)


def _decoded(data: bytes) -> ToSession:
    try:
        return _decode(data)
    except msgspec.DecodeError as error:
        raise Invalid(f"not a message of a session: {error}") from None


def _end_of(ending: asyncio.Future[Any]) -> SessionEnd:
    try:
        exited = ending.result()
    except GuestLost:
        return SessionEnd(reason=UNKNOWN)
    return SessionEnd(exit_code=exited.exit_code, signal=exited.signal or None)


async def _send(connection: web.WebSocketResponse, message: FromSession) -> None:
    await connection.send_bytes(_encode(message))


async def _hang_up(process: GuestProcess) -> None:
    """HUP to its group, KILL after a moment; guest init forgets it when it has ended."""
    process.discard()
    process.release()
    if process.exited.done():
        return
    process.signal(signal.SIGHUP)
    with contextlib.suppress(TimeoutError, GuestLost):
        await asyncio.wait_for(process.wait(), HANG_UP)
    if not process.exited.done():
        process.signal(signal.SIGKILL)
