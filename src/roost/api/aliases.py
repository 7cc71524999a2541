"""Aliases over HTTP: chosen host names that follow a workspace's job."""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from litestar.datastructures import State
from litestar.params import Parameter
from msgspec import Meta

from roost.accounts.tokens import Account
from roost.api.access import port_of, signed, terms_of
from roost.api.bodies import JsonBody
from roost.api.mags import Stopped
from roost.api.plane import Plane
from roost.clock import rfc3339
from roost.errors import Invalid
from roost.gateways import admission, aliases
from roost.gateways.aliases import Alias, Leading
from roost.gateways.hosts import Name, chosen
from roost.gateways.routes import Routes
from roost.workspaces import workspace

Caller = Request[Account, str, State]
Label = Annotated[str, Parameter(description="Subdomain of an alias")]
Domain = Annotated[str | None, Parameter(description="Needed where the subdomain is there in several domains")]


def _note(text: str) -> Meta:
    return Meta(description=text)


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """null counts as absent."""

    subdomain: Annotated[str | None, _note("A DNS label (required): 1 to 63 of a-z, 0-9 and -")] = None
    workspace_id: Annotated[str | None, _note("The workspace whose job it leads to (required)")] = None
    domain: Annotated[
        str | None,
        _note("One that is configured; default the first. apps.magpiecloud.com and app.lfg.run mean the first, too"),
    ] = None
    port: Annotated[int | None, _note("In the sandbox; default 8080")] = None
    access: Annotated[str | None, _note('"public" (default), "token" or "signed"')] = None
    expires_in: Annotated[int | None, _note("Of a signed URL: seconds, 1 to 604800; default 3600")] = None


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    expires_in: Annotated[int | None, _note("Seconds, 1 to 604800; default 3600")] = None


class AliasRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    subdomain: str
    url: str
    workspace_id: str
    domain: str
    port: int
    access: str
    created_at: str
    access_token: str | None = None  # shown once
    expires_at: str | None = None  # of a signed `url`


class AliasList(msgspec.Struct, frozen=True):
    aliases: list[AliasRecord]
    total: int


@post(
    "/mags-url-aliases",
    status_code=201,
    dto=JsonBody,
    return_dto=None,
    summary="Give a workspace a host name",
    description=(
        "It leads to the port of whatever job has the workspace, wakes it, and stays when that job ends. 409 for a "
        "name that is taken; 400 for one that nobody may have."
    ),
)
async def create(request: Caller, plane: Plane, data: Wanted) -> AliasRecord:
    for field in ("subdomain", "workspace_id"):
        if not getattr(data, field):
            raise Invalid(f"{field}: missing; give it")
    name = Name(chosen(data.subdomain or ""), plane.routes.hosts.domain(data.domain))
    kind, expires = terms_of(data.access, data.expires_in)
    port = port_of("port", data.port)
    found = await workspace.find(plane.database, request.user.id, data.workspace_id or "")
    token, token_hash = admission.new_token() if kind == "token" else (None, None)
    made = await aliases.create(
        plane.database, request.user.id, name, Leading(found.name, port, kind or "public", token_hash)
    )
    plane.routes.name_changed(name.label)
    return _record(plane.routes, made, access_token=token, **_signed(plane.routes, made, expires))


@get("/mags-url-aliases", summary="List aliases, the newest first")
async def list_aliases(request: Caller, plane: Plane) -> AliasList:
    found = await aliases.of_account(plane.database, request.user.id)
    return AliasList([_record(plane.routes, one) for one in found], len(found))


@delete("/mags-url-aliases/{subdomain:str}", status_code=200, summary="Remove an alias")
async def remove(request: Caller, plane: Plane, subdomain: Label, domain: Domain = None) -> Stopped:
    found = await aliases.find(plane.database, request.user.id, subdomain.lower(), _meant(plane, domain))
    await aliases.remove(plane.database, found)
    plane.routes.name_changed(found.subdomain)
    return Stopped(True, f"Alias '{found.name.host}' deleted")


@post(
    "/mags-url-aliases/{subdomain:str}/link",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Sign another link to an alias whose access is signed",
)
async def sign(request: Caller, plane: Plane, subdomain: Label, data: Link, domain: Domain = None) -> AliasRecord:
    expires = admission.expiry(data.expires_in)
    found = await aliases.find(plane.database, request.user.id, subdomain.lower(), _meant(plane, domain))
    if found.access != "signed":
        raise Invalid(f'alias {found.name.host!r} has access "{found.access}"; links are for "signed" ones')
    return _record(plane.routes, found, **_signed(plane.routes, found, expires))


def _meant(plane: Plane, domain: str | None) -> str | None:
    return None if domain is None else plane.routes.hosts.domain(domain)


def _signed(routes: Routes, alias: Alias, expires: int) -> dict[str, str]:
    return signed(routes, alias.subdomain, alias.domain, alias.terms, expires)


def _record(routes: Routes, alias: Alias, **more: Any) -> AliasRecord:
    told: dict[str, Any] = {"url": routes.hosts.url(alias.subdomain, alias.domain), **more}
    return AliasRecord(
        id=alias.id,
        subdomain=alias.subdomain,
        workspace_id=alias.workspace,
        domain=alias.domain,
        port=alias.port,
        access=alias.access,
        created_at=rfc3339(alias.created_ns),
        **told,
    )
