"""The one file of a multipart form, passed on as it arrives: no more than a chunk of it is ever in memory.

The framework's own forms are complete before a handler runs, in memory or on disk. Its parser (`multipart`, a push
parser with limits) is used here directly instead.
"""

import importlib
from collections.abc import AsyncGenerator, AsyncIterator
from email.message import Message
from typing import Any, cast

from roost.errors import Invalid, TooLarge

# python-multipart, which mcp needs, has a package of that name, too: it hands this module on, untyped
multipart: Any = importlib.import_module("multipart")

DISPOSITION = "Content-Disposition"
CHARSETS = ("utf-8", "iso-8859-1", "us-ascii")
MAX_PARTS = 16
MAX_OTHERS = 64 * 1024  # bytes of everything but the file: other fields, headers, boundaries
MAX_BOUNDARY = 70  # characters; RFC 2046
HOW = "send it as multipart/form-data in the field 'file', like curl -F file=@NAME"


class Form:
    """`async for chunk in form.file()` gives the file's bytes, once `find_file` has found its beginning."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes], limit: int) -> None:
        """`limit`: bytes of the file. Raises Invalid for anything but a multipart form."""
        parse = multipart.parse_options_header
        kind, options = cast("tuple[str, dict[str, str]]", parse(content_type))
        boundary = options.get("boundary", "")
        if kind.lower() != "multipart/form-data" or not 0 < len(boundary) <= MAX_BOUNDARY:
            raise Invalid(f"this is no multipart form with a boundary; {HOW}")
        self._parser: Any = multipart.PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
        self._limit = limit
        self._events = self._read(body)

    async def find_file(self) -> str:
        """The file's name as it was sent; empty if none was. Raises Invalid when no field is named `file`."""
        others = 0
        async for event in self._events:
            if isinstance(event, multipart.MultipartSegment):
                segment = event
                if segment.name == "file":
                    return _file_name(segment)
            others += len(event) if isinstance(event, bytes) else 0
            if others > MAX_OTHERS:
                raise TooLarge(f"the form's other fields are larger than {MAX_OTHERS} bytes; leave them out")
        raise Invalid(f"the form has no field 'file'; {HOW}")

    async def file(self) -> AsyncGenerator[bytes]:
        """Raises TooLarge beyond the limit, Invalid when the form breaks off: the file is whole if it ends."""
        size, others, in_file = 0, 0, True
        async for event in self._events:
            if event is None:
                in_file = False
            elif isinstance(event, bytes) and in_file:
                size += len(event)
                if size > self._limit:
                    raise TooLarge(f"the file is larger than {self._limit // 1_000_000} MB; send it in parts")
                yield event
            elif isinstance(event, bytes):
                others += len(event)
                if others > MAX_OTHERS:
                    raise TooLarge(f"the form's other fields are larger than {MAX_OTHERS} bytes; leave them out")

    async def _read(self, body: AsyncIterator[bytes]) -> AsyncGenerator[Any]:
        """The parser's events: a segment, its bytes, None at its end."""
        try:
            async for chunk in body:
                for event in self._parser.parse(chunk) if chunk else ():
                    yield event
            self._parser.close()
        except multipart.MultipartError as error:
            raise Invalid(f"the form cannot be read: {error}; {HOW}") from None


def _file_name(segment: Any) -> str:
    """Some clients, like older ones of Python, write a name that is not ASCII by RFC 5987 only. Raises Invalid."""
    header = Message()
    header[DISPOSITION] = segment.header(DISPOSITION, "")
    given = cast("list[tuple[str, Any]]", header.get_params([], DISPOSITION))
    extended = [value for name, value in given if name == "filename" and not isinstance(value, str)]
    if not extended:
        return segment.filename or ""
    charset, _, text = cast("tuple[str | None, str | None, str]", extended[0])
    try:
        if (charset or "").lower() not in CHARSETS:
            raise ValueError
        return text.encode("latin-1").decode(str(charset))
    except ValueError:
        raise Invalid("file: its filename* is not like UTF-8''na%C3%AFve.txt; write it so, or give filename") from None
