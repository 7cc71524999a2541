"""disk_gb bounds all that a sandbox sees above its image: its workspace and what it writes, and `df` says so."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from roost import ids
from roost.node.disk import FLOOR
from roost.node.protocol import Limits, Revision, SaveRequest, StopSandbox
from roost.node.room import LOOK

from .guest_world import LIMIT
from .node_world import Box, RealNode

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]
MB = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


async def started(node: RealNode, below: Revision | None = None, disk_gb: int = 1) -> Box:
    limits = Limits(vcpus=2, memory_mb=256, disk_gb=disk_gb, pids=256, timeout_seconds=0)
    wanted = SaveRequest(revision=ids.revision_id(), account=1, upload=False)
    return await node.box(limits=limits, account=1, save=wanted, start_from=below.id if below else None)


async def saved(box: Box) -> Revision:
    ended = await box.node.client.stop(box.id, StopSandbox(grace_seconds=0))
    assert ended.revision and not ended.save_error
    return ended.revision


async def done(box: Box, command: str) -> bytes:
    output, status = await box.run(f"{command} 2>&1")
    assert status == 0, output
    return output


async def room(box: Box) -> tuple[int, int, int]:
    """What df says: MB in all, used and available."""
    total, used, available = (await done(box, "df -m / | tail -1")).split()[1:4]
    return int(total), int(used), int(available)


async def test_what_a_workspace_holds_counts_against_the_disk_and_df_says_so(node: RealNode) -> None:
    first = await started(node)
    total, used, available = await room(first)
    assert used < 10 and available > total - 30  # of which ext4 keeps 16 for itself
    await done(first, "fallocate -l 300M /root/a")
    second = await started(node, await saved(first))
    total, used, available = await room(second)
    assert 300 <= used < 310 and 0 <= total - used - available < 30
    _, status = await second.run(f"fallocate -l {available + 20}M /root/b")
    assert status != 0
    await done(second, f"rm -f /root/b; fallocate -l {available - 20}M /root/b")
    kept = await saved(second)
    assert 2**30 * 0.9 < kept.size <= 2**30
    third = await started(node, kept)
    assert (await room(third))[2] <= FLOOR // MB
    _, status = await third.run("fallocate -l 50M /root/c")
    assert status != 0
    await third.stop()


async def test_what_is_deleted_of_the_workspace_can_be_written_again(node: RealNode) -> None:
    first = await started(node)
    await done(first, "fallocate -l 400M /root/a; fallocate -l 400M /root/b; echo kept > /root/c")
    second = await started(node, await saved(first))
    await done(second, "rm /root/a; fallocate -l 100M /root/d")
    async with asyncio.timeout(LIMIT):
        while (await second.run("fallocate -l 300M /root/e"))[1] != 0:
            await asyncio.sleep(0.1)
    await done(second, "cat /root/c")
    assert (await saved(second)).size < 2**30


def blocks(node: RealNode, revision: Revision) -> int:
    (layer,) = (node.directory / "state/layers").glob(f"{revision.id}-*.img")
    return layer.stat().st_blocks * 512


async def test_a_file_that_has_no_room_for_a_second_copy_can_be_changed(node: RealNode) -> None:
    first = await started(node)
    await done(
        first,
        "mkdir -p /root/a/b; chmod 751 /root/a/b; chown 7:8 /root/a/b; cd /root/a/b; echo begin > big; "
        "dd if=/dev/zero bs=1M count=600 >> big; chmod 640 big; chown 1000:1000 big",
    )
    second = await started(node, await saved(first))
    assert (await room(second))[2] < 400
    assert await done(second, "stat -c '%a %u %g' /root/a/b /root/a/b/big") == b"751 7 8\n640 1000 1000\n"
    unchanged = await saved(second)
    assert blocks(node, unchanged) < 20 * MB
    third = await started(node, unchanged)
    await done(third, "echo end >> /root/a/b/big")
    assert await done(third, "head -n 1 /root/a/b/big; tail -c 4 /root/a/b/big") == b"begin\nend\n"
    _, status = await third.run("fallocate -l 450M /root/more || { rm /root/more; false; }")
    assert status != 0
    changed = await saved(third)
    assert changed.size < 620 * MB and blocks(node, changed) > 600 * MB
    fourth = await started(node, changed)
    assert await done(fourth, "head -n 1 /root/a/b/big; tail -c 4 /root/a/b/big") == b"begin\nend\n"
    await fourth.stop()


async def test_what_is_only_renamed_gives_no_room(node: RealNode) -> None:
    first = await started(node)
    await done(first, "mkdir /root/d; fallocate -l 850M /root/d/a")
    second = await started(node, await saved(first))
    await done(second, "mv /root/d /root/e")
    await asyncio.sleep(2 * LOOK + 1)
    _, status = await second.run("fallocate -l 300M /root/b")
    assert status != 0
    await done(second, "rm -f /root/b; test -s /root/e/a")
    assert (await saved(second)).size < 2**30


async def test_nobody_is_locked_out_of_a_workspace_that_is_larger_than_the_disk(node: RealNode) -> None:
    first = await started(node, disk_gb=2)
    await done(first, "fallocate -l 700M /root/a; fallocate -l 700M /root/b; echo kept > /root/c")
    large = await saved(first)
    second = await started(node, large, disk_gb=1)
    remarks = [record.data async for record in node.client.log(second.id) if record.source == "system"]
    assert any(b"holds 1.4 GB, and the disk has 1 GB" in remark for remark in remarks)
    assert await done(second, "cat /root/c") == b"kept\n"
    _, status = await second.run("fallocate -l 100M /root/d")
    assert status != 0
    await done(second, "rm -f /root/d; rm /root/a")
    smaller = await saved(second)
    assert smaller.size < large.size - 600 * MB
    third = await started(node, smaller, disk_gb=1)
    await done(third, "fallocate -l 200M /root/d")
    await third.stop()


async def test_the_ballast_is_in_no_layer_and_takes_no_room_on_the_node(node: RealNode) -> None:
    first = await started(node)
    await done(first, "fallocate -l 500M /root/a")
    second = await started(node, await saved(first))
    (image,) = [path for path in (node.directory / "state/disks").glob("roost-*") if path.stat().st_blocks * 512 > 0][
        :1
    ]
    assert image.stat().st_blocks * 512 < 100 * MB
    kept = await saved(second)
    (layer,) = (node.directory / "state/layers").glob(f"{kept.id}-*.img")
    assert layer.stat().st_blocks * 512 < 20 * MB
    assert kept.size < 501 * MB
