"""A sandbox's log: records, each with the time of its arrival, written before the guest's bytes count as taken.

    u32 length of data, u8 source, 3 zero bytes, u64 time (ns since the epoch), u64 output, data

`output` counts the bytes that the script had produced up to here, so that a node that restarts knows what the guest
must repeat. A log may be continued by another sandbox, whose script's bytes are counted from there anew. A record's
`seq` is the file position behind it: readers continue there without an index. A write that was cut off by a crash is a
torn tail; opening for writing removes it. The log is bounded: at the limit it says so, and counts what is dropped.
"""

import asyncio
import errno
import os
import struct
from collections.abc import AsyncGenerator, Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

from roost.clock import now_ns
from roost.errors import Invalid
from roost.node.protocol import LogRecord

LIMIT = 8 * 1024 * 1024  # bytes of one sandbox's log file; stated in SPECIFICATION.md
HEAD = struct.Struct("<IB3xQQ")
READ = 256 * 1024

Source = Literal["stdout", "stderr", "system"]
SYSTEM = 0
_NAMES: dict[int, Source] = {SYSTEM: "system", 1: "stdout", 2: "stderr"}


class LogWriter:
    """One per sandbox, closed by its owner. A write that the disk does not take raises OSError and keeps nothing."""

    def __init__(self, path: Path, limit: int = LIMIT, begins: int | None = 0) -> None:
        """`begins`: the position behind which the records are this sandbox's own; None: behind all that there are."""
        self.output = 0  # bytes of the script's output that are written or were dropped at the limit
        self.dropped = 0
        self._limit = limit
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = self._recover(begins)
        self.begins = self._end if begins is None else begins
        self._grown: asyncio.Future[None] | None = None
        self.closed = False

    def _recover(self, begins: int | None) -> int:
        end, size = 0, os.fstat(self._fd).st_size
        while end + HEAD.size <= size:
            length, _, _, output = HEAD.unpack(os.pread(self._fd, HEAD.size, end))
            if not length or end + HEAD.size + length > size:  # no record is empty; zeros are what a power cut leaves
                break
            end += HEAD.size + length
            if begins is not None and end > begins:
                self.output = output
        os.ftruncate(self._fd, end)
        return end

    def write(self, pairs: Iterable[tuple[int, bytes]]) -> None:
        """Output as it arrived: (1 stdout | 2 stderr, bytes). One system call: it is kept whole or not at all."""
        time, output, dropped, records = now_ns(), self.output, self.dropped, bytearray()
        for stream, run in groupby(pairs, key=itemgetter(0)):
            data = b"".join(part for _, part in run)
            room = max(0, self._limit - self._end - len(records) - HEAD.size)
            kept = data[:room] if not dropped else b""
            output += len(data)
            if kept:
                records += HEAD.pack(len(kept), stream, time, output) + kept
            if len(kept) < len(data) and not dropped:
                remark = f"output limit of {self._limit} bytes reached; what follows was dropped\n".encode()
                records += HEAD.pack(len(remark), SYSTEM, time, output) + remark
            dropped += len(data) - len(kept)
        if records:
            self._append(bytes(records))
        self.output, self.dropped = output, dropped

    def remark(self, text: str) -> None:
        """A line of Roost's own."""
        data = text.encode() + b"\n"
        self._append(HEAD.pack(len(data), SYSTEM, now_ns(), self.output) + data)

    def _append(self, data: bytes) -> None:
        written = os.pwrite(self._fd, data, self._end)
        if written < len(data):
            os.ftruncate(self._fd, self._end)
            raise OSError(errno.ENOSPC, "the disk that holds the logs is full")
        self._end += written
        if self._grown and not self._grown.done():
            self._grown.set_result(None)

    def taken(self, acknowledged: int) -> None:
        """After a restart: output that guest init saw acknowledged but that is not here was dropped at the limit."""
        self.dropped += max(0, acknowledged - self.output)
        self.output = max(self.output, acknowledged)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._end

    def cap(self) -> None:
        """Nothing more is kept; what comes is counted as dropped."""
        self._limit = min(self._limit, self._end)

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


def read_records(path: Path, after: int) -> tuple[list[LogRecord], int]:
    """Up to about READ bytes of whole records behind position `after`, a record's end; and the position behind them."""
    records: list[LogRecord] = []
    with path.open("rb") as file:
        data = os.pread(file.fileno(), READ, after)
        if len(data) >= HEAD.size and HEAD.size + HEAD.unpack_from(data)[0] > len(data):
            data = os.pread(file.fileno(), HEAD.size + HEAD.unpack_from(data)[0], after)
    at = 0
    while at + HEAD.size <= len(data):
        length, source, time, _ = HEAD.unpack_from(data, at)
        end = at + HEAD.size + length
        if end > len(data):
            break
        records.append(LogRecord(seq=after + end, time_ns=time, source=_NAMES[source], data=data[at + HEAD.size : end]))
        at = end
    return records, after + at


def is_boundary(path: Path, position: int) -> bool:
    """Whether `position`, which came from outside, is where a record ends (or the log begins)."""
    at = 0
    with path.open("rb") as file:
        while at < position and (head := os.pread(file.fileno(), HEAD.size, at)) and len(head) == HEAD.size:
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
