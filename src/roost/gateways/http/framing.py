"""Finds the end of a chunked body while its bytes pass by, and checks every line of it (RFC 9112, 7.1).

Nothing is let through before it was understood: an incomplete line is kept back until its end has come. Extensions of
chunks are dropped nowhere and kept short; lines end with CR LF and nothing else.
"""

import re

MAX_LINE = 256  # bytes of a chunk's size and its extensions
MAX_TRAILERS = 16 * 1024  # bytes
MAX_TRAILER_LINES = 64

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?\Z")
_FIELD = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}):[ \t]*([\t\x20-\x7e\x80-\xff]*)\Z")
_NOT_TRAILERS = frozenset(  # what would change how the message is read (RFC 9110, 6.5.1)
    (
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"host",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


class BadChunks(Exception):
    """The body is not what Transfer-Encoding: chunked promises."""


class Chunks:
    """Feed it what comes; `done` when the body has ended, `trailers` then has its fields, `rest` what came behind it.

    raw: pass on the bytes as they were; otherwise their content only.
    """

    __slots__ = ("_held", "_left", "_lines", "_raw", "_size", "done", "rest", "trailers")

    def __init__(self, raw: bool) -> None:
        self.done = False
        self.rest = b""
        self.trailers: list[tuple[bytes, bytes]] = []
        self._raw = raw
        self._held = b""  # an incomplete line
        self._left = 0  # bytes of the current chunk with its CR LF; 0: a size comes
        self._lines = -1  # of trailers so far; -1: the last chunk has not come
        self._size = 0  # of trailers so far, in bytes

    def feed(self, data: bytes) -> bytes:
        """What may be passed on. Raises BadChunks."""
        if self._held:
            data, self._held = self._held + data, b""
        at, end = 0, len(data)
        content: list[bytes] = []
        while at < end:
            if self._left:
                at = self._content(data, at, end, content)
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._hold(data, at)
                end = at
                break
            line, at = data[at:line_end], line_end + 2
            if self._lines >= 0:
                self._trailer(line)
            else:
                self._begin(line)
            if self.done:
                self.rest = data[at:]
                end = at
        if not self._raw:
            return b"".join(content)
        return data if end == len(data) else data[:end]

    def _content(self, data: bytes, at: int, end: int, content: list[bytes]) -> int:
        """Where it goes on. The CR LF behind a chunk counts as the last two bytes of `_left`."""
        inside = min(self._left - 2, end - at)
        if inside > 0:
            if not self._raw:
                content.append(data[at : at + inside])
            at += inside
            self._left -= inside
        if self._left <= 2 and at < end:
            tail = b"\r\n"[2 - self._left :]
            given = data[at : at + len(tail)]
            if not tail.startswith(given):
                raise BadChunks("a chunk is longer than it says")
            at += len(given)
            self._left -= len(given)
        return at

    def _hold(self, data: bytes, at: int) -> None:
        line = data[at:]
        most = MAX_LINE if self._lines < 0 else MAX_TRAILERS
        if len(line) > most:
            raise BadChunks("a line between chunks is too long")
        if b"\n" in line or b"\r" in line[:-1] or b"\0" in line:
            raise BadChunks("a line between chunks has a bare line end")
        self._held = line

    def _begin(self, line: bytes) -> None:
        found = _SIZE.match(line) if len(line) <= MAX_LINE else None
        if found is None:
            raise BadChunks("a chunk's size is not a number")
        size = int(found[1], 16)
        if size:
            self._left = size + 2
        else:
            self._lines = 0

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._lines += 1
        self._size += len(line)
        found = _FIELD.match(line)
        if found is None or self._lines > MAX_TRAILER_LINES or self._size > MAX_TRAILERS:
            raise BadChunks("the trailers are malformed or too many")
        if found[1].lower().replace(b"_", b"-") in _NOT_TRAILERS:
            raise BadChunks("a trailer is not allowed there")
        self.trailers.append((found[1], found[2]))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def last_chunk(trailers: list[tuple[bytes, bytes]]) -> bytes:
    return b"0\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % field for field in trailers)
