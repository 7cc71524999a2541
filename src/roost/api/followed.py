"""An answer that goes on, as a log that is followed, ends when its caller would be refused.

Tokens expire and are revoked, members leave and users are disabled, while a stream may last for days. Who calls is
answered from memory, so that looking costs little; a silent stream is looked at with its keepalives.
"""

import time
from typing import Any, cast

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from roost.accounts.tokens import Account
from roost.api import guard
from roost.errors import RoostError

AGAIN = 1.0  # seconds between two looks, at least


def ended_with_its_token(app: ASGIApp) -> ASGIApp:
    """Middleware of the API's routes."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        followed = _Followed(scope, receive, send)
        await app(scope, followed.receive, followed.send)

    return call


class _Followed:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._looked = time.monotonic()
        self._endless = False  # without a length, which has to be kept to
        self._over = False

    async def receive(self) -> Any:
        return {"type": "http.disconnect"} if self._over else await self._receive()

    async def send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._endless = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
        elif self._endless and message["type"] == "http.response.body" and time.monotonic() - self._looked > AGAIN:
            self._looked = time.monotonic()
            if not await self._still():
                self._over = True
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                return
        await self._send(message)

    async def _still(self) -> bool:
        begun_by = cast("Account | None", cast(Any, self._scope).get("user"))
        if begun_by is None:
            return True
        handler = cast(BaseRouteHandler, cast(Any, self._scope)["route_handler"])
        try:
            await guard.require_still(ASGIConnection(self._scope), handler, begun_by)
        except RoostError:
            return False
        return True
