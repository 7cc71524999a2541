"""What the server says about itself: its health, its OpenAPI document and a page made from that document.

The page is written here, without scripts or anything from elsewhere, so that it works on a machine without internet.
"""

from html import escape
from typing import Any, Literal, cast

import msgspec
from litestar import MediaType, Request, Response, get

from roost import __version__
from roost.api.document import document
from roost.api.plane import Plane

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
section{border-top:1px solid #ddd;padding:.5rem 0}code{background:#f3f3f3;padding:.1rem .3rem;border-radius:3px}
.method{font-weight:bold;display:inline-block;min-width:4.5rem}table{border-collapse:collapse}
td,th{border-bottom:1px solid #eee;padding:.2rem 1rem .2rem 0;text-align:left;vertical-align:top}
"""


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok"]
    version: str
    node: Literal["ready", "unavailable"]


@get("/health", summary="Show whether the server is alive, and its node", opt={"open": True})
async def health(request: Request[Any, Any, Any], plane: Plane) -> Health:
    """Open to everybody; a token that is sent all the same must be right, so that clients can test theirs."""
    if authorization := request.headers.get("authorization"):
        await plane.tokens.account(authorization)
    return Health("ok", __version__, "ready" if plane.live.link.is_up else "unavailable")


@get("/openapi.json", include_in_schema=False)
async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    return Response(msgspec.json.encode(document(request.app)), media_type=MediaType.JSON)


@get("/docs", include_in_schema=False)
async def docs(request: Request[Any, Any, Any]) -> Response[str]:
    return Response(page(document(request.app)), media_type=MediaType.HTML)


def page(document: dict[str, Any]) -> str:
    """An OpenAPI document as one HTML page."""
    title = escape(document["info"]["title"])
    intro = escape(document["info"].get("description", ""))
    calls = "".join(
        _call(path, method, cast("dict[str, Any]", call))
        for path, methods in document["paths"].items()
        for method, call in methods.items()
    )
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f'<h1>{title}</h1><p>{intro} The same as a machine reads it: <a href="/openapi.json">openapi.json</a>.</p>'
        f"<h2>Calls</h2>{calls}<h2>Bodies</h2>{schemas}</html>"
    )


def _call(path: str, method: str, call: dict[str, Any]) -> str:
    parameters = "".join(
        _row(f"{one['name']} ({one['in']})", one.get("schema", {}), one.get("required", False))
        for one in call.get("parameters", [])
    )
    table = f"<table>{parameters}</table>" if parameters else ""
    body = _body_link("Body", call.get("requestBody", {}))
    answers = "".join(
        _body_link(f"Answer {status}", answer) for status, answer in call["responses"].items() if status < "300"
    )
    words = escape(call.get("description") or call.get("summary") or "")
    head = f'<span class="method">{method.upper()}</span><code>{escape(path)}</code>'
    return f"<section>{head}<p>{words}</p>{table}{body}{answers}</section>"


def _body_link(label: str, body: dict[str, Any]) -> str:
    for kind, content in body.get("content", {}).items():
        name = _reference(content.get("schema", {}))
        what = f'<a href="#{escape(name)}">{escape(name)}</a>' if name else escape(kind)
        return f"<p>{label}: {what}</p>"
    return ""


def _reference(schema: dict[str, Any]) -> str:
    for one in (schema, *schema.get("oneOf", [])):
        if "$ref" in one:
            return str(one["$ref"]).rpartition("/")[2]
    return ""


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(_row(field, one, field in required) for field, one in schema.get("properties", {}).items())
    return f'<section id="{escape(name)}"><b>{escape(name)}</b><table>{rows}</table></section>'


def _row(name: str, schema: dict[str, Any], required: bool) -> str:
    kinds = [one.get("type", "") for one in schema.get("oneOf", [schema])]
    kind = " or ".join(str(one) for one in kinds if one and one != "null") or _reference(schema)
    words = schema.get("description", "") or next(
        (one["description"] for one in schema.get("oneOf", []) if one.get("description")), ""
    )
    needed = "required" if required else ""
    return f"<tr><td><code>{escape(name)}</code><td>{escape(kind)}<td>{needed}<td>{escape(words)}"
