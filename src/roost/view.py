"""What the control plane sees of the machine: a root of its own that holds only what it needs.

`roost up` calls `enter` in the process that becomes `roost serve`, while it is still root: system directories,
interpreter and code appear read-only, its own state and nothing else writable. Two things follow: the program
and the state may lie below directories that the unprivileged user cannot enter (a checkout in /root), and a
control plane that is taken over finds no images, no sandbox disks and no credentials to read.
"""

import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from roost import linux

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Follows links out of /etc: the resolver's file lies in /run where systemd or resolvconf writes it.
FILES = ("/etc/resolv.conf", "/etc/localtime", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
TEMPORARY_BYTES = 256 * 1024 * 1024  # of /tmp, which is memory
MAX_LINKS = 40  # as many as the kernel follows in one path


@dataclass(frozen=True)
class Bind:
    """A file or directory, by its path without links, that appears at the same path."""

    path: Path
    writable: bool = False
    recursive: bool = True  # with the mounts below it
    device: bool = False


@dataclass(frozen=True)
class View:
    """Links are (path, text) pairs; a bind below another one comes after it."""

    links: tuple[tuple[Path, str], ...]
    binds: tuple[Bind, ...]


def trace(path: Path) -> tuple[list[tuple[Path, str]], Path]:
    """The links on the way to an existing absolute `path`, and where it really lies."""
    links: list[tuple[Path, str]] = []
    real = Path("/")
    rest = list(path.parts[1:])[::-1]
    while rest:
        name = rest.pop()
        if name == "..":
            real = real.parent
            continue
        here = real / name
        if not here.is_symlink():
            real = here
            continue
        text = str(here.readlink())
        links.append((here, text))
        if len(links) > MAX_LINKS:
            raise OSError(f"too many links on the way to {path}")
        target = Path(text)
        if target.is_absolute():
            real = Path("/")
            rest += target.parts[:0:-1]
        else:
            rest += target.parts[::-1]
    return links, real


def interpreter_paths() -> list[Path]:
    """What this interpreter reads its program from: itself, its library, installed and linked code."""
    # sys.path[0] is the place of the script, not of code it imports
    found = [
        sys.executable,
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        sys.base_exec_prefix,
        *sys.path[1:],
    ]
    return [Path(entry) for entry in found if entry.startswith("/") and entry != "/" and Path(entry).exists()]


def view_of(readable: Iterable[Path], writable: Iterable[Path], shallow: Iterable[Path] = ()) -> View:
    """System directories and these; `shallow` ones are readable, without the mounts below them."""
    links: dict[Path, str] = {}
    binds: dict[Path, Bind] = {}

    def add(path: Path, **kind: bool) -> None:
        found, real = trace(path)
        links.update(found)
        binds[real] = Bind(real, **kind)

    for path in (*map(Path, (*SYSTEM, *FILES)), *readable):
        if path.exists():
            add(path)
    for path in (Path("/proc"), *shallow):
        add(path, recursive=False)
    for path in writable:
        add(path, recursive=False, writable=True)
    for path in map(Path, DEVICES):
        add(path, device=True, writable=True)
    return View(tuple(sorted(links.items())), tuple(_without_covered(binds)))


def _without_covered(binds: dict[Path, Bind]) -> list[Bind]:
    """Shorter paths first; a read-only bind inside a read-only recursive one adds nothing."""
    kept: list[Bind] = []
    for bind in sorted(binds.values(), key=lambda b: b.path.parts):
        around = [b for b in kept if bind.path.is_relative_to(b.path)]
        if bind.writable or not (around and around[-1].recursive and not around[-1].writable):
            kept.append(bind)
    return kept


def enter(view: View) -> None:
    """Make the view this process's root. Needs root and one thread; after an error the process must end.

    Nothing of it outlives the process: the mounts are of its own mount namespace, from which the machine's
    others (among them those of running sandboxes) are gone when this returns.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    binds = [(bind, linux.open_tree(bind.path, _clone_flags(bind))) for bind in view.binds]
    root = "/tmp"  # any directory: it is covered in this namespace only
    linux.mount("roost", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=1m")
    os.umask(0o022)
    _temporary(Path(root))
    for bind, tree in binds:
        _attach(Path(root), bind, tree)
    for path, text in view.links:
        _link(Path(root), path, text)
    os.chdir(root)
    linux.pivot_root(".", ".")
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")
    read_only = linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY
    linux.mount(None, "/", flags=read_only | linux.MS_NOSUID | linux.MS_NODEV)


def _clone_flags(bind: Bind) -> int:
    flags = linux.OPEN_TREE_CLONE | linux.OPEN_TREE_CLOEXEC
    return flags | linux.AT_RECURSIVE if bind.recursive else flags


def _attach(root: Path, bind: Bind, tree: int) -> None:
    target = _in(root, bind.path)
    if not target.exists():
        _make_place(target, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
    attributes = linux.MOUNT_ATTR_NOSUID
    attributes |= 0 if bind.device else linux.MOUNT_ATTR_NODEV
    attributes |= 0 if bind.writable else linux.MOUNT_ATTR_RDONLY
    linux.mount_setattr(tree, add=attributes, recursive=bind.recursive)
    linux.move_mount(tree, target)
    os.close(tree)


def _make_place(target: Path, *, directory: bool) -> None:
    if directory:
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def _link(root: Path, path: Path, text: str) -> None:
    place = _in(root, path)
    if not os.path.lexists(place):  # it is there already where it lies inside a bind
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(text)


def _temporary(root: Path) -> None:
    place = root / "tmp"
    place.mkdir()
    options = f"mode=1777,size={TEMPORARY_BYTES}"
    linux.mount("roost", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, options)


def _in(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
