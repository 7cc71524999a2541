"""The protocol's calls about files: uploads, and the files of live sandboxes and of stored revisions.

Contents flow through without envelope, as fast as the slower side: a step of a thread makes the next piece when the one
before is written. What is refused is refused with a status, before the first byte; what fails later breaks the
connection, so that half a content never looks whole. A change goes on when its caller has gone only if all of its bytes
had come.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
import structlog
from aiohttp import web

from roost.errors import Conflict, Invalid, RoostError
from roost.node.protocol import LENGTH, Entry, Revision, SaveRequest, Stored
from roost.node.threads import Incoming, Threads, Turns
from roost.node.tree import Tree
from roost.node.uploads import Uploads

T = TypeVar("T")
CHUNK = 256 * 1024  # bytes of a request taken at a time
BATCH = 64 * 1024  # bytes of entries sent at a time
LOOKING = 8  # steps at once
CHANGING = 64  # changes at once; each has a thread that waits for its caller's bytes
EACH = 8  # changes at once of one account

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_encode = msgspec.msgpack.Encoder().encode


class Places(Protocol):
    """Where the files are. What is not there, or not now, is told by NotFound and Conflict."""

    def live(self, id: str) -> Tree:
        """The files of a running sandbox. Whoever asked closes it."""
        ...

    def owner(self, id: str) -> int:
        """The account whose sandbox it is."""
        ...

    def stored(self, revision: str, account: int) -> AbstractAsyncContextManager[Tree]:
        """The files of a revision, there and unchangeable until the block ends."""
        ...

    async def edit(self, revision: str, save: SaveRequest, change: Callable[[Tree], None]) -> Revision:
        """A new revision: the files of `revision` after `change`, which blocks until all bytes of a request have come.

        So run it in a thread that nothing else waits for, and make nothing of it when it raises.
        """
        ...


class FileCalls:
    """Close it when no more calls come."""

    def __init__(self, places: Places, uploads: Uploads) -> None:
        self._places = places
        self._uploads = uploads
        self._looking = Threads(LOOKING, "files")
        self._changing = Threads(CHANGING, "file-changes")
        self._turns = Turns(EACH)
        self._using: dict[str, dict[asyncio.Task[Any], Incoming | None]] = {}  # by sandbox or revision

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put("/v1/files/{id}", self.keep_upload),
            web.delete("/v1/files/{id}", self.remove_upload),
            web.get("/v1/sandboxes/{id}/files/{path:(?s:.*)}", self.look_live, allow_head=False),
            web.put("/v1/sandboxes/{id}/files/{path:(?s:.*)}", self.write_live),
            web.delete("/v1/sandboxes/{id}/files/{path:(?s:.*)}", self.delete_live),
            web.get("/v1/revisions/{id}/files/{path:(?s:.*)}", self.look_stored, allow_head=False),
            web.put("/v1/revisions/{id}/files/{path:(?s:.*)}", self.write_stored),
            web.delete("/v1/revisions/{id}/files/{path:(?s:.*)}", self.delete_stored),
        ]

    # uploads

    async def keep_upload(self, request: web.Request) -> web.Response:
        limit = _number(request, "limit")
        size = await self._uploads.put(request.match_info["id"], request.content.iter_chunked(CHUNK), limit)
        return _answer(Stored(size=size))

    async def remove_upload(self, request: web.Request) -> web.Response:
        await self._uploads.remove(request.match_info["id"])
        return _answer(None)

    # looking

    async def look_live(self, request: web.Request) -> web.StreamResponse:
        id = request.match_info["id"]

        async def look() -> web.StreamResponse:
            with self._places.live(id) as tree:
                return await self._look(request, tree)

        return await self._own(id, look())

    async def look_stored(self, request: web.Request) -> web.StreamResponse:
        id = request.match_info["id"]

        async def look() -> web.StreamResponse:
            async with self._places.stored(id, _number(request, "account", 0)) as tree:
                return await self._look(request, tree)

        return await self._own(id, look())

    async def _look(self, request: web.Request, tree: Tree) -> web.StreamResponse:
        async with aclosing(self._looking.steps(_view(request, tree))) as pieces:
            return await _stream(request, pieces)

    # changing

    async def write_live(self, request: web.Request) -> web.Response:
        id, path, mode = request.match_info["id"], _path(request), _mode(request)
        incoming = Incoming(request.content.iter_chunked(CHUNK))
        await self._change_live(id, lambda tree: tree.write(path, incoming, mode), incoming)
        return _answer(None)

    async def delete_live(self, request: web.Request) -> web.Response:
        path = _path(request)
        await self._change_live(request.match_info["id"], lambda tree: tree.delete(path), None)
        return _answer(None)

    async def _change_live(self, id: str, change: Callable[[Tree], None], incoming: Incoming | None) -> None:
        async def run() -> None:
            async with self._turns.of(self._places.owner(id)):
                with self._places.live(id) as tree:
                    await self._changing.run(lambda: change(tree))

        await self._own(id, run(), incoming, outlasting=True)

    async def write_stored(self, request: web.Request) -> web.Response:
        path, mode = _path(request), _mode(request)
        incoming = Incoming(request.content.iter_chunked(CHUNK))
        return await self._edit(request, lambda tree: tree.write(path, incoming, mode), incoming)

    async def delete_stored(self, request: web.Request) -> web.Response:
        path = _path(request)
        return await self._edit(request, lambda tree: tree.delete(path), None)

    async def _edit(
        self, request: web.Request, change: Callable[[Tree], None], incoming: Incoming | None
    ) -> web.Response:
        id, save = request.match_info["id"], _save(request)

        async def run() -> Revision:
            async with self._turns.of(save.account):
                return await self._places.edit(id, save, change)

        return _answer(await self._own(id, run(), incoming, outlasting=True))

    # owning

    async def release(self, id: str) -> None:
        """Ends what is under way with the files of a sandbox or revision; on return nothing of it is held open.

        Needed before its file system is unmounted. `live` must refuse the sandbox from before that on.
        """
        tasks = dict(self._using.get(id, {}))
        for task, incoming in tasks.items():
            task.cancel()
            if incoming is not None:
                incoming.stop()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        for id in list(self._using):
            await self.release(id)
        self._looking.close()
        self._changing.close()

    async def _own(
        self, id: str, work: Coroutine[Any, Any, T], incoming: Incoming | None = None, outlasting: bool = False
    ) -> T:
        """Runs `work` where `release` finds it. If the caller goes, so does the work, unless it is `outlasting`."""
        task = asyncio.create_task(work)
        self._using.setdefault(id, {})[task] = incoming
        task.add_done_callback(lambda _: self._disown(id, task))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Conflict(
                    f"{id} ended while its files were in use; look at its workspace, if it had one"
                ) from None
            if incoming is not None:
                incoming.stop()
            if not outlasting:
                task.cancel()
                await asyncio.wait({task})
            raise

    def _disown(self, id: str, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # its caller may have gone
        del self._using[id][task]
        if not self._using[id]:
            del self._using[id]


def _view(request: web.Request, tree: Tree) -> Iterator[bytes]:
    path = _path(request)
    match request.query.get("view"):
        case "list":
            return _messages(tree.list(path))
        case "content":
            return tree.read(path, _number(request, "start"), _number(request, "end"))
        case "tar":
            return tree.tar(path)
        case _:
            raise Invalid("`view` is list, content or tar")


def _messages(entries: Iterator[Entry]) -> Iterator[bytes]:
    gathered = bytearray()
    for entry in entries:
        encoded = _encode(entry)
        gathered += LENGTH.pack(len(encoded)) + encoded
        if len(gathered) >= BATCH:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _stream(request: web.Request, pieces: AsyncGenerator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    piece = await anext(pieces, None)
    await response.prepare(request)
    try:
        while piece is not None:
            await response.write(piece)
            piece = await anext(pieces, None)
    except (RoostError, OSError) as error:
        _break_off(request)
        if not isinstance(error, ConnectionError):
            log.warning("files.broken_off", path=request.path, error=str(error))
        raise ConnectionAbortedError("the content could not be sent whole") from error
    except asyncio.CancelledError:
        _break_off(request)  # or the end of the handler would look like the end of the content
        raise
    await response.write_eof()
    return response


def _break_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _path(request: web.Request) -> bytes:
    """As it was sent: decoding is byte by byte, since names need not be UTF-8."""
    return unquote_to_bytes(request.rel_url.raw_path.split("/", 5)[5])


def _number(request: web.Request, name: str, default: int | None = None) -> int:
    text = request.query.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) >= 2**63:
        raise Invalid(f"`{name}` is a whole number of 0 or more")
    return int(text)


def _mode(request: web.Request) -> int | None:
    return _number(request, "mode") if "mode" in request.query else None


def _save(request: web.Request) -> SaveRequest:
    revision = request.query.get("revision", "")
    if len(revision) != 16 or not set(revision) <= set("0123456789abcdef"):
        raise Invalid("`revision` is 16 lower-case hex characters")
    return SaveRequest(
        revision=revision, account=_number(request, "account"), upload=request.query.get("upload") == "1"
    )


def _answer(value: object) -> web.Response:
    return web.Response(body=b"" if value is None else _encode(value), content_type="application/msgpack")
