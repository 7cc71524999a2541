"""The files below a root directory that a guest owns and may change while we look.

Every path is resolved by the kernel as after a chroot (openat2), from a descriptor of that root, so that neither `..`
nor links nor races lead out of it; other file systems below it (/proc, /sys, /dev) are refused. What was resolved is
held by descriptor from then on, and nothing but regular files is ever opened for its content. Calls block and take
bounded memory; iterators hold descriptors until they end or are closed. Names are bytes, ids those of the container.
"""

import contextlib
import errno
import os
import secrets
import stat
import tarfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from roost import linux
from roost.errors import Conflict, Invalid, NotFound, RoostError, TooLarge
from roost.node.member import IDS
from roost.node.protocol import Entry

CHUNK = 256 * 1024  # bytes read at a time
DEEPEST = 256  # directories in one another that are walked; each takes two descriptors while what it has in it is read
TRIES = 16  # of what a guest can make fail by renaming things at the same moment
MAX_LINKS = 40  # as the kernel's own limit for one path
NOBODY = 65534  # who owns what no id of the container owns

_INSIDE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
_CHILD = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # NONBLOCK: a lease on the file would make us wait for its holder
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_VANISHED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE)  # it was there, and is something else now

_CONDITIONS: dict[int, tuple[type[RoostError], str]] = {
    errno.ENOENT: (NotFound, "there is no {path}; list the directory above it to see what is there"),
    errno.ENOTDIR: (Invalid, "{path} leads through something that is no directory; name the file itself"),
    errno.EISDIR: (Invalid, "{path} is a directory; name a file in it"),
    errno.ELOOP: (Invalid, "the symbolic links of {path} go in circles or lead nowhere; name what they should lead to"),
    errno.EXDEV: (Invalid, "{path} is on a file system of the running system, such as /proc; use exec to look there"),
    errno.ENAMETOOLONG: (Invalid, "{path} is too long; a name has 255 bytes at most, a path 4095"),
    errno.ENOSPC: (Conflict, "{path} does not fit on the disk; delete something, or ask for a larger disk_gb"),
    errno.EDQUOT: (Conflict, "{path} does not fit on the disk; delete something, or ask for a larger disk_gb"),
    errno.EFBIG: (TooLarge, "{path} is larger than a file of this disk can be; split it"),
    errno.EROFS: (Conflict, "{path} is in a state that does not change; edit the workspace, which makes a new one"),
    errno.EPERM: (Conflict, "{path} is marked as unchangeable; take the mark away first (chattr -ia)"),
    errno.EBUSY: (Conflict, "{path} is a mount point of the running system; it goes with the sandbox"),
    errno.ENOTEMPTY: (Conflict, "{path} is written to while it is deleted; stop that program, then delete it"),
    errno.EAGAIN: (Conflict, "{path} is held or renamed by a program just now; try again"),
    errno.ESTALE: (Conflict, "{path} is held or renamed by a program just now; try again"),
}


def process_root(pid: int, first_id: int) -> int:
    """A descriptor of a guest's root, for `Tree`; `pid` is that of its guest init, which runs as id `first_id`.

    Raises Conflict when that process is gone, whoever has its number now.
    """
    try:
        with _held(os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as process:
            root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process)  # of that very process
            owner = os.fstat(process).st_uid
    except OSError:
        owner, root = None, -1
    if owner == first_id and not os.path.samestat(os.fstat(root), os.stat("/")):  # noqa: PTH116
        return root
    if root >= 0:
        os.close(root)
    raise Conflict("the sandbox has ended; its files are in its workspace, if it had one")


class Tree:
    """Leave it to close it. From several threads, use one Tree each or one iterator at a time."""

    def __init__(self, root: int | Path, first_id: int) -> None:
        """root: a directory, or an O_PATH descriptor of one, which is the tree's own from now on.

        first_id: what the container's id 0 is on the disk.
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._root = root if isinstance(root, int) else os.open(root, flags)
        self._first_id = first_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    # looking

    def list(self, path: bytes) -> Iterator[Entry]:
        """What `path` leads to, its name empty; then, of a directory, what is in it, in no order.

        Raises NotFound, Invalid, Conflict, as do all of these; iterators do so at their first step.
        """
        with _explained(path), _held(self._open(path, os.O_PATH)) as fd:
            status = os.fstat(fd)
            yield self._entry(b"", status, None)
            if stat.S_ISDIR(status.st_mode):
                with _held(_reopened(fd, _DIRECTORY)) as directory, os.scandir(directory) as found:
                    for name, status in _statuses(found):
                        yield self._entry(name, status, _link(directory, name, status))

    def read(self, path: bytes, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from `start` to before `end` or its end, whichever comes first."""
        if not 0 <= start <= end < 2**63:
            raise Invalid(f"bytes {start} to {end} are no range; 0 <= start <= end is needed")
        with _explained(path), _held(self._open(path, os.O_PATH)) as found, _held(_content(found, path)) as fd:
            at = start
            while at < end and (chunk := os.pread(fd, min(CHUNK, end - at), at)):
                yield chunk
                at += len(chunk)

    def tar(self, path: bytes) -> Iterator[bytes]:
        """A pax archive of a file, or of a directory with names relative to it.

        Symbolic links are archived as such; each name of a file with several names (hard links) as a file of its own.

        What is no file, directory or link is left out, and so is the content of other file systems, whose mount points
        are there as empty directories. A file that shrinks meanwhile is filled up with zeros, one that grows is cut.
        Invalid, possibly after some of the archive, when directories are nested deeper than DEEPEST.
        """
        return _joined(self._archive(path))

    def _archive(self, path: bytes) -> Iterator[bytes]:
        with _explained(path), _held(self._open(path, os.O_PATH)) as found:
            status = os.fstat(found)
            if stat.S_ISDIR(status.st_mode):
                with _held(_reopened(found, _DIRECTORY)) as directory:
                    yield self._header(b".", status)
                    yield from self._packed(directory, b"", 1)
            else:
                with _held(_content(found, path)) as fd:
                    yield from self._packed_file(fd, path.rstrip(b"/").rpartition(b"/")[2])
            yield bytes(2 * tarfile.BLOCKSIZE)

    def _packed(self, directory: int, prefix: bytes, depth: int) -> Iterator[bytes]:
        if depth > DEEPEST:
            raise Invalid(f"the directories are nested deeper than {DEEPEST}; take a deeper one of them")
        with os.scandir(directory) as found:
            for name, status in _statuses(found):
                if stat.S_ISLNK(status.st_mode):
                    if (target := _link(directory, name, status)) is not None:
                        yield self._header(prefix + name, status, target)
                elif stat.S_ISDIR(status.st_mode):
                    yield from self._packed_directory(directory, name, prefix, depth)
                elif stat.S_ISREG(status.st_mode):
                    with contextlib.ExitStack() as opened:
                        if (fd := _child_content(directory, name)) is not None:
                            opened.callback(os.close, fd)
                            yield from self._packed_file(fd, prefix + name)

    def _packed_directory(self, parent: int, name: bytes, prefix: bytes, depth: int) -> Iterator[bytes]:
        try:
            fd = _child(parent, name, _DIRECTORY)
        except OSError as error:
            if error.errno == errno.EXDEV:
                yield self._header(prefix + name, os.stat(name, dir_fd=parent, follow_symlinks=False))
            elif error.errno not in _VANISHED:
                raise
            return
        with _held(fd):
            yield self._header(prefix + name, os.fstat(fd))
            yield from self._packed(fd, prefix + name + b"/", depth + 1)

    def _packed_file(self, fd: int, name: bytes) -> Iterator[bytes]:
        status = os.fstat(fd)
        yield self._header(name, status)
        at = 0
        while at < status.st_size:
            length = min(CHUNK, status.st_size - at)
            chunk = os.pread(fd, length, at) or bytes(length)
            yield chunk
            at += len(chunk)
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)

    def _header(self, name: bytes, status: os.stat_result, target: bytes | None = None) -> bytes:
        member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        member.mode = stat.S_IMODE(status.st_mode)
        member.uid, member.gid = self._inside(status.st_uid), self._inside(status.st_gid)
        seconds, rest = divmod(status.st_mtime_ns, 1_000_000_000)
        member.mtime = seconds
        if rest and seconds >= 0:
            member.pax_headers = {"mtime": f"{seconds}.{rest:09}"}
        if target is not None:
            member.type, member.linkname = tarfile.SYMTYPE, target.decode("utf-8", "surrogateescape")
        elif stat.S_ISDIR(status.st_mode):
            member.type = tarfile.DIRTYPE
        else:
            member.size = status.st_size
        return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")

    def _entry(self, name: bytes, status: os.stat_result, target: bytes | None) -> Entry:
        return Entry(
            name=name,
            type=_kind(status.st_mode),
            size=status.st_size,
            mode=stat.S_IMODE(status.st_mode),
            mtime_ns=status.st_mtime_ns,
            uid=self._inside(status.st_uid),
            gid=self._inside(status.st_gid),
            target=target,
        )

    def _inside(self, id: int) -> int:
        return id - self._first_id if self._first_id <= id < self._first_id + IDS else NOBODY

    # changing

    def write(self, path: bytes, chunks: Iterable[bytes], mode: int) -> None:
        """Replaces a file whole or not at all, whatever `chunks` raises; it belongs to the container's root.

        Links are followed to the file that they lead to, which need not exist. Directories that are missing are made,
        and stay if the rest fails. Invalid where there is something that is no file.
        """
        with _explained(path):
            directory, name = self._place(path)
            with _held(directory):
                _require_replaceable(directory, name, path)
                fresh = b".roost-" + secrets.token_hex(8).encode()
                with _held(os.open(fresh, _NEW, 0o600, dir_fd=directory)) as fd:
                    try:
                        for chunk in chunks:
                            _write(fd, chunk)
                        self._give(fd, mode)
                        os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
                    except BaseException:
                        with contextlib.suppress(OSError):
                            os.unlink(fresh, dir_fd=directory)
                        raise

    def delete(self, path: bytes) -> None:
        """A file, a link or a directory with all that is in it; links on the way are followed, the last part is not."""
        parent, name = _split(path)
        with _explained(path), _held(self._open(parent, os.O_PATH | os.O_DIRECTORY)) as directory:
            os.lstat(name, dir_fd=directory)
            _remove(directory, name, 1)

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """The directory, open, and the name in it where a file of this path is or is to be."""
        for _ in range(MAX_LINKS):
            parent, name = _split(path)
            directory = self._directory(parent)
            try:
                target = os.readlink(name, dir_fd=directory)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):  # no link
                    return directory, name
                os.close(directory)
                raise
            os.close(directory)
            path = target if target.startswith(b"/") else parent + b"/" + target
        raise OSError(errno.ELOOP, "too many links")

    def _directory(self, path: bytes) -> int:
        """Made if it is missing, with those above it."""
        try:
            return self._open(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            if path.count(b"/") > DEEPEST:
                raise Invalid(f"{_shown(path)} is nested deeper than {DEEPEST} directories; shorten it") from None
        parent, name = _split(path)
        with _held(self._directory(parent)) as above:
            try:
                os.mkdir(name, 0o700, dir_fd=above)
            except FileExistsError:  # made by another, or a link that leads nowhere
                return _child(above, name, _DIRECTORY)
            fd = _child(above, name, _DIRECTORY)
            if os.fstat(fd).st_uid == os.geteuid():  # otherwise it is not ours any more, but what the guest put there
                self._give(fd, 0o755)
            return fd

    def _give(self, fd: int, mode: int) -> None:
        os.fchown(fd, self._first_id, self._first_id)
        os.fchmod(fd, mode & 0o7777)

    def _open(self, path: bytes, flags: int) -> int:
        if b"\0" in path:
            raise Invalid("a path cannot contain a zero byte")
        return _tried(self._root, path or b".", flags, _INSIDE)


def _tried(directory: int, path: bytes, flags: int, resolve: int) -> int:
    for attempt in range(TRIES):
        try:
            return linux.openat2(directory, path, flags, resolve)
        except BlockingIOError:
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def _child(directory: int, name: bytes, flags: int) -> int:
    """What is in an open directory under one name, if that is no link and no mount point."""
    return _tried(directory, name, flags | os.O_NOFOLLOW, _CHILD)


def _child_content(directory: int, name: bytes) -> int | None:
    """None if it has gone or become something else."""
    try:
        with _held(_child(directory, name, os.O_PATH)) as found:
            return _reopened(found, _FILE) if stat.S_ISREG(os.fstat(found).st_mode) else None
    except OSError as error:
        if error.errno in (*_VANISHED, errno.EXDEV):
            return None
        raise


def _content(found: int, path: bytes) -> int:
    """To read from: only a regular file is opened, for a device or a fifo would feel that."""
    mode = os.fstat(found).st_mode
    if stat.S_ISDIR(mode):
        raise Invalid(f"{_shown(path)} is a directory; list it, take it as a tar archive, or name a file in it")
    if not stat.S_ISREG(mode):
        raise Invalid(f"{_shown(path)} is a device, fifo or socket; only files can be read")
    return _reopened(found, _FILE)


def _reopened(fd: int, flags: int) -> int:
    """The very thing that an O_PATH descriptor holds, whatever its name leads to by now."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


@contextlib.contextmanager
def _held(fd: int) -> Generator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _explained(path: bytes) -> Generator[None]:
    """What the kernel says about a path, as a condition that names the cure."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CONDITIONS:
            raise
        condition, text = _CONDITIONS[error.errno]
        raise condition(text.format(path=_shown(path))) from error


def _shown(path: bytes) -> str:
    text = path.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else text[:200] + "…")


def _split(path: bytes) -> tuple[bytes, bytes]:
    parent, _, name = path.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise Invalid(f"{_shown(path)} names no file; the root and paths that end in '.' or '..' cannot be changed")
    if b"\0" in name:
        raise Invalid("a path cannot contain a zero byte")
    return parent, name


def _kind(mode: int) -> Literal["file", "directory", "symlink", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def _statuses(found: "Iterator[os.DirEntry[str]]") -> Iterator[tuple[bytes, os.stat_result]]:
    """What vanishes between the two looks is left out."""
    for entry in found:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        yield os.fsencode(entry.name), status


def _link(directory: int, name: bytes, status: os.stat_result) -> bytes | None:
    """Where a link leads; None for what is none, or not any more."""
    if not stat.S_ISLNK(status.st_mode):
        return None
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def _joined(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces worth a step of their own; an archive of small files has thousands of tiny ones."""
    gathered = bytearray()
    for chunk in chunks:
        gathered += chunk
        if len(gathered) >= CHUNK:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _write(fd: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _require_replaceable(directory: int, name: bytes, path: bytes) -> None:
    try:
        mode = os.lstat(name, dir_fd=directory).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise Invalid(f"{_shown(path)} is a directory; name a file in it, or delete it first")
    if not stat.S_ISREG(mode):
        raise Invalid(f"{_shown(path)} is a device, fifo or socket; delete it first")


def _remove(parent: int, name: bytes, depth: int) -> None:
    """Whatever is there under this name; that there is nothing (any more) is as good."""
    for attempt in range(TRIES):
        try:
            os.unlink(name, dir_fd=parent)
            return
        except FileNotFoundError:
            return
        except IsADirectoryError:
            pass
        try:
            _empty(parent, name, depth)
            os.rmdir(name, dir_fd=parent)
            return
        except OSError as error:
            if error.errno not in (*_VANISHED, errno.ENOTEMPTY) or attempt == TRIES - 1:
                raise


def _empty(parent: int, name: bytes, depth: int) -> None:
    if depth > DEEPEST:
        raise Conflict(f"the directories are nested deeper than {DEEPEST}; delete a deeper one first")
    with _held(_child(parent, name, _DIRECTORY)) as directory, os.scandir(directory) as found:
        for entry in found:
            _remove(directory, os.fsencode(entry.name), depth + 1)
