"""How a sandbox's files become revisions, and what they start from: layers here, the object store behind them.

A revision that is to be uploaded is made a layer first and uploaded then, so that a store that is away delays nothing
but the upload: the layer says `stored: false` and is owed, and `Arrears` (arrears.py) sends it when the store is back.
"""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import structlog

from roost.clock import now_ns
from roost.errors import Conflict, Invalid, NotFound, RoostError
from roost.node.depot import Depot, Frozen, Saved, Source, Used
from roost.node.disk import Disk
from roost.node.freezer import Freezer
from roost.node.layers import Layers
from roost.node.member import Member
from roost.node.moved import OPAQUE
from roost.node.protocol import Revision, SaveRequest, StartSandbox
from roost.node.record import Record
from roost.node.uploads import Uploads
from roost.node.usage import measured

UPLOADS = "uploads"  # beside /root, where older documents look for files

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Saver:
    def __init__(self, layers: Layers, depot: Depot, uploads: Uploads, memories: Path) -> None:
        self._layers = layers
        self._depot = depot
        self._uploads = uploads
        self._memories = memories
        self._settling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.behind: Callable[[], None] = _nobody_cares  # called when the store owes us one more; set by the daemon
        self.release_files: Callable[[str], Awaitable[None]] = _nobody_looks  # set by the daemon
        memories.mkdir(mode=0o700, parents=True, exist_ok=True)

    # before a sandbox runs

    async def place(self, request: StartSandbox, member: Member, lowers: Sequence[Path]) -> None:
        """On a disk that no guest has seen yet: directories, uploads into /root, and /uploads as its other name.

        Raises Invalid for a name that would lead elsewhere.
        """
        for name in (*request.directories, *(file.name for file in request.files)):
            _require_component(name)
        if request.reboots:
            await asyncio.to_thread(_empty_directory, member, "tmp", lowers)
        for name in request.directories:
            await asyncio.to_thread(_make_directory, member, name, lowers, 0o755)
        if not request.files:
            return
        root = await asyncio.to_thread(_make_directory, member, "root", lowers, 0o700)
        for file in request.files:
            target = root / file.name
            with target.open("xb") as out:
                async for chunk in self._uploads.read(file.id):
                    out.write(chunk)
                _own(out.fileno(), member, _below(lowers, f"root/{file.name}", stat.S_ISREG), root, 0o644)
        link = member.disk.upper / UPLOADS
        link.symlink_to("/root")
        os.lchown(link, member.site.first_id, member.site.first_id)

    # while it runs

    async def snapshot(
        self, record: Record, request: SaveRequest, member: Member, last: str | None, freezer: Freezer
    ) -> Revision:
        """Two passes, the second with the sandbox standing still.

        Raises Conflict for a workspace that is kept here only.
        """
        if not request.upload:
            raise Conflict("this workspace is kept on its node and saved when its job ends; persistent ones are synced")
        self._layers.keep_image(record.image_content)
        made = Revision(
            id=request.revision,
            parent=last or record.start_from,
            image=record.image_content,
            created_ns=now_ns(),
            size=self._size(record.start_from),
            stored=True,
            stored_bytes=0,
        )
        merged = Path(f"/proc/{member.pid}/root")
        live = Source(member.disk.upper, member.site.first_id, True, self._memory(record), merged)
        used = Used(made.size, await self._layers.below(record.start_from))
        frozen = (freezer.hold, freezer.release)
        saved = await self._send(request.account, made, record.state.id, record.start_from, live, used, frozen)
        return msgspec.structs.replace(made, created_ns=now_ns(), size=saved.size, stored_bytes=saved.stored_bytes)

    async def _send(
        self,
        account: int,
        revision: Revision,
        job: str,
        at: str | None,
        top: Source,
        used: Used,
        frozen: tuple[Frozen, Callable[[], None]] | None = None,
    ) -> Saved:
        """`top` over the layer `at`. A base that nobody listed has gone from the store: it is sent again."""
        freeze, thaw = frozen or (None, None)
        while True:
            base, below = await self._below(at)
            layers = [*below, top]
            try:
                return await self._depot.save(
                    *(account, revision.id, base, revision.parent, layers, revision.image, job, used), freeze, thaw
                )
            except NotFound:
                if base is None or not self._layers.has(base):
                    raise
                log.warning("revision.gone_from_store", revision=base)
                self._layers.gone_from_store(account, base)
                self.behind()

    def _size(self, id: str | None) -> int:
        return self._layers.find(id).size if id and self._layers.has(id) else 0

    async def _below(self, at: str | None) -> tuple[str | None, list[Source]]:
        """What a new layer stands on: the newest revision in the store, and layers above it that are not there yet."""
        waiting: list[Source] = []
        while at is not None and self._layers.has(at) and not self._layers.find(at).stored:
            path, at = await self._layers.path(at)
            waiting.insert(0, Source(path, 0))
        return at, waiting

    # when it is over

    async def keep(self, record: Record, disk: Disk, first_id: int, last: str | None) -> Revision:
        """Nothing runs on the disk any more. Safe to repeat after a crash at any point.

        What hinders making a layer of it is told by `unsaved`: its files are kept as they are, and `recover` or whoever
        needs them tries again. Raises OSError when nothing at all can be written; then nothing has changed.
        """
        assert record.save
        id = record.save.revision
        if not self._layers.has(id):
            await asyncio.to_thread(self._take, record, record.save, disk, first_id, last)
        try:
            await self._layers.finish(id, disk)
        except Exception as error:  # whatever it is, nothing is lost by it
            log.exception("revision.unsaved", revision=id)
            await self._layers.set_aside(id, disk, error)
            self.behind()
        else:
            await self._settle_surely(record.save)
        self._memory(record).unlink(missing_ok=True)
        return self._layers.find(id)

    def _take(self, record: Record, request: SaveRequest, disk: Disk, first_id: int, last: str | None) -> None:
        below = record.start_from
        size = self._size(below) + disk.image.stat().st_blocks * 512  # at most; it is counted when it is a layer
        made = self._new(request.revision, last or below, record.image_content, size)
        self._layers.take(disk, made, below, request.account if request.upload else None, first_id)

    def _new(self, id: str, parent: str | None, image: str, size: int) -> Revision:
        return Revision(id=id, parent=parent, image=image, created_ns=now_ns(), size=size, stored=False, stored_bytes=0)

    async def keep_edit(self, request: SaveRequest, disk: Disk, parent: Revision) -> Revision:
        """A revision that differs from `parent` by what is on the disk; when it raises, there is none."""
        id = request.revision
        if not self._layers.has(id):
            lowers = await self._layers.below(parent.id)
            found = await asyncio.to_thread(measured, disk.upper, lowers)
            made = self._new(id, parent.id, parent.image, max(0, parent.size + found.grown))
            owed = request.account if request.upload else None
            await asyncio.to_thread(self._layers.keep, disk, made, parent.id, owed, found.largest)
        await self._settle(request)
        return self._layers.find(id)

    async def _settle_surely(self, request: SaveRequest) -> None:
        """It is a layer already: what fails here is made up for later."""
        try:
            await self._settle(request)
        except Exception:
            log.exception("revision.unsettled", revision=request.revision)
            self.behind()

    async def _settle(self, request: SaveRequest) -> None:
        """What follows once there is a layer."""
        if request.upload and await self.upload(request.account, request.revision):
            self.behind()
        await self._flatten(request.account, request.revision)
        await asyncio.to_thread(self._layers.make_room)

    async def recover(self, id: str) -> Revision:
        """Saves now what could not be saved. Raises Unsaved with why it still cannot, NotFound."""
        made = await self._layers.recover(id)
        self.behind()  # the object store may want it
        return made

    async def _flatten(self, account: int, id: str) -> None:
        try:
            async with self._alone(id):
                await self._layers.flatten_if_due(account, id)
        except (RoostError, OSError) as error:  # a later save does it
            log.error("revision.unflattened", revision=id, error=str(error))

    async def upload(self, account: int, id: str) -> RoostError | OSError | None:
        """What hindered it; it is logged, and the layer is kept here and stays owed."""
        try:
            async with self._alone(id):
                kept = self._layers.find(id)
                if not kept.stored:
                    with self._layers.pinned(id):
                        path, at = await self._layers.path(id)
                        saved = await self._send(account, kept, id, at, Source(path, 0), Used(kept.size))
                        self._layers.stored(id, saved)
        except (RoostError, OSError) as error:
            log.error("revision.unstored", revision=id, error=str(error))
            return error
        return None

    @asynccontextmanager
    async def _alone(self, id: str) -> AsyncGenerator[None]:
        """One change to where a layer is at a time."""
        lock = self._settling.setdefault(id, asyncio.Lock())
        async with lock:
            yield

    def _memory(self, record: Record) -> Path:
        """What the last look at this sandbox's disk found."""
        return self._memories / f"{record.state.id}.look"

    def forget(self, id: str) -> None:
        (self._memories / f"{id}.look").unlink(missing_ok=True)


def _nobody_cares() -> None:
    pass


async def _nobody_looks(id: str) -> None:
    pass


def _require_component(name: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise Invalid(f"{name[:80]!r} is not the name of one file or directory")


def _empty_directory(member: Member, name: str, lowers: Sequence[Path]) -> None:
    """/NAME, where it is a directory, without what it has below."""
    below = next((lower / name for lower in lowers if os.path.lexists(lower / name)), None)
    if below is not None and stat.S_ISDIR(below.lstat().st_mode):
        made = _make_directory(member, name, lowers, 0o1777)
        os.setxattr(made, OPAQUE, b"y")


def _make_directory(member: Member, name: str, lowers: Sequence[Path], mode: int) -> Path:
    """/NAME in the upper layer, with the mode and owner that it has below, else with this one and root."""
    made = member.disk.upper / name
    made.mkdir()
    fd = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _own(fd, member, _below(lowers, name, stat.S_ISDIR), member.disk.upper, mode)
    finally:
        os.close(fd)
    return made


def _below(lowers: Sequence[Path], name: str, kind: Callable[[int], bool]) -> os.stat_result | None:
    """What the new name hides, if it is of that kind; a layer's ids are the container's own."""
    parent = name.rpartition("/")[0]
    for lower in lowers:
        if parent and (lower / parent).is_symlink():
            return None
        if os.path.lexists(lower / name):
            status = (lower / name).lstat()
            return status if kind(status.st_mode) else None
    return None


def _own(fd: int, member: Member, hidden: os.stat_result | None, directory: Path, mode: int) -> None:
    """As what it takes the place of; else the directory's owner's."""
    if hidden:
        first = member.site.first_id
        os.fchown(fd, first + hidden.st_uid, first + hidden.st_gid)
        os.fchmod(fd, stat.S_IMODE(hidden.st_mode))
        return
    above = directory.stat()
    os.fchown(fd, above.st_uid, above.st_gid)
    os.fchmod(fd, mode)
