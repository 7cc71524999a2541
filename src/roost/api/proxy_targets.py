"""Proxy targets over HTTP: the Jobs API's host names for a port of one sandbox, told by its IPv6 address.

`ProxyTarget` must satisfy the strict models of `magpie-cloud` clients: no null where they declare none, ids as text.
"""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post, put
from litestar.datastructures import State
from litestar.params import Parameter
from msgspec import Meta

from roost.accounts.tokens import Account
from roost.api.access import port_of
from roost.api.bodies import JsonBody
from roost.api.mags import Stopped
from roost.api.plane import Plane
from roost.clock import rfc3339
from roost.errors import Invalid
from roost.gateways import proxy_targets as rows
from roost.gateways.hosts import chosen, made_up
from roost.gateways.proxy_targets import Sandbox

Caller = Request[Account, str, State]
TargetId = Annotated[str, Parameter(description="Id of a proxy target")]
MAX_TEXT = 4096  # characters of a name or description


def _note(text: str) -> Meta:
    return Meta(description=text)


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """null counts as absent."""

    ipv6_address: Annotated[str | None, _note("Of a sandbox of yours that runs (required); brackets allowed")] = None
    port: Annotated[int | None, _note("In the sandbox; default 8080")] = None
    subdomain: Annotated[str | None, _note("A DNS label; made up when absent, and never changed later")] = None
    name: str | None = None
    description: str | None = None


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is absent stays."""

    ipv6_address: Annotated[str | None, _note("Of a sandbox of yours that runs; brackets allowed")] = None
    port: int | None = None
    name: str | None = None
    description: str | None = None


class ProxyTarget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    target_id: str  # the same; some clients look here
    subdomain: str
    ipv6_address: str
    port: int
    proxy_url: str
    request_id: str  # of the job that it follows
    created_at: str
    updated_at: str
    name: str | None = None
    description: str | None = None


class ProxyTargets(msgspec.Struct, frozen=True):
    proxy_targets: list[ProxyTarget]
    total: int


@post(
    "/proxy-targets",
    status_code=201,
    dto=JsonBody,
    return_dto=None,
    summary="Give a port of a sandbox a host name",
    description="It follows the sandbox's job through every wake. 400 for an address that is not your sandbox's.",
)
async def create(request: Caller, plane: Plane, data: Wanted) -> ProxyTarget:
    if not data.ipv6_address:
        raise Invalid("ipv6_address: missing; give that of one of your sandboxes")
    port = port_of("port", data.port)
    about = _text("name", data.name), _text("description", data.description)
    label = chosen(data.subdomain) if data.subdomain else made_up()
    to = _sandbox(plane, request.user.id, data.ipv6_address)
    made = await rows.create(plane.database, request.user.id, label, to, port, about)
    plane.routes.name_changed(label)
    return _record(plane, made)


@get("/proxy-targets", summary="List proxy targets, the newest first")
async def list_targets(request: Caller, plane: Plane) -> ProxyTargets:
    found = await rows.of_account(plane.database, request.user.id)
    return ProxyTargets([_record(plane, one) for one in found], len(found))


@get("/proxy-targets/{id:str}", summary="Show a proxy target")
async def show(request: Caller, plane: Plane, id: TargetId) -> ProxyTarget:
    return _record(plane, await rows.find(plane.database, request.user.id, id))


@put(
    "/proxy-targets/{id:str}",
    dto=JsonBody,
    return_dto=None,
    summary="Change where a proxy target leads, or its texts",
)
async def change(request: Caller, plane: Plane, id: TargetId, data: Change) -> ProxyTarget:
    found = await rows.find(plane.database, request.user.id, id)
    changed: dict[str, Any] = {
        "port": None if data.port is None else port_of("port", data.port),
        "name": _text("name", data.name),
        "description": _text("description", data.description),
    }
    changed = {field: value for field, value in changed.items() if value is not None}
    if data.ipv6_address and rows.address(data.ipv6_address) != found.ipv6_address:
        to = _sandbox(plane, request.user.id, data.ipv6_address)
        changed |= {"request_id": to.request_id, "ipv6_address": to.ipv6_address}
    changed_target = await rows.change(plane.database, found, **changed)
    plane.routes.name_changed(found.subdomain)
    return _record(plane, changed_target)


@delete("/proxy-targets/{id:str}", status_code=200, summary="Delete a proxy target")
async def remove(request: Caller, plane: Plane, id: TargetId) -> Stopped:
    found = await rows.find(plane.database, request.user.id, id)
    await rows.remove(plane.database, found)
    plane.routes.name_changed(found.subdomain)
    return Stopped(True, f"Proxy target '{found.subdomain}' deleted")


def _sandbox(plane: Plane, account_id: int, text: str) -> Sandbox:
    """Whose address it is. Raises Invalid: whatever is not the caller's own sandbox is none of our business."""
    address = rows.address(text)
    for run in plane.live.runs():
        its = run.state.ipv6 if run.state is not None and not run.over else None
        if run.job.account_id == account_id and its is not None and rows.address(its) == address:
            return Sandbox(run.job.request_id, address)
    raise Invalid(
        f"ipv6_address: {address} is not the address of a sandbox of yours that runs; "
        'POST /api/v1/mags-jobs/JOB/access {"port": 8080} tells a job\'s'
    )


def _text(field: str, text: str | None) -> str | None:
    if text is not None and len(text) > MAX_TEXT:
        raise Invalid(f"{field}: {len(text)} characters; at most {MAX_TEXT}")
    return text or None


def _record(plane: Plane, target: rows.ProxyTarget) -> ProxyTarget:
    return ProxyTarget(
        id=target.id,
        target_id=target.id,
        subdomain=target.subdomain,
        ipv6_address=target.ipv6_address,
        port=target.port,
        proxy_url=plane.routes.hosts.url(target.subdomain),
        request_id=target.request_id,
        created_at=rfc3339(target.created_ns),
        updated_at=rfc3339(target.updated_ns),
        name=target.name,
        description=target.description,
    )
