"""The head of a request, checked: what smuggles, splits or cannot be routed for certain is refused here.

llhttp (by httptools) reads every head and refuses bare line ends, folded lines, NUL, blanks before a colon, several or
malformed Content-Lengths, and Content-Length beside Transfer-Encoding; the rest of the rules are below (RFC 9112).
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Self

import httptools

MAX_HEAD = 64 * 1024  # bytes
MAX_LINES = 200
MOST_REMEMBERED = 2048  # bytes of the last head of a connection
MAX_LENGTH_DIGITS = 18
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))  # RFC 9110, 9.2.2

_AUTHORITY = re.compile(rb"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?\Z")
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)([/?][^#]*)?\Z", re.IGNORECASE)
_TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}\Z")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*\Z")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")


class Refusal(Exception):
    """A head that is not passed on. The connection that it came on must be closed after the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Framing(Enum):
    """How the end of a body is known."""

    NONE = auto()
    LENGTH = auto()  # Content-Length
    CHUNKED = auto()
    STREAM = auto()  # told by the side that sends it: HTTP/2, or the end of a connection


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a client's connection comes from, and what goes with it; one for each connection."""

    address: str  # of the peer
    secure: bool = False
    trusted: bool = False  # a proxy of ours stands there: what it says about its client holds


@dataclass(slots=True)
class Request:
    """`headers` have names in lower case, without Host, Content-Length, Transfer-Encoding and hop-by-hop ones."""

    method: bytes
    target: bytes  # in origin form, or "*"
    authority: bytes  # the Host header as it was sent; what the sandbox gets
    host: str  # of it: lower case, without port and final dot
    headers: list[tuple[bytes, bytes]]
    framing: Framing
    length: int  # of the body, with LENGTH
    origin: Origin
    old: bool = False  # HTTP/1.0
    keep: bool = True  # the connection outlives this exchange
    upgrade: bytes | None = None  # the protocol that the client wants instead
    forwarded: dict[bytes, bytes] | None = None  # what it says of where it comes from
    relayed: bytes = b""  # its head as it goes upstream, once that was made; see `forwarding.request_head`

    @property
    def secure(self) -> bool:
        return self.origin.secure

    @property
    def idempotent(self) -> bool:
        return self.method in IDEMPOTENT

    def header(self, name: bytes) -> bytes | None:
        """The first of that lower-case name."""
        return next((value for given, value in self.headers if given == name), None)

    @property
    def navigates(self) -> bool:
        """Whether a person's browser opens a page, rather than a program or a page's own request."""
        if self.method != b"GET" or self.upgrade is not None:
            return False
        mode = self.header(b"sec-fetch-mode")
        return mode in (None, b"navigate") and b"text/html" in (self.header(b"accept") or b"")

    @property
    def reads_pages(self) -> bool:
        """Whether an error should be a page."""
        return b"text/html" in (self.header(b"accept") or b"")

    @classmethod
    def of(
        cls,
        method: bytes,
        target: bytes,
        authority: bytes,
        headers: list[tuple[bytes, bytes]],
        framing: Framing,
        origin: Origin,
    ) -> Self:
        """From HTTP/2: `headers` without pseudo-headers, framing NONE or STREAM (a Content-Length makes it LENGTH).

        Raises Refusal.
        """
        if len(headers) > MAX_LINES:
            raise Refusal(431, f"the request has more than {MAX_LINES} header fields")
        if not _TOKEN.match(method) or not all(_TOKEN.match(name) and _VALUE.match(value) for name, value in headers):
            raise Refusal(400, "the request's method or a header has characters that are not allowed")
        if (not target.startswith(b"/") and target != b"*") or not re.fullmatch(rb"[\x21-\x7e]+", target):
            raise Refusal(400, "the request's target is not a path")
        hosts = [value for name, value in headers if name.lower() == b"host"]
        if any(value.lower() != authority.lower() for value in hosts):
            raise Refusal(400, "the request has a Host header that differs from its authority")
        fields = _Fields([(name, value) for name, value in headers if name.lower() != b"host"])
        if fields.chunked or fields.upgrade or fields.connection:
            raise Refusal(400, "HTTP/2 has no connection-specific header fields")
        if fields.length is not None and framing is not Framing.NONE:
            framing = Framing.LENGTH
        if fields.length and framing is Framing.NONE:
            raise Refusal(400, "the request has a Content-Length and no body")
        length = fields.length or 0
        host = host_of(authority)
        return cls(method, target, authority, host, fields.kept, framing, length, origin, forwarded=fields.forwarded)


HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
OURS = frozenset((b"host", b"content-length"))
FORWARDED = frozenset(
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-server",
        b"x-real-ip",
    )
)
_SPECIAL = HOP_BY_HOP | OURS | FORWARDED


class _Fields:
    """Header fields in one pass: those that are ours to judge, and the others."""

    __slots__ = ("chunked", "connection", "forwarded", "host", "kept", "length", "trailers", "upgrade")

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        self.host: bytes | None = None
        self.length: int | None = None
        self.chunked = False
        self.upgrade: bytes | None = None
        self.connection: set[bytes] | None = None
        self.trailers = False
        self.forwarded: dict[bytes, bytes] | None = None
        kept = self.kept = list[tuple[bytes, bytes]]()
        for given, value in fields:
            name = given.lower()
            if name in _SPECIAL:
                self._judge(name, value)
            elif b"_" in name and name.replace(b"_", b"-") in _SPECIAL:
                continue  # CGI-style servers would take it for the other
            else:
                kept.append((name, value))
        if self.connection and not self.connection <= {b"close", b"keep-alive", b"upgrade"}:
            named = self.connection
            self.kept = [field for field in kept if field[0] not in named]
        if self.trailers:
            self.kept.append((b"te", b"trailers"))

    def _judge(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            if self.host is not None:
                raise Refusal(400, "the request has several Host headers")
            self.host = value.rstrip()
        elif name == b"content-length":
            if self.length is not None or not _DIGITS.match(value.rstrip(b" \t")):
                raise Refusal(400, "the request has several Content-Lengths, or one that is not a number")
            self.length = int(value)
        elif name == b"transfer-encoding":
            if self.chunked or value.rstrip(b" \t").lower() != b"chunked":
                raise Refusal(400, "the request has a Transfer-Encoding other than chunked")
            self.chunked = True
        elif name == b"connection":
            words = {word.strip().lower() for word in value.split(b",")}
            self.connection = words | (self.connection or set())
        elif name == b"upgrade":
            self.upgrade = value
        elif name in FORWARDED:
            said = self.forwarded = self.forwarded or {}
            said[name] = said[name] + b", " + value if name in said else value
        elif name == b"te":
            self.trailers = b"trailers" in value.lower()


class RequestReader:
    """Reads heads of HTTP/1 requests; one for each connection."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._fields: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._complete = False
        self._last: tuple[bytes, Request] | None = None  # clients of an API often ask the same again

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._complete = True

    def read(self, head: bytes) -> Request:
        """`head` ends with the empty line; the same head again is the same Request. Raises Refusal."""
        if self._last is not None and self._last[0] == head:
            return self._last[1]
        request = self._read(head)
        self._last = (head, request) if len(head) <= MOST_REMEMBERED else None
        return request

    def _read(self, head: bytes) -> Request:
        self._fields = []
        self._target = b""
        self._complete = False
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise Refusal(400, f"the request is not HTTP/1.1: {error}") from None
        if not self._complete:
            raise Refusal(400, "the request is not HTTP/1.1")
        if len(self._fields) > MAX_LINES:
            raise Refusal(431, f"the request has more than {MAX_LINES} header lines")
        version = head[(end := head.find(b"\r\n")) - 9 : end]
        if version not in (b" HTTP/1.1", b" HTTP/1.0"):
            raise Refusal(505, "this is HTTP/1.1; HTTP/2 is spoken over TLS only")
        return self._request(parser.get_method(), version == b" HTTP/1.0")

    def _request(self, method: bytes, old: bool) -> Request:
        fields = _Fields(self._fields)
        authority = fields.host
        if method == b"CONNECT":
            raise Refusal(405, "CONNECT is not offered here")
        if authority is None:
            raise Refusal(400, "the request has no Host header, so nobody can say where it should go")
        target = self._target
        if target[:1] != b"/":
            target = _origin_form(target, authority, method)
        if fields.chunked and (fields.length is not None or old):
            raise Refusal(400, "the request has a Transfer-Encoding beside a Content-Length, or in HTTP/1.0")
        framing, length = Framing.NONE, 0
        if fields.chunked:
            framing = Framing.CHUNKED
        elif fields.length:
            framing, length = Framing.LENGTH, fields.length
        elif fields.length == 0:
            fields.kept.append((b"content-length", b"0"))
        words = fields.connection
        keep = not old
        upgrade = None
        if words is not None:
            keep = b"close" not in words and (not old or b"keep-alive" in words)
            if b"upgrade" in words and not old and framing is Framing.NONE and fields.upgrade:
                # over h2c further requests would pass that nobody has admitted
                upgrade = None if fields.upgrade.lower().startswith((b"h2", b"tls")) else fields.upgrade
        return Request(
            method,
            target,
            authority,
            host_of(authority),
            fields.kept,
            framing,
            length,
            self._origin,
            old,
            keep,
            upgrade,
            fields.forwarded,
        )


@lru_cache(maxsize=8192)
def host_of(authority: bytes) -> str:
    """The name in lower case, without port and final dot. Raises Refusal."""
    found = _AUTHORITY.match(authority)
    if found is None:
        raise Refusal(400, "the Host header is not a host name")
    return found[1].decode().lower().removesuffix(".")


def _origin_form(target: bytes, authority: bytes, method: bytes) -> bytes:
    if target == b"*" and method == b"OPTIONS":
        return target
    found = _ABSOLUTE.match(target)
    if found is None:
        raise Refusal(400, "the request's target is not a path")
    if found[1].lower() != authority.lower():
        raise Refusal(400, "the request's target names another host than its Host header")
    path = found[2] or b"/"
    return path if path.startswith(b"/") else b"/" + path
