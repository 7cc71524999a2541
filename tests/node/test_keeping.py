"""Files of an ended sandbox that cannot be saved are kept as they are, whatever is in the way and whatever is killed.

What is in the way is real: a file that not even root may change, or a directory that takes no further name.
"""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost import ids
from roost.errors import Unsaved
from roost.node.disk import mount_image, unmount
from roost.node.protocol import SandboxState, SaveRequest, StopSandbox

from .guest_world import LIMIT
from .node_world import Box, RealNode

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]
DIG = (
    "cd /root; for i in $(seq 60); do d=$(printf %0200d $i); mkdir $d; cd $d; done; echo deep > file; "
    "echo kept > /root/other; echo ready; exec sleep 1000"
)
SEEK = 'cd /root; while d=$(echo 0*) && [ -d "$d" ]; do cd "$d"; done; cat file /root/other; exec sleep 1000'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


def save(upload: bool = False) -> SaveRequest:
    return SaveRequest(revision=ids.revision_id(), account=1, upload=upload)


async def says(box: Box, word: bytes) -> None:
    async with asyncio.timeout(LIMIT):
        while word not in await box.said():
            await asyncio.sleep(0.02)


async def stopped(box: Box) -> SandboxState:
    async with asyncio.timeout(LIMIT):
        return await box.node.client.stop(box.id, StopSandbox(grace_seconds=0))


def upper_of(node: RealNode, box: Box) -> Path:
    member = json.loads((node.directory / f"state/sandboxes/{box.id}.json").read_text())["member"]
    return node.directory / f"run/members/{member}/disk/upper"


@contextlib.contextmanager
def unchangeable(path: Path) -> Iterator[None]:
    subprocess.run(["chattr", "+i", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def make_changeable(node: RealNode, revision: str, name: str) -> None:
    """In a disk that was set aside."""
    (image,) = (node.directory / "state/layers").glob(f"{revision}-*.img")
    point = node.directory / "point"
    point.mkdir()
    mount_image(image, point)
    try:
        subprocess.run(["chattr", "-i", str(point / "upper" / name)], check=True)
    finally:
        unmount(point)
        point.rmdir()


async def set_aside(node: RealNode, wanted: SaveRequest) -> SandboxState:
    """A sandbox whose files could not be saved, since nobody may change the owner of one of them."""
    box = await node.box("echo kept > /root/file; echo ready; exec sleep 1000", account=1, save=wanted)
    await says(box, b"ready")
    subprocess.run(["chattr", "+i", str(upper_of(node, box) / "root/file")], check=True)
    return await stopped(box)


async def content(node: RealNode, revision: str) -> bytes:
    again = await node.box("cat /root/file; echo; echo end; exec sleep 1000", account=1, start_from=revision)
    try:
        await says(again, b"end")
        return (await again.said()).split(b"\n")[0]
    finally:
        await again.stop()


@pytest.mark.parametrize("upload", [False, True])
async def test_a_path_longer_than_the_kernel_takes_is_saved_with_all_the_rest(node: RealNode, upload: bool) -> None:
    wanted = save(upload)
    box = await node.box(DIG, account=1, save=wanted)
    await says(box, b"ready")
    if upload:
        synced = await node.client.save(box.id, save(upload=True))
        assert synced.stored
    ended = await stopped(box)
    assert (ended.save_error, ended.revision and ended.revision.id) == (None, wanted.revision)
    again = await node.box(SEEK, account=1, start_from=wanted.revision)
    await says(again, b"deep\nkept\n")
    await again.stop()


async def test_what_cannot_be_saved_is_kept_named_and_saved_when_it_can_be(node: RealNode) -> None:
    ended = await set_aside(node, wanted := save())
    assert ended.phase == "ended" and ended.revision and ended.revision.id == wanted.revision
    assert ended.revision.unsaved and "Operation not permitted" in ended.revision.unsaved
    assert ended.save_error and wanted.revision in ended.save_error
    assert [one.id for one in await node.client.unsaved()] == [wanted.revision]
    with pytest.raises(Unsaved, match=r"Operation not permitted.*they are kept"):
        await node.box(account=1, start_from=wanted.revision)
    await node.restart()
    assert [one.id for one in await node.client.unsaved()] == [wanted.revision]
    with pytest.raises(Unsaved, match=r"Operation not permitted.*they are kept"):
        await node.client.recover(wanted.revision)
    make_changeable(node, wanted.revision, "root/file")
    recovered = await node.client.recover(wanted.revision)
    assert (recovered.unsaved, recovered.id) == (None, wanted.revision)
    assert await node.client.unsaved() == []
    assert await content(node, wanted.revision) == b"kept"


async def test_it_is_saved_by_whoever_needs_it_and_goes_to_the_store_if_it_should(node: RealNode) -> None:
    await set_aside(node, wanted := save(upload=True))
    make_changeable(node, wanted.revision, "root/file")
    assert await content(node, wanted.revision) == b"kept"
    async with asyncio.timeout(LIMIT):
        while not (await node.client.revision(wanted.revision, 1)).stored:
            await asyncio.sleep(0.1)


async def test_a_disk_that_not_even_can_be_kept_stays_where_it_is(node: RealNode) -> None:
    """The sandbox does not end before it can be, also over a kill of the node."""
    wanted = save()
    box = await node.box("echo kept > /root/file; echo ready; exec sleep 1000", account=1, save=wanted)
    await says(box, b"ready")
    layers = node.directory / "state/layers"
    with unchangeable(layers):
        stopping = asyncio.create_task(node.client.stop(box.id, StopSandbox(grace_seconds=0)))
        async with asyncio.timeout(LIMIT):
            while "sandbox.unkept" not in (node.directory / "log").read_text():
                await asyncio.sleep(0.05)
        assert not stopping.done() and (upper_of(node, box) / "root/file").exists()
        await node.kill()
        await asyncio.gather(stopping, return_exceptions=True)
    await node.start()
    ended = await stopped(box)
    assert (ended.save_error, ended.revision and ended.revision.id) == (None, wanted.revision)
    assert await content(node, wanted.revision) == b"kept"


@pytest.mark.parametrize("milliseconds", [0, 40, 80, 120, 160, 240])
async def test_a_kill_at_any_moment_of_a_save_loses_nothing(node: RealNode, milliseconds: int) -> None:
    wanted = save()
    fill = "cd /root; for i in $(seq 300); do echo $i > f$i; done; echo kept > file; echo ready; exec sleep 1000"
    box = await node.box(fill, account=1, save=wanted)
    await says(box, b"ready")
    stopping = asyncio.create_task(node.client.stop(box.id, StopSandbox(grace_seconds=0)))
    await asyncio.sleep(milliseconds / 1000)
    await node.kill()
    await asyncio.gather(stopping, return_exceptions=True)
    await node.start()
    ended = await stopped(box)
    assert (ended.save_error, ended.revision and ended.revision.id) == (None, wanted.revision)
    assert await content(node, wanted.revision) == b"kept"


async def test_nothing_of_what_is_kept_is_collected_while_it_is_listed(node: RealNode) -> None:
    await set_aside(node, wanted := save())
    await node.client.collect({1: [wanted.revision]}, [], 2**63 - 1)
    assert [one.id for one in await node.client.unsaved()] == [wanted.revision]
    make_changeable(node, wanted.revision, "root/file")
    assert await content(node, wanted.revision) == b"kept"
