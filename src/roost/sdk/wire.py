"""The SDK without its input and output: calls are generators that yield what they need done and are sent the answers.

`drivers.py` does it, once for threads and once for asyncio. So retries, waiting, following and every call exist once.
A call (`Call`) returns its result; a flow (`Flow`) also yields `Emit` for each item that its caller is given.
"""

import itertools
import json
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from roost.sdk.errors import RateLimited, RoostError, Unavailable, Unreachable, refusal

T = TypeVar("T")
Json = Any  # what a server answered, decoded
Progress = Callable[[int, int], None]  # bytes so far, and in all

PREFIX = "/api/v1"
FIRST_PAUSE = 0.1  # seconds; doubles with each try
LONGEST_PAUSE = 2.0
PATIENCE = 60.0  # seconds: the longest Retry-After that is honoured, and how long a flow looks for its server
SILENCE = 60.0  # seconds; the server says something every 15 on a stream
SAFE = ("GET", "PUT", "DELETE")


@dataclass(frozen=True)
class Body:
    """`pieces` may be called again, for another try."""

    pieces: Callable[[], Iterator[bytes]]
    size: int
    kind: str = "application/octet-stream"


@dataclass(frozen=True)
class Request:
    """One exchange. `repeatable`: the same again does no harm, though the first may have been honoured; None: as the
    method says.
    """

    method: str
    path: str
    query: Mapping[str, object] = field(default_factory=dict[str, object])
    json: object = None
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    timeout: float | None = None  # seconds without a byte; None: the client's
    repeatable: bool | None = None
    origin: str | None = None  # another server, which is not shown the token

    @property
    def url(self) -> str:
        """Path and query, below the API's address unless it goes elsewhere."""
        if self.origin:
            return self.origin + self.path
        query = urllib.parse.urlencode({name: _text(value) for name, value in self.query.items() if value is not None})
        return f"{PREFIX}{self.path}" + (f"?{query}" if query else "")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Answer:
    """`content` is empty while a body is still to be read."""

    status: int
    headers: Mapping[str, str]
    content: bytes


# ---- what a call may ask for, and what it is sent ---------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """→ Answer, whole."""

    request: Request


@dataclass(frozen=True)
class Open:
    """→ Answer; its body is read by `Read` if the status says success. Replaces what was open."""

    request: Request


@dataclass(frozen=True)
class Read:
    """→ bytes, empty at the end."""


@dataclass(frozen=True)
class Wait:
    """→ None, after that many seconds."""

    seconds: float


@dataclass(frozen=True)
class Tries:
    """→ int: how often the client tries again."""


@dataclass(frozen=True)
class Emit(Generic[T]):
    """→ None, when the caller wants the next."""

    value: T


class Left(BaseException):
    """Thrown into a call whose caller goes away (Ctrl-C, cancellation): it may end what it began and raises this on."""


Effect = Send | Open | Read | Wait | Tries
Call = Generator[Effect, Any, T]
Flow = Generator[Effect | Emit[T], Any, Json]

# ---- requests ----------------------------------------------------------------------------------------------------


def call(method: str, path: str, body: object = None, **more: Any) -> Call[Json]:
    """One request whose answer is JSON."""
    answer = yield from send(Request(method, path, json=body, **more))
    return decoded(answer)


def decoded(answer: Answer) -> Json:
    if not answer.content:
        return {}
    try:
        return json.loads(answer.content)
    except ValueError as error:
        raise RoostError("the answer is no JSON; does the URL lead to a Roost?", answer.status) from error


def send(request: Request) -> Call[Answer]:
    """The successful answer; tries again where that is safe."""
    return (yield from _tried(Send(request), request))


def opened(request: Request) -> Call[Answer]:
    """The same, with a body that is still to be read."""
    return (yield from _tried(Open(request), request))


def _tried(effect: Send | Open, request: Request) -> Call[Answer]:
    tries = cast(int, (yield Tries()))
    for number in itertools.count():
        try:
            answer = cast(Answer, (yield effect))
            if answer.status < 300:
                return answer
            raise refusal(answer.status, _words(answer), answer.headers)
        except RoostError as error:
            pause = _pause(request, error, number) if number < tries else None
            if pause is None:
                raise
        yield Wait(pause)
    raise AssertionError


def _words(answer: Answer) -> str:
    try:
        told = json.loads(answer.content)
        return str(told.get("error") or told["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"the server answered {answer.status}"


def _pause(request: Request, error: RoostError, number: int) -> float | None:
    """Seconds until another try, None: it would not be safe, or not help."""
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
    if isinstance(error, RateLimited):  # it was refused before anything was done
        wanted = error.retry_after or pause
        return wanted if wanted <= PATIENCE else None
    if isinstance(error, Unreachable) and not error.sent:
        return pause
    again = request.method in SAFE if request.repeatable is None else request.repeatable
    return pause if again and isinstance(error, Unreachable | Unavailable) else None


def given(**fields: object) -> dict[str, object]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def quoted(*parts: str) -> str:
    """A path of these parts, each one segment."""
    return "".join(f"/{urllib.parse.quote(part, safe='')}" for part in parts)


def pauses(longest: float) -> Iterator[float]:
    """Short ones first: most jobs are quick."""
    pause = 0.02
    while True:
        yield min(pause, longest)
        pause *= 1.6


# ---- streams -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    id: int
    data: Json


class Events:
    """Cuts a stream into events; what is unfinished at its end is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._name, self._id, self._data = "", 0, list[str]()

    def feed(self, data: bytes) -> Iterable[Event]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            field_name, _, value = line.rstrip(b"\r").decode().partition(":")
            value = value.removeprefix(" ")
            if field_name == "event":
                self._name = value
            elif field_name == "id":
                self._id = int(value)
            elif field_name == "data":
                self._data.append(value)
            elif not line.rstrip(b"\r"):
                if self._data:
                    yield Event(self._name or "message", self._id, json.loads("\n".join(self._data)))
                self._name, self._data = "", []


def follow(path: str, query: Mapping[str, object], last: int, item: Callable[[Json], T]) -> Flow[T]:
    """Each event after number `last`, over as many connections as it takes; returns what the last one says."""
    deadline, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
    while True:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
        try:
            yield from opened(Request("GET", path, query, headers=headers, timeout=SILENCE))
            events = Events()
            while data := cast(bytes, (yield Read())):
                deadline, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
                for event in events.feed(data):
                    if event.name == "end":
                        return event.data
                    if event.id > last:
                        last = event.id
                        yield Emit(item(event.data))
                        deadline = time.monotonic() + PATIENCE  # the caller may have taken long
        except (Unreachable, Unavailable):
            if time.monotonic() > deadline:
                raise
        yield Wait(pause)
        pause = min(LONGEST_PAUSE, pause * 2)


def read_all(request: Request) -> Flow[bytes]:
    """The body as it comes. A connection that breaks is an error: what follows might be of another version."""
    yield from opened(request)
    while data := cast(bytes, (yield Read())):
        yield Emit(data)
    return None
