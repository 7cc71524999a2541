"""Revisions on this node's disk: each is one layer, the frozen disk image of the sandbox that made it.

A revision is a stack: its own layer, its parents' layers, and the image at the bottom. Mounting a stack costs the same
whatever its size, so a fork or a base is one mount. A layer that is in the object store is only a cache here: it is
removed when room is needed, the least recently used first, and comes back from the store as one layer without parents.
A layer that is not in the store, or that something mounted or listed here stands on, stays.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from roost import linux
from roost.errors import NotFound
from roost.node.canonical import canonicalise
from roost.node.depot import Depot, Found, Saved, Source, Used
from roost.node.disk import BYTES_PER_INODE, GIB, Disk, Disks, mount_image, seal, unmount
from roost.node.images import Hold, ImageStore
from roost.node.protocol import Revision
from roost.node.prune import prune
from roost.node.usage import grown

DEEPEST = 40  # layers in one mount; overlayfs takes its options in one page

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Kept(msgspec.Struct, frozen=True):
    """The file beside a layer's disk image. `parent`: the layer below, None for one that stands on the image alone.

    It names its disk image, so that replacing a layer by a flat one is one step. `owed`: the account in whose part of
    the object store it should be, and is not yet.
    """

    revision: Revision
    parent: str | None
    disk: str
    owed: int | None = None


@dataclass
class Stack:
    """What a sandbox starts from. Pinned until `release`, also against a crash of nothing but this process."""

    revision: Revision
    lowers: list[Path]  # the newest layer first; the image's root file system last
    _layers: "Layers"
    _ids: list[str]
    _hold: Hold

    @property
    def image(self) -> str:
        return self._hold.content

    def release(self) -> None:
        self._hold.release()
        self._layers.unpin(self._ids)
        self._ids = []


class Layers:
    def __init__(self, directory: Path, disks: Disks, images: ImageStore, depot: Depot, limit: int) -> None:
        """`limit`: bytes that layers may take on the disk before stored ones go."""
        self._directory = directory
        self._disks = disks
        self._images = images
        self._depot = depot
        self._limit = limit
        self._pins: dict[str, int] = {}
        self._leaving = threading.Lock()  # held to choose what to pin or to remove; both must not choose the same
        self._mounting: dict[str, asyncio.Lock] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    # what a sandbox starts from

    async def stack(self, account: int, revision: str) -> Stack:
        """Raises NotFound for a revision that is neither here nor in the store."""
        if fresh := not self._is_here(revision):
            await self._restore(account, revision)
        with self._leaving:
            ids = self._chain(revision)
            self._pin(ids)
        try:
            if fresh:
                await asyncio.to_thread(self.make_room)
            lowers = [await self._mounted(id) for id in ids]
            kept = self._read(revision)
            hold = self._images.hold_content(kept.revision.image)
        except BaseException:
            self.unpin(ids)
            raise
        os.utime(self._image(revision))  # when it was last used
        return Stack(kept.revision, [*lowers, hold.path], self, ids, hold)

    def _is_here(self, revision: str) -> bool:
        return self._has(revision) and self._whole(revision)

    def _chain(self, revision: str) -> list[str]:
        """The layers that it stands on, the newest first."""
        ids: list[str] = []
        at: str | None = revision
        while at is not None:
            ids.append(at)
            at = self._read(at).parent
        return ids

    def _whole(self, revision: str) -> bool:
        try:
            self._chain(revision)
        except FileNotFoundError:
            return False
        return True

    def _pin(self, ids: list[str]) -> None:
        for id in ids:
            self._pins[id] = self._pins.get(id, 0) + 1

    def unpin(self, ids: list[str]) -> None:
        for id in ids:
            self._pins[id] -= 1
            if not self._pins[id]:
                del self._pins[id]

    @contextlib.contextmanager
    def pinned(self, id: str) -> Generator[list[str]]:
        """The layers that it stands on, itself first; none of them goes meanwhile."""
        with self._leaving:
            ids = self._chain(id)
            self._pin(ids)
        try:
            yield ids
        finally:
            self.unpin(ids)

    async def _mounted(self, id: str) -> Path:
        async with self._mounting.setdefault(id, asyncio.Lock()):
            point = self._directory / id
            if not point.is_mount():
                point.mkdir(exist_ok=True)
                await asyncio.to_thread(mount_image, self._image(id), point, linux.MS_RDONLY)
        return point / "upper"

    # keeping

    def has(self, revision: str) -> bool:
        return self._has(revision)

    def find(self, revision: str) -> Revision:
        if not self._has(revision):
            raise NotFound(f"revision {revision} is not on this node")
        return self._read(revision).revision

    async def below(self, id: str | None) -> list[Path]:
        """The directories of a layer and of all that it stands on, the newest first, without the image."""
        return [await self._mounted(one) for one in self._chain(id)] if id and self._is_here(id) else []

    def freeze(self, disk: Disk, first_id: int, lowers: Sequence[Path]) -> int:
        """Make a finished sandbox's disk a layer's disk; how many bytes it adds. Blocks, and may be repeated."""
        canonicalise(disk.upper, first_id)
        return grown(disk.upper, lowers)

    def keep(self, disk: Disk, revision: Revision, parent: str | None, owed: int | None = None) -> None:
        """Durable on return: from here on `stack` finds it. The disk is unmounted and belongs to the layer."""
        seal(disk)
        name = f"{revision.id}-{secrets.token_hex(4)}.img"
        (self._directory / name).hardlink_to(disk.image)  # until the layer is written down, a crash leaves the disk
        before = self._image(revision.id) if self._has(revision.id) else None
        self._write(Kept(revision, parent, name, owed))
        disk.remove()
        if before:
            unmount(self._directory / revision.id)
            before.unlink(missing_ok=True)

    async def flatten_if_deep(self, account: int, id: str) -> None:
        """A stack that has grown too deep for one mount becomes a single layer, by way of a store of its own."""
        ids = self._chain(id)
        if len(ids) <= DEEPEST:
            return
        kept = self._read(id)
        sources = [Source(await self._mounted(one), 0) for one in reversed(ids)]
        scratch = self._directory / f"flatten-{id}"
        depot = self._depot.beside(scratch)
        try:
            used = Used(kept.revision.size)
            await depot.save(account, id, None, None, sources, kept.revision.image, "flatten", used)
            found = await depot.look(account, id)
            await self._fill(depot, account, Found(kept.revision, found.entries))
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    async def path(self, id: str) -> tuple[Path, str | None]:
        """Where a layer's files are, and the layer below it."""
        return await self._mounted(id), self._read(id).parent

    def stored(self, id: str, saved: Saved) -> None:
        """It is in the object store now."""
        kept = self._read(id)
        told = msgspec.structs.replace(kept.revision, stored=True, size=saved.size, stored_bytes=saved.stored_bytes)
        self._write(msgspec.structs.replace(kept, revision=told, owed=None))

    def gone_from_store(self, account: int, id: str) -> None:
        """It was thought to be there: nobody listed it any more, so it was collected, or the store has lost it."""
        kept = self._read(id)
        told = msgspec.structs.replace(kept.revision, stored=False)
        self._write(msgspec.structs.replace(kept, revision=told, owed=account))

    def owed(self) -> list[tuple[int, Revision]]:
        """What the object store should have and has not, with its account; the oldest first."""
        kept = [one for one in map(self._read, self._ids()) if one.owed is not None]
        return sorted(((one.owed or 0, one.revision) for one in kept), key=lambda one: one[1].created_ns)

    async def _restore(self, account: int, id: str) -> None:
        """One layer with everything above the image; half-restored ones have no file beside them and are swept."""
        async with self._mounting.setdefault(id, asyncio.Lock()):
            if not self._is_here(id):
                await self._fill(self._depot, account, await self._depot.look(account, id))

    async def _fill(self, depot: Depot, account: int, found: Found) -> None:
        """Raises NotFound without the image: what a merged layer may hide is told by it."""
        revision = found.revision
        owed = self._read(revision.id).owed if self._has(revision.id) else None
        gib = 2
        # The file is sparse; ext4 has its own needs, and an inode per name.
        while gib * GIB < max(2 * revision.size, 2 * found.entries * BYTES_PER_INODE) + GIB:
            gib *= 2
        name = f"layer-{revision.id}"
        hold = self._images.hold_content(revision.image)
        disk = await self._disks.make(name, self._directory / name, gib, owner=0)
        try:
            await depot.restore(account, revision.id, disk.upper)
            await asyncio.to_thread(prune, disk.upper, hold.path)
            size = await asyncio.to_thread(grown, disk.upper, [])
            told = msgspec.structs.replace(revision, size=size)
            await asyncio.to_thread(self.keep, disk, told, None, owed)
        finally:
            hold.release()
            await asyncio.to_thread(disk.remove)
            disk.mountpoint.rmdir()

    # room

    def made_since(self, instant_ns: int) -> set[str]:
        return {id for id in self._ids() if self._read(id).revision.created_ns >= instant_ns}

    def collect(self, listed: set[str]) -> tuple[int, int]:
        """Removes revisions that nobody lists, unless something stands on them; how many, and the bytes of them."""
        with self._leaving:
            standing = self._standing(listed)
            gone = {id: self._image(id) for id in self._ids() if id not in listed and id not in standing}
            for id in gone:
                self._meta(id).unlink()
        return len(gone), sum(self._remove(id, image) for id, image in gone.items())

    def _standing(self, listed: set[str]) -> set[str]:
        """Pinned layers, and all that these or listed ones have below them."""
        parents = {id: self._read(id).parent for id in self._ids()}
        standing = set(self._pins)
        for id in listed | standing:
            at = parents.get(id)
            while at is not None:
                standing.add(at)
                at = parents.get(at)
        return standing

    def make_room(self) -> None:
        """Least recently used stored layers go until the limit is kept, or nothing is left that may go."""
        with self._leaving:
            kept = {id: self._read(id) for id in self._ids()}
            images = {id: self._directory / one.disk for id, one in kept.items()}
            used = {id: image.stat() for id, image in images.items()}
            total = sum(status.st_blocks * 512 for status in used.values())
            gone: list[str] = []
            while total > self._limit and (id := self._least_used(kept, used)) is not None:
                self._meta(id).unlink()
                del kept[id]
                gone.append(id)
                total -= used[id].st_blocks * 512
        for id in gone:
            log.info("layer.evicted", revision=id, bytes=self._remove(id, images[id]))

    def _least_used(self, kept: dict[str, Kept], used: dict[str, os.stat_result]) -> str | None:
        """Of those that are in the store, that nothing else here stands on, and that nobody has in use."""
        needed = {one.parent for one in kept.values()} | set(self._pins)
        idle = [id for id, one in kept.items() if one.revision.stored and id not in needed]
        return min(idle, key=lambda id: used[id].st_mtime_ns, default=None)

    def _remove(self, id: str, image: Path) -> int:
        """What is left of a layer that is written down no more; its bytes."""
        size = image.stat().st_blocks * 512
        unmount(self._directory / id)
        image.unlink(missing_ok=True)
        (self._directory / id).rmdir() if (self._directory / id).exists() else None
        return size

    # files

    def _ids(self) -> Iterator[str]:
        return (path.stem for path in sorted(self._directory.glob("*.json")))

    def _has(self, id: str) -> bool:
        return self._meta(id).exists()

    def _image(self, id: str) -> Path:
        return self._directory / self._read(id).disk

    def _meta(self, id: str) -> Path:
        return self._directory / f"{id}.json"

    def _read(self, id: str) -> Kept:
        return msgspec.json.decode(self._meta(id).read_bytes(), type=Kept)

    def _write(self, kept: Kept) -> None:
        fresh = self._meta(kept.revision.id).with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._meta(kept.revision.id))

    def sweep(self) -> None:
        """At start: what a crash left half-kept or half-restored, and mounts that nobody needs."""
        self._set_damaged_aside()
        known = {self._read(id).disk for id in self._ids()}
        known |= {
            path.name for bad in self._directory.glob("*.damaged") for path in self._directory.glob(f"{bad.stem}*")
        }
        for entry in self._directory.iterdir():
            if entry.is_dir():
                unmount(entry)
                shutil.rmtree(entry)
            elif entry.suffix == ".new" or (entry.suffix == ".img" and entry.name not in known):
                entry.unlink()

    def _set_damaged_aside(self) -> None:
        """A spoiled file must not keep the node from starting; its layer is not thrown away."""
        for id in list(self._ids()):
            try:
                self._read(id)
            except msgspec.MsgspecError as error:
                log.error("layer.damaged", revision=id, error=str(error))
                self._meta(id).rename(self._directory / f"{id}.damaged")

    def close(self) -> None:
        for entry in self._directory.iterdir():
            if entry.is_dir():
                unmount(entry)
                entry.rmdir()
