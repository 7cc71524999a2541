"""A control plane that listens, whose sandboxes in memory do what little the scripts of these tests say."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.jobs.memory_node import Node
from tests.workspaces.test_commands import Shell, a_shell


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with a_shell(tmp_path) as shell:
        obeying = asyncio.create_task(obey(shell.plane.node))
        yield shell
        obeying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await obeying


async def obey(node: Node) -> None:
    """Sandboxes do what little the tests' scripts say."""
    seen = set[str]()
    while True:
        for vm_id in set(node.requests) - seen:
            seen.add(vm_id)
            follow(node, vm_id, node.requests[vm_id].script.decode())
        await asyncio.sleep(0.005)


def follow(node: Node, vm_id: str, script: str) -> None:
    if script.startswith("sleep"):
        return
    if said := re.match(r"echo (.*)", script, re.DOTALL):
        node.say(vm_id, said[1].encode() + b"\n")
    if script == "ls":
        names = sorted(Path(name).name for name in node.files[vm_id])
        node.say(vm_id, " ".join(names).encode() + b"\n")
    code = re.match(r"exit (\d+)", script)
    node.end(vm_id, exit_code=int(code[1]) if code else 0)
