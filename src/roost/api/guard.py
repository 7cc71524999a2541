"""Who calls, and whether they may: before a body is read, by the route's method or what it says itself.

GET and HEAD need the scope read, other methods and WebSockets run; `opt={"scope": …}` says otherwise, `opt={"first":
True}` wants the first account, for what concerns the whole installation, and `opt={"open": True}` lets everybody in.

A caller shows a token, or the cookie of a browser's session. A browser sends cookies whoever made it ask, and pages of
sandboxes may be of the same site. So a cookie counts only in requests that come from this very origin; those that
change something also need the session's token in X-CSRF-Token, and WebSockets, which cannot have that, their Origin.
"""

import hmac
from typing import TYPE_CHECKING, Any, cast

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from roost.accounts.scopes import Scope
from roost.accounts.tokens import Account
from roost.errors import Forbidden, Unauthenticated

if TYPE_CHECKING:
    from roost.api.plane import ControlPlane

SAFE = ("GET", "HEAD", "OPTIONS")
CHOSEN = "x-roost-account"  # header: the name of the account to speak for
CSRF = "x-csrf-token"
COOKIE = "roost_session"
PORTS = {"http": "80", "https": "443"}

Connection = ASGIConnection[Any, Any, Any, Any]

NEEDS: dict[Scope, str] = {
    "read": "this needs the scope read",
    "run": "this needs the scope run, and you have {scope}; ask an owner of the account for the role member",
    "admin": "this needs the scope admin, and you have {scope}; owners of the account have it, and tokens they make",
}


async def require_scope(connection: Connection, handler: BaseRouteHandler) -> None:
    """Raises Unauthenticated, Forbidden, Throttled, NotFound (an account that is not the caller's)."""
    if handler.opt.get("open"):
        return
    account = await caller(connection, connection.headers.get("authorization", ""))
    plane: ControlPlane = connection.app.state.plane
    await plane.quotas.require_request(account.id)
    connection.scope["user"] = account  # from here on refusals are in the audit log, as often as the quota allows
    require(account, handler.opt.get("scope") or _usual_scope(connection))
    if handler.opt.get("first") and not account.first:
        raise Forbidden("this concerns the whole installation; use a token of its first account")


async def require_still(connection: Connection, handler: BaseRouteHandler, begun_by: Account) -> None:
    """For an answer that goes on: raises what the request would be refused with now."""
    account = await caller(connection, connection.headers.get("authorization", ""))
    require(account, handler.opt.get("scope") or _usual_scope(connection))
    if account.id != begun_by.id:
        raise Unauthenticated("this request began in another account; send it again")


async def caller(connection: Connection, authorization: str) -> Account:
    plane: ControlPlane = connection.app.state.plane
    chosen = connection.headers.get(CHOSEN, "")
    if authorization:
        return await plane.tokens.account(authorization, chosen)
    if not (cookie := session_cookie(connection)):
        return await plane.tokens.account("")  # says what to send
    account = await plane.identity.sessions.account(cookie, chosen)
    require_same_origin(connection, sure=connection.scope["type"] == "websocket")
    if connection.scope["type"] == "http" and connection.scope["method"] not in SAFE:
        _require_csrf(connection, plane.identity.sessions.csrf(cookie))
    return account


def require(account: Account, wanted: Scope) -> None:
    if not account.may(wanted):
        raise Forbidden(NEEDS[wanted].format(scope=account.scope))


def _usual_scope(connection: Connection) -> Scope:
    return "read" if connection.scope["type"] == "http" and connection.scope["method"] in SAFE else "run"


# ---- browsers


def secure(connection: Connection) -> bool:
    """Whether the caller came by TLS; a proxy on this machine is believed (X-Forwarded-Proto)."""
    return connection.scope["scheme"] in ("https", "wss")


def cookie_name(connection: Connection, name: str = COOKIE) -> str:
    """By TLS one that no other host, as a sandbox's page, can set for ours."""
    return f"__Host-{name}" if secure(connection) else name


def session_cookie(connection: Connection) -> str:
    return one_cookie(connection, COOKIE)


def one_cookie(connection: Connection, name: str) -> str:
    """Empty: there is none. Raises Unauthenticated for several: one of them may be planted."""
    name = cookie_name(connection, name)
    parts = [part.strip().partition("=") for part in connection.headers.get("cookie", "").split(";")]
    found = {value for key, _, value in parts if key == name}
    if len(found) > 1:
        raise Unauthenticated(f"the browser sent several cookies {name!r}; delete this site's cookies and log in again")
    return found.pop() if found else ""


def require_same_origin(connection: Connection, sure: bool = False) -> None:
    """Raises Forbidden for what another site made the browser send; `sure`: also where nothing tells that."""
    headers = connection.headers
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        raise Forbidden(f"a page of another origin sent this (Sec-Fetch-Site: {site[:20]}); send it from this one")
    if origin is None and not sure:
        return
    if not _names(origin or "", headers.get("host", "")):
        raise Forbidden("the header Origin does not name this server; with a cookie, requests must come from its pages")


def _names(origin: str, host: str) -> bool:
    """Whether a page of that origin was served by what the caller knows as `host`. A proxy may have taken TLS off."""
    scheme, _, place = origin.lower().partition("://")
    if scheme not in PORTS or not place or not host:
        return False
    usual = f":{PORTS[scheme]}"
    return place.removesuffix(usual) == host.lower().removesuffix(usual)


def _require_csrf(connection: Connection, wanted: str) -> None:
    shown = connection.headers.get(CSRF, "")
    if not hmac.compare_digest(shown.encode("latin-1", "replace"), wanted.encode()):
        raise Forbidden("with a cookie this needs the header X-CSRF-Token; GET /api/v1/whoami tells its value")


def client_address(connection: Connection) -> str:
    client = cast(Any, connection.scope).get("client")
    return str(client[0]) if client else "unknown"
