"""The Node SDK: its own tests, against a control plane that listens, with a node in memory behind it."""

import json
import re
import subprocess

import pytest

from tests.sdk.node import NODE, SDK, environment, installed, run_tests
from tests.workspaces.conftest import TOKEN
from tests.workspaces.test_commands import Shell

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
