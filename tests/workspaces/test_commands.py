"""The `roost` command against a control plane that listens, with a node in memory behind it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.memory_node import until
from tests.served import served
from tests.workspaces.conftest import TOKEN, Plane, control_plane

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


@dataclass
class Shell:
    url: str
    plane: Plane

    async def roost(self, *arguments: str, status: int = 0) -> str:
        """Standard output of a command that ends with `status`; what it says on standard error follows."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "roost.cli", *arguments, "--api-url", self.url, "--token", TOKEN,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ),
        )  # fmt: skip
        async with asyncio.timeout(120):
            out, errors = await process.communicate()
        assert process.returncode == status, (out, errors)
        return (out + errors).decode()


@asynccontextmanager
async def a_shell(directory: Path) -> AsyncIterator[Shell]:
    async with control_plane(directory) as plane, served(plane.app, ws="none") as url:
        yield Shell(url, plane)


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with a_shell(tmp_path) as shell:
        yield shell


async def test_a_workspace_from_its_first_job_to_its_end(shell: Shell, tmp_path: Path) -> None:
    node = shell.plane.node
    (tmp_path / 'da"ta.bin').write_bytes(bytes(range(256)) * 4)
    shown = await shell.roost("run", "-w", "w", "-p", "-f", str(tmp_path / 'da"ta.bin'), "sleep 1")
    job = shown.splitlines()[0]
    assert f"roost stop {job}" in shown
    await until(lambda: bool(node.requests))
    (vm_id,) = node.requests
    assert node.files[vm_id] == {'root/da"ta.bin': bytes(range(256)) * 4}
    assert "Sync initiated" in await shell.roost("sync", "w")
    assert "yes     object store" in await shell.roost("workspace", "list")
    refused = await shell.roost("run", "-w", "w", "true", status=125)
    assert "in use" in refused and "fork it with --base" in refused
    assert "1 active job(s)" in await shell.roost("workspace", "delete", "--force", "w", status=1)
    await shell.roost("stop", job)
    revisions = [line.split() for line in (await shell.roost("workspace", "revisions", "w")).splitlines()[1:]]
    assert [line[0] for line in revisions] == ["*", revisions[1][0]] and len(revisions) == 2
    older = revisions[1][0]
    assert f"restored to revision {older}" in await shell.roost("workspace", "restore", "w", older)
    assert "w: 2 revision(s), ok" in await shell.roost("workspace", "check")
    del node.saves[older]
    assert f"missing: {older}" in await shell.roost("workspace", "check", "w", status=1)
    assert "Aborted" in await shell.roost("workspace", "delete", "w", status=1)
    assert "Workspace 'w' deleted" in await shell.roost("workspace", "delete", "--force", "w")


async def test_what_could_not_be_saved_is_named_and_recovered(shell: Shell) -> None:
    node = shell.plane.node
    node.kept_raw = "the disk is full"
    job = (await shell.roost("run", "-d", "-w", "w", "true")).split()[0]
    await until(lambda: bool(node.requests))
    (vm_id,) = node.requests
    node.end(vm_id)
    await until(lambda: bool(node.saves))
    (revision,) = node.saves
    assert "the disk is full" in await shell.roost("status", job)
    for listing in ("list", "revisions w"):
        shown = await shell.roost("workspace", *listing.split())
        assert f"{revision} is not saved yet: the disk is full; roost workspace recover w" in shown
    assert f"{revision} is kept and not saved yet" in await shell.roost("workspace", "check", "w", status=1)
    assert "they are kept" in await shell.roost("workspace", "recover", "w", status=1)
    node.kept_raw = None
    assert "1 revision(s) of workspace 'w' saved" in await shell.roost("workspace", "recover", "w")
    assert "not saved yet" not in await shell.roost("workspace", "list")
    assert "All of workspace 'w' is saved" in await shell.roost("workspace", "recover", "w")


async def test_a_large_upload_through_a_socket(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 30_000_000)
    await shell.roost("run", "-p", "-f", str(tmp_path / "big"), "true")
    await until(lambda: bool(shell.plane.node.requests))
    (started,) = shell.plane.node.requests.values()
    assert [(file.name, file.size) for file in started.files] == [("big", 30_000_000)]


async def test_what_is_too_large_is_said_and_not_taken_for_a_broken_connection(shell: Shell, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(200_000_000)
    assert "100 MB" in await shell.roost("run", "-f", str(tmp_path / "huge"), "true", status=125)
