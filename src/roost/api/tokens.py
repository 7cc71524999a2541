"""API tokens: made and shown once, listed, revoked. Owners see all of the account's, others their own."""

from datetime import datetime
from typing import Annotated

import msgspec
from litestar import delete, get, post
from msgspec import Meta

from roost.accounts import scopes
from roost.accounts.tokens import MAX_LIFETIME, SECOND, Token
from roost.api.bodies import JsonBody
from roost.api.mags import Caller
from roost.api.plane import Plane
from roost.clock import now_ns, rfc3339
from roost.errors import Invalid, NotFound


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    scope: Annotated[str, Meta(description="read, run (default) or admin; at most what you have yourself")] = "run"
    expires_in: Annotated[int | None, Meta(description="Seconds; default: it does not expire")] = None
    expires_at: Annotated[str | None, Meta(description="The instant instead, as RFC 3339")] = None


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    scope: str
    created_at: str
    created_by: str | None
    expires_at: str | None
    last_used_at: str | None
    login: Annotated[bool, Meta(description="`roost login` made it")]


class MadeToken(TokenRecord, frozen=True, kw_only=True):
    token: Annotated[str, Meta(description="Shown this once")]


class TokenList(msgspec.Struct, frozen=True):
    tokens: list[TokenRecord]


class Revoked(msgspec.Struct, frozen=True):
    success: bool
    message: str


OWN = {"scope": "read"}  # people decide about their own; what is whose is decided with the rows


@post("/tokens", status_code=201, dto=JsonBody, return_dto=None, summary="Make an API token", opt=OWN)
async def create(request: Caller, plane: Plane, data: NewToken) -> MadeToken:
    expires_ns = _expiry(data)
    made, secret = await plane.tokens.create(request.user, data.name.strip(), scopes.scope(data.scope), expires_ns)
    return MadeToken(token=secret, **msgspec.structs.asdict(_told(made)))


@get("/tokens", summary="List API tokens")
async def list_tokens(request: Caller, plane: Plane) -> TokenList:
    return TokenList([_told(token) for token in await plane.tokens.listed(request.user)])


@delete("/tokens/{token_id:str}", status_code=200, summary="Revoke an API token at once", opt=OWN)
async def revoke(request: Caller, plane: Plane, token_id: str) -> Revoked:
    if not (token_id.isascii() and token_id.isdigit() and len(token_id) < 18):
        raise NotFound(f"there is no token {token_id[:40]!r} here; list them to see their ids")
    await plane.tokens.revoke(request.user, int(token_id))
    return Revoked(True, "Token revoked")


def _expiry(wanted: NewToken) -> int | None:
    if wanted.expires_in is not None and wanted.expires_at is not None:
        raise Invalid("expires_at: give expires_in or expires_at, not both")
    seconds = wanted.expires_in
    if wanted.expires_at is not None:
        seconds = _instant(wanted.expires_at).timestamp() - now_ns() / SECOND
    if seconds is None:
        return None
    if not 0 < seconds <= MAX_LIFETIME:
        field = "expires_in" if wanted.expires_at is None else "expires_at"
        raise Invalid(f"{field}: must lie in the future, and within ten years; leave it out for a token without end")
    return now_ns() + int(seconds * SECOND)


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise Invalid(f"expires_at: {text[:40]!r} is no instant like 2027-01-31T12:00:00Z")
    return instant


def _told(token: Token) -> TokenRecord:
    return TokenRecord(
        id=str(token.id),
        name=token.name,
        scope=token.scope,
        created_at=rfc3339(token.created_ns),
        created_by=token.user_name,
        expires_at=None if token.expires_ns is None else rfc3339(token.expires_ns),
        last_used_at=None if token.last_used_ns is None else rfc3339(token.last_used_ns),
        login=token.roams,
    )
