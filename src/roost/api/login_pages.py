"""The pages of the control plane that people see: /login, with the invitations of who is logged in; and /device, where
they let a program in.

Plain forms without scripts, so that the Content-Security-Policy can forbid all of those; nothing from elsewhere. Forms
carry the session's token, as the API wants it in X-CSRF-Token.
"""

import base64
import hashlib
import hmac
import urllib.parse
from html import escape
from typing import Any

from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import Cookie

from roost.accounts.audit import actor_of
from roost.accounts.invitations import Invitation
from roost.accounts.tokens import Account
from roost.api import guard
from roost.api.errors import STATUS
from roost.api.invitations import decide
from roost.api.login import HOME, Anybody, begin_session, check_password, local_path, redirect, session_cookie
from roost.api.plane import ControlPlane, Plane
from roost.errors import Forbidden, NotFound, RoostError, Throttled, Unauthenticated

OPEN = {"open": True}
MAX_FORM = 16384  # bytes
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem;color:#222;background:#fff}
label,button,.button{display:block;margin:.7rem 0}input{display:block;width:100%;box-sizing:border-box;font:inherit;
padding:.4rem}button,.button{font:inherit;padding:.4rem 1rem;border:1px solid #555;border-radius:4px;background:#eee;
color:#222;text-decoration:none;width:fit-content;cursor:pointer}.wrong{color:#a00}code{font-size:1.3em}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}.wrong{color:#f88}}
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none, browsers do not say which page a form is of
    "Cache-Control": "no-store",
}


@get("/login", include_in_schema=False, opt=OPEN)
async def login_page(request: Anybody, plane: Plane, next: str = HOME) -> Response[Any]:
    if (account := await _visitor(request)) is not None:
        return _page("Roost", await _at_home(request, plane, account))
    return _page("Log in to Roost", login_form(plane, local_path(next)))


@post("/login", status_code=200, include_in_schema=False, opt=OPEN)
async def log_in(request: Anybody, plane: Plane) -> Response[Any]:
    form = await _form(request)
    next = local_path(form.get("next", HOME))
    try:
        guard.require_same_origin(request)
        user = await check_password(request, plane, form.get("user", ""), form.get("password", ""))
        return redirect(next, await begin_session(request, plane, user))
    except RoostError as error:
        return _page("Log in to Roost", _wrong(error) + login_form(plane, next), error)


@post("/logout", status_code=200, include_in_schema=False, opt=OPEN)
async def log_out(request: Anybody, plane: Plane) -> Response[Any]:
    account = await _visitor(request)
    if account is not None:
        try:
            _require_own_form(request, plane, await _form(request))
        except RoostError as error:
            return _page("Roost", _wrong(error), error)
        await plane.identity.sessions.end(account)
        await _record(request, plane, account, "logout", None)
    return redirect(HOME, session_cookie(request, ""))


@get("/device", include_in_schema=False, opt=OPEN)
async def device_page(request: Anybody, plane: Plane, user_code: str = "") -> Response[Any]:
    account = await _visitor(request)
    if account is None:
        return _to_login(user_code)
    if not user_code:
        return _page("Log in a device", _code_form())
    try:
        device = await plane.identity.devices.waiting(user_code, account, guard.client_address(request))
    except RoostError as error:
        return _page("Log in a device", _wrong(error) + _code_form(), error)
    about = (
        f"<p><b>{escape(device.name)}</b>, which asked from {escape(device.address)}, wants to act as "
        f"you, <b>{escape(account.user_name or '')}</b>: scope {escape(device.scope)}, as far as your role allows, in "
        f"all of your accounts, beginning with <b>{escape(account.name)}</b>.</p>"
        f"<p>It must show this code: <code>{escape(user_code[:20].upper())}</code></p><p>If you did not begin this "
        "yourself, refuse.</p>"
    )
    fields = _hidden("user_code", user_code) + _csrf(request, plane)
    buttons = (
        '<button name="decision" value="approve">Let it in</button><button name="decision" value="deny">Refuse</button>'
    )
    return _page("Log in a device", f'{about}<form method="post" action="/device">{fields}{buttons}</form>')


@post("/device", status_code=200, include_in_schema=False, opt=OPEN)
async def decide_device(request: Anybody, plane: Plane) -> Response[Any]:
    form = await _form(request)
    user_code, decision = form.get("user_code", ""), form.get("decision")
    account = await _visitor(request)
    if account is None:
        return _to_login(user_code)
    try:
        _require_own_form(request, plane, form)
        if decision not in ("approve", "deny"):
            raise NotFound("the form is not one of this page's; open /device again")
        device = await plane.identity.devices.waiting(user_code, account, guard.client_address(request))
        await plane.identity.devices.decide(user_code, account, decision == "approve")
        await _record(request, plane, account, f"device {decision}", device.name)
    except RoostError as error:
        return _page("Log in a device", _wrong(error) + _code_form(), error)
    words = "The device is logged in" if decision == "approve" else "The device was refused"
    return _page("Log in a device", f"<p>{words}. You can close this page.</p>")


@post("/invitation", status_code=200, include_in_schema=False, opt=OPEN)
async def decide_invitation(request: Anybody, plane: Plane) -> Response[Any]:
    form = await _form(request)
    name, decision = form.get("account", ""), form.get("decision")
    account = await _visitor(request)
    if account is None:
        return redirect(HOME)
    try:
        _require_own_form(request, plane, form)
        if decision != "accept" and decision != "decline":
            raise NotFound("the form is not one of this page's; open /login again")
        await decide(request, plane, account, name, decision)
        await _record(request, plane, account, f"own invitation {decision}", name)
    except RoostError as error:
        return _page("Roost", _wrong(error) + await _at_home(request, plane, account), error)
    return redirect(HOME)


def login_form(plane: ControlPlane, next: str) -> str:
    """A password, and the provider where there is one."""
    query = urllib.parse.urlencode({"next": next})
    provider = f'<a class="button" href="/api/v1/login/oidc?{escape(query)}">Log in with OpenID Connect</a>'
    return (
        f'<form method="post" action="/login">{_hidden("next", next)}'
        '<label>User or e-mail address<input name="user" autocomplete="username" required autofocus></label>'
        '<label>Password<input name="password" type="password" autocomplete="current-password" required></label>'
        f"<button>Log in</button></form>{provider if plane.identity.oidc is not None else ''}"
        "<small>No user yet? Whoever runs this Roost makes one, on its machine: "
        "<code>sudo roost user add NAME --role owner</code></small>"
    )


def refused(plane: ControlPlane, error: RoostError, *cookies: Cookie) -> Response[str]:
    """The login page, with what was wrong."""
    return _page("Log in to Roost", _wrong(error) + login_form(plane, HOME), error, *cookies)


async def _visitor(request: Anybody) -> Account | None:
    """Whose session the browser has. These pages are led to from anywhere; what they change has its own check."""
    plane: ControlPlane = request.app.state.plane
    try:
        cookie = guard.session_cookie(request)
        return await plane.identity.sessions.account(cookie) if cookie else None
    except Unauthenticated:
        return None


async def _record(request: Anybody, plane: ControlPlane, account: Account, action: str, resource: str | None) -> None:
    """These pages are not among the API's routes, which tell of themselves."""
    address = guard.client_address(request)
    told = {"actor": actor_of(account), "action": action, "resource": resource, "address": address, "status": 200}
    await plane.audit.record(account_id=account.id, **told)


async def _form(request: Request[Any, Any, Any]) -> dict[str, str]:
    body = (await request.body())[:MAX_FORM].decode("utf-8", "replace")
    return dict(urllib.parse.parse_qsl(body, max_num_fields=20))


def _require_own_form(request: Anybody, plane: ControlPlane, form: dict[str, str]) -> None:
    guard.require_same_origin(request)
    wanted = plane.identity.sessions.csrf(guard.session_cookie(request))
    if not hmac.compare_digest(form.get("csrf_token", "").encode(), wanted.encode()):
        raise Forbidden("the form is of another session; open the page again")


def _to_login(user_code: str) -> Response[Any]:
    query = f"?{urllib.parse.urlencode({'user_code': user_code})}" if user_code else ""
    return redirect(f"/login?{urllib.parse.urlencode({'next': f'/device{query}'})}")


async def _at_home(request: Anybody, plane: ControlPlane, account: Account) -> str:
    invitations = await plane.identity.invitations.of_user(account.user_id or 0)
    return (
        f"<p>You are logged in as <b>{escape(account.user_name or '')}</b>, in the account "
        f"<b>{escape(account.name)}</b>.</p>"
        f"{''.join(_invitation(request, plane, one) for one in invitations)}"
        '<a class="button" href="/device">Log in a device</a>'
        f'<form method="post" action="/logout">{_csrf(request, plane)}<button>Log out</button></form>'
    )


def _invitation(request: Anybody, plane: ControlPlane, one: Invitation) -> str:
    by = f"<b>{escape(one.invited_by)}</b> invites you" if one.invited_by else "You are invited"
    return (
        f'<form method="post" action="/invitation">{_csrf(request, plane)}{_hidden("account", one.account)}'
        f"{by} to the account <b>{escape(one.account)}</b>, as {escape(one.role)}."
        '<button name="decision" value="accept">Accept</button>'
        '<button name="decision" value="decline">Decline</button></form>'
    )


def _code_form() -> str:
    return (
        '<form method="get" action="/device"><label>The code that the device shows'
        '<input name="user_code" autocomplete="off" required autofocus></label><button>Go on</button></form>'
    )


def _csrf(request: Anybody, plane: ControlPlane) -> str:
    return _hidden("csrf_token", plane.identity.sessions.csrf(guard.session_cookie(request)))


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{escape(value)}">'


def _wrong(error: RoostError) -> str:
    return f'<p class="wrong" role="alert">{escape(str(error))}</p>'


def _page(title: str, content: str, error: RoostError | None = None, *cookies: Cookie) -> Response[str]:
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{content}</html>"
    )
    headers = HEADERS | ({"Retry-After": str(error.seconds)} if isinstance(error, Throttled) else {})
    status = 200 if error is None else STATUS.get(type(error), 500)
    return Response(text, media_type=MediaType.HTML, status_code=status, headers=headers, cookies=list(cookies))
