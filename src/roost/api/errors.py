"""From conditions to answers: the one table, and the shape `{"error": "..."}` that every client reads."""

from typing import Any, cast

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from structlog.typing import FilteringBoundLogger

from roost import errors

STATUS: dict[type[errors.RoostError], int] = {
    errors.Invalid: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.NoCapacity: 429,
    errors.Throttled: 429,
    errors.Refused: 502,
    errors.Busy: 503,
    errors.ProviderUnavailable: 502,
    errors.Asleep: 503,
    errors.NodeUnavailable: 503,
    errors.MachineFault: 503,
    errors.SetupMissing: 503,
    errors.StateUnwritable: 503,
    errors.StoreUnavailable: 503,
}
INTERNAL = "internal error"
CLIENT_LEFT = "client disconnected prematurely"  # what the framework says of it

log: FilteringBoundLogger = structlog.get_logger()
Caller = Request[Any, Any, Any]


def answer(status: int, text: str, headers: dict[str, str] | None = None) -> Response[dict[str, str]]:
    return Response({"error": text}, status_code=status, headers=headers)


def condition(_request: Caller, error: errors.RoostError) -> Response[dict[str, str]]:
    status = STATUS.get(type(error), 500)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    if isinstance(error, errors.Throttled):
        headers = {"Retry-After": str(error.seconds)}
    return answer(status, str(error), headers)


def refusal(request: Caller, error: HTTPException) -> Response[dict[str, str]]:
    """What the framework itself refuses: unknown paths and methods, query parameters of the wrong type."""
    if isinstance(error, ValidationException):
        return answer(400, _complaints(error.extra))
    if error.status_code == 404:
        return answer(404, f"there is nothing at {request.method} {request.url.path[:200]}; see /docs")
    if error.status_code == 413:
        return answer(413, "the body is larger than the limit of this call (2 MiB for JSON)")
    if error.detail == CLIENT_LEFT:
        return answer(400, "the body did not come whole")  # which nobody reads: it is no fault of ours
    if error.status_code >= 500:
        return fault(request, error)
    return answer(error.status_code, error.detail, dict(error.headers or {}))


def _complaints(extra: Any) -> str:
    found = cast("list[dict[str, str]]", extra) if isinstance(extra, list) else []
    return "; ".join(_complaint(one) for one in found) or "bad request"


def _complaint(one: dict[str, str]) -> str:
    if one.get("key") == "data" or one.get("message") == "'data'":
        return "the body is missing; send a JSON object"
    return f"{one.get('key', 'request')}: {one.get('message', '').replace('`', '')}"


def fault(request: Caller, error: Exception) -> Response[dict[str, str]]:
    """Anything else is a fault of ours: whole in the log, without detail in the answer."""
    log.error("request.fault", method=request.method, path=request.url.path, exc_info=error)
    return answer(500, INTERNAL)
