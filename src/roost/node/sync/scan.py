"""One look at one layer: its names in key order in a file, with what proves later that nothing changed.

A scan with an earlier scan beside it reads only files whose inode, size, mtime or ctime differ. That is trusted only of
settled files: last changed before a write-back of the file system that came before the earlier look. Pages written
through a memory map change a file's times only at the first write after a write-back, so others are read again.
"""

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec
from blake3 import blake3

from roost.errors import Invalid
from roost.node.descent import Descent, beside, status_of
from roost.node.sync import xattrs
from roost.node.sync.content import stored
from roost.node.sync.entry import DIRECTORY, FIFO, FILE, LINK, MAX_DEPTH, MAX_KEY, MAX_NAME, WHITEOUT, Entry
from roost.node.sync.files import OPEN_DIRECTORY, OPEN_FILE, syncfs, written_sectors
from roost.node.sync.pack import Packer

BATCH = 512  # names in one record of the file
CLOCK = 20_000_000  # ns; the kernel's time stamps are this coarse at worst
NOBODY = xattrs.NOBODY
REMARKS = 100
VOLATILE = (b"run",)  # directories whose content belongs to a running system, and is not saved
MOVED = "trusted.overlay.redirect"
MAGIC = b"roost scan 1\n"

_GONE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.ESTALE)


class Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry, and by what it is known again. settled: see above; always true of what has no content."""

    entry: Entry
    inode: int
    ctime: int
    settled: bool


class Head(msgspec.Struct, frozen=True):
    """salt: names the hard link groups of this layer. quiet: the block device's counter before the look, if any.

    revision: what this was saved as; while that exists, so does all content that the scan names.
    """

    salt: bytes
    first_id: int
    quiet: int | None
    revision: str


@dataclass
class Counts:
    """read: bytes of file content; files: how many were read; taken: how many were known from the scan before."""

    entries: int = 0
    files: int = 0
    read: int = 0
    taken: int = 0
    remarks: list[str] = field(default_factory=list[str])
    remarked: int = 0

    def remark(self, key: bytes, text: str) -> None:
        self.remarked += 1
        if len(self.remarks) < REMARKS:
            self.remarks.append(f"/{key.replace(bytes(1), b'/').decode(errors='backslashreplace')}: {text}")


_encoder = msgspec.msgpack.Encoder()
_batches = msgspec.msgpack.Decoder(list[Seen])


class Scan:
    """The file that a look leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def head(self) -> Head:
        with self.path.open("rb") as file:
            return self._read_head(file)

    def _read_head(self, file: BinaryIO) -> Head:
        if file.read(len(MAGIC)) != MAGIC:
            raise Invalid(f"{self.path} is not the record of an earlier save; remove it")
        return msgspec.msgpack.decode(_framed(file), type=Head)

    def seen(self) -> Iterator[Seen]:
        with self.path.open("rb") as file:
            self._read_head(file)
            while batch := _framed(file):
                yield from _batches.decode(batch)

    def entries(self) -> Iterator[Entry]:
        return (seen.entry for seen in self.seen())


def _framed(file: BinaryIO) -> bytes:
    size = file.read(4)
    return file.read(int.from_bytes(size, "big")) if size else b""


def earlier(path: Path | None) -> "Scan | None":
    """The scan of an earlier save, if it is there and whole; it only saves time."""
    if path is None or not path.exists():
        return None
    try:
        scan = Scan(path)
        scan.head()
    except (Invalid, OSError, msgspec.MsgspecError):
        return None
    return scan


class _Before:
    """The earlier scan, walked along with this one."""

    def __init__(self, scan: Scan | None) -> None:
        self._seen = iter(()) if scan is None else scan.seen()
        self._next = next(self._seen, None)

    def at(self, key: bytes) -> Seen | None:
        while self._next is not None and self._next.entry.key < key:
            self._next = next(self._seen, None)
        return self._next if self._next is not None and self._next.entry.key == key else None


def quiet(layer: Path, scan: Scan) -> bool:
    """Whether nothing at all was written to the layer's file system since that scan began."""
    before = scan.head().quiet
    if before is None:
        return False
    fd = os.open(layer, OPEN_DIRECTORY)
    try:
        syncfs(fd)
        return written_sectors(fd) == before
    finally:
        os.close(fd)


class Look:
    """One pass over a layer. `live`: others may be writing to it.

    merged: the root of the overlay whose upper layer it is. What a renamed directory of lower layers holds is seen
    there alone, and belongs to the layer as if it had been made anew.
    """

    def __init__(
        self,
        packer: Packer,
        pool: ThreadPoolExecutor,
        first_id: int,
        live: bool,
        told: Callable[[str, int], None],
        merged: Path | None = None,
    ) -> None:
        self._packer = packer
        self._pool = pool
        self._first_id = first_id
        self._live = live
        self._told = told
        self._merged = merged
        self.counts = Counts()

    def write(self, layer: Path, to: Path, before: Scan | None, revision: str) -> Scan:
        """Look at everything and leave a scan in the empty file `to`."""
        root = os.open(layer, OPEN_DIRECTORY | os.O_NOATIME)
        try:
            self._settled_before = time.time_ns() - CLOCK
            if self._live:
                syncfs(root)
            head = Head(
                secrets.token_bytes(16), self._first_id, written_sectors(root) if self._live else None, revision
            )
            if before is not None:
                known = before.head()
                if known.first_id == head.first_id:
                    head = msgspec.structs.replace(head, salt=known.salt)
                else:
                    before = None
            self._salt = head.salt
            self._before = _Before(before)
            with to.open("wb", buffering=1024 * 1024) as file:
                file.write(MAGIC)
                _frame(file, _encoder.encode(head))
                self._write_batches(file, root)
        finally:
            os.close(root)
        return Scan(to)

    def _write_batches(self, file: BinaryIO, root: int) -> None:
        batch: list[Seen] = []
        for seen in self._walk(root):
            batch.append(seen)
            if len(batch) == BATCH:
                self.counts.entries += BATCH
                self._told("scanned", self.counts.entries)
                _frame(file, _encoder.encode(batch))
                batch = []
        self.counts.entries += len(batch)
        if batch:
            _frame(file, _encoder.encode(batch))

    def _walk(self, root: int) -> Iterator[Seen]:
        """Depth first, names sorted: key order."""
        with Descent(os.dup(root), _entered) as descent:
            yield self._directory(b"", os.fstat(descent.here), descent.here)
            yield from self._walk_below(descent, b"", 0)

    def _walk_below(self, descent: Descent, top: bytes, depth: int, device: int | None = None) -> Iterator[Seen]:
        """What is in `descent.here`, whose keys begin with `top`. device: what is on others is left out."""
        stack = [(iter(_sorted_names(descent.here)), top)]
        while True:
            names, prefix = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                if not stack:
                    return
                self._leave(descent, stack)
                continue
            key = prefix + os.fsencode(name)
            try:
                state = status_of(descent.here, name)
                if not stat.S_ISDIR(state.st_mode):
                    seen = self._other(descent.here, name, key, state)
                    if seen is not None:
                        yield seen
                    continue
                inner = descent.enter(name)
            except OSError as error:
                self._gone(error)
                continue
            _refuse_deeper(key, depth + len(stack))
            state = os.fstat(inner)
            if device is not None and state.st_dev != device:
                self._leave(descent, stack)
                continue
            volatile = key in VOLATILE
            moved = not volatile and self._is_moved(inner)
            seen = self._directory(key, state, inner, moved or volatile)
            yield _shown(seen) if volatile else seen
            if volatile:
                self._leave(descent, stack)
            elif moved:
                yield from self._walk_moved(key, depth + len(stack))
                self._leave(descent, stack)
            else:
                stack.append((iter(_sorted_names(inner)), key + b"\0"))

    def _is_moved(self, directory: int) -> bool:
        return self._merged is not None and MOVED in xattrs.names_of(directory)

    def _walk_moved(self, key: bytes, depth: int) -> Iterator[Seen]:
        assert self._merged
        try:
            descent = Descent(os.open(self._merged, OPEN_DIRECTORY & ~os.O_NOFOLLOW), _entered)
        except OSError as error:
            return self._gone(error)
        with descent:
            try:
                for name in key.split(b"\0"):
                    descent.enter(os.fsdecode(name))
            except OSError as error:
                return self._gone(error)
            yield from self._walk_below(descent, key + b"\0", depth, os.fstat(descent.here).st_dev)

    def _leave(self, descent: Descent, stack: list[tuple[Iterator[str], bytes]]) -> None:
        """Where the directory above was moved away meanwhile, what is left of it to be seen has gone, too."""
        try:
            descent.leave()
        except OSError as error:
            self._gone(error)
            stack[-1] = (iter(()), b"")

    def _gone(self, error: OSError) -> None:
        if not self._live or error.errno not in _GONE:
            raise error

    def _ids(self, key: bytes, state: os.stat_result) -> tuple[int, int]:
        uid, gid = state.st_uid - self._first_id, state.st_gid - self._first_id
        if 0 <= uid < xattrs.IDS and 0 <= gid < xattrs.IDS:
            return uid, gid
        self.counts.remark(key, "belongs to somebody outside the sandbox; saved as nobody's")
        return (uid if 0 <= uid < xattrs.IDS else NOBODY), (gid if 0 <= gid < xattrs.IDS else NOBODY)

    def _directory(self, key: bytes, state: os.stat_result, fd: int, moved: bool = False) -> Seen:
        names = xattrs.names_of(fd)
        opaque = moved or (xattrs.OPAQUE in names and xattrs.value_of(fd, xattrs.OPAQUE) == b"y")
        if not moved:
            _refuse_redirects(key, names)
        uid, gid = self._ids(key, state)
        entry = Entry(
            key,
            DIRECTORY,
            stat.S_IMODE(state.st_mode),
            uid,
            gid,
            _mtime(state),
            opaque=opaque,
            xattrs=xattrs.read(fd, names, self._first_id),
        )
        return Seen(entry, state.st_ino, state.st_ctime_ns, True)

    def _other(self, directory: int, name: str, key: bytes, state: os.stat_result) -> Seen | None:
        mode = state.st_mode
        if stat.S_ISREG(mode):
            return self._file(directory, name, key, state)
        if stat.S_ISLNK(mode):
            target = os.fsencode(os.readlink(name, dir_fd=directory))
            return self._plain(directory, name, key, state, LINK, target)
        if stat.S_ISFIFO(mode):
            return self._plain(directory, name, key, state, FIFO, b"")
        if not (stat.S_ISCHR(mode) and state.st_rdev == 0):
            self.counts.remark(key, "left out, a socket" if stat.S_ISSOCK(mode) else "left out, a device")
        # What is left out hides what was there before all the same.
        return Seen(Entry(key, WHITEOUT), state.st_ino, state.st_ctime_ns, True)

    def _plain(self, directory: int, name: str, key: bytes, state: os.stat_result, kind: str, target: bytes) -> Seen:
        where = beside(directory, name)
        uid, gid = self._ids(key, state)
        mode = 0o777 if kind == LINK else stat.S_IMODE(state.st_mode)
        entry = Entry(
            key,
            kind,  # pyright: ignore[reportArgumentType]: LINK or FIFO
            mode,
            uid,
            gid,
            _mtime(state),
            target=target,
            link=self._group(state),
            xattrs=xattrs.read(where, xattrs.names_of(where), self._first_id),
        )
        return Seen(entry, state.st_ino, state.st_ctime_ns, True)

    def _group(self, state: os.stat_result) -> int:
        if state.st_nlink < 2:
            return 0
        return int.from_bytes(blake3(self._salt + state.st_ino.to_bytes(8, "big")).digest(8), "big") >> 1 | 1

    def _file(self, directory: int, name: str, key: bytes, state: os.stat_result) -> Seen:
        known = self._before.at(key)
        if known is not None and known.settled and _same(known, state):
            self.counts.taken += 1
            return known
        fd = os.open(name, OPEN_FILE, dir_fd=directory)
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode):
                raise FileNotFoundError(errno.ENOENT, "the file was replaced while it was opened")
            names = xattrs.names_of(fd)
            _refuse_redirects(key, names)
            content, lists, read = stored(fd, state, self._packer, self._pool)
            attributes = xattrs.read(fd, names, self._first_id) if names else ()
        finally:
            os.close(fd)
        if read != state.st_size and not self._live:
            raise Invalid("a file changed while it was saved, though its layer was said to be frozen")
        self.counts.files += 1
        self.counts.read += read
        uid, gid = self._ids(key, state)
        entry = Entry(
            key,
            FILE,
            stat.S_IMODE(state.st_mode),
            uid,
            gid,
            _mtime(state),
            size=read,
            link=self._group(state),
            xattrs=attributes,
            lists=lists,
            content=content,
        )
        settled = read == state.st_size and state.st_ctime_ns < self._settled_before
        return Seen(entry, state.st_ino, state.st_ctime_ns, settled)


def _same(known: Seen, state: os.stat_result) -> bool:
    entry = known.entry
    return (
        entry.kind == FILE
        and known.inode == state.st_ino
        and known.ctime == state.st_ctime_ns
        and entry.mtime == _mtime(state)
        and entry.size == state.st_size
    )


def _mtime(state: os.stat_result) -> int:
    """File systems know years to which no signed 64-bit count of nanoseconds reaches (after 2262)."""
    return min(max(state.st_mtime_ns, -(2**63)), 2**63 - 1)


def _sorted_names(fd: int) -> list[str]:
    names = os.listdir(fd)
    if all(name.isascii() for name in names):
        names.sort()
    else:
        names.sort(key=os.fsencode)
    names.reverse()
    return _Draining(names)


class _Draining(list[str]):
    """Gives its items from the end and lets go of them, so that a directory of a million names shrinks on the way."""

    def __iter__(self) -> Iterator[str]:
        while self:
            yield self.pop()


def _shown(seen: Seen) -> Seen:
    """With what lies below it."""
    return msgspec.structs.replace(seen, entry=msgspec.structs.replace(seen.entry, opaque=False))


def _entered(directory: int, name: str) -> int:
    return os.open(name, OPEN_DIRECTORY | os.O_NOATIME, dir_fd=directory)


def _refuse_deeper(key: bytes, depth: int) -> None:
    """Nothing is left out: what the store cannot hold stays on its node, and whoever saves it is told."""
    if depth >= MAX_DEPTH or len(key) > MAX_KEY - MAX_NAME - 1:
        where = key[:100].replace(b"\0", b"/").decode(errors="backslashreplace")
        raise Invalid(
            f"below /{where}… directories are nested deeper than the object store can hold "
            f"({MAX_DEPTH} levels, {MAX_KEY // 1024} KiB of names); move what is in there up, or delete it"
        )


def _refuse_redirects(key: bytes, names: list[str]) -> None:
    if any(name in names for name in xattrs.FORBIDDEN):
        where = key.replace(b"\0", b"/").decode(errors="backslashreplace")
        raise Invalid(
            f"layer entry /{where} is a redirect or metacopy: a layer that is kept has none (moved.py), "
            "and one that is written to only with `merged`"
        )


def _frame(file: BinaryIO, data: bytes) -> None:
    file.write(len(data).to_bytes(4, "big"))
    file.write(data)
