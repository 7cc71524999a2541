"""Members of a pax archive, made as they are sent: with owners, times, attributes, holes and further names.

Holes are told as GNU tar, bsdtar and Python's tarfile read them (sparse format 1.0); a reader that knows no holes finds
such a file's map and data under a name of its own. Only files that mostly are hole are packed so.
"""

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator

from roost.node.canonical import CAPABILITY, plain_capability

CHUNK = 256 * 1024  # bytes read at a time
HOLE = 64 * 1024  # bytes; a smaller one is packed as zeros
EXTENTS = 4096  # of one file; one that has more is packed as if it had no holes
LINKS = 64 * 1024 * 1024  # bytes of names that are remembered, since their files may have further ones

Extent = tuple[int, int]  # its start, and its bytes


class Pax:
    """One archive; the end of it is the caller's."""

    def __init__(self, inside: Callable[[int], int]) -> None:
        """inside: the container's id for one on the disk."""
        self._inside = inside
        self._names: dict[tuple[int, int], bytes] = {}
        self._room = LINKS

    def directory(self, name: bytes, status: os.stat_result) -> bytes:
        member = self._member(name, status)
        member.type = tarfile.DIRTYPE
        return _header(member)

    def link(self, name: bytes, status: os.stat_result, target: bytes) -> bytes:
        member = self._member(name, status)
        member.type, member.linkname = tarfile.SYMTYPE, _text(target)
        return _header(member)

    def file(self, fd: int, name: bytes) -> Iterator[bytes]:
        """What shrinks meanwhile is filled up with zeros, what grows is cut."""
        status = os.fstat(fd)
        if (first := self._first_name(name, status)) is not None:
            member = self._member(name, status)
            member.type, member.linkname = tarfile.LNKTYPE, _text(first)
            yield _header(member)
            return
        member = self._member(name, status, fd)
        extents = _extents(fd, status)
        if extents is None:
            member.size = status.st_size
            yield _header(member)
            yield from _bytes(fd, [(0, status.st_size)])
        else:
            yield from _sparse(member, fd, status.st_size, extents)

    def _first_name(self, name: bytes, status: os.stat_result) -> bytes | None:
        """Of a file that is in the archive already."""
        if status.st_nlink < 2:
            return None
        inode = status.st_dev, status.st_ino
        if inode not in self._names and self._room >= len(name):
            self._room -= len(name)
            self._names[inode] = name
            return None
        return self._names.get(inode)

    def _member(self, name: bytes, status: os.stat_result, fd: int | None = None) -> tarfile.TarInfo:
        member = tarfile.TarInfo(_text(name))
        member.mode = stat.S_IMODE(status.st_mode)
        member.uid, member.gid = self._inside(status.st_uid), self._inside(status.st_gid)
        seconds, rest = divmod(status.st_mtime_ns, 1_000_000_000)
        member.mtime = seconds
        headers = {} if fd is None else _attributes(fd)
        if rest and seconds >= 0:
            headers["mtime"] = f"{seconds}.{rest:09}"
        member.pax_headers = headers
        return member


def _sparse(member: tarfile.TarInfo, fd: int, size: int, extents: list[Extent]) -> Iterator[bytes]:
    """Format 1.0: a map in decimal numbers, then what is no hole."""
    numbers = [len(extents), *(number for extent in extents for number in extent)]
    said = "".join(f"{number}\n" for number in numbers).encode()
    said += bytes(-len(said) % tarfile.BLOCKSIZE)
    member.pax_headers = {
        **member.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": member.name,
        "GNU.sparse.realsize": str(size),
    }
    directory, _, name = member.name.rpartition("/")
    member.name = f"{directory or '.'}/GNUSparseFile.0/{name}"
    member.size = len(said) + sum(length for _, length in extents)
    yield _header(member)
    yield said
    yield from _bytes(fd, extents)


def _bytes(fd: int, extents: list[Extent]) -> Iterator[bytes]:
    total = 0
    for start, length in extents:
        at = start
        while at < start + length:
            wanted = min(CHUNK, start + length - at)
            chunk = os.pread(fd, wanted, at) or bytes(wanted)
            yield chunk
            at += len(chunk)
        total += length
    yield bytes(-total % tarfile.BLOCKSIZE)


def _extents(fd: int, status: os.stat_result) -> list[Extent] | None:
    """What is no hole, ending at the file's end; None where that is most of it, or in too many pieces."""
    size = status.st_size
    if size < 2 * HOLE or status.st_blocks * 512 > size // 2:
        return None
    found: list[Extent] = []
    at = 0
    while at < size and len(found) <= EXTENTS:
        try:
            start = min(os.lseek(fd, at, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return None
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if found and start - sum(found[-1]) < HOLE:
            start = found.pop()[0]
        found.append((start, at - start))
    return None if len(found) > EXTENTS else [*found, (size, 0)]


def _attributes(fd: int) -> dict[str, str]:
    """As GNU tar and bsdtar write extended attributes."""
    try:
        names = [name for name in os.listxattr(fd) if name.startswith("user.") or name == CAPABILITY]
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name in names:
        try:
            value = os.getxattr(fd, name)
        except OSError:
            continue
        found[f"SCHILY.xattr.{name}"] = _text(plain_capability(value) if name == CAPABILITY else value)
    return found


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
