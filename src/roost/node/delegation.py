"""Where Roost's control groups may be on a machine with cgroup v2, and that they have the controllers they need.

systemd owns the tree. What it delegates to a service (`Delegate=yes`) is that service's alone, so there `/roost-N` is
made below it, and the programs of Roost move into a leaf beside it, since a group with processes cannot hand
controllers on. Started otherwise, `/roost-N` is made at the root, which systemd leaves alone, as it does Docker's. An
instance stays where it began until it ends in order, so that a node finds the sandboxes of one that was killed.
"""

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from roost.errors import SetupMissing, about
from roost.node.cgroup import UNIFIED, Hierarchies

NEEDED = ("cpu", "memory", "pids")
WANTED = (*NEEDED, "io")
LEAF = "roost-programs"
RECORD = "cgroup"  # in the instance's directory of /run
DELEGATED = ("trusted.delegate", "user.delegate")  # extended attributes; the second since systemd 251
TRIES = 100  # a program may start another one while it is moved
OCCUPIED = (errno.EBUSY, errno.EOPNOTSUPP)  # the second where cpu or pids are on already, which such a group may have


def parent(hierarchies: Hierarchies, instance: int, runtime_dir: Path) -> str:
    """The group of all of the instance's members, counted from the hierarchy's root; recorded for the next node."""
    name = f"roost-{instance}"
    if hierarchies.version == "v1":
        return f"/{name}"
    root, record = hierarchies.mounts[UNIFIED], runtime_dir / RECORD
    with contextlib.suppress(FileNotFoundError):
        before = f"{record.read_text().strip()}/{name}"
        if below(root, before).is_dir():
            return before
    base = delegated(root, own_group(Path("/proc/self/cgroup").read_text()))
    fresh = record.with_suffix(".new")
    fresh.write_text(f"{base}\n")
    fresh.replace(record)
    return f"{base}/{name}"


def below(root: Path, group: str) -> Path:
    return root / group.lstrip("/")


def own_group(proc_self_cgroup: str) -> PurePosixPath:
    """Of cgroup v2, from the text of /proc/self/cgroup (cgroups(7))."""
    lines = (line.split(":", 2) for line in proc_self_cgroup.splitlines())
    return PurePosixPath(next((path for number, _, path in lines if number == "0"), "/"))


def delegated(root: Path, own: PurePosixPath) -> str:
    """The group that systemd has delegated to this process, which is in it or in a child of it; "" without one.

    One that belongs to somebody else, such as a user's own systemd, is not ours, even if we were started from there.
    """
    for group in (own, own.parent):
        path = below(root, str(group))
        if group != PurePosixPath("/") and _is_delegated(path) and path.stat().st_uid == os.geteuid():
            return str(group)
    return ""


def _is_delegated(group: Path) -> bool:
    for attribute in DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(group, attribute) == b"1":
                return True
    return False


def settle(
    hierarchies: Hierarchies, parent: str, wanted: Sequence[str] = WANTED, needed: Sequence[str] = NEEDED
) -> None:
    """Make `parent`, whose children have the controllers. Raises SetupMissing for one that they need and cannot have.

    On cgroup v1 each hierarchy is a controller's, so there is nothing to do.
    """
    if hierarchies.version == "v1":
        return
    group = below(hierarchies.mounts[UNIFIED], parent)
    if (group.parent / "cgroup.type").exists():  # of every group but the root, which alone may have processes as well
        _move_out(group.parent)
    for controller in wanted:
        if controller in _words(group.parent / "cgroup.controllers"):
            _enable(group.parent, controller)
    group.mkdir(exist_ok=True)
    lacking = set(needed) - set(_words(group / "cgroup.controllers"))
    if lacking:
        where = "with Delegate=yes" if group.parent != hierarchies.mounts[UNIFIED] else "by the kernel command line"
        raise SetupMissing(f"{group} has no cgroup controller {', '.join(sorted(lacking))}; enable it {where}")
    for controller in _words(group / "cgroup.controllers"):
        if controller in wanted:
            _enable(group, controller)


def _words(file: Path) -> list[str]:
    return file.read_text().split()


def _enable(group: Path, controller: str) -> None:
    control = group / "cgroup.subtree_control"
    for attempt in range(TRIES):
        if controller in _words(control):
            return
        try:
            with about(control):
                control.write_text(f"+{controller}")
        except OSError as error:
            if error.errno not in OCCUPIED or attempt + 1 == TRIES:
                raise
            _move_out(group)


def _move_out(group: Path) -> None:
    """Every process that is in the group itself goes into a leaf of it."""
    leaf = group / LEAF
    leaf.mkdir(exist_ok=True)
    for pid in _words(group / "cgroup.procs"):
        with contextlib.suppress(ProcessLookupError), about(leaf / "cgroup.procs"):  # it has ended
            (leaf / "cgroup.procs").write_text(pid)
