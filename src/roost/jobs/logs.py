"""A job's output as lines: what the node recorded in arbitrary chunks, cut where the script ended its lines.

However the bytes were chunked, the same bytes of one source give the same lines. A line belongs to the moment its
end arrived. Bytes that are no UTF-8 are shown as U+FFFD; who needs them exactly asks for the raw form.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from roost.node.protocol import LONGEST_LINE, LogRecord

Source = Literal["stdout", "stderr", "system"]


@dataclass(frozen=True)
class Line:
    number: int  # from 1, over all sources, in the order they are told
    time_ns: int
    source: Source
    text: str


class Lines:
    """Feed it the records of one log in order; at the end take what had no line end."""

    def __init__(self) -> None:
        self._open: dict[Source, bytearray] = {}
        self._time_ns: dict[Source, int] = {}
        self._number = 0

    def feed(self, record: LogRecord) -> Iterator[Line]:
        if record.lines_before is not None:
            yield from self._leave_out(record, record.lines_before)
            return
        pending = self._open.setdefault(record.source, bytearray())
        self._time_ns[record.source] = record.time_ns
        searched = len(pending)
        pending += record.data
        start = 0
        while True:
            end = pending.find(b"\n", max(start, searched), start + LONGEST_LINE + 1)
            if end >= 0:
                yield self._line(record.source, bytes(pending[start:end]))
                start = end + 1
            elif len(pending) - start > LONGEST_LINE:
                yield self._line(record.source, bytes(pending[start : start + LONGEST_LINE]))
                start += LONGEST_LINE
            else:
                break
        del pending[:start]

    def _leave_out(self, record: LogRecord, lines_before: int) -> Iterator[Line]:
        """What follows has the numbers that it would have with all that is missing."""
        yield from self.end()
        self._number = max(self._number, lines_before - 1)
        self._time_ns[record.source] = record.time_ns
        yield self._line(record.source, record.data.removesuffix(b"\n"))

    def end(self) -> Iterator[Line]:
        for source, pending in self._open.items():
            if pending:
                yield self._line(source, bytes(pending))
                pending.clear()

    def _line(self, source: Source, data: bytes) -> Line:
        self._number += 1
        text = data.removesuffix(b"\r").decode("utf-8", "replace")
        return Line(self._number, self._time_ns[source], source, text)
