"""JSON bodies: read into typed values strictly, refused in words that say what to change.

`JsonBody` is how handlers get them: their `data` parameter's type is what OpenAPI shows and what the body must be.
"""

import difflib
import re
from codecs import BOM_UTF8
from collections.abc import Generator
from typing import Any, ClassVar, TypeVar, cast

import msgspec
from litestar.dto import AbstractDTO, DTOConfig, DTOFieldDefinition
from litestar.typing import FieldDefinition

from roost.errors import Invalid

MAX_BODY = 2 * 1024 * 1024  # bytes
SHOWN = 80  # characters of the caller's own text in an error

Model = TypeVar("Model", bound=msgspec.Struct)

_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<where>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*?)`", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`$")
_JSON_WORDS = {"str": "string", "int": "whole number", "float": "number", "bool": "true or false"}


def read(model: type[Model], body: bytes) -> Model:
    """Raises Invalid."""
    try:
        return msgspec.json.decode(body.removeprefix(BOM_UTF8), type=model)  # some editors' files begin with it
    except msgspec.ValidationError as error:
        raise Invalid(_in_words(str(error), model)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Invalid("the body is not valid here: its JSON is nested too deeply") from None


def _in_words(text: str, model: type[msgspec.Struct]) -> str:
    if unknown := _UNKNOWN.search(text):
        return _unknown_field(unknown["name"], model)
    found = _AT.match(text)
    what, where = (found["what"], found["where"] or "") if found else (text, "")
    if expected := _EXPECTED.match(what):
        wanted = " or ".join(_word(one) for one in expected["expected"].split(" | ") if one != "null")
        got = _word(expected["got"])
        if not where:
            return f"the body must be a JSON object, not {got}"
        return f"{_place(where)}: expected {wanted}, got {got}"
    return f"{_place(where)}: {what}" if where else what


def _unknown_field(name: str, model: type[msgspec.Struct]) -> str:
    close = difflib.get_close_matches(name[:SHOWN], model.__struct_fields__, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(model.__struct_fields__)}"
    return f"unknown field {name[:SHOWN]!r}{hint}"


def _word(kind: str) -> str:
    return _JSON_WORDS.get(kind, kind)


def _place(where: str) -> str:
    return where.replace("[...]", " (one of its values)")[:SHOWN]


class JsonBody(AbstractDTO[Any]):
    """Reads a handler's `data`. An empty body counts as absent, whatever its Content-Type says."""

    config: ClassVar[DTOConfig] = DTOConfig()
    _models: ClassVar[dict[str, type[msgspec.Struct]]] = {}

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        optional = [one.annotation for one in field_definition.inner_types if not one.is_none_type]
        cls._models[handler_id] = optional[0] if optional else field_definition.annotation

    @classmethod
    def create_openapi_schema(cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any) -> Any:
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def is_supported_model_type_field(cls, field_definition: FieldDefinition) -> bool:
        return field_definition.name == "data"

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        return False

    def decode_bytes(self, value: bytes) -> msgspec.Struct:
        handler = cast(Any, self).asgi_connection.route_handler
        return read(self._models[handler.handler_id], value)
