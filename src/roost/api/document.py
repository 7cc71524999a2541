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
SCHEMAS = "#/components/schemas/"
PROBLEM = {
    "title": "Problem",
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What is wrong, and what to do about it"}},
}
FORM = {
    "title": "FileForm",
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}},
}
BYTES: dict[str, Any] = {"application/octet-stream": {}}
PARTS = {
    "206": {"description": "The part that was asked for", "content": BYTES},
    "416": {"description": "The file has no such part", "content": BYTES},
}
BINARY = {"type": "string", "format": "binary"}
BODIES: dict[str, dict[str, Any]] = {
    "multipart/form-data": FORM,
    "application/octet-stream": BINARY,
    "application/x-tar": BINARY,
}
ALSO = {"application/x-tar": ("application/octet-stream",)}  # what it is for clients that do not know the type


def document(app: Litestar) -> dict[str, Any]:
    """Made once; later calls get the same one."""
    made: dict[str, Any] | None = getattr(app.state, "document", None)
    if made is None:
        made = app.state.document = _completed(app)
    return made


def _completed(app: Litestar) -> dict[str, Any]:
    schema = _with_own_names(app.openapi_schema.to_schema())
    schema["components"]["schemas"]["Problem"] = PROBLEM
    schema["components"]["responses"] = {status: _refusal(words) for status, words in REFUSALS.items()}
    schema["paths"] = dict(sorted(schema["paths"].items()))  # handlers of several paths have them in no order
    schema["tags"] = [{"name": tag} for tag in sorted({_tag(path) for path in schema["paths"]})]
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        calls = cast("dict[str, Any]", schema["paths"].get(route.path_format, {}))
        for method, call in calls.items():
            handler = route.route_handler_map[cast(Any, method.upper())][0]
            _complete(call, handler.opt)
            call["tags"] = [_tag(route.path_format)]
    return schema


def _with_own_names(schema: dict[str, Any]) -> dict[str, Any]:
    """Generators of clients name classes by titles, which structs of several modules may share."""
    schemas = cast("dict[str, dict[str, Any]]", schema["components"]["schemas"])
    names = {name: _class_name(name) for name in schemas}
    if len(set(names.values())) < len(names):
        raise ValueError(f"two schemas would have one name: {sorted(names.values())}")
    schema["components"]["schemas"] = {names[name]: one | {"title": names[name]} for name, one in schemas.items()}
    return cast(
        "dict[str, Any]", _renamed(schema, {f"{SCHEMAS}{old}": f"{SCHEMAS}{new}" for old, new in names.items()})
    )


def _class_name(name: str) -> str:
    """`access_Wanted` is AccessWanted."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _renamed(value: Any, references: dict[str, str]) -> Any:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {
            key: references.get(one, one) if key == "$ref" else _renamed(one, references) for key, one in fields.items()
        }
    if isinstance(value, list):
        return [_renamed(one, references) for one in cast("list[Any]", value)]
    return value


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [one for one in schema.get("oneOf", []) if one.get("type") != "null"]
    if len(kinds) != 1:
        return schema
    return {name: value for name, value in schema.items() if name != "oneOf"} | kinds[0]


def _tag(path: str) -> str:
    """What a call is about: `/api/v1/mags-jobs/{id}/stop` is of `mags-jobs`."""
    return path.removeprefix("/api/v1/").strip("/").partition("/")[0]


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
        kinds = (kind, *ALSO.get(kind, ()))
        call["requestBody"] = {"required": True, "content": {one: {"schema": BODIES[one]} for one in kinds}}
    for parameter in call.get("parameters", []):
        if parameter["in"] == "path":  # a handler of two paths may have it in one of them only
            parameter["schema"] = _never_null(parameter["schema"])
    if opt.get("open"):
        call["security"] = [{}, {"token": []}, {"session": []}]
