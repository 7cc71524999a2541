"""A client that writes exactly the bytes it is told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.gateways.world import Front

WAIT = 15  # seconds


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, bodiless: bool = False) -> Answered:
        """The next answer, whole."""
        async with asyncio.timeout(WAIT):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *rest = head[:-4].split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in rest)}
            status = int(line.split()[1])
            if bodiless or status in (204, 304) or status < 200:
                body = b""
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = await self._chunks()
            else:
                body = await self.reader.read()
            return Answered(status, headers, body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            body += b"|" + line.strip()
        return body

    async def rest(self) -> bytes:
        """All until the gateway ends the connection."""
        async with asyncio.timeout(WAIT):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
            return b""


@contextlib.asynccontextmanager
async def wire(front: Front) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, limit=64 * 1024 * 1024)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def get(label: str, path: str = "/", *lines: str) -> bytes:
    head = (f"GET {path} HTTP/1.1", f"Host: {label}.apps.localhost", *lines, "", "")
    return "\r\n".join(head).encode()


def post(label: str, body: bytes, *lines: str, path: str = "/") -> bytes:
    head = (f"POST {path} HTTP/1.1", f"Host: {label}.apps.localhost", f"Content-Length: {len(body)}", *lines, "", "")
    return "\r\n".join(head).encode() + body
