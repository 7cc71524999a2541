"""A /dev of each member's own, so that no two sandboxes meet at one device node: locks and watches hold for an inode.

Nobody makes devices inside a user namespace, and the OCI programs would show the machine's own nodes there.
"""

import os
import stat
from pathlib import Path

from roost import linux

NODES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
MOUNT_POINTS = ("pts", "shm", "mqueue")
_OPTIONS = "mode=0755,size=64k,nr_inodes=256"  # for sockets such as /dev/log; files belong into /dev/shm


def lay_devices(place: Path, owner: int) -> None:
    """A file system with what every /dev holds, mounted at the directory `place`; `owner`: uid and gid of all of it."""
    linux.mount("roost", place, "tmpfs", linux.MS_NOSUID, _OPTIONS)
    os.chown(place, owner, owner)
    for name, (major, minor) in NODES.items():
        os.mknod(place / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (place / name).chmod(0o666)  # whatever the umask
        os.chown(place / name, owner, owner)
    for name, target in LINKS.items():
        (place / name).symlink_to(target)
        os.lchown(place / name, owner, owner)
    for name in MOUNT_POINTS:
        (place / name).mkdir(mode=0o755)
        os.chown(place / name, owner, owner)
