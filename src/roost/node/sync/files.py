"""File system calls that Python lacks or spreads over many names, all relative to open directories.

No function here follows a symbolic link in its last component, and none takes a path of more than one component.
"""

import ctypes
import os
import resource
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# NONBLOCK: a fifo may have taken the file's place. NOATIME: reading must not count as a change.
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME


def syncfs(fd: int) -> None:
    """Write back everything of the file system that `fd` is on."""
    if _libc.syncfs(ctypes.c_int(fd)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"syncfs: {os.strerror(number)}")


def write_back(directory: Path) -> None:
    """syncfs by path."""
    fd = os.open(directory, OPEN_DIRECTORY)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def raise_file_limit() -> int:
    """As many open files as this process may have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def written_sectors(fd: int) -> int | None:
    """What was ever written to the block device below; None where there is none of that kind.

    If this is the same before and after, with a syncfs just before each, nothing on the file system has changed.
    """
    device = os.fstat(fd).st_dev
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat") as file:
            fields = file.read().split()
    except OSError:
        return None
    return int(fields[6])  # sectors; the count of writes grows with each flush that syncfs makes


def set_times(directory: int, name: str, mtime: int) -> None:
    """Of a symbolic link or anything else, by name; mtime in nanoseconds."""
    os.utime(name, ns=(max(0, mtime), mtime), dir_fd=directory, follow_symlinks=False)
