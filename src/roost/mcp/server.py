"""The MCP server and its two doors: standard input and output for one user, HTTP for several.

Over HTTP everybody brings a token of their own, which the API judges at each request; there is none of the server's.
There are no sessions: each request stands for itself, so that nothing piles up and a restart is not noticed.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

import aiohttp
import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import create_model, model_validator
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from roost import __version__
from roost.errors import RoostError, Throttled, Unauthenticated
from roost.instance import Credentials
from roost.mcp.api import Api, session
from roost.mcp.tools import ANNOTATIONS, Call, Tools, told

PATH = "/mcp"
AT_ONCE = 256  # connections and requests; more are answered 503
ENDING = 5  # seconds for calls that run when the server is told to stop
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
INSTRUCTIONS = """\
Roost runs scripts in isolated Linux sandboxes that start at once. `run` is for anything that ends; give it a
`workspace` to keep files from one run to the next. For a server, `run` with persistent=true and then `url`; `exec` and
the file tools work in a sandbox that stays. Stop what is no longer needed."""


def server(api_of: Callable[[Call], Api]) -> MCPServer[Any]:
    tools = Tools(api_of)
    return MCPServer(
        "roost", title="Roost", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING",
        subscriptions=False, tools=[_tool(getattr(tools, name), name) for name in ANNOTATIONS],
    )  # fmt: skip


def _tool(call: Callable[..., Any], name: str) -> Tool:
    words = " ".join((call.__doc__ or "").split())
    tool = Tool.from_function(told(call), name=name, description=words, annotations=ANNOTATIONS[name])
    return strict(tool)


def strict(tool: Tool) -> Tool:
    """Refuses arguments that it does not have: left out in silence, they would be taken for honoured."""
    known = sorted(tool.parameters["properties"])

    def refuse_unknown(given: Any) -> Any:
        for name in cast("dict[str, Any]", given):
            if name not in known:
                raise ValueError(f"unknown argument {name[:80]!r}; {tool.name} takes {', '.join(known)}")
        return given

    loose = tool.fn_metadata.arg_model
    checks = {"refuse_unknown": model_validator(mode="before")(refuse_unknown)}
    tool.fn_metadata.arg_model = create_model(loose.__name__, __base__=loose, __validators__=cast(Any, checks))
    tool.parameters["additionalProperties"] = False
    return tool


async def serve_stdio(credentials: Credentials) -> None:
    """Until standard input ends."""
    async with session() as connections:
        api = Api(connections, credentials.api_url, credentials.api_token)
        await server(lambda _: api).run_stdio_async()


async def serve_http(api_url: str, listener: socket.socket, names: Iterable[str]) -> None:
    """Until the process is told to stop. `names`: as which it may be asked, besides those of this machine."""
    async with session() as connections:
        config = uvicorn.Config(
            http_app(connections, api_url, names), log_config=None, access_log=False, limit_concurrency=AT_ONCE,
            timeout_graceful_shutdown=ENDING,
        )  # fmt: skip
        await uvicorn.Server(config).serve(sockets=[listener])


def http_app(connections: aiohttp.ClientSession, api_url: str, names: Iterable[str] = ()) -> ASGIApp:
    def api(token: str) -> Api:
        return Api(connections, api_url, token)

    def api_of(call: Call) -> Api:
        token = bearer((call.headers or {}).get("authorization", ""))
        if token is None:
            raise Unauthenticated("send Authorization: Bearer and an API token")
        return api(token)

    hosts = [form for name in (*LOOPBACK, *names) for form in (name, f"{name}:*")]
    # no page of a browser has anything to ask here, so no origin is allowed
    security = TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[])
    app = server(api_of).streamable_http_app(
        streamable_http_path=PATH, stateless_http=True, transport_security=security
    )
    return Admission(app, api)


class Admission:
    """Lets in whom the API knows by their token."""

    def __init__(self, app: ASGIApp, api: Callable[[str], Api]) -> None:
        self._app, self._api = app, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> JSONResponse | None:
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        token = bearer(sent[0]) if len(sent) == 1 else None
        if token is None:
            return _answer(401, "send the header Authorization: Bearer TOKEN, once; `roost token create` makes a token")
        try:
            await self._api(token).call("GET", "/api/v1/whoami")
        except Unauthenticated as error:
            return _answer(401, str(error))
        except Throttled as error:
            return _answer(429, str(error))
        except RoostError as error:
            return _answer(503, str(error))
        return None


def _answer(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status, {"WWW-Authenticate": "Bearer"} if status == 401 else None)


def bearer(header: str) -> str | None:
    scheme, _, token = header.partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token.isascii() and token.isprintable() and token else None
