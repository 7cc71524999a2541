"""Directories of lower layers that are renamed by rename(2): each layer is whole by itself, wherever it goes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from roost.node import moved
from roost.node.disk import Disk, unmount
from roost.node.moved import has_moved, settle
from tests.node.test_layers import ACCOUNT, Node
from tests.node.test_layers import node as node  # a fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")

TREE = (
    "mkdir -p app/src/deep app/bin other; echo one > app/src/one; echo two > app/src/deep/two; ln -s one app/src/link; "
    "printf x > app/bin/tool; chmod 4755 app/bin/tool; touch -d 2001-02-03T04:05:06Z app/src/one app/src/deep app; "
    "mkfifo app/pipe; echo gone > app/src/gone; setfattr -n user.note -v kept app/src/one 2>/dev/null || true"
)
SHOWN = (
    "{ find . -mindepth 1 -printf '%p %y %m %U:%G %s %l %T@\\n' | grep -v '^./lost' | sort; "
    "cat app*/src/one 2>/dev/null || true; }"
)
UNTIMED = SHOWN.replace(" %T@", "")  # a directory's times are lost where its removal of whiteouts is interrupted


def rename(*pairs: str) -> str:
    """Shell commands that rename without a way around."""
    program = "import os, sys; [os.rename(*pair.split('>')) for pair in sys.argv[1:]]"
    return shlex.join([sys.executable, "-c", program, *pairs])


CHANGES = {
    "renamed": rename("app>app2"),
    "renamed and changed": f"{rename('app>app2')}; echo new > app2/src/one; rm app2/src/gone; echo more > app2/more",
    "renamed twice": f"{rename('app>app2', 'app2>app3')}; mkdir app; echo fresh > app/file",
    "one inside the other": f"{rename('app/src/deep>app/src/deeper', 'app/src>app/source', 'app>app2')}",
    "out of the other": f"{rename('app>app2', 'app2/src>other/src')}; rm -r app2/bin",
    "of the image": f"{rename('dir>dir2')}; rm dir2/of-the-image; echo in > dir2/in",
    "and back": f"{rename('app>app2', 'app2>app')}",
    "with another in its place": f"{rename('app>app2', 'other>app')}",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_what_was_renamed_is_the_same_in_every_form_that_a_revision_has(node: Node, change: str) -> None:
    base = await node.write(TREE, upload=True)
    before = node.place / "expected"
    made = await node.write(f"{change}; {SHOWN} > {before}", base, upload=True, edit=False)
    expected = before.read_text()
    assert await node.told(made, SHOWN) == expected
    above = await node.write("true", made)
    assert await node.told(above, SHOWN) == expected
    newest = (await node.layers.stack(ACCOUNT, made.id)).lowers[0]
    assert not has_moved(Disk(newest, newest.parent, 1))
    node.close()
    node = node.on_another_machine()  # restored as one layer
    assert await node.told(made, SHOWN) == expected
    assert (await node.layers.stack(ACCOUNT, made.id)).lowers[1:] != []
    node.close()


async def a_disk(node: Node, lowers: list[Path], commands: str) -> Disk:
    """As a sandbox that has just ended leaves it."""
    disk = await node.disks.make("d", node.place / "d", 1, 0)
    root = node.place / "root"
    root.mkdir()
    moved.mount(disk, lowers, root)
    try:
        subprocess.run(["sh", "-ec", commands], cwd=root, check=True)
    finally:
        unmount(root)
    return disk


def tree_of(root: Path) -> str:
    return subprocess.run(["sh", "-c", UNTIMED], cwd=root, capture_output=True, text=True, check=True).stdout


async def test_a_crash_at_any_point_is_made_good(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    base = await node.write(TREE)
    change = CHANGES["one inside the other"] + "; rm app2/source/deeper/two; rm -r app2/bin"

    class Crash(Exception):
        pass

    async with node.standing(base) as lowers:
        for name in ("setxattr", "removexattr", "unlink", "utime"):
            for survived in range(3):
                disk = await a_disk(node, lowers, f"{change}; {UNTIMED} > {node.place}/expected")
                left, real = survived, getattr(os, name)

                def crash(*words: object, **more: object) -> None:
                    nonlocal left
                    if not left:
                        raise Crash
                    left -= 1
                    real(*words, **more)  # noqa: B023

                with monkeypatch.context() as patch:
                    patch.setattr(os, name, crash)
                    try:
                        settle(disk, lowers, node.place / "point")
                    except Crash:
                        pass
                settle(disk, lowers, node.place / "point")
                assert not has_moved(disk)
                (node.place / "root").rmdir()
                seen = node.place / "root"
                seen.mkdir()
                moved.mount(disk, lowers, seen)
                assert tree_of(seen) == (node.place / "expected").read_text(), (name, survived)
                unmount(seen)
                seen.rmdir()
                disk.remove()
    node.close()


async def test_a_disk_that_is_too_small_for_what_it_spoke_of_grows(node: Node) -> None:
    base = await node.write("mkdir big; for i in 1 2 3 4 5 6; do head -c 100M /dev/zero | tr '\\0' x > big/$i; done")
    made = await node.write(f"{rename('big>big2')}; head -c 600M /dev/zero | tr '\\0' y > more", base, edit=False)
    assert (
        await node.told(made, "cat big2/* | wc -c; wc -c < more; ls -d big* more")
        == "629145600\n629145600\nbig2\nmore\n"
    )
    node.close()
