"""Execs: processes beside a job's script that are kept whoever watches, over plain HTTP.

`exec_stream.py` is the same as one WebSocket. Output has sequence numbers and input has positions, so whoever loses
a connection goes on where it was and nothing is lost or done twice.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, delete, get, post
from litestar.params import Parameter
from litestar.response import Stream

from roost.api import output
from roost.api.bodies import JsonBody
from roost.api.exec_forms import (
    ExecState,
    NewExec,
    Signal,
    Size,
    number_of_choice,
    process_of,
    signal_number,
    state_of,
    terminal_of,
)
from roost.api.mags import Caller, Id
from roost.api.plane import ControlPlane, Plane
from roost.errors import Conflict, TooLarge
from roost.jobs import execs as processes
from roost.jobs import job as jobs
from roost.jobs.execs import Execs, new_number, number_of
from roost.jobs.job import Job
from roost.node.protocol import ChangeProcess, LogRecord, ProcessState

MAX_INPUT = 2 * 1024 * 1024  # bytes in one request
INPUT_WITHIN = 25.0  # seconds; clients wait 30 for an answer
MAX_SEQ = 2**62

ExecId = Annotated[str, Parameter(description="As POST execs answered it")]
After = Annotated[int, Parameter(ge=0, le=MAX_SEQ, description="Continue behind the record with this seq")]
_encode = msgspec.json.Encoder().encode


class ExecList(msgspec.Struct, frozen=True):
    execs: list[ExecState]


class Taken(msgspec.Struct, frozen=True):
    position: int  # behind the last byte that was taken; go on there
    closed: bool


def execs_of(plane: ControlPlane) -> Execs:
    return Execs(plane.live, plane.node)


@post(
    "/mags-jobs/{id:str}/execs", status_code=201, dto=JsonBody, return_dto=None, summary="Start a process beside a job",
    description=(
        "Answers when it runs; a sleeping job is woken. It lives until it ends, is removed, or its sandbox goes; up to "
        "64 MiB of its output and its exit code are kept until then."
    ),
)  # fmt: skip
async def start(request: Caller, plane: Plane, id: Id, data: NewExec) -> ExecState:
    process, text = process_of(data), data.input.encode() if isinstance(data.input, str) else b""
    number = new_number() if data.exec_id is None else number_of_choice(data.exec_id)
    job, execs = await _job(request, plane, id), execs_of(plane)
    state = await execs.start(job, number, process)
    if isinstance(data.input, str):
        await _write_all(execs, job, number, 0, text)
        state = await execs.change(job, number, ChangeProcess(close_input=True))
    return state_of(state)


@get("/mags-jobs/{id:str}/execs", summary="List a job's execs", description="Those of its present sandbox.")
async def list_execs(request: Caller, plane: Plane, id: Id) -> ExecList:
    found = await execs_of(plane).list(await _job(request, plane, id))
    return ExecList([state_of(state) for state in found])


@get("/mags-jobs/{id:str}/execs/{exec_id:str}", summary="Show an exec")
async def show(request: Caller, plane: Plane, id: Id, exec_id: ExecId) -> ExecState:
    number = number_of(exec_id)
    return state_of(await execs_of(plane).state(await _job(request, plane, id), number))


@get(
    "/mags-jobs/{id:str}/execs/{exec_id:str}/output",
    summary="Read or follow an exec's output",
    opt={"answers": ("text/event-stream", "application/octet-stream")},
    description=(
        "`{records: [{timestamp, source, seq, data}]}`, data in base64. `follow=true`: the same as server-sent events "
        "until `event: end` with the exec's state. `format=raw`: the exact bytes of one source."
    ),
)
async def read_output(
    request: Caller,
    plane: Plane,
    id: Id,
    exec_id: ExecId,
    after: After = 0,
    follow: bool = False,
    format: Literal["json", "raw"] = "json",
    source: Literal["stdout", "stderr", "system"] = "stdout",
    last_event_id: Annotated[str | None, Parameter(header="Last-Event-ID")] = None,
) -> Stream:
    number, job = number_of(exec_id), await _job(request, plane, id)
    after = max(after, output.last_seen(last_event_id))
    records, events = execs_of(plane).output(job, number, after, follow=False), None
    if follow:
        state, records = await following(plane, job, number, after)
        events = _events(plane, job, state, records)
    if format == "raw":
        chunks = output.exact_bytes(records, source)
        return Stream(await output.begun(chunks), media_type="application/octet-stream")
    if events:
        stream = output.kept_alive(events)
        return Stream(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return Stream(await output.begun(output.json_chunks(records)), media_type="application/json")


@post(
    "/mags-jobs/{id:str}/execs/{exec_id:str}/input",
    status_code=200,
    summary="Write to an exec's input",
    opt={"body": "application/octet-stream"},
    description=(
        "The body's bytes, of which the first is number `at` of its input: what was taken already is skipped, so the "
        "same request may be sent again. Answers what was taken within 25 seconds; `end=true` closes the input behind "
        "the last of them. Without `at`, the bytes are appended."
    ),
)
async def write_input(
    request: Caller,
    plane: Plane,
    id: Id,
    exec_id: ExecId,
    at: Annotated[int | None, Parameter(ge=0, le=MAX_SEQ)] = None,
    end: bool = False,
) -> Taken:
    number, data = number_of(exec_id), await _body(request)
    job, execs = await _job(request, plane, id), execs_of(plane)
    begin = (await execs.state(job, number)).input_taken if at is None else at
    position = await _write_all(execs, job, number, begin, data) if data else begin
    if not end or position < begin + len(data):
        return Taken(position, False)
    return Taken(position, (await execs.change(job, number, ChangeProcess(close_input=True))).input_closed)


@post(
    "/mags-jobs/{id:str}/input",
    status_code=200,
    summary="Write to a script's input",
    opt={"body": "application/octet-stream"},
    description=(
        "Of a job that was submitted with `input: true`. The body's bytes, of which the first is number `at`: what was "
        "taken already is skipped, so the same request may be sent again. Answers what was taken within 25 seconds; a "
        "job that has not begun takes nothing yet. `end=true` closes the input behind the last of them."
    ),
)
async def write_to_script(
    request: Caller,
    plane: Plane,
    id: Id,
    at: Annotated[int, Parameter(ge=0, le=MAX_SEQ)],
    end: bool = False,
) -> Taken:
    data = await _body(request)
    job, execs = await _job(request, plane, id), execs_of(plane)
    if not job.input:
        raise Conflict(f"job {job.name!r} was submitted without input: true, so its script's input is empty")
    position, loop = at, asyncio.get_running_loop()
    deadline = loop.time() + INPUT_WITHIN
    while True:
        left = max(0.0, deadline - loop.time())
        position, closed = await execs.write_to_script(job, position, data[position - at :], end, left)
        if position == at + len(data) or loop.time() >= deadline:
            return Taken(position, closed)


@post(
    "/mags-jobs/{id:str}/execs/{exec_id:str}/signal", status_code=200, dto=JsonBody, return_dto=None,
    summary="Send an exec a signal",
)  # fmt: skip
async def send_signal(request: Caller, plane: Plane, id: Id, exec_id: ExecId, data: Signal) -> ExecState:
    return await _change(request, plane, id, exec_id, ChangeProcess(signal=signal_number(data.signal)))


@post(
    "/mags-jobs/{id:str}/execs/{exec_id:str}/resize", status_code=200, dto=JsonBody, return_dto=None,
    summary="Change the size of an exec's terminal",
)  # fmt: skip
async def resize(request: Caller, plane: Plane, id: Id, exec_id: ExecId, data: Size) -> ExecState:
    return await _change(request, plane, id, exec_id, ChangeProcess(terminal=terminal_of(data)))


@delete("/mags-jobs/{id:str}/execs/{exec_id:str}", status_code=204, summary="End an exec and forget its output")
async def remove(request: Caller, plane: Plane, id: Id, exec_id: ExecId) -> None:
    await execs_of(plane).remove(await _job(request, plane, id), number_of(exec_id))


async def following(
    plane: ControlPlane, job: Job, number: int, after: int
) -> tuple[ProcessState, AsyncGenerator[LogRecord]]:
    """Its state, and its output until it has ended, which counts as activity of the job. Wakes the job.

    Raises Conflict, NotFound, Invalid (no such position).
    """
    run, execs = await plane.live.awake(job, processes.WAKE_WITHIN), execs_of(plane)
    state = await execs.state(run.job, number)
    if after:
        async with aclosing(execs.output(run.job, number, after, follow=False)) as records:
            await anext(records, None)

    async def until_its_end() -> AsyncGenerator[LogRecord]:
        with run.use():
            async for record in execs.output(run.job, number, after, follow=True):
                yield record

    return state, until_its_end()


async def _events(
    plane: ControlPlane, job: Job, state: ProcessState, records: AsyncIterator[LogRecord]
) -> AsyncGenerator[bytes]:
    async for record in records:
        yield output.event(_encode(output.chunk(record)), record.seq)
    ended = await execs_of(plane).end(job, state)
    yield b"event: end\ndata: %b\n\n" % _encode(state_of(ended))


async def _change(request: Caller, plane: ControlPlane, id: str, exec_id: str, change: ChangeProcess) -> ExecState:
    number = number_of(exec_id)
    return state_of(await execs_of(plane).change(await _job(request, plane, id), number, change))


async def _job(request: Caller, plane: ControlPlane, id: str) -> Job:
    return await jobs.find(plane.database, request.user.id, id)


async def _write_all(execs: Execs, job: Job, number: int, at: int, data: bytes) -> int:
    """The position behind what was taken in time."""
    end, position, loop = at + len(data), at, asyncio.get_running_loop()
    deadline = loop.time() + INPUT_WITHIN
    while position < end and loop.time() < deadline:
        position = await execs.write(job, number, position, data[position - at :])
    return position


async def _body(request: Request[Any, Any, Any]) -> bytes:
    data = await request.body()
    if len(data) > MAX_INPUT:
        raise TooLarge(f"input of {len(data)} bytes; send at most {MAX_INPUT} at a time")
    return data
