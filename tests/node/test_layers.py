"""Revisions on a node's disk: their room, what leaves it and comes back, and what the object store is still owed."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from roost import ids
from roost.errors import NotFound, StoreUnavailable
from roost.node import layers
from roost.node.arrears import Arrears, Pause
from roost.node.depot import Depot, StoreSettings
from roost.node.disk import Disks, unmount
from roost.node.images import ImageStore
from roost.node.layers import DEEPEST, Layers
from roost.node.places import mount_overlay
from roost.node.protocol import Limits, Revision, SandboxState, SaveRequest
from roost.node.record import Record
from roost.node.saver import Saver
from roost.node.sync import Options, Vault, collect, open_store
from roost.node.uploads import Uploads
from tests.node.image_world import build_shell, in_chunks, root_with

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
ACCOUNT = 7
MIB = 1024 * 1024


@dataclass
class Node:
    """What a node has for revisions, without sandboxes. `again` is the node that comes after it."""

    place: Path
    image: str
    limit: int = 1024 * MIB

    def __post_init__(self) -> None:
        settings = StoreSettings(self.store.as_uri(), Options(attempts=1))
        self.uploads = Uploads(open_store(settings.url, settings.options))
        self.images = ImageStore(self.place / "images")
        self.disks = Disks(self.place / "disks")
        self.depot = Depot(settings, self.place / "indexes")
        self.layers = Layers(self.place / "layers", self.disks, self.images, self.depot, self.limit)
        self.saver = Saver(self.layers, self.depot, self.uploads, self.place / "looks")
        self.arrears = Arrears(self.layers, self.saver, Pause(0.05, 0.2))
        self.saver.behind = self.arrears.grown

    @property
    def store(self) -> Path:
        return self.place / "store"

    def close(self) -> None:
        self.uploads.close()
        self.layers.close()

    def again(self, limit: int = 1024 * MIB) -> "Node":
        self.close()
        after = Node(self.place, self.image, limit)
        after.layers.sweep()
        return after

    def on_another_machine(self) -> "Node":
        """With the same store and nothing else."""
        self.close()
        shutil.rmtree(self.place / "layers")
        return Node(self.place, self.image)

    async def write(
        self, commands: str, base: Revision | None = None, upload: bool = False, edit: bool = True
    ) -> Revision:
        """What shell commands make of a revision, as an edit, or as a sandbox's disk that is kept."""
        name = ids.revision_id()
        disk = await self.disks.make(name, self.place / name, 1, 0)
        root = self.place / f"{name}-root"
        root.mkdir()
        try:
            async with self.standing(base) as lowers:
                mount_overlay(root, lowers, disk)
                try:
                    subprocess.run(["sh", "-ec", commands], cwd=root, check=True)
                finally:
                    unmount(root)
                request = SaveRequest(revision=name, account=ACCOUNT, upload=upload)
                if base and edit:
                    return await self.saver.keep_edit(request, disk, base)
                return await self.saver.keep(self._record(request, base), disk, 0, None)
        finally:
            root.rmdir()
            disk.remove()
            disk.mountpoint.rmdir()

    def _record(self, request: SaveRequest, base: Revision | None) -> Record:
        """Of a sandbox that has ended."""
        state = SandboxState(id=request.revision, phase="running")
        limits = Limits(vcpus=1, memory_mb=64, disk_gb=1, pids=16, timeout_seconds=0)
        begun = {"image_content": self.image, "start_from": base.id if base else None}
        return Record(state=state, boot="", member=None, limits=limits, save=request, **begun)  # pyright: ignore[reportArgumentType]

    @contextlib.asynccontextmanager
    async def standing(self, base: Revision | None) -> AsyncIterator[list[Path]]:
        if base is None:
            with self.images.hold_content(self.image) as hold:
                yield [hold.path]
            return
        stack = await self.layers.stack(ACCOUNT, base.id)
        try:
            yield stack.lowers
        finally:
            stack.release()

    async def told(self, revision: Revision, commands: str) -> str:
        """What shell commands say in its files."""
        root = self.place / "seen"
        root.mkdir()
        try:
            async with self.standing(revision) as lowers:
                mount_overlay(root, lowers)
                try:
                    done = subprocess.run(["sh", "-ec", commands], cwd=root, capture_output=True, text=True)
                    assert done.returncode == 0, done.stderr
                    return done.stdout
                finally:
                    unmount(root)
        finally:
            root.rmdir()

    def here(self, *revisions: Revision) -> list[bool]:
        return [self.layers.has(one.id) for one in revisions]

    def lose_store(self) -> None:
        """Where its directory was, there is something else."""
        self.store.rename(self.place / "lost")
        self.store.write_text("a file")

    def find_store(self) -> None:
        self.store.unlink()
        (self.place / "lost").rename(self.store)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    (tmp_path / "disks").mkdir()
    node = Node(tmp_path, "")
    shell = root_with(build_shell(tmp_path)).directory("./dir").file("./dir/of-the-image", b"x").bytes()
    await node.images.import_archive("small", in_chunks(shell), lambda _: None)
    with node.images.hold("small") as hold:
        node.image = hold.content
    yield node
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(f"{tmp_path}/"):
            unmount(Path(line.split()[4]))
    node.uploads.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():
            await asyncio.sleep(0.01)


def random_file(name: str, megabytes: int = 8) -> str:
    return f"head -c {megabytes}M /dev/urandom > {name}; sha256sum {name} > sum"


# ---- room ----


async def test_the_least_recently_used_goes_first_and_comes_back_from_the_store(node: Node) -> None:
    first, second, third = [await node.write(random_file("big"), upload=True) for _ in range(3)]
    await node.told(first, "true")  # used since
    node = node.again(limit=20 * MIB)
    node.layers.make_room()
    assert node.here(first, second, third) == [True, False, True]
    assert "OK" in await node.told(second, "sha256sum -c sum")
    assert node.here(first, second, third) == [True, True, False]  # it came back, and made room for itself
    node.close()


async def test_what_is_in_use_or_nowhere_else_stays(node: Node) -> None:
    local = await node.write(random_file("big"))
    pinned, idle = [await node.write(random_file("big"), upload=True) for _ in range(2)]
    node = node.again(limit=0)
    stack = await node.layers.stack(ACCOUNT, pinned.id)
    node.layers.make_room()
    assert node.here(local, pinned, idle) == [True, True, False]
    stack.release()
    node.layers.make_room()
    assert node.here(local, pinned) == [True, False]
    assert "OK" in await node.told(local, "sha256sum -c sum")
    node.close()


async def test_what_an_unstored_layer_stands_on_stays_with_it(node: Node) -> None:
    base = await node.write(random_file("big"), upload=True)
    local = await node.write("echo local > file", base)
    stored = await node.write("echo stored > file", base, upload=True)
    node = node.again(limit=0)
    node.layers.make_room()
    assert node.here(base, local, stored) == [True, True, False]
    assert await node.told(local, "sha256sum -c sum; cat file") == "big: OK\nlocal\n"
    assert await node.told(stored, "sha256sum -c sum; cat file") == "big: OK\nstored\n"
    node.close()


async def test_a_whole_stack_goes_when_the_limit_asks_for_it(node: Node) -> None:
    base = await node.write(random_file("big"), upload=True)
    above = await node.write("echo above > file", base, upload=True)
    node = node.again(limit=0)
    node.layers.make_room()
    assert node.here(base, above) == [False, False]
    assert await node.told(above, "sha256sum -c sum; cat file") == "big: OK\nabove\n"
    node.close()


# ---- what the store is owed ----


async def test_what_the_store_could_not_take_is_sent_when_it_is_back(node: Node) -> None:
    base = await node.write("echo one > file", upload=True)
    node.lose_store()
    node.arrears.open()
    late = await node.write(f"echo two >> file; {random_file('big')}", base, upload=True)
    other = await node.write("echo other > file", upload=True)
    assert (base.stored, late.stored, other.stored) == (True, False, False)
    assert [revision.id for _, revision in node.layers.owed()] == [late.id, other.id]
    node.find_store()
    await until(lambda: not node.layers.owed())
    await node.arrears.close()
    assert [node.layers.find(one.id).stored for one in (late, other)] == [True, True]
    assert await node.depot.check(ACCOUNT, [base.id, late.id, other.id], True) == []
    node = node.on_another_machine()
    assert await node.told(late, "sha256sum -c sum; cat file") == "big: OK\none\ntwo\n"
    assert await node.told(other, "cat file") == "other\n"
    node.close()


async def test_a_node_that_starts_again_sends_what_is_owed(node: Node) -> None:
    node.lose_store()
    owed = await node.write("echo owed > file", upload=True)
    local = await node.write("echo local > file", owed)
    assert not owed.stored
    node.find_store()
    node = node.again()
    node.arrears.open()
    await until(lambda: not node.layers.owed())
    await node.arrears.close()
    assert (await node.depot.find(ACCOUNT, owed.id)).stored
    assert not node.layers.find(local.id).stored  # nobody asked for it
    with pytest.raises(NotFound):
        await node.depot.find(ACCOUNT, local.id)
    node.close()


async def test_what_nobody_wants_any_more_is_owed_no_more(node: Node) -> None:
    node.lose_store()
    owed = await node.write("echo owed > file", upload=True)
    node.layers.collect(set())
    assert node.layers.owed() == []
    assert isinstance(await node.saver.upload(ACCOUNT, owed.id), NotFound)
    node.find_store()
    node.close()


async def test_one_that_cannot_be_sent_does_not_hold_up_the_others(node: Node) -> None:
    node.lose_store()
    bad = await node.write("echo bad > file", upload=True)
    good = await node.write("echo good > file", upload=True)
    assert isinstance(await node.saver.upload(ACCOUNT, bad.id), StoreUnavailable)
    node.find_store()
    unmount(node.place / "layers" / bad.id)
    image = next((node.place / "layers").glob(f"{bad.id}-*.img"))
    image.write_bytes(b"no file system")
    node.arrears.open()
    await until(lambda: node.layers.find(good.id).stored)
    await node.arrears.close()
    assert [revision.id for _, revision in node.layers.owed()] == [bad.id]
    node.close()


async def test_a_base_that_was_collected_from_the_store_is_sent_again(node: Node) -> None:
    base = await node.write("echo one > file", upload=True)
    local = await node.write("echo two >> file", base)
    collect(Vault(open_store(node.store.as_uri()), str(ACCOUNT)), [], 0)
    with pytest.raises(NotFound):
        await node.depot.find(ACCOUNT, base.id)
    stored = await node.write("echo three >> file", local, upload=True)
    assert stored.stored
    node = node.on_another_machine()
    assert await node.told(stored, "cat file") == "one\ntwo\nthree\n"
    node.close()


# ---- sizes, and flat layers ----


async def test_a_local_revision_counts_all_that_it_stands_on(node: Node) -> None:
    base = await node.write("head -c 5M /dev/urandom > big")
    above = await node.write("echo > small", base)
    less = await node.write("rm big", above)
    assert base.size == 5 * MIB
    assert above.size == 5 * MIB + 4096
    assert less.size == 4096
    stored = await node.write("truncate -s 1G sparse; head -c 1M /dev/urandom > more", above, upload=True)
    assert stored.size == 6 * MIB + 4096
    assert (await node.depot.find(ACCOUNT, stored.id)).size == stored.size
    node = node.on_another_machine()
    await node.told(stored, "true")
    assert node.layers.find(stored.id).size == stored.size
    node.close()


async def test_a_flattened_stack_is_the_same_and_lists_no_ghosts(node: Node) -> None:
    at = await node.write("mkdir made; echo > made/ghost; echo > dir/mine")
    for number in range(DEEPEST - 1):
        at = await node.write(f"echo {number} > made/file; echo {number} > {number}", at)
    before = await node.write("rm made/ghost dir/of-the-image dir/mine", at)
    _, below = await node.layers.path(before.id)
    assert below is None  # it was flattened
    assert await node.told(before, "ls made dir; cat made/file") == f"dir:\n\nmade:\nfile\n{DEEPEST - 2}\n"
    flat = 4096 * (2 + 1 + DEEPEST - 1)  # two directories, a file in one, and the numbered ones
    assert node.layers.find(before.id).size == before.size == flat
    async with node.standing(before) as lowers:
        assert (lowers[0] / "dir" / "of-the-image").exists()  # a whiteout that is needed
        assert not (lowers[0] / "dir" / "mine").exists()
    node.close()


async def test_a_stack_that_holds_mostly_what_is_seen_no_more_becomes_one_layer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "WASTE", 8 * MIB)
    made = await node.write("head -c 4M /dev/urandom > file; echo kept > other")
    first = made
    for number in range(4):
        made = await node.write(f"head -c 4M /dev/urandom > file; echo {number} > last", base=made)
    assert len(node.layers._chain(made.id)) < 4
    assert await node.told(made, "wc -c < file; cat other last") == f"{4 * MIB}\nkept\n3\n"
    node.layers.collect({made.id})
    assert node.here(first, made) == [False, True]
    images = (node.place / "layers").glob("*.img")
    assert sum(image.stat().st_blocks * 512 for image in images) < 24 * MIB


# ---- mounts ----


def mounts(node: Node) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{node.place}/layers/")]


async def test_a_layer_is_mounted_while_it_is_used_and_not_for_long_after(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "REST", 0.05)
    first = await node.write("echo 1 > one")
    second = await node.write("echo 2 > two", base=first)
    async with node.standing(second):
        assert len(mounts(node)) == 2
        async with node.standing(second):
            pass
        await asyncio.sleep(0.2)
        assert len(mounts(node)) == 2
    await until(lambda: mounts(node) == [])
    assert await node.told(second, "cat one two") == "1\n2\n"
    await until(lambda: mounts(node) == [])


async def test_only_so_many_layers_stay_mounted_for_nobody(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "RESTING", 2)
    made = [await node.write(f"echo {number} > file") for number in range(5)]
    for number, one in enumerate(made):
        assert await node.told(one, "cat file") == f"{number}\n"
    await until(lambda: len(mounts(node)) == 2)


async def test_what_is_only_held_is_not_mounted_and_stays(node: Node) -> None:
    """As sandboxes do that a restarted node takes over."""
    made = await node.write("echo 1 > one")
    node = node.again()
    held = node.layers.hold(made.id)
    assert mounts(node) == []
    assert node.layers.collect(set()) == (0, 0)
    held.release()
    assert node.layers.collect(set())[0] == 1
