"""Files of earlier layers that a sandbox has no room to change, copied to its disk before it runs.

Overlayfs copies a file whole before the first write to it, while its old bytes still count against the disk. So of a
workspace that is more than half of `disk_gb`, a large file could be read and deleted but never written to. Such files
are copied here: then they are the disk's own, and what they hold counts once. What has not been changed by the end is
taken away again, so that it is in one layer only.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from roost.node.descent import Descent, Layers, beside
from roost.node.disk import Disk
from roost.node.sync import xattrs
from roost.node.usage import BLOCK

MOST = 4 * 1024**3  # bytes of one start: some ten seconds
CHUNK = 1024 * 1024

Way = list[str]  # the names from the root to a file, its own last


class Copied(msgspec.Struct, frozen=True, array_like=True):
    """As it was when it had been copied."""

    way: Way
    inode: int
    ctime_ns: int


def copy_ahead(disk: Disk, lowers: Sequence[Path], first_id: int, room: int) -> int:
    """Copies what is larger than `room`, with the directories that lead there; how many bytes the copies take.

    `lowers`: the newest first, without the image. Nothing where all of it would be more than MOST. Raises OSError, and
    then what has been copied is whole.
    """
    wanted = list(_large(lowers, room))
    if sum(size for _, size in wanted) > MOST:
        return 0
    total, copied = 0, list[Copied]()
    try:
        for way, _ in wanted:
            one, size = _copy(disk, lowers, way, first_id)
            copied.append(one)
            total += size
    finally:
        _note(disk).write_bytes(msgspec.json.encode(copied))
    return total


def is_ahead(disk: Disk) -> bool:
    return _note(disk).exists()


def drop_unchanged(disk: Disk) -> None:
    """Of what was copied. Before anything else changes the disk's files; may be repeated."""
    note = _note(disk)
    if not note.exists():
        return
    with contextlib.suppress(msgspec.MsgspecError):
        for one in msgspec.json.decode(note.read_bytes(), type=list[Copied]):
            _drop(disk, one)
    note.unlink()


def _note(disk: Disk) -> Path:
    return disk.mountpoint / "ahead.json"


def _drop(disk: Disk, one: Copied) -> None:
    with Descent(disk.upper) as descent, contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in one.way[:-1]:
            descent.enter(name)
        status = os.lstat(one.way[-1], dir_fd=descent.here)
        if (status.st_ino, status.st_ctime_ns) == (one.inode, one.ctime_ns):
            above = os.fstat(descent.here)
            os.unlink(one.way[-1], dir_fd=descent.here)
            os.utime(descent.here, ns=(above.st_atime_ns, above.st_mtime_ns))


def _large(lowers: Sequence[Path], room: int) -> Iterator[tuple[Way, int]]:
    """Files that are seen in these layers, of one name each, and what they take."""
    with ExitStack() as opened:
        layers = Layers([opened.enter_context(Descent(lower)) for lower in lowers])
        pending, way = [list(layers.names())], list[str]()
        while True:
            if not pending[-1]:
                pending.pop()
                if not pending:
                    return
                layers.leave()
                way.pop()
                continue
            name = pending[-1].pop()
            found = layers.find(name)
            if not found:
                continue
            status = found[0][1]
            if stat.S_ISDIR(status.st_mode):
                layers.enter(name, found)
                way.append(name)
                pending.append(list(layers.names()))
            elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and (size := status.st_blocks * BLOCK) > room:
                yield [*way, name], size


def _copy(disk: Disk, lowers: Sequence[Path], way: Way, first_id: int) -> tuple[Copied, int]:
    with ExitStack() as opened:
        layers = Layers([opened.enter_context(Descent(lower)) for lower in lowers])
        upper = opened.enter_context(Descent(disk.upper))
        for name in way[:-1]:
            found = layers.find(name)
            _make_directory(upper, name, beside(found[0][0].here, name), found[0][1], first_id)
            layers.enter(name, found)
            upper.enter(name)
        source, status = layers.find(way[-1])[0]
        fresh = disk.mountpoint / "ahead.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, fd)
        content = os.open(way[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source.here)
        opened.callback(os.close, content)
        _copy_bytes(content, fd, status.st_size)
        _give(fd, beside(source.here, way[-1]), status, first_id)
        os.rename(fresh, way[-1], dst_dir_fd=upper.here)
        made = os.fstat(fd)
        return Copied(way, made.st_ino, made.st_ctime_ns), made.st_blocks * BLOCK


def _make_directory(upper: Descent, name: str, below: str, status: os.stat_result, first_id: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=upper.here)
    except FileExistsError:
        return
    _give(upper.enter(name), below, status, first_id)
    upper.leave()


def _give(fd: int, below: str, status: os.stat_result, first_id: int) -> None:
    """What it is below, with the ids of this sandbox. Owner first: that clears set-uid bits and capabilities."""
    os.fchown(fd, first_id + status.st_uid, first_id + status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    xattrs.write(fd, xattrs.read(below, xattrs.names_of(below), 0), first_id)
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_bytes(source: int, target: int, size: int) -> None:
    """Holes stay holes."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # only a hole is left
            break
        end = os.lseek(source, begin, os.SEEK_HOLE)
        os.lseek(target, begin, os.SEEK_SET)
        at = begin
        while at < end:
            sent = os.sendfile(target, source, at, min(CHUNK, end - at))
            if not sent:
                break
            at += sent
    os.ftruncate(target, size)
