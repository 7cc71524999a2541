"""Traces by OpenTelemetry's SDK, sent by OTLP over HTTP from a thread of its own.

A receiver that is down or slow delays nobody: what does not fit into the queue is dropped. The SDK's own variables
(OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_…) hold.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextvars import Token
from types import TracebackType
from typing import Self

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import FilteringBoundLogger

from roost import __version__
from roost.errors import Invalid, RoostError
from roost.tracing import CURRENT, NOTHING, Attributes, Kind

LAST_SPANS = 2.0  # seconds that the receiver has at the end
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"
KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
COMPLAINT_EVERY = 60.0  # seconds

_W3C = TraceContextTextMapPropagator()

log: FilteringBoundLogger = structlog.get_logger()


class Otlp:
    """Enters its spans from the event loop's thread alone. `endpoint` is the receiver's base URL."""

    on = True

    def __init__(self, endpoint: str) -> None:
        _require_protocol()
        self._ids = _Ids()
        own = Resource({"service.name": "roost", "service.version": __version__})
        resource = own.merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("roost", __version__)
        logger = logging.getLogger("opentelemetry")
        logger.handlers, logger.propagate = [_Complaints()], False

    async def close(self) -> None:
        """Sends what is left, for a limited time: the thread is a daemon and ends with the process."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=end, daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), LAST_SPANS)
        except TimeoutError:
            log.warning("traces.unsent", error=f"the receiver took longer than {LAST_SPANS:g} s at the end")

    def span(
        self,
        name: str,
        attributes: Attributes = NOTHING,
        kind: Kind = "internal",
        carried: Mapping[str, str] | None = None,
    ) -> "Recorded":
        parent = _W3C.extract(carried, Context()) if carried is not None else _context(CURRENT.get())
        return Recorded(self._tracer.start_span(name, parent, KINDS[kind], attributes=_known(attributes)))

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
        self._ids.planned = int(own.split("-")[2], 16) if own else 0
        try:
            span = self._tracer.start_span(
                name, _context(parent), KINDS[kind], attributes=_known(attributes), start_time=begun_ns
            )
        finally:
            self._ids.planned = 0
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(max(begun_ns, ended_ns))


class Recorded:
    """A span that is under way."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[str | None] | None = None

    @property
    def context(self) -> str | None:
        told = self._span.get_span_context()
        if not told.is_valid:  # OTEL_SDK_DISABLED
            return None
        return f"00-{told.trace_id:032x}-{told.span_id:016x}-{int(told.trace_flags) & 1:02x}"

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(_known(attributes))

    def name(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, why: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, why))

    def __enter__(self) -> Self:
        self._token = CURRENT.set(self.context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            CURRENT.reset(self._token)
        if error is not None:
            self.fail(str(error) if isinstance(error, RoostError) else type(error).__name__)  # others may hold secrets
        self._span.end()


class _Ids(RandomIdGenerator):
    """Random ones, but for a span whose id was told to somebody before it could be recorded."""

    planned = 0

    def generate_span_id(self) -> int:
        return self.planned or super().generate_span_id()


class _Complaints(logging.Handler):
    """The exporter's, as events like all others, and not for each batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + COMPLAINT_EVERY
            log.warning("traces.unsent", error=record.getMessage()[:300])


def _require_protocol() -> None:
    for name in PROTOCOL_VARIABLES:
        if os.environ.get(name, SPOKEN) != SPOKEN:
            raise Invalid(f"{name}: traces are sent as {SPOKEN} alone; unset it, or set it to that")


def _context(traceparent: str | None) -> Context:
    return _W3C.extract({"traceparent": traceparent}, Context()) if traceparent else Context()


def _known(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in attributes.items() if value is not None}
