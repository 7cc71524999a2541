"""Uploaded files in the object store, until a sandbox that names them is started with them.

A file is parts `files/<id>/<n>` and then `files/<id>/done`, which lists their sizes and hashes: without it there is no
file. Reading checks every part. Memory: two parts per call, whatever the file's size.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from hashlib import sha256
from typing import TypeVar

import msgspec

from roost.errors import Invalid, NotFound, TooLarge
from roost.node.sync.store import Store, StoreUnavailable
from roost.node.threads import Threads

T = TypeVar("T")
PART = 8 * 1024 * 1024  # bytes
LARGEST = 64 * 1024**3  # bytes of one upload, whatever the caller allows: 8192 parts
THREADS = 8  # requests to the store at once
MAX_DONE = 4 * 1024 * 1024  # bytes; 8192 parts take a third of it

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Part(msgspec.Struct, frozen=True, array_like=True):
    size: int
    sha256: str


class Done(msgspec.Struct, frozen=True):
    parts: list[Part]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


class Uploads:
    """Conditions of the store (StoreUnavailable, StateUnwritable) pass through."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = Threads(THREADS, "uploads")

    async def put(self, id: str, chunks: AsyncIterator[bytes], limit: int) -> int:
        """Keeps what comes, in place of what was kept under this id before; its size in bytes.

        TooLarge beyond `limit` bytes. Whatever is raised, by `chunks` or by the store, nothing is kept; what a store
        that stopped answering keeps of it is no file, and goes with `remove`.
        """
        await self.remove(id)
        try:
            done = await self._put_parts(id, chunks, min(limit, LARGEST))
            await self._do(lambda: self._store.create(_name(id, "done"), msgspec.json.encode(done)))
            await self._do(self._store.settle)
        except BaseException:
            with contextlib.suppress(StoreUnavailable):  # what was raised first says more
                await self.remove(id)
            raise
        return done.size

    async def _put_parts(self, id: str, chunks: AsyncIterator[bytes], limit: int) -> Done:
        parts: list[Part] = []
        gathered, size = bytearray(), 0
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"the file is larger than {limit} bytes; split it, or make it smaller")
            gathered += chunk
            while len(gathered) >= PART:
                parts.append(await self._put_part(id, len(parts), bytes(gathered[:PART])))
                del gathered[:PART]
        if gathered:
            parts.append(await self._put_part(id, len(parts), bytes(gathered)))
        return Done(parts)

    async def _put_part(self, id: str, number: int, data: bytes) -> Part:
        def put() -> Part:
            self._store.create(_name(id, str(number)), data)
            return Part(len(data), sha256(data).hexdigest())

        return await self._do(put)

    async def size(self, id: str) -> int:
        """Raises NotFound."""
        return (await self._done(id)).size

    async def read(self, id: str) -> AsyncIterator[bytes]:
        """Raises NotFound before the first bytes, StoreUnavailable for a part that is not what was put."""
        done = await self._done(id)
        for number, part in enumerate(done.parts):
            yield await self._do(partial(self._read_part, _name(id, str(number)), part))

    def _read_part(self, name: str, part: Part) -> bytes:
        try:
            data = self._store.read(name, PART)
        except NotFound:
            data = b""
        if len(data) != part.size or sha256(data).hexdigest() != part.sha256:
            raise StoreUnavailable(f"object {name} is missing or was damaged; upload the file again")
        return data

    async def _done(self, id: str) -> Done:
        try:
            encoded = await self._do(lambda: self._store.read(_name(id, "done"), MAX_DONE))
        except NotFound:
            raise NotFound(f"there is no uploaded file {id!r}; upload it (again)") from None
        try:
            return msgspec.json.decode(encoded, type=Done)
        except msgspec.DecodeError as error:
            raise StoreUnavailable(f"object {_name(id, 'done')} was damaged; upload the file again") from error

    async def remove(self, id: str) -> None:
        """Removing what is not there is no error. From its first step on there is no such file."""

        def remove() -> None:
            self._store.delete(_name(id, "done"))
            for found in list(self._store.list(_name(id, ""))):
                self._store.delete(found.name)

        await self._do(remove)

    async def _do(self, call: Callable[[], T]) -> T:
        return await self._threads.run(call)

    def close(self) -> None:
        self._threads.close()


def _name(id: str, part: str) -> str:
    if not _ID.fullmatch(id):
        raise Invalid(f"{id!r} is not the id of an uploaded file")
    return f"files/{id}/{part}".rstrip("/")
