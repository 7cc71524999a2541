"""Traces, from a request to the script in its sandbox: what the rest of Roost says to whatever records them.

Off by default: then nothing of OpenTelemetry is imported, and each call here does nothing. `otlp.py` is the one that
records. A span's context is passed and kept as W3C `traceparent` text: `00-TRACE-SPAN-FLAGS`.
"""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Literal, Protocol, Self, TypeAlias
from urllib.parse import urlsplit

from roost.errors import Invalid

Value: TypeAlias = str | int | float | bool | None  # None: left out
Attributes: TypeAlias = Mapping[str, Value]
Kind: TypeAlias = Literal["internal", "server", "client"]

GUEST_VARIABLE = "TRACEPARENT"  # in a script's environment
NOTHING: Attributes = {}

CURRENT: ContextVar[str | None] = ContextVar("traceparent", default=None)  # of the span that this task is in


class Span(Protocol):
    """Entered, it is the parent of what is begun in its task; it ends when it is left. An exception marks it failed."""

    @property
    def context(self) -> str | None:
        """None: nothing is traced."""
        ...

    def set(self, attributes: Attributes) -> None: ...
    def name(self, name: str) -> None: ...
    def fail(self, why: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """Neither waits nor raises. Instants are nanoseconds since the epoch."""

    @property
    def on(self) -> bool: ...

    def span(
        self,
        name: str,
        attributes: Attributes = NOTHING,
        kind: Kind = "internal",
        carried: Mapping[str, str] | None = None,
    ) -> Span:
        """A child of the present one; with `carried`, of what those headers (by lower-case names) tell."""
        ...

    def record(
        self,
        name: str,
        begun_ns: int,
        ended_ns: int,
        parent: str,
        attributes: Attributes = NOTHING,
        *,
        own: str | None = None,
        kind: Kind = "internal",
        error: str | None = None,
    ) -> None:
        """What is over already, under `parent`; `own` is its context where that was told before (`child`)."""
        ...


class NoSpan:
    context: str | None = None

    def set(self, attributes: Attributes) -> None: ...
    def name(self, name: str) -> None: ...
    def fail(self, why: str) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Off:
    """Traces nothing."""

    on = False
    _span = NoSpan()

    def span(
        self,
        name: str,
        attributes: Attributes = NOTHING,
        kind: Kind = "internal",
        carried: Mapping[str, str] | None = None,
    ) -> NoSpan:
        return self._span

    def record(
        self,
        name: str,
        begun_ns: int,
        ended_ns: int,
        parent: str,
        attributes: Attributes = NOTHING,
        *,
        own: str | None = None,
        kind: Kind = "internal",
        error: str | None = None,
    ) -> None: ...


OFF = Off()


def current() -> str | None:
    """The `traceparent` of the span that this task is in."""
    return CURRENT.get()


def child(parent: str, name: str) -> str:
    """The context of the one span below `parent`'s trace that `name` stands for: the same after a restart."""
    version, trace, _, flags = parent.split("-")
    return f"{version}-{trace}-{hashlib.sha256(name.encode()).hexdigest()[:16]}-{flags}"


def require_endpoint(url: str | None) -> None:
    """Raises Invalid. None: no traces."""
    if url is None:
        return
    how = "give the base URL of an OTLP/HTTP receiver, like http://127.0.0.1:4318"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f"--otlp-endpoint {url[:200]!r}: {error}; {how}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Invalid(f"--otlp-endpoint {url[:200]!r} is not an http:// or https:// URL with a host; {how}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise Invalid(
            "--otlp-endpoint: no user, query or fragment; credentials go into OTEL_EXPORTER_OTLP_HEADERS; " + how
        )


@contextlib.asynccontextmanager
async def tracing(endpoint: str | None) -> AsyncGenerator[Tracer]:
    """What records for as long as the block lasts. Raises Invalid."""
    require_endpoint(endpoint)
    if endpoint is None:
        yield OFF
        return
    from roost.otlp import Otlp  # 12 MB that others do without

    tracer = Otlp(endpoint)
    try:
        yield tracer
    finally:
        await tracer.close()
