"""Whiteouts that hide nothing go from a layer that stands on an image alone.

Merged layers may hold a whiteout for a name that only a layer among them had. Overlayfs does not look for whiteouts in
a directory that is in one layer only, so it would be listed as a name that cannot be opened.
"""

import os
import stat
from pathlib import Path

from roost.node.usage import is_opaque, is_whiteout


def prune(upper: Path, image: Path) -> int:
    """How many went. Times of directories stay. Nothing else may change `upper` meanwhile."""
    gone = 0
    pending: list[tuple[Path, Path | None]] = [(upper, image)]
    while pending:
        directory, below = pending.pop()
        idle: list[Path] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if is_whiteout(status):
                    if below is None or not os.path.lexists(below / entry.name):
                        idle.append(Path(entry.path))
                elif stat.S_ISDIR(status.st_mode):
                    pending.append((Path(entry.path), None if is_opaque(entry.path) else _directory(below, entry.name)))
        gone += len(idle)
        _remove(directory, idle)
    return gone


def _directory(below: Path | None, name: str) -> Path | None:
    """The image's directory of this name; a link to one is not merged with it."""
    path = below / name if below else None
    return path if path and path.is_dir() and not path.is_symlink() else None


def _remove(directory: Path, paths: list[Path]) -> None:
    if not paths:
        return
    status = directory.lstat()
    for path in paths:
        path.unlink()
    os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))
