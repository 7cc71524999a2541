"""A root file system on disk: made ready to be mounted, measured and digested.

The content may be hostile, and nothing else writes to it meanwhile: symbolic links are resolved inside the root only,
and never followed on the host.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from roost.errors import Invalid
from roost.node.images import command

MAX_LINKS = 40  # as the kernel's own limit for one path

# The directories that a sandbox mounts over or expects; mode for those that have to be made.
DIRECTORIES = {"proc": 0o555, "dev": 0o755, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "root": 0o700}


def inside(root: Path, path: str) -> Path:
    """Where `path` leads within `root`, as it would after a chroot; the last part need not exist.

    Raises Invalid when links go in circles.
    """
    done: list[str] = []
    ahead = path.split("/")[::-1]
    links = 0
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        here = root.joinpath(*done, part)
        if not here.is_symlink():
            done.append(part)
            continue
        links += 1
        if links > MAX_LINKS:
            raise Invalid(f"the symbolic links of {path!r} in the image go in circles")
        target = str(here.readlink())
        ahead.extend(target.split("/")[::-1])
        if target.startswith("/"):
            done = []
    return root.joinpath(*done)


def require_shell(root: Path) -> None:
    """Raises Invalid unless /bin/sh is an executable file of this root."""
    shell = inside(root, "/bin/sh")
    try:
        status = shell.lstat()
    except OSError:
        status = None
    if status is None or not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        raise Invalid("the image has no executable /bin/sh; scripts cannot run in it, use one that has a shell")


async def make_mountable(root: Path, say: Callable[[str], None]) -> None:
    """Give the root the directories of DIRECTORIES and an empty /dev, saying what was replaced."""
    root.chmod(root.stat().st_mode & 0o7777 | 0o755)  # root may be the only one otherwise
    for name, mode in DIRECTORIES.items():
        place = root / name
        status = _lstat(place)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            say(f"/{name} of the image was not a directory; replaced by an empty one")
            place.unlink()
            status = None
        if status is None:
            place.mkdir()
            place.chmod(mode)
    await empty(root / "dev")


async def empty(directory: Path) -> None:
    for child in directory.iterdir():
        await delete(child)


async def delete(path: Path) -> None:
    """Remove a tree of any depth. GNU rm walks by descriptors: it follows no link and needs no long path."""
    await command.run(["rm", "-rf", "--one-file-system", "--", str(path)], what=f"removing {path.name}", timeout=900)


async def size(root: Path) -> int:
    """Bytes of all files, each once."""
    argv = ["du", "--summarize", "--bytes", "--", str(root)]
    output = await command.run(argv, what="measuring the image", timeout=300)
    return int(output.split()[0])


def digest(root: Path) -> str:
    """SHA-256 over names, kinds, owners, modes and contents (not times) in sorted order. For trusted trees."""
    total = hashlib.sha256()
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted([*directories, *files]):
            total.update(_entry(Path(directory, name), root))
    return f"sha256:{total.hexdigest()}"


def _entry(path: Path, root: Path) -> bytes:
    status = path.lstat()
    content = b""
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.fsencode(path.readlink())
    head = f"{status.st_mode:o} {status.st_uid} {status.st_gid} {len(content)} ".encode()
    return head + os.fsencode(path.relative_to(root)) + b"\0" + content


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
