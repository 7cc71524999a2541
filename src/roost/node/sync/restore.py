"""A revision back on disk, as one overlay layer over its image: whiteouts, opaque marks and all.

What the store says is not believed: every chunk must hash to its name, every name must be one that a file can have, and
every path is walked by open directories of our own making, so nothing is written outside the target. Files are made in
windows; the chunks of one window are fetched while the next is being planned.
"""

import os
import stat
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from roost.errors import Conflict, StateUnwritable
from roost.node.descent import Descent, beside
from roost.node.sync import xattrs
from roost.node.sync.entry import DIRECTORY, FIFO, FILE, HOLE, LINK, WHITEOUT, Entry, depth, split
from roost.node.sync.fetch import Chunks, Taker
from roost.node.sync.files import OPEN_DIRECTORY, raise_file_limit, set_times
from roost.node.sync.index import Index
from roost.node.sync.manifest import content_records, entries, pages
from roost.node.sync.revision import Revision
from roost.node.sync.save import Told, nobody_told
from roost.node.sync.seal import Damaged
from roost.node.sync.vault import Vault

WINDOW_BYTES = 48 * 1024 * 1024
WINDOW_CHUNKS = 4096
MOST_FILES = 2000  # open at once in one window
LINKS = 200_000  # names of hard linked files remembered; beyond that, they become files of their own

WHITEOUT_MODE = stat.S_IFCHR


@dataclass
class _Open:
    """A file whose bytes are still to come. parts: of them; when none is left, it is finished and closed."""

    fd: int
    entry: Entry
    parts: int = 0
    planned: bool = False


@dataclass
class _Window:
    """wanted: for each chunk, where it goes."""

    wanted: dict[bytes, list[tuple[_Open, int, int]]] = field(default_factory=dict[bytes, list[tuple[_Open, int, int]]])
    files: list[_Open] = field(default_factory=list[_Open])
    left: list[tuple[int, Entry]] = field(default_factory=list[tuple[int, Entry]])  # directories to finish after it
    tasks: list[Future[None]] = field(default_factory=list[Future[None]])
    bytes: int = 0


def restore(
    vault: Vault,
    revision: Revision,
    target: Path,
    first_id: int,
    *,
    cache: Path | None = None,
    told: Told = nobody_told,
) -> None:
    """Write the revision into the empty directory `target`. On failure the caller throws the directory away.

    Damaged if the store returns anything that was not saved; StateUnwritable if the disk is full.
    """
    index = Index(vault, cache)
    chunks = Chunks(vault, index)
    try:
        index.refresh()
        _Restoring(chunks, target, first_id, told).run(entries(pages(revision.manifest, chunks), chunks))
    except OSError as error:
        raise StateUnwritable(f"the workspace cannot be restored to this disk: {error.strerror or error}") from error
    finally:
        chunks.close()
        index.close()


class _Restoring:
    def __init__(self, chunks: Chunks, target: Path, first_id: int, told: Told) -> None:
        self._chunks = chunks
        self._first_id = first_id
        self._told = told
        self._most_files = max(16, min(MOST_FILES, raise_file_limit() // 8))
        self._root = os.open(target, OPEN_DIRECTORY)
        if next(os.scandir(self._root), None) is not None:
            os.close(self._root)
            raise Conflict(f"{target} is not empty; restore into an empty directory")
        self._way = Descent(os.dup(self._root))
        self._stack: list[Entry] = []  # the directories on the way, the root first
        self._links: dict[int, tuple[bytes, int]] = {}
        self._window = _Window()
        self._under_way: list[_Window] = []
        self._spanning: _Open | None = None  # a file that is planned over several windows
        self._count = 0

    def run(self, tree: Iterable[Entry]) -> None:
        try:
            for entry in tree:
                self._count += 1
                if self._count % 1000 == 0:
                    self._told("restored", self._count)
                self._make(entry)
            while self._stack:
                self._leave()
            self._next_window()
            self._next_window()
        finally:
            self._abandon()
            os.close(self._root)

    def _abandon(self) -> None:
        """After a failure: nothing may stay open. After success there is nothing left to do."""
        for window in (*self._under_way, self._window):
            for task in window.tasks:
                task.cancel()
            for task in window.tasks:
                if not task.cancelled():
                    task.exception()
            for file in window.files:
                if file.fd >= 0:
                    os.close(file.fd)
                    file.fd = -1
            for fd, _ in window.left:
                os.close(fd)
        if self._spanning is not None and self._spanning.fd >= 0:
            os.close(self._spanning.fd)
        with self._way:
            pass

    def _make(self, entry: Entry) -> None:
        if not entry.key:
            self._stack.append(entry)
            return
        parent, raw = split(entry.key)
        while self._stack and depth(self._stack[-1].key) >= depth(entry.key):
            self._leave()
        if not self._stack or self._stack[-1].key != parent:
            raise Damaged("a manifest holds a name outside any directory")
        directory, name = self._way.here, os.fsdecode(raw)
        if entry.link and self._linked(entry, directory, name):
            return
        if entry.kind == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=directory)
            self._way.enter(name)
            self._stack.append(entry)
        elif entry.kind == FILE:
            self._file(entry, directory, name)
        elif entry.kind == WHITEOUT:
            os.mknod(name, WHITEOUT_MODE, os.makedev(0, 0), dir_fd=directory)
        elif entry.kind == LINK:
            os.symlink(entry.target, os.fsencode(name), dir_fd=directory)
            self._finish_plain(entry, directory, name)
        elif entry.kind == FIFO:
            os.mknod(name, stat.S_IFIFO | 0o600, dir_fd=directory)
            self._finish_plain(entry, directory, name)

    def _leave(self) -> None:
        """A directory gets its times when everything in it has been made: after the window."""
        self._window.left.append((os.dup(self._way.here), self._stack.pop()))
        if self._stack:
            self._way.leave()
        if len(self._window.left) > self._most_files:
            self._next_window()

    def _linked(self, entry: Entry, directory: int, name: str) -> bool:
        """Make a further name of a file, if it is one; the first name is made as any other file."""
        same = hash((entry.kind, entry.mode, entry.uid, entry.gid, entry.mtime, entry.size, entry.target))
        same ^= hash((entry.xattrs, entry.lists, entry.content))
        known = self._links.get(entry.link)
        if known is None or known[1] != same:
            if len(self._links) < LINKS:
                self._links[entry.link] = (entry.key, same)
            return False
        parent, first = split(known[0])
        fd = self._opened(parent)
        try:
            os.link(first, os.fsencode(name), src_dir_fd=fd, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(fd)
        return True

    def _opened(self, key: bytes) -> int:
        fd = os.dup(self._root)
        for name in key.split(b"\0") if key else ():
            inner = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        return fd

    def _finish_plain(self, entry: Entry, directory: int, name: str) -> None:
        where = beside(directory, name)
        os.chown(name, self._first_id + entry.uid, self._first_id + entry.gid, dir_fd=directory, follow_symlinks=False)
        if entry.kind == FIFO:
            Path(where).chmod(entry.mode)  # a fifo of ours: nothing else can have its name here
        xattrs.write(where, entry.xattrs, self._first_id)
        set_times(directory, name, entry.mtime)

    def _finish(self, fd: int, entry: Entry) -> None:
        """Owner first: it clears set-uid bits and capabilities."""
        os.fchown(fd, self._first_id + entry.uid, self._first_id + entry.gid)
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            xattrs.write(fd, entry.xattrs, self._first_id)
        if entry.opaque:
            os.setxattr(fd, xattrs.OPAQUE, b"y")
        os.utime(fd, ns=(max(0, entry.mtime), entry.mtime))

    def _file(self, entry: Entry, directory: int, name: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = _Open(os.open(name, flags, 0o600, dir_fd=directory), entry)
        self._window.files.append(file)
        self._spanning = file
        offset, ends_in_hole = 0, False
        for chunk, length in content_records(entry, self._chunks.one):
            ends_in_hole = chunk == HOLE
            if not ends_in_hole:
                file.parts += 1
                self._window.wanted.setdefault(chunk, []).append((file, offset, length))
                self._window.bytes += length
            offset += length
            if self._window.bytes >= WINDOW_BYTES or len(self._window.wanted) >= WINDOW_CHUNKS:
                self._next_window()
        if ends_in_hole:
            os.ftruncate(file.fd, entry.size)
        file.planned = True
        if file.parts == 0:
            self._close(file)
        elif file not in self._window.files[-1:]:
            self._window.files.append(file)  # planned over several windows; the last one finishes it
        if len(self._window.files) >= self._most_files:
            self._next_window()

    def _close(self, file: _Open) -> None:
        if file.fd >= 0:
            fd, file.fd = file.fd, -1
            try:
                self._finish(fd, file.entry)
            finally:
                os.close(fd)

    def _next_window(self) -> None:
        """Begin to fetch what was planned, then wait for the window before it."""
        window, self._window = self._window, _Window()
        self._under_way.append(window)
        if window.wanted:
            window.tasks = self._chunks.begin(window.wanted, self._taker(window))
        while len(self._under_way) > 1:
            self._complete(self._under_way[0])
            self._under_way.pop(0)

    def _taker(self, window: _Window) -> Taker:
        def take(name: bytes, data: memoryview) -> None:
            for file, offset, length in window.wanted[name]:
                if length != len(data):
                    raise Damaged("a file of a manifest has a chunk of another size than it says")
                at = 0
                while at < length:
                    at += os.pwrite(file.fd, data[at:], offset + at)

        return take

    def _complete(self, window: _Window) -> None:
        """All bytes of the window are written: finish what is whole, files before the directories that hold them."""
        for task in window.tasks:
            task.result()
        for places in window.wanted.values():
            for file, _, _ in places:
                file.parts -= 1
        for file in window.files:
            if file.planned and file.parts == 0:
                self._close(file)
        window.files = [file for file in window.files if file.fd >= 0]
        while window.left:
            fd, entry = window.left[0]
            self._finish(fd, entry)
            window.left.pop(0)
            os.close(fd)
