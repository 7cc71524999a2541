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
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from roost import linux
from roost.errors import Conflict, Invalid, NotFound, RoostError, TooLarge
from roost.node.descent import VANISHED as _VANISHED
from roost.node.descent import Descent, status_of
from roost.node.member import IDS
from roost.node.pax import CHUNK, Pax
from roost.node.protocol import Entry

DEEPEST = 256  # directories of one path that are made where they are missing
NAMES = 4096  # of a directory that are held in memory
HUGE = 32  # directories in one another that have more; each takes a descriptor while it is read
ACL = "system.posix_acl_access"
TRIES = 16  # of what a guest can make fail by renaming things at the same moment
MAX_LINKS = 40  # as the kernel's own limit for one path
NOBODY = 65534  # who owns what no id of the container owns

_INSIDE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
_CHILD = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_SYMLINKS | linux.RESOLVE_NO_MAGICLINKS | linux.RESOLVE_NO_XDEV
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY  # NONBLOCK: a lease on the file would make us wait for its holder
_IN_PLACE = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

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
    errno.ETXTBSY: (Conflict, "{path} is a program that runs, under several names; end it, or delete the file first"),
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

        Links are archived as such, hard ones too, and holes as holes (see `pax`).

        What is no file, directory or link is left out, and so is the content of other file systems, whose mount points
        are there as empty directories. A file that shrinks meanwhile is filled up with zeros, one that grows is cut.
        Invalid, possibly after some of the archive, when more than HUGE large directories are nested.
        """
        return _joined(self._archive(path))

    def _archive(self, path: bytes) -> Iterator[bytes]:
        with _explained(path), _held(self._open(path, os.O_PATH)) as found:
            status, pax = os.fstat(found), Pax(self._inside)
            if stat.S_ISDIR(status.st_mode):
                with _held(_reopened(found, _DIRECTORY)) as directory:
                    yield pax.directory(b".", status)
                    yield from _packed(directory, pax)
            else:
                with _held(_content(found, path)) as fd:
                    yield from pax.file(fd, path.rstrip(b"/").rpartition(b"/")[2])
            yield bytes(2 * tarfile.BLOCKSIZE)

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
        return id - self._first_id if self._mapped(id) else NOBODY

    # changing

    def write(self, path: bytes, chunks: Iterable[bytes], mode: int | None = None) -> None:
        """Replaces the content of a file, whole or not at all, whatever `chunks` raises.

        What exists keeps its owner, its attributes and, without `mode`, its mode. If it has several names, they stay
        names of one file: its bytes are then replaced in place once all have come, which a crash can catch in the
        middle. A new file gets the owner of its directory, and 0644. Links are followed to the file that they lead to,
        which need not exist. Directories that are missing are made, and stay if the rest fails. Invalid where there is
        something that is no file.
        """
        with _explained(path):
            directory, name = self._place(path)
            with _held(directory):
                before = _replaceable(directory, name, path)
                fresh = b".roost-" + secrets.token_hex(8).encode()
                with _held(os.open(fresh, _NEW, 0o600, dir_fd=directory)) as fd:
                    try:
                        for chunk in chunks:
                            _write(fd, chunk)
                        if before is None or before.st_nlink == 1:
                            self._become(fd, directory, name, before, mode)
                            os.rename(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)
                        else:
                            _overwrite(directory, name, fd, mode)
                            os.unlink(fresh, dir_fd=directory)
                    except BaseException:
                        with contextlib.suppress(OSError):
                            os.unlink(fresh, dir_fd=directory)
                        raise

    def _become(self, fd: int, directory: int, name: bytes, before: os.stat_result | None, mode: int | None) -> None:
        """Take over what the file of this name is, or what a new one here is to be."""
        if before is None:
            self._give(fd, directory, 0o644 if mode is None else mode)
            return
        _copy_attributes(directory, name, fd)
        os.fchown(fd, before.st_uid, before.st_gid)
        os.fchmod(fd, stat.S_IMODE(before.st_mode) if mode is None else mode & 0o7777)

    def delete(self, path: bytes) -> None:
        """A file, a link or a directory with all that is in it; links on the way are followed, the last part is not."""
        parent, name = _split(path)
        with _explained(path), _held(self._open(parent, os.O_PATH | os.O_DIRECTORY)) as directory:
            os.lstat(name, dir_fd=directory)
            _remove(directory, name)

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
                self._give(fd, above, 0o755)
            return fd

    def _give(self, fd: int, directory: int, mode: int) -> None:
        """To the directory's owner, who may be nobody of the container: then to its root. Set-gid is handed down."""
        above = os.fstat(directory)
        uid, gid = (id if self._mapped(id) else self._first_id for id in (above.st_uid, above.st_gid))
        inherited = above.st_mode & stat.S_ISGID if stat.S_ISDIR(os.fstat(fd).st_mode) else 0
        os.fchown(fd, uid, gid)
        os.fchmod(fd, (mode | inherited) & 0o7777)

    def _mapped(self, id: int) -> bool:
        return self._first_id <= id < self._first_id + IDS

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


def _packed(top: int, pax: Pax) -> Iterator[bytes]:
    with Descent(os.dup(top), _inner) as descent:
        pending = [(_Names(descent.here), b"")]
        try:
            while True:
                names, prefix = pending[-1]
                name = next(names, None)
                if name is None:
                    pending.pop()[0].close()
                    if not pending:
                        return
                    if not _left(descent):
                        pending[-1][0].close()
                    continue
                try:
                    status = status_of(descent.here, name)
                except FileNotFoundError:
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    yield from _packed_leaf(descent.here, os.fsencode(name), prefix, status, pax)
                    continue
                yield pax.directory(prefix + os.fsencode(name), status)
                if _entered(descent, name):
                    pending.append((_Names(descent.here), prefix + os.fsencode(name) + b"/"))
                    if pending[-1][0].is_large and sum(names.is_large for names, _ in pending) > HUGE:
                        raise Invalid(f"more than {HUGE} directories of thousands of names are in one another")
        finally:
            for names, _ in pending:
                names.close()


def _packed_leaf(directory: int, name: bytes, prefix: bytes, status: os.stat_result, pax: Pax) -> Iterator[bytes]:
    if stat.S_ISLNK(status.st_mode):
        if (target := _link(directory, name, status)) is not None:
            yield pax.link(prefix + name, status, target)
    elif stat.S_ISREG(status.st_mode) and (fd := _child_content(directory, name)) is not None:
        with _held(fd):
            yield from pax.file(fd, prefix + name)


class _Names:
    """Of a directory, in no order and in bounded memory: only of a large one a descriptor is held meanwhile."""

    def __init__(self, directory: int) -> None:
        with _held(_reopened(directory, _DIRECTORY)) as fd:
            self._found = os.scandir(fd)
        self._first = [entry.name for entry in islice(self._found, NAMES)]
        self.is_large = len(self._first) == NAMES
        if not self.is_large:
            self._found.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return self._first.pop() if self._first else next(self._found).name

    def close(self) -> None:
        self._first.clear()
        self._found.close()


def _entered(descent: Descent, name: str) -> bool:
    """False for what is no directory, not any more, or a mount point."""
    try:
        descent.enter(name)
    except OSError as error:
        if error.errno not in (*_VANISHED, errno.EXDEV):
            raise
        return False
    return True


def _left(descent: Descent) -> bool:
    """Whether the directory above is still to be found."""
    try:
        descent.leave()
    except OSError as error:
        if error.errno not in _VANISHED:
            raise
        return False
    return True


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


def _replaceable(directory: int, name: bytes, path: bytes) -> os.stat_result | None:
    """The file of this name, None where there is none. Raises Invalid for what is no file."""
    try:
        status = os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise Invalid(f"{_shown(path)} is a directory; name a file in it, or delete it first")
    if not stat.S_ISREG(status.st_mode):
        raise Invalid(f"{_shown(path)} is a device, fifo or socket; delete it first")
    return status


def _copy_attributes(directory: int, name: bytes, fd: int) -> None:
    """Extended ones and access lists; a capability was given to other content."""
    source = _child_content(directory, name)
    if source is None:
        return
    with _held(source):
        for attribute in os.listxattr(source):
            if attribute.startswith("user.") or attribute == ACL:
                os.setxattr(fd, attribute, os.getxattr(source, attribute))


def _overwrite(directory: int, name: bytes, content: int, mode: int | None) -> None:
    """In place, so that it stays the file of all its names. Room for it is found first."""
    with _held(_child(directory, name, os.O_PATH)) as found, _held(_reopened(found, _IN_PLACE)) as fd:
        before, size = os.fstat(fd).st_size, os.fstat(content).st_size
        try:
            os.posix_fallocate(fd, 0, max(size, 1))
        except OSError:
            os.ftruncate(fd, before)
            raise
        at = 0
        source = os.open(f"/proc/self/fd/{content}", os.O_RDONLY | os.O_CLOEXEC)
        with _held(source):
            while chunk := os.pread(source, CHUNK, at):
                rest = memoryview(chunk)
                while rest:
                    written = os.pwrite(fd, rest, at)
                    at, rest = at + written, rest[written:]
        os.ftruncate(fd, size)
        if mode is not None:
            os.fchmod(fd, mode & 0o7777)


def _inner(directory: int, name: str) -> int:
    return _child(directory, os.fsencode(name), _DIRECTORY)


def _some_names(directory: int) -> list[str]:
    """Of a directory that may hold any number: as many as are deleted before it is looked at again."""
    with _held(_reopened(directory, _DIRECTORY)) as fd, os.scandir(fd) as found:
        return [entry.name for entry in islice(found, NAMES)]


def _remove(parent: int, name: bytes) -> None:
    """Whatever is there under this name, however deep; that there is nothing (any more) is as good."""
    with Descent(os.dup(parent), _inner) as descent:
        pending, tries = [[os.fsdecode(name)]], 0
        while True:
            if not pending[-1] and descent.depth:
                pending[-1] = _some_names(descent.here)  # a directory is left only when it is empty
            if pending[-1]:
                entered = _unlink_or_enter(descent, pending[-1].pop())
                if entered:
                    pending.append([])
                continue
            pending.pop()
            if not descent.depth:
                return
            gone = descent.name
            descent.leave()
            try:
                os.rmdir(gone, dir_fd=descent.here)
            except OSError as error:
                tries += 1
                if error.errno not in (*_VANISHED, errno.ENOTEMPTY) or tries == TRIES:
                    raise
                pending[-1].append(gone)


def _unlink_or_enter(descent: Descent, name: str) -> bool:
    """Whether it was a directory, and is entered now."""
    for attempt in range(TRIES):
        try:
            os.unlink(name, dir_fd=descent.here)
            return False
        except FileNotFoundError:
            return False
        except IsADirectoryError:
            pass
        try:
            descent.enter(name)
            return True
        except OSError as error:
            if error.errno not in _VANISHED or attempt == TRIES - 1:
                raise
    raise AssertionError
