"""What the control plane's side of the protocol sends and how it tells failures, against a socket that answers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from roost.errors import Invalid, NodeUnavailable, NotFound, TooLarge
from roost.node.client import NodeClient
from roost.node.protocol import LENGTH, Entry, Fault, Revision, SaveRequest, Stored

SAVE = SaveRequest(revision="f" * 16, account=3, upload=True)
MADE = Revision(
    id="f" * 16, parent="e" * 16, image="i", created_ns=1, size=2, stored=True, stored_bytes=3
)  # fmt: skip
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(directory: Path, handler: Handler) -> AsyncIterator[NodeClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(directory / "s")).start()
    try:
        async with NodeClient(directory / "s") as client:
            yield client
    finally:
        await runner.cleanup()


def packed(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(value), status=status)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_paths_reach_the_node_byte_by_byte(tmp_path: Path) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(f"{request.method} {request.raw_path} {len(await request.read())}")
        return packed(MADE if "revisions" in request.path else None)

    async with answering(tmp_path, handler) as node:
        await node.write_file("0" * 8, "a b/\udcff%?ü", pieces(b"xyz"), 0o600)
        await node.delete_file("0" * 8, "d")
        assert await node.edit("e" * 16, SAVE, "f", pieces(b"x")) == MADE
        assert await node.edit("e" * 16, SAVE, "f", pieces(b"x"), 0o644) == MADE
        assert await node.edit("e" * 16, SAVE, "f", None) == MADE
    wanted = f"revision={'f' * 16}&account=3&upload=1"
    assert asked == [
        f"PUT /v1/sandboxes/{'0' * 8}/files/a%20b/%FF%25%3F%C3%BC?mode=384 3",
        f"DELETE /v1/sandboxes/{'0' * 8}/files/d 0",
        f"PUT /v1/revisions/{'e' * 16}/files/f?{wanted} 1",
        f"PUT /v1/revisions/{'e' * 16}/files/f?mode=420&{wanted} 1",
        f"DELETE /v1/revisions/{'e' * 16}/files/f?{wanted} 0",
    ]


async def test_listings_and_contents_come_as_streams(tmp_path: Path) -> None:
    entry = Entry(name=b"\xff", type="file", size=3, mode=0o644, mtime_ns=1)

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.query["view"] == "list":
            body = msgspec.msgpack.encode(entry)
            return web.Response(body=(LENGTH.pack(len(body)) + body) * 2)
        return web.Response(body=f"{request.query['view']} {request.query_string}".encode())

    async with answering(tmp_path, handler) as node:
        assert [one async for one in node.list_files("e" * 16, 3, "d")] == [entry, entry]
        content = b"".join([chunk async for chunk in node.read_file("e" * 16, 3, "f", 3, 9)])
        assert content == b"content view=content&start=3&end=9&account=3"
        assert b"".join([chunk async for chunk in node.tar("0" * 8, 3, "")]) == b"tar view=tar&account=3"


async def test_what_the_upload_itself_raises_is_raised_as_it_is(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return packed(Stored(size=len(await request.read())))

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise Invalid("the form breaks off")

    async with answering(tmp_path, handler) as node:
        assert await node.put_file("id", pieces(b"ab", b"c"), 10) == 3
        with pytest.raises(Invalid, match="breaks off"):
            await node.put_file("id", broken(), 10)


async def test_conditions_of_the_node_arrive_as_what_they_were(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        kind = "TooLarge" if request.method == "PUT" else "NotFound"
        return packed(Fault(kind=kind, message="so it is"), 400)

    async with answering(tmp_path, handler) as node:
        with pytest.raises(TooLarge, match="so it is"):
            await node.put_file("id", pieces(b"x"), 10)
        with pytest.raises(NotFound, match="so it is"):
            await anext(aiter(node.list_files("e" * 16, 3, "")))
        with pytest.raises(NotFound):
            await node.revision("e" * 16, 3)
        with pytest.raises(NotFound):
            await node.collect({3: []}, [], 1)


async def test_a_node_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with NodeClient(tmp_path / "nothing") as node:
        with pytest.raises(NodeUnavailable):
            await node.save("0" * 8, SAVE)
        with pytest.raises(NodeUnavailable):
            await node.put_file("id", pieces(b"x"), 10)
