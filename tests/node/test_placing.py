"""What is put into a sandbox before it runs takes the place of what is there, and what that was stays."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from roost import ids
from roost.node.protocol import File, SaveRequest, StopSandbox

from .guest_world import LIMIT
from .node_world import RealNode

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


async def uploaded(node: RealNode, name: str, data: bytes) -> File:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    id = ids.file_id()
    await node.client.put_file(id, chunks(), 1000)
    return File(id=id, name=name, size=len(data))


async def test_an_upload_over_a_file_keeps_its_mode_and_owner(node: RealNode) -> None:
    wanted = SaveRequest(revision=ids.revision_id(), account=1, upload=False)
    script = (
        "mkdir /workspace; chown 1000:100 /workspace; chmod 1777 /workspace; chown 7:8 /root; "
        "echo old > /root/run.sh; chmod 755 /root/run.sh; chown 1000:1000 /root/run.sh; exec sleep 1000"
    )
    box = await node.box(script, account=1, save=wanted)
    async with asyncio.timeout(LIMIT):
        while b"1000" not in (await box.run("stat -c %u /root/run.sh"))[0]:
            await asyncio.sleep(0.02)
    await node.client.stop(box.id, StopSandbox(grace_seconds=0))
    files = [await uploaded(node, "run.sh", b"#!/bin/sh\necho new\n"), await uploaded(node, "fresh", b"x")]
    again = await node.box(
        account=1, start_from=wanted.revision, files=files, directories=["workspace"], script="exec sleep 1000"
    )
    output, status = await again.run("/root/run.sh; stat -c '%n %u:%g %a' /root/run.sh /root/fresh /root /workspace")
    assert status == 0
    assert output.decode().splitlines() == [
        "new", "/root/run.sh 1000:1000 755", "/root/fresh 7:8 644", "/root 7:8 755", "/workspace 1000:100 1777"
    ]  # fmt: skip
    await again.stop()
