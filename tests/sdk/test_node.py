"""The Node SDK: its own tests, against a control plane that listens, with a node in memory behind it."""

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.jobs.memory_node import Node
from tests.sdk.node import NODE, SDK, environment, installed, run_tests
from tests.workspaces.conftest import TOKEN
from tests.workspaces.test_commands import Shell, a_shell

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with a_shell(tmp_path) as shell:
        obeying = asyncio.create_task(obey(shell.plane.node))
        yield shell
        obeying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await obeying


async def obey(node: Node) -> None:
    """Sandboxes do what little these tests' scripts say."""
    seen = set[str]()
    while True:
        for vm_id in set(node.requests) - seen:
            seen.add(vm_id)
            follow(node, vm_id, node.requests[vm_id].script.decode())
        await asyncio.sleep(0.005)


def follow(node: Node, vm_id: str, script: str) -> None:
    if script.startswith("sleep"):
        return
    if said := re.match(r"echo (.*)", script):
        node.say(vm_id, said[1].encode() + b"\n")
    if script == "ls":
        names = sorted(Path(name).name for name in node.files[vm_id])
        node.say(vm_id, " ".join(names).encode() + b"\n")
    code = re.match(r"exit (\d+)", script)
    node.end(vm_id, exit_code=int(code[1]) if code else 0)


async def test_every_method_does_what_it_says(shell: Shell) -> None:
    await run_tests("calls.test.js", MAGS_API_URL=shell.url, MAGS_API_TOKEN=TOKEN)


async def test_credentials_and_names() -> None:
    await run_tests("credentials.test.js")


def test_the_types_fit_what_the_documents_show() -> None:
    compiler = installed() / "node_modules" / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [NODE, compiler, "--noEmit", "-p", SDK / "test"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_method_has_a_type_and_every_type_a_method() -> None:
    script = "console.log(JSON.stringify(Object.getOwnPropertyNames(require('.').prototype)))"
    found = subprocess.run([NODE, "-e", script], cwd=SDK, env=environment(), capture_output=True, check=True, timeout=30)
    public = {name for name in json.loads(found.stdout) if not name.startswith("_") and name != "constructor"}
    declared = (SDK / "index.d.ts").read_text().partition("declare class Mags {")[2].partition("\n}\n")[0]
    typed = set(re.findall(r"^  (?:readonly )?(\w+)[(:]", declared, flags=re.MULTILINE)) - {"constructor"}
    assert public == typed


def test_the_package_needs_nothing_at_run_time_and_packs_what_it_needs() -> None:
    package = json.loads((SDK / "package.json").read_text())
    assert "dependencies" not in package
    assert [name for name in package["files"] if not (SDK / name).exists()] == []
    assert all((SDK / name).exists() for name in ("index.js", "index.mjs", "index.d.ts", "index.d.mts"))
