"""A sandbox's log: records, each with the time of its arrival, written before the guest's bytes count as taken.

    u32 length of data, u8 source, 3 zero bytes, u64 time (ns since the epoch), u64 output, data

`output` counts the bytes that the script had produced up to here, so that a node that restarts knows what the guest
must repeat. A log may be continued by another sandbox, whose script's bytes are counted from there anew. A record's
`seq` is the position behind it in all that was ever written: readers continue there without an index.

The log is bounded and keeps its beginning and its end: the first half of its limit is in the file of its name, for
good; what follows is in segments beside it (LOG.tail/START-LINES), of which the oldest go. Who reads over such a gap is
told, where it is. A write that was cut off by a crash is a torn tail; opening for writing removes it.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import struct
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

from roost.clock import now_ns
from roost.errors import Invalid
from roost.node.protocol import LONGEST_LINE, LogRecord

LIMIT = 8 * 1024 * 1024  # bytes of one sandbox's log; stated in SPECIFICATION.md
SEGMENTS = 16  # that a log of LIMIT bytes would be cut into
HEAD = struct.Struct("<IB3xQQ")
READ = 256 * 1024

Source = Literal["stdout", "stderr", "system"]
SYSTEM = 0
_NAMES: dict[int, Source] = {SYSTEM: "system", 1: "stdout", 2: "stderr"}


@dataclass
class Segment:
    """A part of the log that is one file. `lines`: those that had ended before it."""

    path: Path
    start: int
    lines: int
    size: int


def tail_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.tail")


def segments(path: Path) -> list[Segment]:
    """In order, the beginning first. Raises FileNotFoundError."""
    found = [Segment(path, 0, 0, path.stat().st_size)]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for file in tail_of(path).iterdir():
            start, _, lines = file.name.partition("-")
            with contextlib.suppress(FileNotFoundError):  # it has just been dropped
                found.append(Segment(file, int(start), int(lines), file.stat().st_size))
    return sorted(found, key=lambda one: one.start)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    shutil.rmtree(tail_of(path), ignore_errors=True)


class _Lines:
    """How many lines have ended, cut as `jobs/logs.py` cuts them."""

    def __init__(self) -> None:
        self.ended = 0
        self._open: dict[int, int] = {}  # by source: bytes of a line that has not ended

    def feed(self, source: int, data: bytes) -> None:
        first, *rest = data.split(b"\n") if len(data) + self._open.get(source, 0) > LONGEST_LINE else _short(data)
        length = self._open.get(source, 0) + len(first)
        for piece in rest:
            self.ended += max(1, -(-length // LONGEST_LINE))
            length = len(piece)
        if length > LONGEST_LINE:
            cut = (length - 1) // LONGEST_LINE
            self.ended += cut
            length -= cut * LONGEST_LINE
        self._open[source] = length


def _short(data: bytes) -> list[bytes]:
    """As good as split, where no line is too long: only how many there are matters, and what the last one has."""
    count = data.count(b"\n")
    return [b""] * count + [data[data.rfind(b"\n") + 1 :]]


class LogWriter:
    """One per sandbox, closed by its owner. A write that the disk does not take raises OSError and keeps nothing."""

    def __init__(self, path: Path, limit: int = LIMIT, begins: int | None = 0) -> None:
        """`begins`: the position behind which the records are this sandbox's own; None: behind all that there are."""
        self.output = 0  # bytes of the script's output that are written or were dropped
        self.dropped = 0
        self._path = path
        self._limit = limit
        self._muted = False
        self._lines = _Lines()
        path.touch(0o600)
        self._segments = segments(path)
        self._kept = 0  # bytes of this sandbox's output in the segments
        for segment in self._segments:
            self._recover(segment, begins)
        self._fd = os.open(self._last.path, os.O_RDWR | os.O_CLOEXEC)
        self.begins = self._end if begins is None else begins
        if begins is not None:
            self.dropped = max(0, self.output - self._kept)
        self._grown: asyncio.Future[None] | None = None
        self.closed = False

    @property
    def _last(self) -> Segment:
        return self._segments[-1]

    @property
    def _end(self) -> int:
        return self._last.start + self._last.size

    def _recover(self, segment: Segment, begins: int | None) -> None:
        self._lines.ended = max(self._lines.ended, segment.lines)
        with segment.path.open("rb+") as file:
            content, end = file.read(), 0
            for source, at, length, output in _heads(content):
                end = at + length
                self._lines.feed(source, content[at:end])
                if begins is not None and segment.start + end > begins:
                    self.output = output
                    self._kept += length if source != SYSTEM else 0
            file.truncate(end)
        segment.size = end

    def write(self, pairs: Iterable[tuple[int, bytes]]) -> None:
        """Output as it arrived: (1 stdout | 2 stderr, bytes). One system call: it is kept whole or not at all."""
        time, output, records, fed = now_ns(), self.output, bytearray(), list[tuple[int, bytes]]()
        for stream, run in groupby(pairs, key=itemgetter(0)):
            data = b"".join(part for _, part in run)
            output += len(data)
            records += HEAD.pack(len(data), stream, time, output) + data
            fed.append((stream, data))
        if self._muted:
            self.dropped += output - self.output
        elif records:
            self._append(bytes(records), fed)
        self.output = output

    def remark(self, text: str) -> None:
        """A line of Roost's own."""
        data = text.encode() + b"\n"
        self._append(HEAD.pack(len(data), SYSTEM, now_ns(), self.output) + data, [(SYSTEM, data)])

    def _append(self, data: bytes, fed: list[tuple[int, bytes]]) -> None:
        self._turn()
        written = os.pwrite(self._fd, data, self._last.size)
        if written < len(data):
            os.ftruncate(self._fd, self._last.size)
            raise OSError(errno.ENOSPC, "the disk that holds the logs is full")
        self._last.size += written
        for source, text in fed:
            self._lines.feed(source, text)
        self._drop_oldest()
        if self._grown and not self._grown.done():
            self._grown.set_result(None)

    def _turn(self) -> None:
        """To the next segment, where the last one is full."""
        full = self._limit // 2 if len(self._segments) == 1 else self._limit // SEGMENTS
        if self._last.size < full:
            return
        tail_of(self._path).mkdir(mode=0o700, exist_ok=True)
        path = tail_of(self._path) / f"{self._end}-{self._lines.ended}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(self._fd)
        self._fd = fd
        self._segments.append(Segment(path, self._end, self._lines.ended, 0))

    def _drop_oldest(self) -> None:
        while self.size > self._limit and len(self._segments) > 3:  # the beginning, and two of which one is whole
            oldest = self._segments.pop(1)
            content = oldest.path.read_bytes()
            own = (one for one in _heads(content) if oldest.start + one[1] >= self.begins)
            self.dropped += sum(length for source, _, length, _ in own if source != SYSTEM)
            oldest.path.unlink()

    def taken(self, acknowledged: int) -> None:
        """After a restart: output that guest init saw acknowledged but that is not here was dropped."""
        self.dropped += max(0, acknowledged - self.output)
        self.output = max(self.output, acknowledged)

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(segment.size for segment in self._segments)

    def cap(self) -> None:
        """Nothing more is kept; what comes is counted as dropped, and the log says so."""
        if not self._muted:
            self.remark("there is no room for more output; what follows was dropped")
        self._muted = True

    async def grown(self, past: int) -> bool:
        """Waits until there is a record behind position `past`; False when none will come."""
        while self._end <= past and not self.closed:
            if not self._grown or self._grown.done():
                self._grown = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._grown)
        return self._end > past

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        os.close(self._fd)
        if self._grown and not self._grown.done():
            self._grown.set_result(None)


def _heads(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Source, where the data begins, its length, and output, of the whole records there are."""
    at = 0
    while at + HEAD.size <= len(content):
        length, source, _, output = HEAD.unpack_from(content, at)
        if not length or at + HEAD.size + length > len(content):  # none is empty; zeros are what a power cut leaves
            return
        yield source, at + HEAD.size, length, output
        at += HEAD.size + length


def read_records(path: Path, after: int) -> tuple[list[LogRecord], int]:
    """Up to about READ bytes of whole records behind position `after`, a record's end; and the position behind them.

    Where what follows is there no more, one record says so and leads to what is.
    """
    while True:
        try:
            here = segments(path)
            segment = next((one for one in reversed(here) if one.start <= after), here[0])
            following = next((one for one in here if one.start > after), None)
            if after >= segment.start + segment.size and following:
                if following.start > after:
                    return [_gap(following, after)], following.start
                segment = following
            return _read(segment, after)
        except FileNotFoundError:
            if not path.exists():
                raise


def _gap(following: Segment, after: int) -> LogRecord:
    text = f"[{_amount(following.start - after)} of output are left out here: a log keeps its beginning and its end]\n"
    return LogRecord(
        seq=following.start,
        time_ns=_first_time(following),
        source="system",
        data=text.encode(),
        lines_before=following.lines,
    )


def _amount(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} bytes"


def _first_time(segment: Segment) -> int:
    with segment.path.open("rb") as file:
        head = file.read(HEAD.size)
    return HEAD.unpack(head)[2] if len(head) == HEAD.size else now_ns()


def _read(segment: Segment, after: int) -> tuple[list[LogRecord], int]:
    records: list[LogRecord] = []
    offset = after - segment.start
    with segment.path.open("rb") as file:
        data = os.pread(file.fileno(), READ, offset)
        if len(data) >= HEAD.size and HEAD.size + HEAD.unpack_from(data)[0] > len(data):
            data = os.pread(file.fileno(), HEAD.size + HEAD.unpack_from(data)[0], offset)
    end = 0
    for source, at, length, _ in _heads(data):
        end = at + length
        time = HEAD.unpack_from(data, at - HEAD.size)[2]
        records.append(LogRecord(seq=after + end, time_ns=time, source=_NAMES[source], data=data[at:end]))
    return records, after + end


def is_boundary(path: Path, position: int) -> bool:
    """Whether `position`, which came from outside, is where a record ends (or the log begins).

    Of what was dropped nobody knows any more, so any position there will do.
    """
    here = segments(path)
    segment = next((one for one in reversed(here) if one.start <= position), None)
    if segment is None or position > here[-1].start + here[-1].size:
        return False
    if position > segment.start + segment.size:
        return True
    at = segment.start
    with segment.path.open("rb") as file:
        while at < position and (head := os.pread(file.fileno(), HEAD.size, at - segment.start)):
            if len(head) < HEAD.size:
                return False
            at += HEAD.size + HEAD.unpack(head)[0]
    return at == position


async def follow(path: Path, writer: LogWriter | None, after: int) -> AsyncGenerator[list[LogRecord]]:
    """Batches of records: what is there, then what comes until `writer` (None: there is none any more) is closed.

    Raises Invalid when `after` is no position that this log ever gave.
    """
    if after and not await asyncio.to_thread(is_boundary, path, after):
        raise Invalid(f"this log has no position {after}; read it from 0, or from the last position that it gave")
    while True:
        records, end = read_records(path, after)
        if records:
            after = end
            yield records
        elif not writer or not await writer.grown(after):
            return
