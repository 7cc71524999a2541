"""Revisions on this node's disk: each is one layer, the frozen disk image of the sandbox that made it.

A revision is a stack: its own layer, its parents' layers, and the image at the bottom. Mounting a stack costs the same
whatever its size, so a fork or a base is one mount. A layer that is in the object store is only a cache here: it is
removed when room is needed, the least recently used first, and comes back from the store as one layer without parents.
A layer that is not in the store, or that something mounted or listed here stands on, stays.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from roost import linux
from roost.errors import Conflict, NotFound, RoostError, Unsaved, reason
from roost.node.ahead import drop_unchanged
from roost.node.canonical import canonicalise
from roost.node.depot import Depot, Found, Saved, Source, Used
from roost.node.disk import (
    BYTES_PER_INODE,
    GIB,
    SEAL_SECONDS,
    Disk,
    Disks,
    is_attached,
    mount_image,
    repair,
    seal,
    unmount,
)
from roost.node.images import Hold, ImageStore
from roost.node.images.config import Config
from roost.node.moved import has_moved, settle
from roost.node.protocol import Revision
from roost.node.prune import prune
from roost.node.usage import measured

GUEST_INITS = "roost"  # in /run: where guest init has a file system of its own
DEEPEST = 40  # layers in one mount; overlayfs takes its options in one page
WASTE = 2 * GIB  # bytes that a stack may take besides twice what is seen of it
REST = 15.0  # seconds that a layer stays mounted after its last use: mounting one takes some milliseconds
RESTING = 64  # layers at most that are mounted so

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Raw(msgspec.Struct, frozen=True):
    """`first_id`: what container id 0 is on the disk. `error`: what hindered making a layer of it, so far."""

    first_id: int
    error: str = "it is being saved"


class Kept(msgspec.Struct, frozen=True):
    """The file beside a layer's disk image. `parent`: the layer below, None for one that stands on the image alone.

    It names its disk image, so that replacing a layer by a flat one is one step. `owed`: the account in whose part of
    the object store it should be, and is not yet. `raw`: its disk is still as its sandbox left it.
    `largest`: bytes of the largest file.
    """

    revision: Revision
    parent: str | None
    disk: str
    owed: int | None = None
    raw: Raw | None = None
    largest: int = 0


@dataclass
class Stack:
    """What a sandbox starts from. Pinned until `release`, also against a crash of nothing but this process."""

    revision: Revision
    lowers: list[Path]  # the newest layer first; the image's root file system last; none of one that was only held
    _layers: "Layers"
    _ids: list[str]
    _hold: Hold

    @property
    def image(self) -> str:
        return self._hold.content

    @property
    def size(self) -> int:
        """Bytes of the files above the image."""
        return self.revision.size

    @property
    def config(self) -> Config:
        return self._hold.config

    @property
    def largest(self) -> int:
        """Bytes of its largest file."""
        return self._layers.largest(self._ids)

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
        self._resting: dict[str, asyncio.TimerHandle] = {}  # mounted, and nobody has them in use; the first is oldest
        self._unmounting: set[asyncio.Task[None]] = set()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    # what a sandbox starts from

    async def stack(self, account: int, revision: str) -> Stack:
        """Raises NotFound for a revision that is neither here nor in the store, Unsaved for one that is not usable."""
        if fresh := not self._is_here(revision):
            await self._restore(account, revision)
        ids = self._pinned_chain(revision)
        try:
            if fresh:
                await asyncio.to_thread(self.make_room)
            lowers = [await self._mounted(id) for id in ids]
            hold = self._images.hold_content(self._read(revision).revision.image)
        except BaseException:
            self.unpin(ids)
            raise
        os.utime(self._image(revision))  # when it was last used
        return Stack(self.find(revision), [*lowers, hold.path], self, ids, hold)

    def hold(self, revision: str) -> Stack:
        """The same for who has it mounted already: nothing of it goes, and nothing is mounted. Raises NotFound."""
        if not self._is_here(revision):
            raise NotFound(f"revision {revision} is not on this node")
        ids = self._pinned_chain(revision)
        try:
            hold = self._images.hold_content(self._read(revision).revision.image)
        except BaseException:
            self.unpin(ids)
            raise
        return Stack(self.find(revision), [], self, ids, hold)

    def _pinned_chain(self, revision: str) -> list[str]:
        with self._leaving:
            ids = self._chain(revision)
            self._pin(ids)
        return ids

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
            if resting := self._resting.pop(id, None):
                resting.cancel()

    def unpin(self, ids: list[str]) -> None:
        for id in ids:
            self._pins[id] -= 1
            if not self._pins[id]:
                del self._pins[id]
                self._rest(id)

    @contextlib.contextmanager
    def pinned(self, id: str) -> Generator[list[str]]:
        """The layers that it stands on, itself first; none of them goes meanwhile."""
        ids = self._pinned_chain(id)
        try:
            yield ids
        finally:
            self.unpin(ids)

    # mounts

    async def _mounted(self, id: str) -> Path:
        point = self._directory / id
        async with self._lock(id):
            mounted = point.is_mount()
            if not mounted and self._read(id).raw:
                await self._finish_alone(id)
            elif not mounted:
                point.mkdir(exist_ok=True)
                await asyncio.to_thread(mount_image, self._image(id), point, linux.MS_RDONLY)
        if id not in self._pins:
            self._rest(id)
        return point / "upper"

    def _lock(self, id: str) -> asyncio.Lock:
        return self._mounting.setdefault(id, asyncio.Lock())

    def _rest(self, id: str) -> None:
        """Nobody has it in use; it stays mounted a while, for whoever forks it next."""
        if (self._directory / id).exists():
            if before := self._resting.pop(id, None):
                before.cancel()
            self._resting[id] = asyncio.get_running_loop().call_later(REST, self._tire, id)
        while len(self._resting) > RESTING:
            self._tire(next(iter(self._resting)))

    def _tire(self, id: str) -> None:
        self._resting.pop(id).cancel()
        task = asyncio.create_task(self._unmount_unused(id), name="unmount")
        self._unmounting.add(task)
        task.add_done_callback(self._unmounting.discard)

    async def _unmount_unused(self, id: str) -> None:
        async with self._lock(id):
            if id not in self._pins and id not in self._resting:
                await asyncio.to_thread(_unmount_point, self._directory / id)

    # keeping

    def has(self, revision: str) -> bool:
        return self._has(revision)

    def find(self, revision: str) -> Revision:
        if not self._has(revision):
            raise NotFound(f"revision {revision} is not on this node")
        return self._told(self._read(revision))

    def _told(self, kept: Kept) -> Revision:
        return msgspec.structs.replace(kept.revision, unsaved=kept.raw.error) if kept.raw else kept.revision

    async def below(self, id: str | None) -> list[Path]:
        """The directories of a layer and of all that it stands on, the newest first, without the image."""
        return [await self._mounted(one) for one in self._chain(id)] if id and self._is_here(id) else []

    def take(self, disk: Disk, revision: Revision, parent: str | None, owed: int | None, first_id: int) -> None:
        """A finished sandbox's disk, as it is: once this returns, no failure and no kill loses it. `finish` follows."""
        name = f"{revision.id}-{secrets.token_hex(4)}.img"
        (self._directory / name).hardlink_to(disk.image)  # until the layer is written down, a crash leaves the disk
        try:
            self._write(Kept(revision, parent, name, owed, Raw(first_id)))
        except OSError:
            (self._directory / name).unlink()
            raise

    async def finish(self, id: str, disk: Disk) -> None:
        """What was taken becomes a layer. Nothing is lost whatever is raised, and all of it may be repeated."""
        async with self._lock(id):
            kept = self._read(id)
            if kept.raw and disk.mountpoint.is_mount():
                self._replace(kept, await self._plain(kept, kept.raw, disk))
            elif kept.raw:  # a node before this one has set it aside
                await self._finish_alone(id)
            await asyncio.to_thread(disk.remove)

    async def set_aside(self, id: str, disk: Disk, error: Exception) -> None:
        """Finishing it did not work, and the sandbox's own disk goes: what was taken of it stays until it does."""
        async with self._lock(id):
            self._note(id, error)
            await asyncio.to_thread(disk.remove)

    async def _plain(self, kept: Kept, raw: Raw, disk: Disk) -> Kept:
        with self.pinned(kept.parent) if kept.parent and self._is_here(kept.parent) else contextlib.nullcontext():
            lowers = await self.below(kept.parent)
            await asyncio.to_thread(_make_plain, disk, raw.first_id)
            if await asyncio.to_thread(has_moved, disk):
                await self._settle(kept, lowers, disk)
            found = await asyncio.to_thread(measured, disk.upper, lowers)
        size = max(0, self._size(kept.parent) + found.grown)
        await asyncio.to_thread(seal, disk)
        told = msgspec.structs.replace(kept.revision, size=size)
        made = self._linked(kept, disk)
        return msgspec.structs.replace(kept, revision=told, raw=None, disk=made, largest=found.largest)

    async def _settle(self, kept: Kept, lowers: list[Path], disk: Disk) -> None:
        """Raises NotFound where what the disk speaks of is not on this node."""
        if kept.parent and not lowers:
            raise NotFound("directories were renamed that lie in a revision which is not on this node any more")
        with self._images.hold_content(kept.revision.image) as hold:
            await asyncio.to_thread(settle, disk, [*lowers, hold.path], self._directory / f"settle-{kept.revision.id}")

    def _linked(self, kept: Kept, disk: Disk) -> str:
        """The name of the disk's image here; a new one where the disk was made larger, and so is another file."""
        if (self._directory / kept.disk).samefile(disk.image):
            return kept.disk
        name = f"{kept.revision.id}-{secrets.token_hex(4)}.img"
        (self._directory / name).hardlink_to(disk.image)
        return name

    def _replace(self, before: Kept, after: Kept) -> None:
        self._write(after)
        if before.disk != after.disk:
            (self._directory / before.disk).unlink(missing_ok=True)

    async def _finish_alone(self, id: str) -> None:
        """Of one whose sandbox is gone. With its lock held. Raises Unsaved; it is mounted otherwise."""
        kept, point = self._read(id), self._directory / id
        disk = Disk(self._directory / kept.disk, point, 0)
        try:
            assert kept.raw
            await asyncio.to_thread(_mount_raw, disk)
            try:
                plain = await self._plain(kept, kept.raw, disk)
            except BaseException:
                unmount(point)
                raise
            self._replace(kept, plain)
        except Exception as error:
            log.exception("revision.unsaved", revision=id)
            with contextlib.suppress(OSError):
                self._note(id, error)
            raise Unsaved(f"the files of revision {id} could not be saved: {told(error)}; they are kept") from error
        log.info("revision.saved_late", revision=id)

    def _note(self, id: str, error: Exception) -> None:
        kept = self._read(id)
        if kept.raw:
            raw = msgspec.structs.replace(kept.raw, error=told(error))
            self._write(msgspec.structs.replace(kept, raw=raw))

    def _size(self, id: str | None) -> int:
        return self._read(id).revision.size if id and self._has(id) else 0

    async def recover(self, id: str) -> Revision:
        """Makes a layer of what could not be saved before. Raises Unsaved with why it still cannot, NotFound."""
        with self.pinned(self.find(id).id):
            await self._mounted(id)
        return self.find(id)

    def unsaved(self) -> list[Revision]:
        return [self._told(kept) for kept in map(self._read, self._ids()) if kept.raw]

    def largest(self, ids: list[str]) -> int:
        return max(self._read(id).largest for id in ids)

    def keep(
        self, disk: Disk, revision: Revision, parent: str | None, owed: int | None = None, largest: int = 0
    ) -> None:
        """Durable on return: from here on `stack` finds it. The disk is unmounted and belongs to the layer."""
        seal(disk)
        name = f"{revision.id}-{secrets.token_hex(4)}.img"
        (self._directory / name).hardlink_to(disk.image)  # until the layer is written down, a crash leaves the disk
        before = self._image(revision.id) if self._has(revision.id) else None
        self._write(Kept(revision, parent, name, owed, largest=largest))
        disk.remove()
        if before:
            unmount(self._directory / revision.id)
            before.unlink(missing_ok=True)

    async def flatten_if_due(self, account: int, id: str) -> None:
        """A stack that is too deep for one mount, or mostly holds what is seen no more, becomes a single layer.

        By way of a store of its own.
        """
        ids = self._chain(id)
        if len(ids) <= DEEPEST and not self._is_wasteful(ids):
            return
        with self.pinned(id) as ids:
            await self._flatten(account, id, ids)

    def _is_wasteful(self, ids: list[str]) -> bool:
        """Written once more is then less than what was written since it was flat."""
        taken = sum(self._image(id).stat().st_blocks * 512 for id in ids)
        return len(ids) > 1 and taken > 2 * self._size(ids[0]) + WASTE

    async def _flatten(self, account: int, id: str, ids: list[str]) -> None:
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

    def owed(self) -> list[tuple[int | None, Revision]]:
        """What could not be saved, and what the store should have and has not, with its account; the oldest first."""
        kept = [one for one in map(self._read, self._ids()) if one.owed is not None or one.raw]
        return sorted(((one.owed, self._told(one)) for one in kept), key=lambda one: one[1].created_ns)

    async def _restore(self, account: int, id: str) -> None:
        """One layer with everything above the image; half-restored ones have no file beside them and are swept."""
        async with self._lock(id):
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
            its = await asyncio.to_thread(measured, disk.upper, [])
            told = msgspec.structs.replace(revision, size=its.grown)
            await asyncio.to_thread(self.keep, disk, told, None, owed, its.largest)
        finally:
            hold.release()
            await asyncio.to_thread(disk.remove)
            disk.mountpoint.rmdir()

    def keep_image(self, content: str) -> None:
        """For a revision that stands on it, and of which no layer is here."""
        self._images.keep(content)

    def keep_images(self) -> None:
        """At start: of layers that an earlier version made, which kept none."""
        self._set_damaged_aside()
        for content in self.images():
            self._images.keep(content)

    def images(self) -> set[str]:
        """Contents that the layers here stand on."""
        return {self._read(id).revision.image for id in self._ids()}

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
        _unmount_point(self._directory / id)
        image.unlink(missing_ok=True)
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
        self._images.keep(kept.revision.image)  # before there is something that needs it
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
        for resting in self._resting.values():
            resting.cancel()
        for entry in self._directory.iterdir():
            if entry.is_dir():
                _unmount_point(entry)


def told(error: Exception) -> str:
    """For the user."""
    if isinstance(error, OSError):
        return reason(error)
    return str(error) if isinstance(error, RoostError) else "internal error of the node, whose log has the details"


def _make_plain(disk: Disk, first_id: int) -> None:
    """Make a finished sandbox's files a layer's. May be repeated, also when the disk is read-only by now."""
    drop_unchanged(disk)
    if disk.ballast.exists():
        disk.ballast.unlink()
    _forget_run(disk.upper / "run")
    canonicalise(disk.upper, first_id)


def _forget_run(run: Path) -> None:
    """What belongs to a running system (pid files, sockets, locks) ends with it: the image's own is seen again."""
    if not run.is_dir() or run.is_symlink() or {path.name for path in run.iterdir()} <= {GUEST_INITS}:
        return
    status = run.lstat()
    done = subprocess.run(["rm", "-rf", str(run)], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"/run could not be emptied: {done.stderr.strip()[-500:]}")
    run.mkdir()
    os.chown(run, status.st_uid, status.st_gid)
    run.chmod(stat.S_IMODE(status.st_mode))


def _mount_raw(disk: Disk) -> None:
    """A node or a machine may have ended while it was written to: checked, and mounted by nobody else."""
    deadline = time.monotonic() + SEAL_SECONDS
    while is_attached(disk.image) and time.monotonic() < deadline:
        time.sleep(0.02)
    if is_attached(disk.image):
        raise Conflict("a process of the sandbox has not let go of its disk yet; try again")
    repair(disk.image)
    disk.mountpoint.mkdir(exist_ok=True)
    mount_image(disk.image, disk.mountpoint)


def _unmount_point(point: Path) -> None:
    unmount(point)
    with contextlib.suppress(FileNotFoundError):
        point.rmdir()
