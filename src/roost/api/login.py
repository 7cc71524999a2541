"""Logging in and out by HTTP: passwords, an OpenID provider, devices; and who one is.

Browsers get the session's cookie, which no script can read; programs get a token. `login_pages.py` is for people.
"""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post, route
from litestar.datastructures import Cookie
from msgspec import Meta

from roost.accounts import scopes
from roost.accounts.devices import NotGranted
from roost.accounts.sessions import LIFETIME
from roost.accounts.tokens import Account
from roost.accounts.users import User
from roost.api import guard
from roost.api.bodies import JsonBody
from roost.api.mags import Caller
from roost.api.members import AccountRecord, accounts_of
from roost.api.plane import ControlPlane, Plane
from roost.api.query import ANY
from roost.errors import Invalid, NotFound, RoostError, Unauthenticated

OPEN = {"open": True}
OWN = {"scope": "read"}
OIDC_COOKIE = "roost_oidc"
GRANT = "urn:ietf:params:oauth:grant-type:device_code"
HOME = "/login"  # where people are led who did not say where they want to go

Anybody = Request[Any, Any, Any]


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: Annotated[str, Meta(description="Name or e-mail address")]
    password: str


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    account: str


class TokenUsed(msgspec.Struct, frozen=True):
    id: str
    name: str


class Who(msgspec.Struct, frozen=True, kw_only=True):
    user: Annotated[str | None, Meta(description="None: a token that nobody made, as the first one of all")]
    account: str
    role: str | None
    scopes: list[str]
    accounts: list[AccountRecord]
    authentication: Annotated[str, Meta(description="session or token")]
    token: TokenUsed | None
    csrf_token: Annotated[str | None, Meta(description="Of a session: send it as X-CSRF-Token")]


class LoggedOut(msgspec.Struct, frozen=True):
    success: bool
    revoked: Annotated[bool, Meta(description="False: the token was not made by logging in, and stays")]


@post(
    "/login",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Log in a browser with a password",
    description="Sets the cookie roost_session. 429 with Retry-After after too many tries.",
    opt=OPEN,
)
async def log_in(request: Anybody, plane: Plane, data: Credentials) -> Response[Who]:
    guard.require_same_origin(request)
    user = await check_password(request, plane, data.user, data.password)
    cookie = await begin_session(request, plane, user)
    account = await plane.identity.sessions.account(cookie.value or "")
    who = await _who(plane, account, plane.identity.sessions.csrf(cookie.value or ""))
    return Response(who, cookies=[cookie], headers={"Cache-Control": "no-store"})


@route(
    "/logout",
    http_method=["POST", "DELETE"],
    status_code=200,
    summary="Log out: end the session, or the token that `roost login` made",
    opt=OWN,
)
async def log_out(request: Caller, plane: Plane) -> Response[LoggedOut]:
    if request.user.session_id is None:
        return Response(LoggedOut(True, await plane.tokens.log_out(request.user)))
    await plane.identity.sessions.end(request.user)
    return Response(LoggedOut(True, True), cookies=[session_cookie(request, "")])


@get("/whoami", summary="Show who you are here, and what you may do")
async def whoami(request: Caller, plane: Plane) -> Response[Who]:
    csrf = None
    if request.user.session_id is not None:
        csrf = plane.identity.sessions.csrf(guard.session_cookie(request))
    return Response(await _who(plane, request.user, csrf), headers={"Cache-Control": "no-store"})


@post(
    "/switch",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Speak for another of your accounts from now on",
    description="For one request alone, name it in the header X-Roost-Account.",
    opt=OWN,
)
async def switch(request: Caller, plane: Plane, data: Chosen) -> AccountRecord:
    by = request.user
    doors = plane.identity.sessions if by.session_id is not None else plane.tokens
    if not data.account:
        raise NotFound("account: empty; GET /api/v1/accounts lists yours")
    await doors.switch(by, data.account)
    mine = await accounts_of(plane, by)
    role = next((one.role for one in mine if one.name == data.account), None)
    return AccountRecord(name=data.account, role=role, current=True)


# ---- OpenID Connect


@get("/login/oidc", status_code=302, summary="Log in a browser at the OpenID provider", opt=OPEN)
async def log_in_oidc(request: Anybody, plane: Plane, next: str = HOME) -> Response[None]:
    if plane.identity.oidc is None:
        raise NotFound("there is no OpenID provider here; `roost up --oidc-issuer` sets one")
    url, sealed = await plane.identity.oidc.begin(f"{origin(request)}/api/v1/login/oidc/callback", local_path(next))
    return redirect(url, _cookie(request, OIDC_COOKIE, sealed, 600))


@get(
    "/login/oidc/callback",
    status_code=302,
    summary="Where the OpenID provider sends the browser back",
    opt=OPEN | {"query": ANY, "changes": True},
)
async def log_in_oidc_callback(request: Anybody, plane: Plane) -> Response[Any]:
    from roost.api.login_pages import refused

    if plane.identity.oidc is None:
        raise NotFound("there is no OpenID provider here; `roost up --oidc-issuer` sets one")
    answer = {name: str(value) for name, value in request.query_params.items()}
    gone = _cookie(request, OIDC_COOKIE, "", 0)
    try:
        user, next = await plane.identity.oidc.finish(guard.one_cookie(request, OIDC_COOKIE), answer)
        cookie = await begin_session(request, plane, user)
    except RoostError as error:
        return refused(plane, error, gone)
    return redirect(next, cookie, gone)


# ---- devices


class NewDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    client_name: Annotated[str, Meta(description="What its user will recognise, like 'roost on laptop'")] = ""
    client_id: Annotated[str, Meta(description="RFC 8628 has it; any is accepted")] = ""
    scope: Annotated[str, Meta(description="read, run or admin (default); the user's role may allow less")] = "admin"


class DeviceCode(msgspec.Struct, frozen=True):
    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


class DeviceQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_code: str
    grant_type: str = GRANT
    client_id: str = ""


class DeviceToken(msgspec.Struct, frozen=True):
    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - RFC 6749's word


class DeviceRefusal(msgspec.Struct, frozen=True):
    error: str
    error_description: str


@post(
    "/device/code",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Begin to log in a program by a browser (RFC 8628)",
    opt=OPEN,
)
async def begin_device(request: Anybody, plane: Plane, data: NewDevice | None = None) -> DeviceCode:
    wanted = data or NewDevice()
    name, address = wanted.client_name or wanted.client_id, guard.client_address(request)
    begun = await plane.identity.devices.begin(name, scopes.scope(wanted.scope), address)
    page = f"{origin(request)}/device"
    return DeviceCode(
        begun.device_code,
        begun.user_code,
        page,
        f"{page}?user_code={begun.user_code}",
        begun.expires_in,
        begun.interval,
    )


@post(
    "/device/token",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Ask for the token of a login that was begun",
    description="400 with error authorization_pending, slow_down, expired_token or access_denied until there is one.",
    opt=OPEN,
)
async def ask_device(plane: Plane, data: DeviceQuestion) -> Response[Any]:
    if data.grant_type != GRANT:
        raise Invalid(f"grant_type: give {GRANT}")
    headers = {"Cache-Control": "no-store"}
    try:
        token = await plane.identity.devices.ask(data.device_code)
    except NotGranted as error:
        return Response(DeviceRefusal(error.code, str(error)), status_code=400, headers=headers)
    return Response(DeviceToken(token), headers=headers)


# ---- shared with the pages


async def check_password(request: Anybody, plane: ControlPlane, name: str, password: str) -> User:
    """As Users.check. What fails is told to the user's own account, and to the first one if there is no such user."""
    try:
        return await plane.identity.users.check(name, password, guard.client_address(request))
    except Unauthenticated:  # not Throttled: so the throttle bounds the entries that a guesser makes
        owner, shown = await plane.identity.users.tried(name)
        # without waiting: the time must not tell who exists
        plane.audit.record_soon(account_id=owner, **_login(request, shown, 401))
        raise


def _login(request: Anybody, name: str, status: int) -> dict[str, Any]:
    return {
        "actor": f"user {name}",
        "action": "login",
        "address": guard.client_address(request),
        "status": status,
    }


async def begin_session(request: Anybody, plane: ControlPlane, user: User) -> Cookie:
    """Always another than the browser had: one that was planted there is worth nothing after a login."""
    await plane.audit.record(account_id=user.account_id, **_login(request, user.name, 200))
    return session_cookie(request, await plane.identity.sessions.begin(user.id, guard.session_cookie(request)))


def session_cookie(request: Anybody, value: str) -> Cookie:
    """Empty: the browser shall forget it."""
    return _cookie(request, guard.COOKIE, value, LIFETIME if value else 0)


def _cookie(request: Anybody, name: str, value: str, seconds: int) -> Cookie:
    return Cookie(
        guard.cookie_name(request, name),
        value=value,
        max_age=seconds,
        secure=guard.secure(request),
        httponly=True,
        samesite="lax",
    )


def redirect(url: str, *cookies: Cookie) -> Response[None]:
    headers = {"Location": url, "Cache-Control": "no-store"}
    return Response(None, status_code=302, headers=headers, cookies=list(cookies))


def origin(request: Anybody) -> str:
    """This server, as the caller reached it."""
    return f"{'https' if guard.secure(request) else 'http'}://{request.headers.get('host', 'localhost')}"


def local_path(wanted: str) -> str:
    """Never another host, however the browser reads it."""
    plain = wanted.isascii() and wanted.isprintable() and "\\" not in wanted and " " not in wanted
    return wanted if plain and wanted.startswith("/") and not wanted.startswith("//") else HOME


async def _who(plane: ControlPlane, by: Account, csrf: str | None) -> Who:
    used = TokenUsed(str(by.token_id), by.token_name or "") if by.token_id is not None else None
    return Who(
        user=by.user_name,
        account=by.name,
        role=by.role,
        scopes=[scope for scope in scopes.SCOPES if by.may(scope)],
        accounts=await accounts_of(plane, by),
        authentication="token" if by.session_id is None else "session",
        token=used,
        csrf_token=csrf,
    )
