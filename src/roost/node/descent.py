"""A way down a tree of any depth, by names in open directories and never by paths.

The kernel takes paths of 4,095 bytes and nests directories without end, so whoever walks a guest's files holds the
directory and names what is in it. Of the directories on the way only the last OPEN are open, the others are known by
inode and found again by `..`, or by their names from above where somebody moved things meanwhile.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

OPEN = 16  # directories of one way that are open at once, besides the root
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
VANISHED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE)  # it was there, and is something else now


def _plainly(directory: int, name: str) -> int:
    return os.open(name, DIRECTORY, dir_fd=directory)


@dataclass
class _Step:
    name: str
    inode: tuple[int, int]
    fd: int  # -1: not open just now


class Descent:
    """Leave it to close it."""

    def __init__(self, root: int | Path, child: Callable[[int, str], int] = _plainly) -> None:
        """root: a directory, or a readable descriptor of one, which is the descent's own from now on.

        child: opens a directory by its name in another.
        """
        fd = root if isinstance(root, int) else os.open(root, DIRECTORY)
        self._child = child
        self._steps = [_Step("", _inode(fd), fd)]
        self._open_from = 1  # all steps from here on are open, none between it and the root is

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for step in self._steps:
            _close(step)
        self._steps = []

    @property
    def here(self) -> int:
        """A descriptor of the directory that was entered last, good until the next `enter` or `leave`."""
        return self._steps[-1].fd

    @property
    def name(self) -> str:
        """Of the directory that was entered last."""
        return self._steps[-1].name

    @property
    def depth(self) -> int:
        """0 in the root."""
        return len(self._steps) - 1

    def enter(self, name: str) -> int:
        """Raises OSError and stays where it is when there is no such directory."""
        fd = self._child(self.here, name)
        self._steps.append(_Step(name, _inode(fd), fd))
        if len(self._steps) - self._open_from > OPEN:
            _close(self._steps[self._open_from])
            self._open_from += 1
        return fd

    def leave(self) -> None:
        """Back to the directory above. Raises FileNotFoundError, and is there nevertheless, if that cannot be found."""
        left = self._steps.pop()
        above = self._steps[-1]
        try:
            if above.fd < 0:
                self._open_from = len(self._steps) - 1
                above.fd = self._above(left.fd) if left.fd >= 0 else self._again()
        finally:
            _close(left)
            self._open_from = max(1, min(self._open_from, len(self._steps)))

    def _above(self, below: int) -> int:
        fd = os.open("..", DIRECTORY, dir_fd=below)
        if _inode(fd) == self._steps[-1].inode:
            return fd
        os.close(fd)
        return self._again()

    def _again(self) -> int:
        """By the names on the way from the root."""
        fd = os.dup(self._steps[0].fd)
        try:
            for step in self._steps[1:]:
                inner = self._child(fd, step.name)
                os.close(fd)
                fd = inner
                if _inode(fd) != step.inode:
                    raise FileNotFoundError(errno.ENOENT, "a directory was moved away while it was walked")
        except BaseException:
            os.close(fd)
            raise
        return fd


@dataclass(frozen=True)
class Found:
    """A name in an open directory; `path` is for the calls that know no directory descriptors."""

    directory: int
    name: str
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def path(self) -> str:
        return beside(self.directory, self.name)


def walk(root: int | Path) -> Iterator[Found]:
    """Everything below, a directory before what is in it, in no order. Nothing else may change the tree meanwhile."""
    with Descent(root) as descent:
        pending = [names_in(descent.here)]
        while True:
            if not pending[-1]:
                pending.pop()
                if not pending:
                    return
                descent.leave()
                continue
            name = pending[-1].pop()
            found = Found(descent.here, name, status_of(descent.here, name))
            yield found
            if found.is_directory:
                pending.append(names_in(descent.enter(name)))


class Layers:
    """Several trees, the newest first, gone down together as an overlay of them would show it."""

    def __init__(self, descents: Sequence[Descent]) -> None:
        self._levels = [list(descents)]

    def find(self, name: str) -> list[tuple[Descent, os.stat_result]]:
        """What one name here is, the newest first: several only of directories; nothing where it is hidden."""
        found: list[tuple[Descent, os.stat_result]] = []
        for layer in self._levels[-1]:
            try:
                status = status_of(layer.here, name)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                return found or ([] if is_whiteout(status) else [(layer, status)])
            found.append((layer, status))
            if is_opaque(beside(layer.here, name)):
                break
        return found

    def names(self) -> set[str]:
        return {name for layer in self._levels[-1] for name in names_in(layer.here)}

    def enter(self, name: str, found: Sequence[tuple[Descent, os.stat_result]]) -> None:
        """`found`: what `find` says; of it, the directories."""
        inside: list[Descent] = []
        self._levels.append(inside)
        for layer, status in found:
            if stat.S_ISDIR(status.st_mode):
                layer.enter(name)
                inside.append(layer)

    def leave(self) -> None:
        for layer in self._levels.pop():
            layer.leave()


def names_in(directory: int) -> list[str]:
    return os.listdir(directory)


def status_of(directory: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def beside(directory: int, name: str) -> str:
    return f"/proc/self/fd/{directory}/{name}"


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: str) -> bool:
    try:
        return os.getxattr(directory, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, *VANISHED):
            return False
        raise


def _inode(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _close(step: _Step) -> None:
    if step.fd >= 0:
        os.close(step.fd)
        step.fd = -1
