"""Commands that live as long as somebody waits for them: `POST mags-jobs/:id/exec`, as one answer or as it comes.

A client that goes away ends its command, in either form. What is to go on without anybody is an exec (`execs.py`), or
leaves its process group by `setsid`.
"""

import asyncio
import base64
import contextlib
import signal
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import structlog
from litestar import Request
from litestar.exceptions import HTTPException
from structlog.typing import FilteringBoundLogger

from roost.api import output
from roost.api.plane import ControlPlane
from roost.clock import now_ns
from roost.errors import Conflict, RoostError
from roost.jobs.job import Job
from roost.node.protocol import ChangeProcess, Exec, StartProcess

if TYPE_CHECKING:
    from roost.node.session_client import Session

T = TypeVar("T")
WAKE_WITHIN = 90.0  # seconds
AHEAD = 4  # events that wait for a client that reads slowly; behind them the command waits
GONE = 499  # nobody reads it; what proxies log for a client that closed its request

log: FilteringBoundLogger = structlog.get_logger()
_encode = msgspec.json.Encoder().encode


class Piece(msgspec.Struct, frozen=True):
    """What a command has written."""

    source: str
    data: str  # base64


class CommandEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last event."""

    exit_code: int | None  # 128 + signal for one that was ended by it; None: not known, `note` says why
    timed_out: bool
    duration_ms: int
    note: str | None = None


async def while_connected(request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to; it is cancelled when the client goes."""
    await request.body()  # before its end, the client's going could not be told from it
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(status_code=GONE, detail="the client has gone, and what it waited for was ended")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def followed(plane: ControlPlane, job: Job, call: Exec) -> AsyncGenerator[bytes]:
    """Events: a comment when it runs, a Piece for all that it writes, byte for byte, and `end`. Close it to end it.

    Raises Conflict, Asleep, NodeUnavailable before the first event.
    """
    events = asyncio.Queue[bytes | Exception | None](AHEAD)
    # a task of its own: the response is cancelled in a way that lets nobody in it await its own end
    running = asyncio.create_task(_converse(plane, job, call, events))
    try:
        while (event := await events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event
    finally:
        running.cancel()


async def _converse(
    plane: ControlPlane, job: Job, call: Exec, events: "asyncio.Queue[bytes | Exception | None]"
) -> None:
    begun, limit = now_ns(), _Limit(call.timeout_seconds)
    started = False
    try:
        async with contextlib.AsyncExitStack() as entered:
            span = entered.enter_context(plane.live.tracer.span("exec", {"request_id": job.request_id}, "client"))
            session = await _enter(plane, job, call, entered)
            started = True
            await events.put(b": started\n\n")
            async with limit.on(session):
                async for source, data in session.output():
                    piece = _encode(Piece(source, base64.b64encode(data).decode()))
                    await events.put(b"data: %b\n\n" % piece)
                end = await session.end()
                span.set({"exit_code": end.exit_code, "timed_out": limit.over})
        code, note = end.exit_code, limit.note or end.reason
    except RoostError as error:
        if not started:
            await events.put(error)
            return
        code, note = None, f"the exit status is unknown: {error}"
    except Exception as error:
        log.error("exec.fault", request_id=job.request_id, exc_info=error)
        await events.put(error)
        return
    told = CommandEnd(exit_code=code, timed_out=limit.over, duration_ms=(now_ns() - begun) // 1_000_000, note=note)
    await events.put(b"event: end\ndata: %b\n\n" % _encode(told))
    await events.put(None)


async def _enter(plane: ControlPlane, job: Job, call: Exec, entered: contextlib.AsyncExitStack) -> "Session":
    """Again where the sandbox fell asleep just then, for nothing has begun."""
    process = StartProcess(arguments=["/bin/sh", "-c", call.command], input=False, end_session=True)
    while True:
        run = await plane.live.awake(job, WAKE_WITHIN)
        entered.enter_context(run.use())
        try:
            return await entered.enter_async_context(plane.node.session(run.job.vm_id, process))
        except Conflict:
            if run.awake:
                raise
        job = run.job


class _Limit:
    """Seconds that a command may take, also while nobody takes what it says."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.over = False

    @property
    def note(self) -> str | None:
        return f"the limit of {self._seconds:g} s ended it; give a larger timeout" if self.over else None

    @contextlib.asynccontextmanager
    async def on(self, session: "Session") -> AsyncGenerator[None]:
        ending = asyncio.create_task(self._end(session))
        try:
            yield
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    async def _end(self, session: "Session") -> None:
        await asyncio.sleep(self._seconds)
        self.over = True
        with contextlib.suppress(RoostError):
            await session.change(ChangeProcess(signal=signal.SIGKILL))


async def events_of(plane: ControlPlane, job: Job, call: Exec) -> AsyncGenerator[bytes]:
    """The same, begun, with a comment where nothing is said for long."""
    return output.kept_alive(await output.begun(followed(plane, job, call)))
