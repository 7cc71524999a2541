"""The OpenAPI document: what Litestar derives from the handlers, and what it cannot know of them.

Every call may be refused in the ways of `errors.STATUS`, always as `{"error": "..."}`. A handler that streams names the
media types of its answer in `opt["answers"]`, one that reads its body by itself that of the body in `opt["body"]`.
"""

from typing import Any, cast

from litestar import Litestar
from litestar.routes import HTTPRoute

REFUSALS = {
    "400": "Something in the request is wrong; the text says what and how to mend it",
    "401": "No token, or one that is not known here",
    "403": "What speaks for you may not do this",
    "404": "There is nothing of that name that belongs to you",
    "405": "This path has other methods",
    "409": "It cannot be done in the present state",
    "413": "The body is too large",
    "429": "A limit is reached; try later",
    "502": "Something that was asked elsewhere was refused there",
    "503": "Not possible now: the node, the disk, the object store or the sandbox is not there",
}
PROBLEM = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What is wrong, and what to do about it"}},
}
FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "contentMediaType": "application/octet-stream"}},
}
BYTES: dict[str, Any] = {"application/octet-stream": {}}
PARTS = {
    "206": {"description": "The part that was asked for", "content": BYTES},
    "416": {"description": "The file has no such part", "content": BYTES},
}
BODIES: dict[str, dict[str, Any]] = {
    "multipart/form-data": FORM,
    "application/octet-stream": {},
    "application/x-tar": {},
}


def document(app: Litestar) -> dict[str, Any]:
    """Made once; later calls get the same one."""
    made: dict[str, Any] | None = getattr(app.state, "document", None)
    if made is None:
        made = app.state.document = _completed(app)
    return made


def _completed(app: Litestar) -> dict[str, Any]:
    schema = app.openapi_schema.to_schema()
    schema["components"]["schemas"]["Problem"] = PROBLEM
    schema["components"]["responses"] = {status: _refusal(words) for status, words in REFUSALS.items()}
    schema["paths"] = dict(sorted(schema["paths"].items()))  # handlers of several paths have them in no order
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        calls = cast("dict[str, Any]", schema["paths"].get(route.path_format, {}))
        for method, call in calls.items():
            handler = route.route_handler_map[cast(Any, method.upper())][0]
            _complete(call, handler.opt)
    return schema


def _refusal(words: str) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _complete(call: dict[str, Any], opt: dict[str, Any]) -> None:
    for status in REFUSALS:
        call["responses"][status] = {"$ref": f"#/components/responses/{status}"}
    for kind in opt.get("answers", ()):
        for status, answer in call["responses"].items():
            if status.startswith("2"):
                answer.setdefault("content", {}).setdefault(kind, {})
    if opt.get("ranges"):
        call["responses"] |= PARTS
    if kind := opt.get("body"):
        call["requestBody"] = {"required": True, "content": {kind: {"schema": BODIES[kind]}}}
    if opt.get("open"):
        call["security"] = [{}, {"token": []}, {"session": []}]
