"""The span of a request that has to wait until its sandbox is awake; the others leave none, for they are many."""

from typing import TYPE_CHECKING

from roost.gateways.http.routing import Route
from roost.tracing import OFF, Span, Tracer, current

if TYPE_CHECKING:
    from roost.gateways.http.request import Request


def of_wake(tracer: Tracer, request: "Request", route: Route) -> Span:
    """Until there is a connection into the sandbox, or an error that says why not."""
    if not tracer.on or (route.run is not None and route.run.awake):
        return OFF.span("")
    names = (b"traceparent", b"tracestate")
    carried = {name.decode(): value.decode("latin-1") for name, value in request.headers if name in names}
    known = {"http.request.method": request.method.decode("latin-1"), "server.address": request.host}
    return tracer.span("gateway.request", {**known, "server.port": route.port}, "server", carried)


def of_dial(tracer: Tracer, vm_id: str, port: int) -> Span:
    """Below the former, if this task is in one."""
    if current() is None:
        return OFF.span("")
    return tracer.span("sandbox.dial", {"vm_id": vm_id, "port": port}, "client")
