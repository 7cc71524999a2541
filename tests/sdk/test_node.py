"""The Node SDK: its own tests, against a control plane that listens, with a node in memory behind it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.jobs.memory_node import until
from tests.sdk.node import NODE, NPM, SDK, environment, installed, run_tests
from tests.workspaces.conftest import TOKEN
from tests.workspaces.test_commands import Shell, a_shell

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


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
    found = subprocess.run(
        [NODE, "-e", script], cwd=SDK, env=environment(), capture_output=True, check=True, timeout=30
    )
    public = {name for name in json.loads(found.stdout) if not name.startswith("_") and name != "constructor"}
    declared = (SDK / "index.d.ts").read_text().partition("declare class Mags {")[2].partition("\n}\n")[0]
    typed = set(re.findall(r"^  (?:readonly )?(\w+)[(:]", declared, flags=re.MULTILINE)) - {"constructor"}
    assert public == typed


def test_the_package_needs_nothing_at_run_time_and_packs_what_it_needs() -> None:
    package = json.loads((SDK / "package.json").read_text())
    assert "dependencies" not in package
    assert [name for name in package["files"] if not (SDK / name).exists()] == []
    assert all((SDK / name).exists() for name in ("index.js", "index.mjs", "index.d.ts", "index.d.mts"))


def npm(*words: str | Path, cwd: Path) -> None:
    """With our Node first in PATH, as the installed command asks for it."""
    variables = environment(PATH=f"{NODE.parent}:{os.environ['PATH']}", ROOST_PYTHON=sys.executable)
    done = subprocess.run(
        [NODE, NPM, *words, "--no-audit", "--no-fund", "--offline"], cwd=cwd, env=variables, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's, with the packed file installed."""
    place = tmp_path_factory.mktemp("project")
    npm("pack", SDK, "--pack-destination", place, cwd=place)
    (file,) = place.glob("*.tgz")
    assert file.name.startswith("magpiecloud-mags-") and file.stat().st_size < 15_000_000
    (place / "package.json").write_text('{"name": "theirs", "private": true}')
    npm("install", file, cwd=place)
    return place


def test_the_packed_file_is_required_and_imported_by_the_old_name(project: Path) -> None:
    for script in (
        "const Mags = require('@magpiecloud/mags'); console.log(typeof new Mags({apiToken: 'x'}).runAndWait)",
        "import('@magpiecloud/mags').then(({default: Mags}) => console.log(typeof Mags.prototype.runAndWait))",
    ):
        done = subprocess.run(
            [NODE, "-e", script],
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.stdout == "function\n", done.stderr


async def test_the_packed_file_brings_the_command(project: Path, shell: Shell) -> None:
    variables = environment(
        PATH=f"{NODE.parent}:/usr/bin:/bin", HOME=str(project), MAGS_API_URL=shell.url, MAGS_API_TOKEN=TOKEN
    )

    async def mags(*words: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            project / "node_modules" / ".bin" / "mags", *words, env=variables, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
        return process.returncode, said.decode()

    status, said = await mags("--help")
    assert status == 0 and said.startswith("Usage: mags")
    status, said = await mags("run", "-d", "-n", "theirs", "x")
    assert status == 0, said
    assert (await mags("status", "theirs"))[1].startswith("request_id:")
    assert (await mags("exec", "nosuch", "true"))[0] == 125


@pytest.fixture
async def patient(tmp_path: Path) -> AsyncIterator[Shell]:
    """Its scripts end when the test says so."""
    async with a_shell(tmp_path) as shell:
        yield shell


async def test_the_command_hands_signals_on(project: Path, patient: Shell) -> None:
    shell = patient
    variables = environment(
        PATH=f"{NODE.parent}:/usr/bin:/bin", HOME=str(project), MAGS_API_URL=shell.url, MAGS_API_TOKEN=TOKEN
    )
    process = await asyncio.create_subprocess_exec(
        project / "node_modules" / ".bin" / "mags", "run", "-n", "told", "x", env=variables,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        await until(lambda: bool(shell.plane.node.requests))
        shell.plane.node.say(next(iter(shell.plane.node.requests)), b"ready\n")
        assert process.stdout and await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        rest = await process.stdout.read()
        assert await process.wait() == 143, rest
    assert b"stopping" in rest, rest
    assert json.loads(await shell.roost("status", "told", "--json"))["stopped"] is True
