"""Renamed directories of lower layers, made whole in the layer that renamed them.

Overlayfs renames such a directory by a note (`redirect`) in the upper layer of where its content lies below. A layer
that is kept has no such notes: each layer says by itself what it changed, so that layers can be read, merged, stored
and restored one by one. So when a sandbox's disk becomes a layer, the kernel copies what the notes speak of, and the
directory is marked as one that hides all below it. Only the kernel writes notes: no guest can set a `trusted` name.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from roost import linux
from roost.node.descent import VANISHED, Descent, beside, is_opaque, is_whiteout, names_in, status_of, walk
from roost.node.disk import OVERLAY, Disk, enlarge, unmount

ENLARGED = 6  # times that a disk may be doubled
REDIRECT = "trusted.overlay.redirect"
OPAQUE = "trusted.overlay.opaque"


def is_moved(directory: int | str) -> bool:
    try:
        return bool(os.getxattr(directory, REDIRECT))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, *VANISHED):
            return False
        raise


def has_moved(disk: Disk) -> bool:
    with Descent(disk.upper) as upper:
        return next(_moved(upper), None) is not None


def settle(disk: Disk, lowers: Sequence[Path], point: Path) -> int:
    """How many directories were made whole. Blocks; may be repeated, and after a crash at any point.

    `lowers`: what the disk stood on, the newest first, with the image; ids in all of them are plain. `point`: where a
    directory to mount on may be made. The disk is made larger where what it only spoke of does not fit. Raises OSError.
    """
    _copy(disk, lowers, point)
    with Descent(disk.upper) as upper:
        return sum(1 for name in _moved(upper) if _cut_off(upper, name))


def _moved(descent: Descent) -> Iterator[str]:
    """Moved directories that lie in no other one, each by its name in `descent.here`."""
    pending = [_directories(descent.here)]
    while True:
        if not pending[-1]:
            pending.pop()
            if not pending:
                return
            descent.leave()
            continue
        name = pending[-1].pop()
        if is_moved(beside(descent.here, name)):
            yield name
        else:
            pending.append(_directories(descent.enter(name)))


def _directories(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


# ---- the kernel copies


def _copy(disk: Disk, lowers: Sequence[Path], point: Path) -> None:
    for left in range(ENLARGED, -1, -1):
        try:
            _copy_up(disk, lowers, point)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC or not left:
                raise
        enlarge(disk)


def _copy_up(disk: Disk, lowers: Sequence[Path], point: Path) -> None:
    unmount(point)
    point.mkdir(exist_ok=True)
    mount(disk, lowers, point)
    try:
        with Descent(disk.upper) as upper, Descent(point) as merged:
            for name, whole in _side_by_side(upper, merged):
                if not is_opaque(beside(upper.here, name)):
                    _touch_all(whole, name)
    finally:
        unmount(point)
        point.rmdir()


def mount(disk: Disk, lowers: Sequence[Path], point: Path) -> None:
    """The disk over `lowers`, on which nothing runs."""
    descriptors = [os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for lower in lowers]
    try:
        named = ":".join(f"/proc/self/fd/{descriptor}" for descriptor in descriptors)
        options = f"lowerdir={named},upperdir={disk.upper},workdir={disk.work},{OVERLAY}"
        linux.mount("overlay", point, "overlay", linux.MS_NODEV | linux.MS_NOSUID | linux.MS_NOEXEC, options)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _side_by_side(upper: Descent, merged: Descent) -> Iterator[tuple[str, int]]:
    """Each moved directory of the upper layer with the directory that has it in the merged tree."""
    pending = [_directories(upper.here)]
    while True:
        if not pending[-1]:
            pending.pop()
            if not pending:
                return
            upper.leave()
            merged.leave()
            continue
        name = pending[-1].pop()
        if is_moved(beside(upper.here, name)):
            yield name, merged.here
        else:
            merged.enter(name)
            pending.append(_directories(upper.enter(name)))


def _touch_all(directory: int, name: str) -> None:
    """Overlayfs copies what is changed, and to set the times that something has already is a change."""
    root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    for found in walk(root):
        times = (found.status.st_atime_ns, found.status.st_mtime_ns)
        os.utime(found.name, ns=times, dir_fd=found.directory, follow_symlinks=False)


# ---- and the layer says so


def _cut_off(upper: Descent, name: str) -> bool:
    """The mark first and the note last: whoever is interrupted in between begins here again."""
    root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.here)
    try:
        os.setxattr(root, OPAQUE, b"y")
        _clear(os.dup(root))
        os.removexattr(root, REDIRECT)
    finally:
        os.close(root)
    return True


def _clear(root: int) -> None:
    """Nothing inside has anything below it that could be hidden or spoken of."""
    with Descent(root) as descent:
        pending = [_cleared(descent.here)]
        while True:
            if not pending[-1]:
                pending.pop()
                if not pending:
                    return
                descent.leave()
                continue
            inner = descent.enter(pending[-1].pop())
            if is_moved(inner):
                os.removexattr(inner, REDIRECT)
            pending.append(_cleared(inner))


def _cleared(directory: int) -> list[str]:
    """Its directories. Times stay as they were."""
    status, gone = os.fstat(directory), False
    for name in names_in(directory):
        if is_whiteout(status_of(directory, name)):
            os.unlink(name, dir_fd=directory)
            gone = True
    if gone:
        os.utime(directory, ns=(status.st_atime_ns, status.st_mtime_ns))
    return _directories(directory)
