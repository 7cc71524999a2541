"""What goes into the audit log: every call that changes something, and those that show secrets, once it is answered.

The entry is durable before the answer is sent. Calls that are made often and whose effect is durable itself (jobs,
commands, files) are written with the next commit instead: a crash in that moment loses the entry, not the effect.
"""

from typing import Any, cast

import msgspec
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, HTTPResponseStartEvent, Message, Receive, Scope, Send

from roost.accounts.audit import Audit, actor_of
from roost.accounts.tokens import Account
from roost.api.errors import STATUS
from roost.errors import StateUnwritable

SAFE = ("GET", "HEAD", "OPTIONS")
PREFIX = "/api/v1"
OFTEN = ("/mags-jobs", "/mags-files", "/mags-workspaces", "/jobs", "/quotas")  # where paths begin
NAMES = ("id", "request_id", "name", "file_id", "account", "user")  # of an answer: what was made, chosen or invited
MOST = 64 * 1024  # bytes of an answer that is looked into


def is_audited(handler: BaseRouteHandler, method: str) -> bool:
    """`opt={"audit": True}`: also a call that only reads, since what it shows is a secret."""
    return method not in SAFE or bool(handler.opt.get("audit"))


def audited(app: ASGIApp) -> ASGIApp:
    """Middleware of the API's routes."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        handler = cast(BaseRouteHandler, cast(Any, scope)["route_handler"])
        method = str(cast(Any, scope).get("method", "WEBSOCKET"))
        if not is_audited(handler, method):
            await app(scope, receive, send)
            return
        started: HTTPResponseStartEvent | None = None
        replaced = False

        async def recorded(message: Message) -> None:
            nonlocal started, replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                started = message
                return
            if message["type"] == "websocket.accept":
                await _record(scope, method, 101, b"")
            if started is not None:
                try:
                    await _record(scope, method, int(started["status"]), cast(Any, message).get("body", b""))
                except StateUnwritable as error:  # for the framework the answer has begun: it would end it with 500
                    replaced = True
                    await _refuse(error, send)
                    return
                await send(started)
                started = None
            await send(message)

        await app(scope, receive, recorded)

    return call


async def _refuse(error: StateUnwritable, send: Send) -> None:
    body = msgspec.json.encode({"error": str(error)})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": STATUS[StateUnwritable], "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _record(scope: Scope, method: str, status: int, body: bytes) -> None:
    account = cast("Account | None", cast(Any, scope).get("user"))
    if account is None:
        return  # nobody yet: logins tell of themselves
    audit: Audit = cast(Any, scope)["litestar_app"].state.plane.audit
    path = str(cast(Any, scope)["path_template"]).removeprefix(PREFIX)
    client = cast(Any, scope).get("client")
    told: dict[str, Any] = {
        "account_id": account.id,
        "actor": actor_of(account),
        "action": f"{method} {path}",
        "resource": _resource(scope, status, body),
        "address": str(client[0]) if client else "unknown",
        "status": status,
    }
    if path.startswith(OFTEN) and status < 400:
        audit.record_soon(**told)
    else:
        await audit.record(**told)


def _resource(scope: Scope, status: int, body: bytes) -> str | None:
    named = [str(value) for value in cast("dict[str, Any]", cast(Any, scope).get("path_params", {})).values()]
    if named or status >= 400 or not body or len(body) > MOST:
        return "/".join(named) or None
    try:
        answer = cast("dict[str, Any]", msgspec.json.decode(body))
        return next((str(answer[name]) for name in NAMES if answer.get(name) is not None), None)
    except (msgspec.DecodeError, AttributeError):
        return None
