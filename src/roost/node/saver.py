"""How a sandbox's files become revisions, and what they start from: layers here, the object store behind them.

A revision that is to be uploaded is made a layer first and uploaded then, so that a store that is away delays nothing
but the upload: the layer says `stored: false`, and the next save that builds on it sends it.
"""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from roost.clock import now_ns
from roost.errors import Conflict, RoostError
from roost.node.depot import Depot, Source
from roost.node.disk import Disk
from roost.node.freezer import Freezer
from roost.node.layers import Layers
from roost.node.member import Member
from roost.node.protocol import File, Revision, SaveRequest
from roost.node.record import Record
from roost.node.uploads import Uploads

UPLOADS = "uploads"  # beside /root, where older documents look for files

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Saver:
    def __init__(self, layers: Layers, depot: Depot, uploads: Uploads, memories: Path) -> None:
        self._layers = layers
        self._depot = depot
        self._uploads = uploads
        self._memories = memories
        self.release_files: Callable[[str], Awaitable[None]] = _nobody_looks  # set by the daemon
        memories.mkdir(mode=0o700, parents=True, exist_ok=True)

    # before a sandbox runs

    async def place(self, files: Sequence[File], member: Member, lowers: Sequence[Path]) -> None:
        """Uploads into /root of a disk that no guest has seen yet, and /uploads as another name for it."""
        if not files:
            return
        root = member.disk.upper / "root"
        await asyncio.to_thread(_make_root, root, lowers, member.site.first_id)
        for file in files:
            target = root / file.name
            with target.open("xb") as out:
                async for chunk in self._uploads.read(file.id):
                    out.write(chunk)
                os.fchown(out.fileno(), member.site.first_id, member.site.first_id)
                os.fchmod(out.fileno(), 0o644)
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
        live = Source(member.disk.upper, member.site.first_id, live=True, memory=self._memory(record))
        base, below = await self._below(record.start_from)
        saved = await self._depot.save(
            request.account,
            request.revision,
            base,
            last or record.start_from,
            [*below, live],
            record.image_content,
            record.state.id,
            freeze=freezer.hold,
            thaw=freezer.release,
        )
        return Revision(
            id=request.revision,
            parent=last or record.start_from,
            image=record.image_content,
            created_ns=now_ns(),
            size=saved.size,
            stored=True,
            stored_bytes=saved.stored_bytes,
        )

    async def _below(self, at: str | None) -> tuple[str | None, list[Source]]:
        """What a new layer stands on: the newest revision in the store, and layers above it that are not there yet."""
        waiting: list[Source] = []
        while at is not None and self._layers.has(at) and not self._layers.find(at).stored:
            path, at = await self._layers.path(at)
            waiting.insert(0, Source(path, 0))
        return at, waiting

    # when it is over

    async def keep(self, record: Record, disk: Disk, first_id: int, last: str | None) -> Revision:
        """Nothing runs on the disk any more. Safe to repeat after a crash at any point."""
        assert record.save
        parent, below = last or record.start_from, record.start_from
        made = await self._keep(record.save, disk, first_id, parent, below, record.image_content)
        self._memory(record).unlink(missing_ok=True)
        return made

    async def keep_edit(self, request: SaveRequest, disk: Disk, parent: Revision) -> Revision:
        """A revision that differs from `parent` by what is on the disk."""
        return await self._keep(request, disk, 0, parent.id, parent.id, parent.image)

    async def _keep(
        self, request: SaveRequest, disk: Disk, first_id: int, parent: str | None, below: str | None, image: str
    ) -> Revision:
        if not self._layers.has(request.revision):
            size = await asyncio.to_thread(self._layers.freeze, disk, first_id)
            revision = Revision(
                id=request.revision,
                parent=parent,
                image=image,
                created_ns=now_ns(),
                size=size,
                stored=False,
                stored_bytes=0,
            )
            await asyncio.to_thread(self._layers.keep, disk, revision, below)
        if request.upload:
            await self.upload(request)
        await self._layers.flatten_if_deep(request.account, request.revision)
        await asyncio.to_thread(self._layers.make_room)
        return self._layers.find(request.revision)

    async def upload(self, request: SaveRequest) -> None:
        """A failure is logged, and the layer stays `stored: false`: it is kept here, and sent with the next save."""
        kept = self._layers.find(request.revision)
        if kept.stored:
            return
        try:
            path, at = await self._layers.path(kept.id)
            base, below = await self._below(at)
            top = Source(path, 0)
            saved = await self._depot.save(
                request.account, kept.id, base, kept.parent, [*below, top], kept.image, request.revision
            )
            self._layers.stored(kept.id, saved.size, saved.stored_bytes)
        except RoostError as error:
            log.error("revision.unstored", revision=kept.id, error=str(error))

    def _memory(self, record: Record) -> Path:
        """What the last look at this sandbox's disk found."""
        return self._memories / f"{record.state.id}.look"

    def forget(self, id: str) -> None:
        (self._memories / f"{id}.look").unlink(missing_ok=True)


async def _nobody_looks(id: str) -> None:
    pass


def _make_root(root: Path, lowers: Sequence[Path], first_id: int) -> None:
    """/root in the upper layer, with the mode that it has below."""
    mode = 0o700
    for lower in lowers:
        below = lower / "root"
        if os.path.lexists(below):
            status = below.lstat()
            mode = stat.S_IMODE(status.st_mode) if stat.S_ISDIR(status.st_mode) else mode
            break
    root.mkdir(mode=mode)
    root.chmod(mode)
    os.chown(root, first_id, first_id)
