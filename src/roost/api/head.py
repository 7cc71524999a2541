"""HEAD as GET without its body (RFC 9110, 9.3.2), for every GET that only reads."""

from typing import Any, cast

from litestar.connection import ASGIConnection
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import BaseRouteHandler
from litestar.types import ASGIApp, Message, Receive, Scope, Send

ASKED = "roost_head"  # in the scope of a GET that was asked for as HEAD


def headed(app: ASGIApp) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            answer = _Head(receive, send)
            await app(cast(Scope, {**scope, "method": "GET", ASKED: True}), answer.receive, answer.send)
        else:
            await app(scope, receive, send)

    return call


def refuse_head(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """A guard: what is told once, or changes something, must not be lost to who does not see it."""
    if ASKED in connection.scope and (handler.opt.get("audit") or handler.opt.get("changes")):
        raise MethodNotAllowedException(detail="this call has no HEAD; ask with GET", headers={"Allow": "GET"})


class _Head:
    """The answer is over with its head: for who makes the body, the client has left then, also within a stream."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._over = False

    async def receive(self) -> Any:
        return {"type": "http.disconnect"} if self._over else await self._receive()

    async def send(self, message: Message) -> None:
        if self._over:
            return
        await self._send(message)
        if message["type"] == "http.response.start":
            self._over = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
