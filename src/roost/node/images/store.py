"""The images of a machine: names, contents, and who uses them.

    ROOT/names/NAME.json    which content a name means now; replaced by rename
    ROOT/rootfs/ID/         one content, never changed once it is here
    ROOT/configs/ID.json    what processes in it begin with (`config.Config`); none: nothing in particular
    ROOT/holds/ID/HOLD      one file per user of a content, locked while its process lives
    ROOT/kept/ID/KEEPER     one file per node whose revisions stand on a content; it holds the node's state directory
    ROOT/work/ID[.lock]     where contents are made; the lock is held by the maker
    ROOT/lock               shared to take a hold, exclusive to collect; held for moments only

Several node daemons share one store. Whatever a killed process leaves is recognised by its released lock. A content
goes when no name means it, nobody holds it and no revision stands on it; a hold that was left by a crash protects it
for ORPHAN_GRACE longer, so that a restarted node can hold again what its living sandboxes still have mounted.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from roost import clock
from roost.errors import Conflict, Invalid, NotFound, TooLarge
from roost.node.images import archive, build, command, oci, tree
from roost.node.images.config import NOTHING, Config, Told, prepare
from roost.node.protocol import BuildImage, Image, PullImage
from roost.node.reference import normalised

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
CONTENT = re.compile(r"[0-9a-f]{16}")
MAX_UNPACKED = 20 * 1024**3  # bytes
ORPHAN = ".orphan"  # marks a hold whose process died
ENDING = 2.0  # seconds that a removal gives the sandbox of a job that has just ended
ORPHAN_GRACE = 600.0  # seconds; a node is restarted within one

Say = Callable[[str], None]


class Name(msgspec.Struct, frozen=True):
    """The file of one name."""

    image: Image
    content: str


@dataclass(frozen=True)
class Made:
    """What came to be in a work directory's `root`."""

    source: str
    digest: str
    told: Told = NOTHING
    recipe: str = ""


@dataclass
class Hold:
    """The right to mount a content: it stays on disk until `release`, or until the holding process has died.

    `content` may be kept in a record, to hold the same content again after a restart (`ImageStore.hold_content`).
    """

    path: Path  # of the root file system
    content: str
    config: Config
    _file: Path
    _descriptor: int

    def release(self) -> None:
        if self._descriptor >= 0:
            self._file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.release()


class ImageStore:
    """Every method may be called by any number of processes at once."""

    def __init__(self, root: Path, max_unpacked: int = MAX_UNPACKED, keeper: Path | None = None) -> None:
        """keeper: the state directory of the node that uses it, for whose revisions contents are kept."""
        self._root = root
        self._max_unpacked = max_unpacked
        self._keeper = keeper
        self._keeping = set[str]()
        for directory in (root, self._names, self._contents, self._holds, self._work, self._configs, self._kept):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)  # contents carry set-uid files of the host's ids

    @property
    def _names(self) -> Path:
        return self._root / "names"

    @property
    def _contents(self) -> Path:
        return self._root / "rootfs"

    @property
    def _holds(self) -> Path:
        return self._root / "holds"

    @property
    def _work(self) -> Path:
        return self._root / "work"

    @property
    def _configs(self) -> Path:
        return self._root / "configs"

    @property
    def _kept(self) -> Path:
        return self._root / "kept"

    # reading

    def list(self) -> list[Image]:
        """Sorted by name."""
        names = sorted(path.stem for path in self._names.glob("*.json"))
        return [found.image for name in names if (found := self._read(name))]

    def rootfs(self, name: str) -> Path:
        """Raises NotFound. The path may go once the name is replaced or removed: hold it to mount it."""
        return self._contents / self._find(name).content

    def hold(self, name: str) -> Hold:
        """Raises NotFound."""
        with self._locked(fcntl.LOCK_SH):
            return self._take_hold(self._find(name).content)

    def hold_content(self, content: str) -> Hold:
        """Hold again what a sandbox that outlived its node still has mounted. Raises NotFound."""
        if not CONTENT.fullmatch(content):
            raise Invalid(f"{content!r} is not the id of an image's content")
        with self._locked(fcntl.LOCK_SH):
            if not (self._contents / content).is_dir():
                raise NotFound(f"image content {content} is no longer on this machine")
            return self._take_hold(content)

    def _take_hold(self, content: str) -> Hold:
        directory = self._holds / content
        directory.mkdir(mode=0o700, exist_ok=True)
        file = directory / f"{os.getpid()}-{secrets.token_hex(4)}"
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Hold(self._contents / content, content, self._config(content), file, descriptor)

    def _config(self, content: str) -> Config:
        with contextlib.suppress(FileNotFoundError):
            return msgspec.json.decode((self._configs / f"{content}.json").read_bytes(), type=Config)
        return Config()

    def _find(self, name: str) -> Name:
        found = self._read(_checked(name))
        if found is None:
            have = ", ".join(image.name for image in self.list()) or "none yet; see `roost image --help`"
            raise NotFound(f"there is no image {name!r} on this machine; there are: {have}")
        return found

    def _read(self, name: str) -> Name | None:
        try:
            found = msgspec.json.decode((self._names / f"{name}.json").read_bytes(), type=Name)
        except FileNotFoundError:
            return None
        return Name(msgspec.structs.replace(found.image, content=found.content), found.content)

    # keeping contents for revisions

    def keep(self, content: str) -> None:
        """Durable on return: it stays while the node's state directory is there, until `keep_only` leaves it out."""
        if self._keeper is None or content in self._keeping:
            return
        mark = self._mark(content)
        with self._locked(fcntl.LOCK_SH):
            mark.parent.mkdir(mode=0o700, exist_ok=True)
            with mark.open("w") as file:
                file.write(str(self._keeper))
                file.flush()
                os.fsync(file.fileno())
            _sync_directory(mark.parent)
            _sync_directory(self._kept)
        self._keeping.add(content)

    def keep_only(self, contents: set[str]) -> None:
        """Of what this node keeps, these alone; what was never kept is now."""
        for content in contents:
            if (self._contents / content).is_dir():
                self.keep(content)
        for mark in self._kept.glob(f"*/{self._mark('').name}"):
            if mark.parent.name not in contents:
                self._keeping.discard(mark.parent.name)
                mark.unlink(missing_ok=True)

    def _mark(self, content: str) -> Path:
        return self._kept / content / hashlib.sha256(os.fsencode(self._keeper or "")).hexdigest()[:16]

    def _is_kept(self, content: str) -> bool:
        return any(Path(mark.read_text()).is_dir() for mark in _children(self._kept / content))

    # making

    async def build(self, name: str, request: BuildImage, progress: Say) -> Image:
        """From the distribution's packages. Raises Invalid, SetupMissing, CommandFailed."""

        async def make(work: Path) -> Made:
            source = await build.build(request, work / "root", progress)
            return Made(source, await asyncio.to_thread(tree.digest, work / "root"), recipe=build.recipe(request))

        return await self._make(name, make, progress)

    async def import_archive(self, name: str, chunks: AsyncIterator[bytes], progress: Say) -> Image:
        """From a root file system tarball, an OCI layout's or a docker archive, as it arrives."""

        async def make(work: Path) -> Made:
            packed = work / "packed"
            digest = await self._receive(chunks, packed, progress)
            return Made("import: archive", digest, await self._unpack(packed, work, progress))

        return await self._make(name, make, progress)

    async def import_file(self, name: str, path: Path, progress: Say) -> Image:
        """From an archive on this machine."""
        if not path.is_file():
            raise Invalid(f"{path} is not a file; give an archive of a root file system or of an image")

        async def make(work: Path) -> Made:
            digest = await asyncio.to_thread(_file_digest, path)
            return Made(f"import: {path.name}", digest, await self._unpack(path.resolve(), work, progress))

        return await self._make(name, make, progress)

    async def pull(self, name: str, request: PullImage, progress: Say) -> Image:
        """From a registry or an OCI layout on this machine; see `reference.normalised` for the references."""
        reference = normalised(request.reference)

        async def make(work: Path) -> Made:
            layout = work / "layout"
            await oci.fetch(reference, request.tls_verify, layout, self._budget(), progress)
            image = await asyncio.to_thread(oci.read_layout, layout)
            return Made(f"pull: {reference}", image.digest, await self._unpack_layers(image, work, progress))

        return await self._make(name, make, progress)

    async def _receive(self, chunks: AsyncIterator[bytes], packed: Path, progress: Say) -> str:
        """Store what arrives, within the limits, and return its digest."""
        digest, size, told = hashlib.sha256(), 0, time.monotonic()
        budget = self._budget()
        with packed.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > budget:
                    raise TooLarge(f"the archive is larger than the {_mb(budget)} that an image may take here")
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
                if time.monotonic() - told >= 3:
                    told = time.monotonic()
                    progress(f"received {_mb(size)}")
        progress(f"received {_mb(size)}")
        return f"sha256:{digest.hexdigest()}"

    async def _unpack(self, packed: Path, work: Path, progress: Say) -> Told:
        """An archive holds a root, or an image that holds one; what is inside tells."""
        root = work / "root"
        progress("unpacking")
        summary = await archive.unpack(packed, root, self._budget(), progress)
        if not oci.is_archive(root):
            summary.require_mappable()
            return NOTHING
        layout = root.rename(work / "layout")
        return await self._unpack_layers(await asyncio.to_thread(oci.read_archive, layout), work, progress)

    async def _unpack_layers(self, image: oci.LayeredImage, work: Path, progress: Say) -> Told:
        budget = self._budget()
        for number, layer in enumerate(image.layers, 1):
            progress(f"unpacking layer {number} of {len(image.layers)}")
            await asyncio.to_thread(layer.verify)
            summary = await archive.unpack(layer.path, work / "root", budget, progress, layer=True)
            summary.require_mappable()
            budget -= summary.bytes
        return image.told

    def _budget(self) -> int:
        """Bytes that may be written now. Raises TooLarge where the disk is full."""
        free = shutil.disk_usage(self._root).free - archive.RESERVE
        if free <= 0:
            raise TooLarge(f"the disk of {self._root} has less than {_mb(archive.RESERVE)} free; make room first")
        return min(free, self._max_unpacked)

    async def _make(self, name: str, make: Callable[[Path], Coroutine[Any, Any, "Made"]], progress: Say) -> Image:
        """Run `make` in a new work directory, then publish its `root` under the name."""
        _checked(name)
        async with self._workdir() as work:
            made = await make(work)
            root = work / "root"
            tree.require_shell(root)
            await tree.make_mountable(root, progress)
            config = prepare(made.told, root)
            size = await tree.size(root)
            progress("writing to disk")
            await command.run(["sync", "--file-system", str(root)], what="writing to disk", timeout=900)
            image = Image(
                name=name, digest=made.digest, size=size, source=made.source, created_ns=clock.now_ns(),
                content=secrets.token_hex(8), recipe=made.recipe,
            )  # fmt: skip
            self._publish(image, config, root)
        await self.collect()
        progress(f"image {name} is ready, {_mb(size)}")
        return image

    def _publish(self, image: Image, config: Config, root: Path) -> None:
        """After the name's rename the image is there wholly; before it, not at all."""
        with self._locked(fcntl.LOCK_SH):  # a collection between the renames would take it for garbage
            _write_durably(self._configs / f"{image.content}.json", msgspec.json.encode(config))
            root.rename(self._contents / image.content)
            _sync_directory(self._contents)
            _write_durably(self._names / f"{image.name}.json", msgspec.json.encode(Name(image, image.content)))

    @contextlib.asynccontextmanager
    async def _workdir(self) -> AsyncGenerator[Path]:
        path = self._work / secrets.token_hex(8)
        lock = path.with_suffix(".lock")
        with self._locked(fcntl.LOCK_SH):  # a sweep must not come between creating and locking
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            await asyncio.shield(asyncio.ensure_future(tree.delete(path)))
            lock.unlink()
            os.close(descriptor)

    # removing

    async def remove(self, name: str, unlisted: str = "") -> None:
        """Raises NotFound, and Conflict while a sandbox or a workspace of any node stands on it.

        unlisted: a content that none of this node's revisions needs, though it was kept for some.
        """
        deadline = time.monotonic() + ENDING
        while users := self._unname(name, unlisted):
            if time.monotonic() > deadline:
                raise Conflict(f"image {name!r} is in use: {users}")
            await asyncio.sleep(0.05)
        await self.collect()

    def _unname(self, name: str, unlisted: str) -> str:
        """Who uses it, in words; empty when the name is gone."""
        with self._locked(fcntl.LOCK_EX):  # nobody takes a hold meanwhile
            content = self._find(name).content
            if content == unlisted and self._keeper:
                self._keeping.discard(content)
                self._mark(content).unlink(missing_ok=True)
            users = self._users(content)
            if not users:
                (self._names / f"{name}.json").unlink(missing_ok=True)
            return users

    def _users(self, content: str) -> str:
        """In words; empty where there are none."""
        holds = sum(1 for hold in _children(self._holds / content) if _protects(hold))
        if holds:
            return f"{holds} sandbox(es) on this machine run in it; stop them first"
        if self._is_kept(content):
            return "workspaces stand on it; delete them first, their files need it (see `roost workspace list`)"
        return ""

    async def sweep(self) -> None:
        """Remove what killed processes left. For a node's start, after it has taken its holds again."""
        with self._locked(fcntl.LOCK_EX):
            left = [path for path in self._work.glob("*.lock") if _abandoned(path)]
            for new in [*self._names.glob(".*"), *self._configs.glob(".*")]:
                new.unlink()
        for lock in left:
            await tree.delete(lock.with_suffix(""))
            lock.unlink(missing_ok=True)
        await self.collect()

    async def collect(self) -> int:
        """Delete the contents that no name means and nobody holds; returns how many."""
        with self._locked(fcntl.LOCK_EX):
            named = {found.content for path in self._names.glob("*.json") if (found := self._read(path.stem))}
            dead = [path for path in self._contents.iterdir() if path.name not in named and not self._needed(path)]
            doomed = [self._doom(path) for path in dead]
            for config in self._configs.glob("[!.]*.json"):
                if not (self._contents / config.stem).exists():
                    config.unlink()
        for work, descriptor in doomed:
            await tree.delete(work)
            work.with_suffix(".lock").unlink(missing_ok=True)
            os.close(descriptor)
        return len(doomed)

    def _doom(self, content: Path) -> tuple[Path, int]:
        """Move a content to the work directory, where a sweep finds it if this process dies."""
        work = self._work / content.name
        descriptor = os.open(work.with_suffix(".lock"), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content.rename(work)
        for marks in (self._holds, self._kept):
            shutil.rmtree(marks / content.name, ignore_errors=True)
        return work, descriptor

    def _needed(self, content: Path) -> bool:
        holds = _children(self._holds / content.name)
        held = len([hold for hold in holds if _protects(hold)]) > 0  # all of them: each may need its mark
        return held or self._is_kept(content.name)

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Generator[None]:
        descriptor = os.open(self._root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Invalid(f"{name!r} cannot name an image: up to 63 of a-z 0-9 . _ - beginning with a letter or a digit")
    return name


def _protects(hold: Path) -> bool:
    """Whether a hold still counts: its holder lives, or died so recently that it may come back."""
    if not _abandoned(hold):
        return hold.exists()
    try:
        if not hold.name.endswith(ORPHAN):
            os.utime(hold.rename(hold.with_name(hold.name + ORPHAN)))  # its time says when it was found
            return True
        return time.time() - hold.stat().st_mtime < ORPHAN_GRACE
    except FileNotFoundError:
        return False  # its holder lived, and released it this moment


def _abandoned(lock: Path) -> bool:
    """Whether nobody has `lock` locked."""
    try:
        descriptor = os.open(lock, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # released this moment, by its living holder
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write_durably(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    new = path.with_name(f".{path.stem}.{secrets.token_hex(4)}")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _children(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
