"""Saving a workspace: look at the layers, upload what is new, write the revision last.

`first_pass` may run while the sandbox does; `second_pass` runs while it is frozen and looks again at what changed;
`commit` writes the rest after it was thawed. Until commit returns, the store has packs that nobody refers to, and
nothing else; a process that is killed leaves the workspace as it was.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from roost.clock import now_ns
from roost.errors import Conflict, Invalid, NotFound
from roost.node.sync import merge, revision, scan
from roost.node.sync.fetch import Chunks
from roost.node.sync.files import write_back
from roost.node.sync.index import Index
from roost.node.sync.manifest import Writer, pages
from roost.node.sync.pack import Packer
from roost.node.sync.revision import Revision
from roost.node.sync.scan import Counts, Look, Scan
from roost.node.sync.seal import Damaged
from roost.node.sync.vault import INDEX, REVISION, Vault

Told = Callable[[str, int], None]


@dataclass(frozen=True)
class Layer:
    """A frozen (or live: still written to) upper directory. first_id: the host's id of the guest's root.

    merged: of a live one, the root of the overlay that it is the upper layer of; see Look.
    memory: where the look at this layer is kept for the next save of the same directory, if there will be one.
    """

    path: Path
    first_id: int
    live: bool = False
    memory: Path | None = None
    merged: Path | None = None


def nobody_told(event: str, amount: int) -> None:
    """For callers who do not follow the progress."""


class Saving:
    """One save. Use as a context manager; without `commit` it leaves nothing that counts.

    base: the revision that lies below `layers` (lowest first); keep it from being collected meanwhile. parent: the
    id that the new revision names as its parent, if that is another. id: of the new one, if the caller has chosen it.
    cache: this vault's index, kept between saves.
    """

    def __init__(
        self,
        vault: Vault,
        base: Revision | None,
        layers: Sequence[Layer],
        image: str,
        job: str,
        *,
        id: str | None = None,
        parent: str | None = None,
        cache: Path | None = None,
        told: Told = nobody_told,
    ) -> None:
        if base is not None and base.image != image:
            raise Invalid(f"revision {base.id} lies over image {base.image}, not {image}; save over the same image")
        self._vault = vault
        self._base = base
        self._layers = list(layers)
        self._image = image
        self._job = job
        self._parent = parent or (base.id if base else None)
        self._told = told
        self._files: list[IO[bytes]] = []
        self._index = Index(vault, cache)
        self._index.refresh()
        workers = max(2, os.cpu_count() or 2)
        self._packer = Packer(vault, self._index, workers, told)
        self._chunks = Chunks(vault, self._index)
        self._pool = ThreadPoolExecutor(workers, "read")
        self._scans: list[Scan] = []
        self._relied_on = {base.id} if base else set[str]()
        self.id = id or revision.new_id()
        self.used: int | None = None  # set it before `commit`; see Revision
        self.counts: list[Counts] = []
        self.frozen_seconds = 0.0

    def __enter__(self) -> "Saving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._packer.close()
        self._chunks.close()
        self._index.close()
        for file in self._files:
            file.close()

    def first_pass(self) -> None:
        """Read the layers; of live ones, what is still being written may be read again later."""
        self._scans = [self._look(layer, self._remembered(layer)) for layer in self._layers]
        for layer in self._layers:
            if layer.live:  # now rather than while it is frozen
                write_back(layer.path)

    def _remembered(self, layer: Layer) -> Scan | None:
        """The look of an earlier save, as long as the store is bound to keep what was saved then."""
        before = scan.earlier(layer.memory)
        if before is None:
            return None
        try:
            known = revision.read(self._vault, before.head().revision)
        except (NotFound, Damaged):
            return None
        self._relied_on.add(known.id)
        return before

    def second_pass(self) -> None:
        """With the sandbox frozen: look again at live layers, where anything changed. Uploads go on afterwards."""
        begun = time.monotonic()
        for number, layer in enumerate(self._layers):
            if layer.live and not scan.quiet(layer.path, self._scans[number]):
                self._scans[number] = self._look(layer, self._scans[number])
        self.frozen_seconds = time.monotonic() - begun

    def _look(self, layer: Layer, before: Scan | None) -> Scan:
        look = Look(self._packer, self._pool, layer.first_id, layer.live, self._told, layer.merged)
        # A file without a name: nothing is left of it if this process is killed.
        file = tempfile.TemporaryFile()  # noqa: SIM115 it is closed with this save
        self._files.append(file)
        try:
            return look.write(layer.path, Path(f"/proc/self/fd/{file.fileno()}"), before, self.id)
        finally:
            self.counts.append(look.counts)

    def commit(self) -> Revision:
        """The new revision, in the store when this returns. Conflict if a collection interfered: save again."""
        writer = Writer(self._packer)
        base = pages(self._base.manifest, self._chunks) if self._base else ()
        merge.written([one.entries() for one in self._scans], base, self._chunks, writer)
        manifest = writer.finish()
        self._packer.finish()
        self._verify()
        self._vault.store.settle()
        made = Revision(
            id=self.id,
            parent=self._parent,
            time=now_ns(),
            job=self._job,
            image=self._image,
            size=writer.size,
            entries=writer.entries,
            stored=self._packer.stored,
            manifest=manifest,
            used=self.used,
        )
        self._told(REVISION, 1)
        revision.write(self._vault, made)
        self._vault.store.settle()
        self._remember()
        return made

    def _verify(self) -> None:
        """What we built on is still there. Between this and the revision lies far less than a collection's grace."""
        self._told(INDEX, 0)
        self._index.refresh()
        needed = self._packer.built_on | self._packer.own
        if self._index.still_usable(needed) != needed:
            raise Conflict("the object store was being collected while the workspace was saved; save it again")
        for one in self._relied_on:
            try:
                revision.read(self._vault, one)
            except NotFound as error:
                raise Conflict(f"revision {one}, on which this save builds, was removed; save again") from error

    def _remember(self) -> None:
        for layer, seen in zip(self._layers, self._scans, strict=True):
            if layer.memory is not None:
                _replace(seen.path, layer.memory)


def _replace(source: Path, target: Path) -> None:
    beside = target.with_name(target.name + ".new")
    shutil.copyfile(source, beside)
    beside.replace(target)


def save(
    vault: Vault,
    base: Revision | None,
    layers: Sequence[Layer],
    image: str,
    job: str,
    *,
    parent: str | None = None,
    cache: Path | None = None,
    told: Told = nobody_told,
) -> Revision:
    """Save layers that nobody is writing to."""
    with Saving(vault, base, layers, image, job, parent=parent, cache=cache, told=told) as saving:
        saving.first_pass()
        return saving.commit()
