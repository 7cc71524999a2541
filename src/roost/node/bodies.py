"""Bodies of the node's protocol on its side: MessagePack values in requests, answers and streams."""

from typing import TypeVar

import msgspec
from aiohttp import web

from roost.errors import Invalid
from roost.node.protocol import LENGTH, Wire

T = TypeVar("T", bound=Wire)
_encode = msgspec.msgpack.Encoder().encode


def answer(value: object) -> web.Response:
    return web.Response(body=b"" if value is None else _encode(value), content_type="application/msgpack")


async def read(request: web.Request, kind: type[T]) -> T:
    """Raises Invalid."""
    try:
        return msgspec.msgpack.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise Invalid(f"not a {kind.__name__}: {error}") from None


def message(value: Wire) -> bytes:
    """One value of a stream."""
    encoded = _encode(value)
    return LENGTH.pack(len(encoded)) + encoded
