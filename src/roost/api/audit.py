"""The audit log over HTTP."""

from typing import Annotated

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.params import Parameter

from roost.accounts.tokens import Account
from roost.api.plane import Plane
from roost.clock import now_ns, rfc3339

Caller = Request[Account, str, State]
MAX_LISTED = 1000
DAY_NS = 24 * 3600 * 10**9


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    at: str
    actor: str
    action: str
    resource: str | None
    address: str
    status: int


class AuditPage(msgspec.Struct, frozen=True):
    entries: list[AuditEntry]


@get(
    "/audit",
    opt={"scope": "admin"},
    summary="Who did what in your account, the newest first",
    description="`action`, `actor` and `resource`: how they begin. Go on with `before`, the last entry's id.",
)
async def list_entries(
    request: Caller,
    plane: Plane,
    before: Annotated[int | None, Parameter(ge=1, le=2**62)] = None,
    days: Annotated[int, Parameter(ge=1, le=36_500, description="How far back")] = 36_500,
    action: Annotated[str, Parameter(max_length=200)] = "",
    actor: Annotated[str, Parameter(max_length=200)] = "",
    resource: Annotated[str, Parameter(max_length=200)] = "",
    limit: Annotated[int, Parameter(ge=1, le=MAX_LISTED)] = 100,
) -> AuditPage:
    asked = {"action": action, "actor": actor, "resource": resource}
    filters = {name: value for name, value in asked.items() if value}
    since_ns = now_ns() - days * DAY_NS
    found = await plane.audit.newest(request.user.id, before, since_ns, filters, limit)
    return AuditPage(
        [
            AuditEntry(
                id=one.id,
                at=rfc3339(one.at_ns),
                actor=one.actor,
                action=one.action,
                resource=one.resource,
                address=one.address,
                status=one.status,
            )
            for one in found
        ]
    )
