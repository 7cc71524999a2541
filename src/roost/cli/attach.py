"""This terminal, or these pipes, attached to an exec by its WebSocket.

Input stays here until the server says that it was taken, and output has sequence numbers; so a connection that breaks
is made again and nothing is lost or shown twice. The exec is removed when it has ended or this command is told to go.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import secrets
import signal
import struct
import sys
import termios
import threading
import time
import tty
from collections.abc import Generator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from roost.cli.answers import OUR_FAILURE
from roost.cli.connection import RETRIED, Api, Json
from roost.cli.wording import note, program
from roost.errors import RoostError

HEAD = struct.Struct(">BQ")
POSITION = struct.Struct(">Q")
STDOUT = 1
WINDOW = 256 * 1024  # bytes of input that may be under way
STEP = 64 * 1024
PATIENCE = 60.0  # seconds without a server before giving up; a restart takes a few
QUIET = 2.0  # seconds without a server before that is said
WAKE_WITHIN = 100.0  # seconds; the server gives itself 90
MAX_MESSAGE = 4 * 1024 * 1024  # bytes
FORCE = 1.0  # seconds
INTERRUPT = b"\x03"  # Ctrl-C, of a terminal in raw mode
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


class Disconnected(Exception):
    """Trying again may help."""


def terminal_of() -> dict[str, object]:
    """What a request says of this terminal."""
    rows, columns = _size()
    return {"terminal": {"rows": rows, "columns": columns}, "environment": {"TERM": os.environ.get("TERM") or "xterm"}}


def start(api: Api, path: str, body: dict[str, object]) -> str:
    """The exec's id. It is chosen here, so that asking again after a broken connection starts nothing twice."""
    chosen = f"{1 + secrets.randbelow(2**30 - 1):08x}"
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return str(api.call("POST", path, body | {"exec_id": chosen}, timeout=WAKE_WITHIN)["exec_id"])
        except RoostError as error:
            if type(error) is not RoostError or time.monotonic() > deadline:  # the server's own refusals have a kind
                raise
        time.sleep(0.2)


def attach(api: Api, path: str, terminal: bool) -> int:
    """Until the exec has ended; the exit status to end with."""
    try:
        with raw_terminal() if terminal else contextlib.nullcontext():
            end = asyncio.run(Attachment(api, path, terminal).hold())
    finally:
        with contextlib.suppress(RoostError):
            api.call("DELETE", path)
    code = end.get("exit_code")
    if not isinstance(code, int):
        note(end.get("reason") or "the exit status was lost")
        return OUR_FAILURE
    if dropped := end.get("dropped_bytes"):
        note(f"{dropped} bytes of its output were dropped; without -i and -t there is no limit")
        return OUR_FAILURE
    return code if 0 <= code <= 255 else OUR_FAILURE


@contextlib.contextmanager
def raw_terminal() -> Generator[None]:
    """Every key goes to the other side, where there is a terminal too."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed already is kept
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class Attachment:
    def __init__(self, api: Api, path: str, terminal: bool) -> None:
        self._api, self._path, self._terminal = api, path, terminal
        self._seq = 0
        self._kept = bytearray()  # input that was not taken yet
        self._position = 0  # of its first byte
        self._sent = 0  # position behind what this connection was given
        self._ended = self._closed = False  # our input has; the other side was told so
        self._connection: ClientConnection | None = None
        self._came = asyncio.Event()  # input, or a connection to give it
        self._roomy = asyncio.Event()
        self._left = 0  # the signal that ends this command
        self._forwarded = -FORCE  # when the last one was
        self._main: asyncio.Task[Json] | None = None

    async def hold(self) -> Json:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read_input, args=(loop,), daemon=True).start()
        loop.add_signal_handler(signal.SIGHUP, self._leave, signal.SIGHUP)
        for number in FORWARDED:
            loop.add_signal_handler(number, self._leave if self._terminal else self._forward, number)
        if self._terminal:
            loop.add_signal_handler(signal.SIGWINCH, lambda: self._order(self._resized()))
        self._main = asyncio.create_task(self._persist())
        try:
            return await self._main
        except asyncio.CancelledError:
            return {"exit_code": 128 + self._left}

    async def _persist(self) -> Json:
        """Connects again and again until it has ended."""
        seen, pause, said = time.monotonic(), 0.05, False
        while True:
            try:
                return await self._converse()
            except Disconnected as error:
                now = time.monotonic()
                seen, pause, said = (now, 0.05, False) if self._connection else (seen, pause, said)
                self._connection = None
                if now - seen > PATIENCE:
                    raise RoostError(f"lost sight of the command: {error}") from error
                if now - seen > QUIET and not said:
                    said = True
                    sys.stderr.write(f"{program()}: {error}; trying again\r\n")
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    async def _converse(self) -> Json:
        url, headers = self._api.websocket(f"{self._path}/stream?after={self._seq}")
        try:
            async with connect(
                url,
                additional_headers=headers,
                subprotocols=["roost.exec"],  # type: ignore[list-item]
                compression=None,
                max_size=MAX_MESSAGE,
                open_timeout=WAKE_WITHIN,
                close_timeout=1,
                proxy=None,
            ) as connection:
                self._connection = connection
                feeding = asyncio.create_task(self._feed(connection))
                try:
                    return await self._listen(connection)
                finally:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
        except InvalidStatus as refusal:
            raise _refused(refusal) from refusal
        except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
            raise Disconnected(f"the connection broke ({error})") from error

    async def _listen(self, connection: ClientConnection) -> Json:
        async for message in connection:
            if isinstance(message, bytes):
                source, self._seq = HEAD.unpack_from(message)
                self._show(source, message[HEAD.size :])
                continue
            told: Json = json.loads(message)
            if told["type"] == "end":
                return told
            if told["type"] == "state":
                self._taken(int(told["input_taken"]))
                self._sent, self._closed = self._position, bool(told["input_closed"])
                if self._terminal:
                    self._order(self._resized())
                self._came.set()
            elif told["type"] == "input":
                self._taken(int(told["taken"]))
            # an error: of input that came after the end, or of a signal to what has ended
        raise Disconnected("the server closed the connection")

    # input

    def _read_input(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: standard input may be a file, a pipe or a terminal."""
        data = b" "
        while data:
            try:
                data = os.read(0, STEP)
            except OSError:
                data = b""
            kept = self._keep(data)
            try:
                asyncio.run_coroutine_threadsafe(kept, loop).result()
            except (RuntimeError, concurrent.futures.CancelledError):  # this command is on its way out
                kept.close()
                return

    async def _keep(self, data: bytes) -> None:
        if self._terminal and not self._connection and INTERRUPT in data:
            self._leave(signal.SIGINT)
        self._kept += data
        self._ended = not data
        self._came.set()
        while len(self._kept) >= WINDOW:
            self._roomy.clear()
            await self._roomy.wait()

    def _taken(self, position: int) -> None:
        if position > self._position:
            del self._kept[: position - self._position]
            self._position = position
        self._roomy.set()

    async def _feed(self, connection: ClientConnection) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            while self._sent < self._position + len(self._kept):
                begin = max(self._sent, self._position) - self._position
                piece = bytes(self._kept[begin : begin + STEP])
                at = self._position + begin
                self._sent = at + len(piece)
                await connection.send(POSITION.pack(at) + piece)
            if self._ended and not self._closed:
                self._closed = True
                await connection.send(json.dumps({"type": "close_input"}))

    # signals

    def _forward(self, number: int) -> None:
        """To the command; twice in a moment, or without a connection, it ends this one."""
        now = time.monotonic()
        if not self._connection or now - self._forwarded < FORCE:
            self._leave(number)
        self._forwarded = now
        self._order({"type": "signal", "signal": number})

    def _leave(self, number: int) -> None:
        self._left = number
        if self._main:
            self._main.cancel()

    def _show(self, source: int, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(1 if source == STDOUT else 2, view) :]
        except OSError:  # nobody looks any more
            self._leave(signal.SIGPIPE)

    def _resized(self) -> dict[str, Any]:
        rows, columns = _size()
        return {"type": "resize", "rows": rows, "columns": columns}

    def _order(self, message: dict[str, Any]) -> None:
        if self._connection:
            self._sending = asyncio.ensure_future(_sent(self._connection, json.dumps(message)))


async def _sent(connection: ClientConnection, message: str) -> None:
    with contextlib.suppress(ConnectionClosed):
        await connection.send(message)


def _refused(refusal: InvalidStatus) -> Exception:
    response = refusal.response
    try:
        text = str(json.loads(response.body or b"")["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the server answered {response.status_code}"
    return Disconnected(text) if response.status_code in RETRIED else RoostError(text)


def _size() -> tuple[int, int]:
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.lines and size.columns:
                return size.lines, size.columns
    return 24, 80
