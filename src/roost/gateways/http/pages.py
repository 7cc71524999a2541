"""The gateway's own answers: a small page for a person's browser, `{"error": text}` for everybody else."""

import html
import json
from http import HTTPStatus

from roost.errors import Asleep, Busy, Conflict, Forbidden, NoCapacity, NodeUnavailable, NotFound, RoostError
from roost.gateways.http.request import Request
from roost.gateways.http.response import lines

RELOAD = 2  # seconds
TITLES = {
    400: "This request cannot be passed on",
    401: "This address is not open to everybody",
    403: "This address is closed",
    404: "Nothing is here",
    409: "This sandbox cannot be reached now",
    429: "Too many requests",
    502: "The application does not answer",
    503: "Not available just now",
    504: "This took too long",
}
STATUSES: dict[type[RoostError], int] = {
    NotFound: 404,
    Forbidden: 403,
    Conflict: 409,
    NoCapacity: 503,
    NodeUnavailable: 503,
    Busy: 503,
    Asleep: 504,
}  # all others: 502
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 20vh auto 0; max-width: 34rem; padding: 0 1.5rem; color: #222 }}
h1 {{ font-size: 1.4rem; font-weight: 600 }}
p {{ color: #555; overflow-wrap: anywhere }}
@media (prefers-color-scheme: dark) {{ body {{ background: #16181c; color: #eee }} p {{ color: #aaa }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
</body>
</html>
"""

Fields = list[tuple[bytes, bytes]]


def answer(request: Request | None, status: int, text: str) -> tuple[Fields, bytes]:
    """Headers without a length, and the body, in the form that who asked can read; None: nobody could tell."""
    if request is not None and request.reads_pages:
        title = TITLES.get(status, reason(status).decode())
        return _fields(b"text/html; charset=utf-8"), _page(title, text)
    return _fields(b"application/json"), json.dumps({"error": text}).encode() + b"\n"


def told(error: RoostError) -> tuple[int, str]:
    """Status and text of why a sandbox was not reached."""
    status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 502)
    if status == 502:
        return status, f"{error}. Start a server there that listens on this port, or open the port on which it does."
    return status, str(error)


def waking() -> tuple[Fields, bytes]:
    """For a browser whose sandbox takes longer to wake than a person likes to look at nothing; 503."""
    refresh = f'<meta http-equiv="refresh" content="{RELOAD}">\n'
    body = _page("Starting your application", "Your VM is waking up. This page reloads by itself.", refresh)
    return [*_fields(b"text/html; charset=utf-8"), (b"Retry-After", b"%d" % RELOAD)], body


def last_words(status: int, text: str) -> bytes:
    """A whole answer, behind which the connection is closed."""
    headers, body = answer(None, status, text)
    head = b"HTTP/1.1 %d %b%b\r\nConnection: close" % (status, reason(status), lines(headers))
    return head + b"\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def _page(title: str, text: str, refresh: str = "") -> bytes:
    return _PAGE.format(title=html.escape(title), text=html.escape(text), refresh=refresh).encode()


def _fields(kind: bytes) -> Fields:
    return [(b"Content-Type", kind), (b"Cache-Control", b"no-store"), (b"X-Content-Type-Options", b"nosniff")]
