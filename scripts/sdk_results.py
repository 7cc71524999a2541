"""Writes src/roost/sdk/results.py, the types of the API's answers, from its OpenAPI document; a test holds it to that.

`python scripts/sdk_results.py > src/roost/sdk/results.py`
"""

from typing import Any, cast

from roost.api.app import build
from roost.api.document import document

HEAD = '''"""What the API answers: dictionaries, as JSON has them. Made by scripts/sdk_results.py."""

from typing import Any, Literal, NotRequired, TypedDict
'''
SIMPLE = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def results(found: dict[str, Any]) -> str:
    schemas = found["components"]["schemas"]
    wanted: set[str] = set()
    for calls in found["paths"].values():
        for call in calls.values():
            for status, answer in call["responses"].items():
                if status < "300":
                    _gather(answer, schemas, wanted)
    return HEAD + "".join(_type(name, schemas[name]) for name in _in_order(wanted, schemas))


def _gather(thing: Any, schemas: dict[str, Any], wanted: set[str]) -> None:
    """Every schema that it names, and those name."""
    for name in _names(thing):
        if name not in wanted:
            wanted.add(name)
            _gather(schemas[name], schemas, wanted)


def _names(thing: Any) -> list[str]:
    if isinstance(thing, dict):
        own = [thing["$ref"].rpartition("/")[2]] if isinstance(thing.get("$ref"), str) else []
        return own + [name for value in thing.values() for name in _names(value)]
    return [name for value in thing for name in _names(value)] if isinstance(thing, list) else []


def _in_order(wanted: set[str], schemas: dict[str, Any]) -> list[str]:
    """Those that others name come first."""
    placed: dict[str, None] = {}

    def place(name: str) -> None:
        for other in sorted(set(_names(schemas[name])) - {name}):
            place(other)
        placed.setdefault(name)

    for name in sorted(wanted):
        place(name)
    return list(placed)


def _type(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    fields = "".join(
        f"    {field}: {_kind(one) if field in required else f'NotRequired[{_kind(one)}]'}\n"
        for field, one in schema["properties"].items()
    )
    return f"\n\nclass {_class(name)}(TypedDict):\n{fields}"


def _class(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _kind(schema: dict[str, Any]) -> str:
    either = schema.get("oneOf") or schema.get("anyOf")
    if either:
        return " | ".join(sorted(dict.fromkeys(map(_kind, either)), key=lambda kind: kind == "None"))
    if "$ref" in schema:
        return _class(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        values = [value for value in schema["enum"] if value is not None]
        return (
            "Literal["
            + ", ".join(f'"{value}"' for value in values)
            + "]"
            + (" | None" if len(values) < len(schema["enum"]) else "")
        )
    if "const" in schema:
        return f'Literal["{schema["const"]}"]'
    if schema.get("type") == "array":
        return f"list[{_kind(schema.get('items', {}))}]"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"dict[str, {_kind(values) if isinstance(values, dict) else 'Any'}]"
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return " | ".join(SIMPLE[kind] for kind in kinds)
    return SIMPLE.get(str(kinds), "Any")


if __name__ == "__main__":
    print(results(document(build(cast(Any, None)))), end="")
