"""The output of a command that is answered whole: its beginning and its end, where it is more than an answer takes."""

from collections import deque

from roost.node.guest.frames import STDERR, STDOUT


class Capture:
    """Both streams, up to `limit` bytes together. What is left out is missing from the middle, and named there."""

    def __init__(self, limit: int) -> None:
        self._head: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
        self._head_room = limit // 2
        self._tail: deque[tuple[int, bytes]] = deque()
        self._tail_size = 0
        self._tail_limit = limit - limit // 2
        self._lost = {STDOUT: 0, STDERR: 0}

    @property
    def truncated(self) -> bool:
        return any(self._lost.values())

    def take(self, pairs: list[tuple[int, bytes]]) -> None:
        for stream, data in pairs:
            first = data[: self._head_room]
            self._head_room -= len(first)
            self._head[stream].append(first)
            if len(first) < len(data):
                self._head_room = 0
                self._tail.append((stream, data[len(first) :]))
                self._tail_size += len(data) - len(first)
        self._let_go()

    def _let_go(self) -> None:
        while (excess := self._tail_size - self._tail_limit) > 0:
            stream, data = self._tail.popleft()
            if len(data) > excess:
                self._tail.appendleft((stream, data[excess:]))
            gone = min(len(data), excess)
            self._tail_size -= gone
            self._lost[stream] += gone

    def of(self, stream: int) -> bytes:
        head = b"".join(self._head[stream])
        tail = b"".join(data for source, data in self._tail if source == stream)
        if not self._lost[stream]:
            return head + tail
        return _whole_end(head) + b"\n[%d bytes are left out here]\n" % self._lost[stream] + _whole_begin(tail)


def _whole_end(text: bytes) -> bytes:
    """Without a character of UTF-8 that was cut in two at the end."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte < 0x80 or (byte >= 0xC0 and back >= _length(byte)):
            return text
        if byte >= 0xC0:
            return text[:-back]
    return text


def _whole_begin(text: bytes) -> bytes:
    """Without the rest of such a one at the beginning."""
    rest = next((at for at, byte in enumerate(text[:4]) if byte & 0xC0 != 0x80), 0)
    return text[rest:] if rest < 4 else text


def _length(first: int) -> int:
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4
