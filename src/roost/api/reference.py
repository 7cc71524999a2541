"""The API's reference as Markdown, made from its OpenAPI document.

`python -m roost.api.reference > docs/api.md` writes it anew; a test holds the file to it.
"""

from typing import Any, cast

from roost.api.app import build
from roost.api.document import REFUSALS, document
from roost.api.plane import ControlPlane

INTRODUCTION = """# API reference

Made from the OpenAPI document, which a running Roost serves at `/openapi.json` (and as a page at `/docs`), by
`python -m roost.api.reference`. The guides say what the calls are for.

All paths are below `/api/v1`, and also below `/api/v2`. Every call but those marked *open* wants
`Authorization: Bearer TOKEN`. Bodies and answers are JSON unless something else is said; unknown fields are refused.

## When something is wrong

The answer is `{"error": "..."}`, and the text says what to do about it.

| status | means |
|---|---|
"""
PREFIX = "/api/v1"


def reference(found: dict[str, Any]) -> str:
    """Markdown of an OpenAPI document as `document` makes it."""
    refusals = "".join(f"| {status} | {words} |\n" for status, words in REFUSALS.items())
    groups: dict[str, list[str]] = {}
    for path, calls in found["paths"].items():
        group = path.removeprefix(PREFIX).split("/")[1]
        for method, call in calls.items():
            groups.setdefault(group, []).append(_call(path, method, call))
    schemas = found["components"]["schemas"]
    calls = "".join(f"\n## {group}\n" + "".join(texts) for group, texts in groups.items())
    bodies = "".join(_schema(name, schemas[name]) for name in sorted(schemas))
    return f"{INTRODUCTION}{refusals}{calls}\n# Bodies\n{bodies}"


def _call(path: str, method: str, call: dict[str, Any]) -> str:
    marks = " *(open)*" if {} in call.get("security", ()) else ""
    words = [call.get("summary", ""), call.get("description", "")]
    text = "\n\n".join(_sentence(one) for one in words if one)
    fields = [(f"`{one['name']}` ({one['in']})", one) for one in call.get("parameters", [])]
    rows = "".join(_row(name, one.get("schema", {}), one.get("required", False), one) for name, one in fields)
    table = f"\n| parameter | type | |\n|---|---|---|\n{rows}" if rows else ""
    lines = [*_contents("Body", call.get("requestBody", {}))]
    for status, answer in call["responses"].items():
        if status < "300":
            lines += _contents(f"Answers {status}", answer) or [f"Answers {status} without a body"]
    told = "".join(f"- {line}\n" for line in lines)
    return f"\n### {method.upper()} {path.removeprefix(PREFIX)}{marks}\n\n{text}\n{table}\n{told}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", ":", "?")) else text + "."


def _contents(label: str, body: dict[str, Any]) -> list[str]:
    kinds = cast("dict[str, Any]", body.get("content", {}))
    told = [
        _kind(content.get("schema", {})) or "JSON" if kind == "application/json" else kind
        for kind, content in kinds.items()
    ]
    return [f"{label}: {' or '.join(dict.fromkeys(told))}"] if told else []


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        _row(f"`{field}`", one, field in required, one) for field, one in schema.get("properties", {}).items()
    )
    return f"\n## {name}\n\n| field | type | |\n|---|---|---|\n{rows}"


def _row(name: str, schema: dict[str, Any], required: bool, told: dict[str, Any]) -> str:
    words = told.get("description") or _words(schema)
    default = "" if schema.get("default") in (None, "", [], {}) else f"default `{schema['default']}`"
    notes = "; ".join(note for note in (words, default, "required" if required else "") if note)
    return f"| {name} | {_kind(schema)} | {notes.replace('|', '&#124;')} |\n"


def _words(schema: dict[str, Any]) -> str:
    return next((str(one["description"]) for one in _either(schema) if one.get("description")), "")


def _either(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("oneOf") or schema.get("anyOf") or [schema]


def _kind(schema: dict[str, Any]) -> str:
    return " or ".join(dict.fromkeys(one for one in map(_one_kind, _either(schema)) if one))


def _one_kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {})) or 'anything'}"
    kinds = schema.get("type", "")
    return str(kinds) if isinstance(kinds, str) else " or ".join(cast("list[str]", kinds))


if __name__ == "__main__":
    print(reference(document(build(cast(ControlPlane, None)))), end="")
