"""What layers count for, beside what `du` finds in the same layers mounted; and whiteouts that hide nothing."""

import os
import random
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost import linux
from roost.node.disk import OVERLAY, Disks, unmount
from roost.node.prune import prune
from roost.node.usage import grown

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts overlays")


class Stack:
    """Layers on one file system, and writable overlays of them, as sandboxes have them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.layers: list[Path] = []  # the newest first
        self.image = place / "image"
        self.image.mkdir()
        self.sizes: list[int] = [0]

    def write(self, commands: str) -> Path:
        """A new layer: what the shell commands change in all of the stack."""
        number = len(self.layers)
        upper, work, root = (self.place / f"{name}{number}" for name in ("upper", "work", "root"))
        for directory in (upper, work, root):
            directory.mkdir()
        below = ":".join(map(str, [*self.layers, self.image]))
        linux.mount("overlay", root, "overlay", 0, f"lowerdir={below},upperdir={upper},workdir={work},{OVERLAY}")
        try:
            subprocess.run(["sh", "-ec", commands], cwd=root, check=True)
        finally:
            unmount(root)
        self.sizes.append(self.sizes[-1] + grown(upper, self.layers))
        self.layers.insert(0, upper)
        return upper

    def used(self) -> int:
        """Bytes as `du` counts them in the merged layers, without the image and the root directory itself."""
        root = self.place / "all"
        root.mkdir(exist_ok=True)
        (self.place / "empty").mkdir(exist_ok=True)
        lowers = ":".join(map(str, [*self.layers, self.place / "empty"]))
        linux.mount("overlay", root, "overlay", 0, f"lowerdir={lowers}")
        try:
            said = subprocess.run(["du", "-s", "-B1", root], capture_output=True, text=True, check=True).stdout
            return int(said.split()[0]) - root.stat().st_blocks * 512
        finally:
            unmount(root)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """On a disk as sandboxes have them."""
    disk = await Disks(tmp_path).make("disk", tmp_path / "disk", 1, 0)
    yield Stack(disk.upper)
    disk.remove()


CHANGES = [
    "mkdir -p a/b c; head -c 100000 /dev/urandom > a/b/one; head -c 50000 /dev/urandom > a/two; echo > c/three",
    "echo more >> a/b/one; rm a/two; ln -s b a/link; mkdir d; truncate -s 1G d/sparse",
    "rm -r a; mkdir a; head -c 9000 /dev/urandom > a/new; rm d/sparse; cp a/new c/copy",
    "rm -r c; echo file > c; rm a/new; mkdir a/new; head -c 70000 /dev/urandom > a/new/deep",
    "rm -r a d; chmod 600 c",
]


def test_a_stack_counts_as_du_does_after_every_change(stack: Stack) -> None:
    for change in CHANGES:
        stack.write(change)
        assert stack.sizes[-1] == stack.used(), change
    stack.write("rm c")
    assert stack.sizes[-1] == stack.used() == 0


def test_random_changes_count_as_du_counts_them(stack: Stack) -> None:
    chance = random.Random(7)
    for _ in range(12):
        stack.write("\n".join(_change(chance) for _ in range(30)))
        assert stack.sizes[-1] == stack.used()


def _change(chance: random.Random) -> str:
    path = "/".join(chance.choice("abc") for _ in range(chance.randint(1, 4)))
    parent = os.path.dirname(path) or "."
    match chance.randrange(5):
        case 0 | 1:
            size = chance.randrange(40_000)
            return f"mkdir -p {parent} 2>&- && {{ rm -rf {path}; head -c {size} /dev/urandom > {path}; }} || true"
        case 2:
            return f"rm -rf {path}"
        case 3:
            return f"[ ! -f {path} ] || echo more >> {path}"
        case _:
            return f"mkdir -p {path} 2>&- || true"


def test_names_of_one_file_share_it(stack: Stack) -> None:
    stack.write("head -c 40960 /dev/urandom > one; ln one two; ln one three; ln one four")
    assert stack.sizes[-1] == 40960
    stack.write("rm one two")
    stack.write("rm three four")
    assert stack.sizes[-1] == 0


def test_what_hides_the_image_counts_for_nothing_and_what_replaces_it_for_itself(stack: Stack) -> None:
    (stack.image / "dir").mkdir()
    (stack.image / "dir" / "file").write_bytes(os.urandom(100_000))
    (stack.image / "other").write_bytes(os.urandom(100_000))
    stack.write("rm -r dir; head -c 4096 /dev/urandom > other")
    assert stack.sizes[-1] == 4096


def test_names_that_vanish_meanwhile_are_left_out(tmp_path: Path) -> None:
    assert grown(tmp_path / "gone", []) == 0


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_whiteouts_that_hide_nothing_in_the_image_go(stack: Stack) -> None:
    upper = stack.place / "merged"
    for path in ("etc/there", "etc/not-there", "new/never", "link/file", "file/inside", "opaque/there"):
        whiteout(upper / path)
    (upper / "etc/kept").write_text("x")
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    for path in ("etc/there", "real/file", "opaque/there"):
        (stack.image / path).parent.mkdir(exist_ok=True)
        (stack.image / path).write_text("of the image")
    (stack.image / "link").symlink_to("real")
    (stack.image / "file").write_text("no directory")
    os.utime(upper / "etc", ns=(1, 10**18))
    assert prune(upper, stack.image) == 5
    assert names(upper) == {"etc", "etc/there", "etc/kept", "new", "link", "file", "opaque"}
    assert (upper / "etc").stat().st_mtime_ns == 10**18
    assert prune(upper, stack.image) == 0


def test_without_them_a_directory_lists_only_what_can_be_opened(stack: Stack) -> None:
    """A directory that is not opaque, as an overlay without xino leaves it, with a whiteout that came from a merge."""
    upper = stack.place / "merged"
    whiteout(upper / "new" / "ghost")
    (upper / "new" / "file").write_text("x")

    def listed() -> list[str]:
        root = stack.place / "seen"
        root.mkdir(exist_ok=True)
        linux.mount("overlay", root, "overlay", linux.MS_RDONLY, f"lowerdir={upper}:{stack.image}")
        try:
            return sorted(os.listdir(root / "new"))
        finally:
            unmount(root)

    with_ghost = listed()
    prune(upper, stack.image)
    assert listed() == ["file"]
    assert with_ghost == ["file", "ghost"]
    shutil.rmtree(upper)
