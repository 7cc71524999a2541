"""The head of a sandbox's answer, checked: a sandbox is hostile, and its bytes must not become a second answer."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import httptools

from roost.gateways.http.request import MAX_HEAD, MAX_LINES, MOST_REMEMBERED, Framing

MAX_ANSWER_HEAD = 2 * MAX_HEAD  # bytes
MOST_SHOWN = 100  # bytes of what is no answer
BODILESS = frozenset((204, 304))
# Lines of a head in lower case that are ours to judge; llhttp has seen to it that lines begin behind CR LF only
_SPECIAL = re.compile(
    rb"\n(c(?:onnection|ontent-length)|keep-alive|proxy-(?:authenticate|authentication-info|connection)|te"
    rb"|transfer-encoding|upgrade):[ \t]*([^\r]*)"
)

_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r?\n")
_BEGINNING = b"HTTP/1."


class BadAnswer(Exception):
    """What came is not an HTTP/1 answer."""


@dataclass(slots=True)
class Response:
    """`lines` are header lines as they were sent, each behind its CR LF, but for hop-by-hop ones."""

    status: int
    reason: bytes
    lines: bytes
    framing: Framing  # STREAM: until the connection ends
    length: int | None  # as it was said, which for HEAD and 304 tells of another answer's body
    keep: bool  # the connection can be used again
    upgrade: bytes | None = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same as names and values, without Content-Length."""
        pairs = [line.partition(b":") for line in self.lines.split(b"\r\n")[1:]]
        return [(name, value.strip(b" \t")) for name, _, value in pairs if name.lower() != b"content-length"]


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """As a Response has them."""
    return b"".join([b"\r\n%b: %b" % field for field in headers])


def end_of_head(data: bytes) -> int:
    """Where it ends, also with lines that end with LF alone (RFC 9112, 2.2); 0: not yet."""
    found = _EMPTY_LINE.search(data)
    return found.end() if found else 0


def with_crlf(head: bytes) -> bytes:
    return _LINE_END.sub(b"\r\n", head)


def may_begin_answer(data: bytes) -> bool:
    return data[: len(_BEGINNING)] == _BEGINNING[: len(data)]


def shown(data: bytes) -> str:
    """Its beginning, in quotes, with everything escaped that is not plain ASCII."""
    return repr(data[:MOST_SHOWN])[1:] + (" …" if len(data) > MOST_SHOWN else "")


class ResponseReader:
    """Reads heads of answers; one for each connection."""

    __slots__ = ("_complete", "_last")

    def __init__(self) -> None:
        self._complete = False
        self._last: tuple[bytes, bytes, Response] | None = None  # within a second many answers have the same head

    def on_headers_complete(self) -> None:
        self._complete = True

    def read(self, head: bytes, method: bytes) -> Response:
        """`head` ends with the empty line; the same head again is the same Response. Raises BadAnswer."""
        last = self._last
        if last is not None and last[0] == head and last[1] == method:
            return last[2]
        response = self._read(head, method)
        self._last = (head, method, response) if len(head) <= MOST_REMEMBERED else None
        return response

    def _read(self, head: bytes, method: bytes) -> Response:
        self._complete = False
        parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise BadAnswer(str(error)) from None
        if not self._complete or head.count(b"\r\n") > MAX_LINES + 2:
            raise BadAnswer("its head is incomplete, or has too many lines")
        end = head.find(b"\r\n")
        status = parser.get_status_code()
        response = Response(status, head[13:end], head[end:-4], Framing.STREAM, None, head[5:8] == b"1.1")
        _judge(response, _SPECIAL.findall(head.lower()), method)
        return response


def _judge(response: Response, special: list[tuple[bytes, bytes]], method: bytes) -> None:
    """How its body ends, and whether the connection outlives it (RFC 9112, 6.3). `special` is in lower case."""
    status, chunked, connection = response.status, False, b""
    for name, value in special:
        if name == b"content-length":
            if response.length is not None or not value.rstrip().isdigit():
                raise BadAnswer("it has several Content-Lengths, or one that is not a number")
            response.length = int(value)
            if status >= 200 and status != 204:
                continue
        elif name == b"transfer-encoding":
            if chunked or value.rstrip(b" \t") != b"chunked":
                raise BadAnswer("it has a Transfer-Encoding other than chunked")
            chunked = True
        elif name == b"connection":
            connection = connection + b"," + value if connection else value
        elif name == b"upgrade" and status == 101:
            response.upgrade = value
        response.lines = _without(response.lines, name)
    if connection:
        _heed(response, connection)
    if not 100 <= status <= 599:
        raise BadAnswer(f"its status is {status}")
    if method == b"HEAD" or status in BODILESS or status < 200:
        response.framing = Framing.NONE
    elif chunked:
        if response.length is not None:
            raise BadAnswer("it has a Content-Length beside a Transfer-Encoding")
        response.framing = Framing.CHUNKED
    elif response.length is not None:
        response.framing = Framing.LENGTH
    else:
        response.keep = False


def _without(text: bytes, name: bytes) -> bytes:
    """Without the first line of that lower-case name."""
    begin = text.lower().find(b"\r\n" + name + b":")
    end = text.find(b"\r\n", begin + 2)
    return text[:begin] if end < 0 else text[:begin] + text[end:]


def _heed(response: Response, connection: bytes) -> None:
    """What a Connection header says, and without the headers that it names."""
    if connection == b"keep-alive":
        response.keep = True
        return
    words = {word.strip().lower() for word in connection.split(b",")}
    response.keep = b"close" not in words and (response.keep or b"keep-alive" in words)
    if named := words - {b"close", b"keep-alive", b"upgrade", b""}:
        for name in named - {b"content-length"}:
            while b"\r\n" + name + b":" in response.lines.lower():
                response.lines = _without(response.lines, name)
