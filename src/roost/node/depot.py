"""The node's way to the object store: each save, restore, collection or check is a process of its own.

What a save costs belongs to what changed, not to the node: its memory goes with its process, and a crash of it costs
one attempt. Requests and answers are lines of JSON, as `sync/__main__.py` has them.
"""

import asyncio
import contextlib
import sys
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from roost import errors
from roost.errors import NotFound, RoostError
from roost.node.protocol import Revision
from roost.node.sync import Options, Vault, open_store
from roost.node.sync.revision import read as read_revision

LINE = 4 * 1024 * 1024  # bytes; an answer's longest line
PROCESSES = 2  # at once; each may use 200 MB and a CPU


@dataclass(frozen=True)
class StoreSettings:
    url: str  # file:///DIR, s3://BUCKET/PREFIX, gs://…, az://…
    options: Options
    key: bytes | None = None  # 32 bytes: everything is encrypted before it leaves the machine


@dataclass(frozen=True)
class Source:
    """A layer to save. `first_id`: what container id 0 is on this machine in it."""

    path: Path
    first_id: int
    live: bool = False
    memory: Path | None = None  # what is known of it from its last save
    merged: Path | None = None  # of a live one: the root of the overlay that it is the upper layer of


@dataclass(frozen=True)
class Used:
    """Bytes that a revision's files take on the disk, or with `over`, those of the layers there, the newest first.

    Over these the last layer that is saved is then measured.
    """

    bytes: int
    over: Sequence[Path] | None = None


@dataclass(frozen=True)
class Saved:
    size: int
    stored_bytes: int


@dataclass(frozen=True)
class Found:
    revision: Revision
    entries: int  # names


Frozen = Callable[[], Awaitable[None]]


class Depot:
    def __init__(self, settings: StoreSettings, caches: Path) -> None:
        self._settings = settings
        self._caches = caches
        self._room = asyncio.Semaphore(PROCESSES)
        caches.mkdir(mode=0o700, parents=True, exist_ok=True)

    def beside(self, directory: Path) -> "Depot":
        """Another store, on this machine, that its user removes."""
        return Depot(StoreSettings(directory.as_uri(), Options()), directory / "indexes")

    async def save(
        self,
        account: int,
        id: str,
        base: str | None,
        parent: str | None,
        layers: Sequence[Source],
        image: str,
        job: str,
        used: Used,
        freeze: Frozen | None = None,
        thaw: Callable[[], None] | None = None,
    ) -> Saved:
        """`base` lies in the store, below `layers`, the lowest first. Live layers are frozen for the second pass.

        An id that the store has already is that revision: its save had succeeded, and only the news of it was lost.
        """
        with contextlib.suppress(NotFound):
            known = await self.find(account, id)
            return Saved(known.size, known.stored_bytes)
        request = {
            **self._where(account),
            "id": id,
            "base": base,
            "parent": parent,
            "image": image,
            "job": job,
            "layers": [
                {
                    "path": str(layer.path),
                    "first_id": layer.first_id,
                    "live": layer.live,
                    "memory": str(layer.memory) if layer.memory else None,
                    "merged": str(layer.merged) if layer.merged else None,
                }
                for layer in layers
            ],
            "used": {"bytes": used.bytes, "over": None if used.over is None else [str(path) for path in used.over]},
        }
        result = await self._run("save", request, freeze, thaw)
        return Saved(result["revision"]["used"], result["revision"]["stored"])

    async def find(self, account: int, id: str) -> Revision:
        """What the store says of a revision. Raises NotFound."""
        return (await self.look(account, id)).revision

    async def look(self, account: int, id: str) -> Found:
        return await asyncio.to_thread(self._read, account, id)

    def _read(self, account: int, id: str) -> Found:
        store = open_store(self._settings.url, self._settings.options)
        told = read_revision(Vault(store, str(account), self._settings.key), id)
        revision = Revision(
            id=told.id,
            parent=told.parent,
            image=told.image,
            created_ns=told.time,
            size=told.size if told.used is None else told.used,
            stored=True,
            stored_bytes=told.stored,
        )
        return Found(revision, told.entries)

    async def restore(self, account: int, id: str, target: Path) -> None:
        """Everything that the revision has above its image, with container ids. Raises NotFound."""
        await self._run("restore", {**self._where(account), "revision": id, "target": str(target), "first_id": 0})

    async def collect(self, account: int, heads: Sequence[str], spared: Sequence[str]) -> int:
        """Frees what no revision in `heads` or `spared` needs; returns bytes. Damaged if a head is not there."""
        request = {**self._where(account), "heads": list(heads), "spared": list(spared)}
        return int((await self._run("collect", request))["bytes"])

    async def check(self, account: int, heads: Sequence[str] | None, read_data: bool) -> list[str]:
        request = {**self._where(account), "heads": heads, "read_data": read_data}
        return [str(problem) for problem in (await self._run("check", request))["problems"]]

    def _where(self, account: int) -> dict[str, Any]:
        settings = self._settings
        return {
            "store": settings.url,
            "options": msgspec.to_builtins(settings.options),
            "account": str(account),
            "key": b64encode(settings.key).decode() if settings.key else None,
            "cache": str(self._caches / f"index-{account}"),
        }

    async def _run(
        self,
        command: str,
        request: dict[str, Any],
        freeze: Frozen | None = None,
        thaw: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        async with self._room:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "roost.node.sync", command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE,
            )
            try:
                return await _converse(process, request, freeze, thaw)
            finally:
                if thaw:
                    thaw()
                if process.returncode is None:
                    process.kill()
                    await process.wait()


async def _converse(
    process: asyncio.subprocess.Process,
    request: dict[str, Any],
    freeze: Frozen | None,
    thaw: Callable[[], None] | None,
) -> dict[str, Any]:
    assert process.stdin and process.stdout
    process.stdin.write(msgspec.json.encode(request) + b"\n")
    async for line in process.stdout:
        said = msgspec.json.decode(line)
        match said["event"]:
            case "first_pass" if freeze:
                await freeze()
                process.stdin.write(b"frozen\n")
            case "second_pass" if thaw and "seconds" in said:
                thaw()
            case "result":
                return said["result"]
            case "error":
                raise getattr(errors, said["condition"], RoostError)(said["error"])
            case _:
                pass
    raise RoostError(f"the sync process ended without an answer (exit status {await process.wait()})")
