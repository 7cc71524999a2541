"""Directory trees as values: made on disk, read back whole, and laid over each other as overlayfs does."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from roost.node.sync import xattrs

OPAQUE = "trusted.overlay.opaque"


@dataclass(frozen=True)
class Node:
    """Everything that must come back. ids are the guest's. holes: (start, end) of data where the file is sparse."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    data: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    opaque: bool
    extents: tuple[tuple[int, int], ...]
    names: tuple[bytes, ...]  # all names of the inode


def snapshot(root: Path, first_id: int = 0) -> dict[bytes, Node]:
    """All names below (and the root as b"") of a layer on disk."""
    raw = os.fsencode(root)
    inodes: dict[int, list[bytes]] = {}
    found: dict[bytes, tuple[bytes, os.stat_result]] = {b"": (raw, os.lstat(raw))}
    for directory, directories, files in os.walk(raw):
        for name in directories + files:
            path = os.path.join(directory, name)
            state = os.lstat(path)
            key = os.path.relpath(path, raw)
            found[key] = (path, state)
            if not stat.S_ISDIR(state.st_mode):
                inodes.setdefault(state.st_ino, []).append(key)
    return {key: _node(path, state, first_id, inodes) for key, (path, state) in found.items()}


def _node(path: bytes, state: os.stat_result, first_id: int, inodes: dict[int, list[bytes]]) -> Node:
    mode = state.st_mode
    data, extents, opaque = b"", (), False
    if stat.S_ISREG(mode):
        kind = "f"
        with open(path, "rb") as file:
            data = file.read()
            extents = _extents(file.fileno(), len(data)) if state.st_blocks * 512 < len(data) else ()
    elif stat.S_ISDIR(mode):
        kind = "d"
        opaque = OPAQUE in os.listxattr(path) and os.getxattr(path, OPAQUE) == b"y"
    elif stat.S_ISLNK(mode):
        kind, data = "l", os.readlink(path)
    elif stat.S_ISFIFO(mode):
        kind = "p"
    elif stat.S_ISCHR(mode) and state.st_rdev == 0:
        return Node("w", 0, 0, 0, 0, b"", (), False, (), ())
    else:
        return Node("?", 0, 0, 0, 0, b"", (), False, (), ())
    names = os.listxattr(path, follow_symlinks=False)
    own = xattrs.read(os.fsdecode(path), names, first_id)
    linked = tuple(sorted(inodes.get(state.st_ino, []))) if kind != "d" else ()
    permissions = 0o777 if kind == "l" else stat.S_IMODE(mode)
    uid, gid = state.st_uid - first_id, state.st_gid - first_id
    return Node(kind, permissions, uid, gid, state.st_mtime_ns, data, own, opaque, extents, linked)


def _extents(fd: int, size: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return tuple(found)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def opaque(path: Path) -> None:
    os.setxattr(path, OPAQUE, b"y")


def overlaid(*layers: dict[bytes, Node]) -> dict[bytes, Node]:
    """What is visible of layers (lowest first) over an empty image: an independent, slow model of overlayfs."""
    shown: dict[bytes, Node] = {}
    for layer in layers:
        for key in sorted(layer, key=lambda key: key.split(b"/") if key else []):
            node = layer[key]
            if node.kind != "d" or node.opaque or (key in shown and shown[key].kind != "d"):
                for gone in [one for one in shown if one.startswith(key + b"/") or not key]:
                    if gone != key:
                        del shown[gone]
            shown[key] = node
        for key in [key for key, node in shown.items() if node.kind == "w"]:
            del shown[key]
    return shown


def content(tree: dict[bytes, Node]) -> dict[bytes, tuple[object, ...]]:
    """What a guest would see: no marks of the overlay, and links only by what they hold."""
    return {
        key: (one.kind, one.mode, one.uid, one.gid, one.mtime, one.data, one.xattrs)
        for key, one in tree.items()
        if one.kind != "w"
    }


def dig(top: Path, depth: int, name: str = "d") -> None:
    """Directories in one another, a file of 4096 bytes in the innermost."""
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=at), "wb") as file:
        file.write(b"x" * 4096)
    os.close(at)
