"""A span for each HTTP request, until the last byte of its answer; in front of the application when traces are on."""

import re

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from roost.api.timing import METHODS
from roost.tracing import Tracer

UNTRACED = frozenset({"/metrics", "/api/v1/health", "/api/v2/health"})  # asked all the time, by nobody who waits
_KIND = re.compile(r":\w+\}")


class Traced:
    """`traceparent` and `tracestate` of the request are honoured. WebSockets pass."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            return await self._app(scope, receive, send)
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        carried = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        known = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
        with self._tracer.span(method, known, "server", carried) as span:

            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set({"http.response.status_code": message["status"]})
                    if message["status"] >= 500:
                        span.fail(f"status {message['status']}")
                await send(message)

            try:
                await self._app(scope, receive, seen)
            finally:
                template = scope.get("path_template")
                if isinstance(template, str):
                    route = _KIND.sub("}", template)
                    span.set({"http.route": route})
                    span.name(f"{method} {route}")
