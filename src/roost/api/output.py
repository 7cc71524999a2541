"""A job's output on the wire: as JSON lines, as server-sent events that follow it, or as the exact bytes.

Nothing here polls: what is not there yet is awaited, from the node's log or from the job's run. A node that goes
away while somebody follows is waited for, and the log is continued after the last record that was seen.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import nullcontext

import msgspec

from roost.api.plane import ControlPlane
from roost.clock import rfc3339
from roost.errors import NodeUnavailable, NotFound
from roost.jobs import job as jobs
from roost.jobs.job import Job, Result
from roost.jobs.logs import Line, Lines
from roost.jobs.run import Run
from roost.node.protocol import LogRecord

KEEPALIVE = 15.0  # seconds; proxies close what is silent for 30 to 60
_encode = msgspec.json.Encoder().encode


class LogEntry(msgspec.Struct, frozen=True):
    timestamp: str
    level: str  # "error" for stderr, else "info"
    message: str
    source: str  # stdout, stderr; system: a remark of Roost


class Logs(msgspec.Struct, frozen=True):
    logs: list[LogEntry]


class Chunk(msgspec.Struct, frozen=True):
    """A record of the log, undivided."""

    timestamp: str
    source: str
    seq: int
    data: str  # base64


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last event of a followed log."""

    status: str
    exit_code: int | None
    error: str | None = None
    stopped: bool = False


def entry(line: Line) -> LogEntry:
    level = "error" if line.source == "stderr" else "info"
    return LogEntry(rfc3339(line.time_ns), level, line.text, line.source)


async def records(plane: ControlPlane, job: Job, after: int, follow: bool) -> AsyncGenerator[LogRecord]:
    """The log from record `after` on; with `follow` until the job has ended. Raises NodeUnavailable only without."""
    run = plane.live.run_of(job)
    if run is not None and follow and not run.asked:
        await run.attached.wait()
    if job.started_ns is None and (run is None or (run.state is None and not run.asked)):
        return  # there is no sandbox, so there is no log
    with run.use() if run is not None and follow else nullcontext():
        async for record in _records(plane, job, run, after, follow):
            yield record


async def _records(
    plane: ControlPlane, job: Job, run: Run | None, after: int, follow: bool
) -> AsyncGenerator[LogRecord]:
    while True:
        try:
            async for record in plane.node.log(job.log, after=after, follow=follow and run is not None):
                after = record.seq
                if run is not None and follow:
                    await run.attached.wait()  # whoever has seen a line sees the job running, too
                yield record
            return
        except NotFound:
            if run is None or not follow or run.attached.is_set():
                return
            await run.attached.wait()  # the node was asked to start it, and had not begun
        except NodeUnavailable:
            if not follow or plane.live.closing:
                raise
            await plane.live.link.again()


async def json_lines(log: AsyncIterator[LogRecord]) -> AsyncGenerator[bytes]:
    """`{"logs":[...]}`, however long, without holding it whole."""
    lines = Lines()
    separator = b'{"logs":['
    async for record in log:
        for line in lines.feed(record):
            yield separator + _encode(entry(line))
            separator = b","
    for line in lines.end():
        yield separator + _encode(entry(line))
        separator = b","
    yield b"]}" if separator == b"," else b'{"logs":[]}'


async def json_chunks(log: AsyncIterator[LogRecord]) -> AsyncGenerator[bytes]:
    """`{"records":[...]}`, however long, undivided and in base64."""
    separator = b'{"records":['
    async for record in log:
        yield separator + _encode(chunk(record))
        separator = b","
    yield b"]}" if separator == b"," else b'{"records":[]}'


def chunk(record: LogRecord) -> Chunk:
    data = base64.b64encode(record.data).decode()
    return Chunk(rfc3339(record.time_ns), record.source, record.seq, data)


async def exact_bytes(log: AsyncIterator[LogRecord], source: str) -> AsyncGenerator[bytes]:
    async for record in log:
        if record.source == source and record.data:
            yield record.data


async def line_events(plane: ControlPlane, job: Job, last_id: int) -> AsyncGenerator[bytes]:
    """One event for each line. Ids count lines, so that a client that comes back misses none, even inside a record."""
    lines = Lines()
    async for record in records(plane, job, 0, follow=True):
        if events := _line_events(lines.feed(record), last_id):
            yield events
    if events := _line_events(lines.end(), last_id):
        yield events
    if end := await _end(plane, job):
        yield end


def _line_events(lines: Iterable[Line], last_id: int) -> bytes:
    return b"".join(event(_encode(entry(line)), line.number) for line in lines if line.number > last_id)


async def chunk_events(plane: ControlPlane, job: Job, last_id: int) -> AsyncGenerator[bytes]:
    """One event for each record; ids are the records' own numbers."""
    async for record in records(plane, job, last_id, follow=True):
        yield event(_encode(chunk(record)), record.seq)
    if end := await _end(plane, job):
        yield end


def last_seen(header: str | None) -> int:
    """A header that is not ours means: from the beginning."""
    return int(header) if header and header.isascii() and header.isdigit() and len(header) < 16 else 0


def event(data: bytes, number: int) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (number, data)


async def _end(plane: ControlPlane, job: Job) -> bytes | None:
    """Waits for the result, or until it sleeps cold; None when Roost ends first, so that the client comes back."""
    run = plane.live.run_of(job)
    if run is not None and not (plane.live.closing and run.state is None):
        await run.left.wait()
    ended = run.result if run is not None else None
    if ended is None:  # it had ended before we asked, or sleeps
        row = await jobs.find(plane.database, job.account_id, job.request_id)
        if not row.final and (row.status != "sleeping" or plane.live.closing):
            return None
        ended = Result(row.status, row.exit_code, row.error, row.stopped)
    end = End(ended.status, ended.exit_code, ended.error, ended.stopped)
    return b"event: end\ndata: %b\n\n" % _encode(end)


async def kept_alive(events: AsyncGenerator[bytes], interval: float = KEEPALIVE) -> AsyncGenerator[bytes]:
    """The events, with a comment whenever there was none for `interval` seconds."""
    upcoming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=interval)
            if not upcoming.done():
                yield b": keepalive\n\n"
                continue
            if (one := upcoming.result()) is None:
                return
            yield one
            upcoming = asyncio.ensure_future(anext(events, None))
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)
        await events.aclose()


async def begun(chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The same chunks, once the first is there: what fails before it can still become an error status."""
    first = await anext(chunks, b"")

    async def all_of_them() -> AsyncGenerator[bytes]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    return all_of_them()
