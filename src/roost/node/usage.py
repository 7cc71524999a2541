"""What a layer adds to the layers below it, in bytes on the disk as `du` counts them.

A revision's size is its parent's and this, so a save looks at what changed and at what that hides, never at the rest.
A name's lower counterparts are looked for only where its directory is in a layer below; what is hidden whole (a deleted
or replaced directory) is walked once. A file of several names counts a share for each of them.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from roost.node.sync import xattrs

BLOCK = 512  # bytes; the unit of st_blocks
Merged: TypeAlias = list[tuple[str, os.stat_result]]  # what one name is, the newest first: several only of directories


def grown(upper: Path, lowers: Sequence[Path]) -> int:
    """Less than 0 where more is hidden than added. `lowers`: the newest first, without the image.

    Names that vanish meanwhile, from a layer that a sandbox is writing to, are left out.
    """
    total = 0.0
    pending = [(str(upper), [str(lower) for lower in lowers])]
    while pending:
        directory, below = pending.pop()
        for name, status in _entries(directory):
            path = f"{directory}/{name}"
            hidden = _merged(below, name)
            if is_whiteout(status):
                total -= _shown(hidden)
                continue
            total += _bytes(status)
            if stat.S_ISDIR(status.st_mode) and not is_opaque(path):
                lower = [one for one, its in hidden if stat.S_ISDIR(its.st_mode)]
                total -= _bytes(hidden[0][1]) if hidden else 0
                pending.append((path, lower))
            else:
                total -= _shown(hidden)
                if stat.S_ISDIR(status.st_mode):
                    pending.append((path, []))
    return round(total)


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: str) -> bool:
    return xattrs.OPAQUE in xattrs.names_of(directory) and xattrs.value_of(directory, xattrs.OPAQUE) == b"y"


def _entries(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    yield entry.name, entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    except (FileNotFoundError, NotADirectoryError):
        return


def _merged(directories: Sequence[str], name: str) -> Merged:
    found: Merged = []
    for directory in directories:
        path = f"{directory}/{name}"
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            return found or ([] if is_whiteout(status) else [(path, status)])
        found.append((path, status))
        if is_opaque(path):
            break
    return found


def _shown(top: Merged) -> float:
    """All that is seen below a name."""
    total, pending = 0.0, [top]
    while pending:
        merged = pending.pop()
        if not merged:
            continue
        total += _bytes(merged[0][1])
        if stat.S_ISDIR(merged[0][1].st_mode):
            directories = [path for path, _ in merged]
            names = {name for directory in directories for name, _ in _entries(directory)}
            pending += [_merged(directories, name) for name in names]
    return total


def _bytes(status: os.stat_result) -> float:
    blocks = status.st_blocks * BLOCK
    return blocks if stat.S_ISDIR(status.st_mode) else blocks / status.st_nlink
