"""An exec as one WebSocket: output, input, signals, resizes and its end, resumable after a lost connection.

    GET /mags-jobs/{id}/execs/{exec_id}/stream?after=SEQ      subprotocol roost.exec

To the client: text messages are JSON: first `{"type": "state", ...the exec...}`, `{"type": "input", "taken": N}`,
`{"type": "error", "error": TEXT}`, last `{"type": "end", ...the exec...}`. Binary messages are output: a byte for the
source (0 Roost's remarks, 1 stdout, 2 stderr), its seq as 8 bytes big endian, the data.

From the client: binary messages are input: the position of their first byte as 8 bytes big endian, then the bytes.
Text messages are JSON: `{"type": "signal", "signal": "INT"}`, `{"type": "resize", "rows": R, "columns": C}`,
`{"type": "close_input"}`, which comes after the input sent before it. A client keeps what is not `taken` and at most
MAX_AHEAD bytes of it under way; after a lost connection it sends again from `input_taken` of the new `state`.
"""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import structlog
from litestar import WebSocket, websocket
from litestar.datastructures import State
from litestar.types import Receive, Send
from structlog.typing import FilteringBoundLogger

from roost.accounts.tokens import Account
from roost.api import guard
from roost.api.errors import INTERNAL, STATUS
from roost.api.exec_forms import Size, signal_number, state_of, terminal_of
from roost.api.execs import execs_of, following
from roost.api.plane import ControlPlane
from roost.api.query import ANY, require_known
from roost.errors import Invalid, RoostError, Unauthenticated
from roost.jobs import job as jobs
from roost.jobs.execs import number_of
from roost.jobs.job import Job
from roost.node.protocol import ChangeProcess, LogRecord, ProcessState

PROTOCOL = "roost.exec"
TOKEN = "roost.token."  # noqa: S105 - what precedes a token in the list of subprotocols
MAX_AHEAD = 1024 * 1024  # bytes of input that the process has not taken
MAX_ORDERS = 256
RECHECKED = 10.0  # seconds: how long a stream may outlive what let its client in
HEAD = struct.Struct(">BQ")
POSITION = struct.Struct(">Q")
SOURCES = {"system": 0, "stdout": 1, "stderr": 2}
NORMAL, RESTARTING, VIOLATION, TOO_BIG, FAULT = 1000, 1012, 1008, 1009, 1011  # RFC 6455's codes

log: FilteringBoundLogger = structlog.get_logger()
_encode = msgspec.json.Encoder().encode


class SignalMessage(msgspec.Struct, frozen=True, tag="signal", forbid_unknown_fields=True):
    signal: str | int


class ResizeMessage(msgspec.Struct, frozen=True, tag="resize", forbid_unknown_fields=True):
    rows: int
    columns: int


class CloseInputMessage(msgspec.Struct, frozen=True, tag="close_input", forbid_unknown_fields=True):
    pass


Order = SignalMessage | ResizeMessage | CloseInputMessage
_decode = msgspec.json.Decoder(Order).decode


class Left(Exception):
    """The client has gone."""


@websocket("/mags-jobs/{id:str}/execs/{exec_id:str}/stream", opt={"open": True, "query": ANY})
async def stream(socket: WebSocket[Any, Any, State], id: str, exec_id: str) -> None:
    """Refused with an HTTP status, which a close code before the handshake could not tell."""
    receive, send, plane = socket.receive, socket.send, cast(ControlPlane, socket.app.state.plane)
    await receive()  # websocket.connect
    try:
        account, number = await _account(socket), number_of(exec_id)
        require_known(socket.query_params, ("after",))
        job = await jobs.find(plane.database, account.id, id)
        state, output = await following(plane, job, number, _after(socket))
    except RoostError as error:
        await _refuse(send, STATUS.get(type(error), 500), str(error))
        return
    except Exception as error:
        log.error("request.fault", method="GET", path=socket.url.path, exc_info=error)
        await _refuse(send, 500, INTERNAL)
        return
    await send({"type": "websocket.accept", "subprotocol": _chosen(socket), "headers": []})
    async with contextlib.aclosing(output):
        await ExecStream(plane, job, state, receive, send, lambda: _still_allowed(socket, account)).hold(output)


class ExecStream:
    """One accepted connection."""

    def __init__(
        self,
        plane: ControlPlane,
        job: Job,
        state: ProcessState,
        receive: Receive,
        send: Send,
        allowed: Callable[[], Awaitable[None]],
    ) -> None:
        self._job, self._number, self._state = job, state.id, state
        self._execs = execs_of(plane)
        self._plane = plane
        self._receive, self._send, self._allowed = receive, send, allowed
        self._input: deque[tuple[int, bytes] | None] = deque()  # each with its position; None: the end
        self._ahead = 0
        self._came = asyncio.Event()
        self._orders: asyncio.Queue[ChangeProcess] = asyncio.Queue(MAX_ORDERS)

    async def hold(self, output: Any) -> None:
        """Until the exec's end is told, the client has gone or may not be here any more."""
        telling, reading = asyncio.create_task(self._tell(output)), asyncio.create_task(self._read())
        obeying, feeding = asyncio.create_task(self._obey()), asyncio.create_task(self._feed())
        watching = asyncio.create_task(self._watch())
        code, reason = NORMAL, ""
        try:
            await asyncio.wait({telling, reading, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, telling, watching):
                if task.done():
                    task.result()
        except Left:
            return
        except RoostError as error:
            code, reason = (RESTARTING, "Roost is restarting") if self._plane.live.closing else (VIOLATION, str(error))
        except Exception as error:
            log.error("stream.fault", exec=self._number, exc_info=error)
            code, reason = FAULT, INTERNAL
        finally:
            for task in (telling, reading, obeying, feeding, watching):
                task.cancel()
            await asyncio.gather(telling, reading, obeying, feeding, watching, return_exceptions=True)
        with contextlib.suppress(Exception):  # it may have gone meanwhile
            reason = reason.encode()[:120].decode("utf-8", "ignore")
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _tell(self, output: Any) -> None:
        await self._say({"type": "state", **msgspec.to_builtins(state_of(self._state))})
        async for record in output:
            await self._tell_record(record)
        ended = state_of(await self._execs.end(self._job, self._state))
        await self._say({"type": "end", **msgspec.to_builtins(ended)})

    async def _tell_record(self, record: LogRecord) -> None:
        data = HEAD.pack(SOURCES[record.source], record.seq) + record.data
        await self._send({"type": "websocket.send", "bytes": data, "text": None})

    async def _say(self, message: dict[str, Any]) -> None:
        await self._send({"type": "websocket.send", "text": _encode(message).decode(), "bytes": None})

    async def _read(self) -> None:
        """Never waits for the process, so that signals and the client's going are seen at once."""
        while True:
            message: Any = await self._receive()
            if message["type"] == "websocket.disconnect":
                raise Left
            if (data := message.get("bytes")) is not None:
                self._take(data)
            else:
                self._order(message["text"])

    def _take(self, data: bytes) -> None:
        if len(data) < POSITION.size:
            raise Invalid("a binary message is 8 bytes of position and input")
        self._ahead += len(data)
        if self._ahead > MAX_AHEAD:
            raise Invalid(f"more than {MAX_AHEAD} bytes of input are under way; wait until they are taken")
        self._input.append((POSITION.unpack_from(data)[0], data[POSITION.size :]))
        self._came.set()

    def _order(self, text: str) -> None:
        try:
            order: Order = _decode(text)
        except msgspec.MsgspecError as error:
            raise Invalid(f"not a message of {PROTOCOL}: {error}") from None
        if isinstance(order, CloseInputMessage):
            if None not in self._input:
                self._input.append(None)
                self._came.set()
            return
        if self._orders.full():
            raise Invalid(f"more than {MAX_ORDERS} signals and sizes are under way")
        if isinstance(order, SignalMessage):
            self._orders.put_nowait(ChangeProcess(signal=signal_number(order.signal)))
        else:
            self._orders.put_nowait(ChangeProcess(terminal=terminal_of(Size(order.rows, order.columns))))

    async def _obey(self) -> None:
        while True:
            order = await self._orders.get()
            await self._reported(lambda order=order: self._change(order))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(RECHECKED)
            await self._allowed()

    async def _feed(self) -> None:
        while True:
            self._came.clear()
            while self._input:
                piece = self._input.popleft()
                if piece is None:
                    await self._reported(lambda: self._change(ChangeProcess(close_input=True)))
                else:
                    await self._reported(lambda piece=piece: self._write(*piece))
                    self._ahead -= POSITION.size + len(piece[1])
            await self._came.wait()

    async def _write(self, at: int, data: bytes) -> None:
        end, position = at + len(data), at
        while position < end:
            position = await self._execs.write(self._job, self._number, position, data[position - at :])
            await self._say({"type": "input", "taken": position})

    async def _change(self, change: ChangeProcess) -> None:
        await self._execs.change(self._job, self._number, change)

    async def _reported(self, work: Callable[[], Awaitable[None]]) -> None:
        """What is refused is told, and the connection stays."""
        try:
            await work()
        except RoostError as error:
            await self._say({"type": "error", "error": str(error)})


async def _account(socket: WebSocket[Any, Any, State]) -> Account:
    """By header, subprotocol or a browser's session; never by the address, which ends up in logs."""
    authorization = socket.headers.get("authorization", "")
    for offered in _offered(socket):
        if not authorization and offered.startswith(TOKEN):
            authorization = f"Bearer {offered.removeprefix(TOKEN)}"
    if not authorization and not guard.session_cookie(socket):
        raise Unauthenticated(
            'send your API token as the header "Authorization: Bearer <token>", or offer the subprotocols '
            f"{PROTOCOL} and {TOKEN}<token>"
        )
    account = await guard.caller(socket, authorization)
    guard.require(account, "run")
    return account


async def _still_allowed(socket: WebSocket[Any, Any, State], begun_by: Account) -> None:
    """Raises what a new connection would be refused with."""
    if (await _account(socket)).id != begun_by.id:
        raise Unauthenticated("this connection began in another account; connect again")


def _offered(socket: WebSocket[Any, Any, State]) -> list[str]:
    return cast(Any, socket.scope)["subprotocols"]


def _chosen(socket: WebSocket[Any, Any, State]) -> str | None:
    """A browser wants one of those it offered, and a token is better not sent back."""
    offered = _offered(socket)
    return PROTOCOL if PROTOCOL in offered else next(iter(offered), None)


def _after(socket: WebSocket[Any, Any, State]) -> int:
    text = cast(str, socket.query_params.get("after", "0"))
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Invalid("after: the seq of the last record that you have, a whole number")
    return int(text)


async def _refuse(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": _encode({"error": text})})
