"""`roost mcp` before a real Roost: an agent runs scripts, keeps files and opens a URL."""

import asyncio
import os
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.e2e.instance import RunningRoost, clean_environment
from tests.mcp_server.agent import Agent, http_agent, stdio_agent


async def use_everything(mcp: Agent, name: str) -> None:
    seen: list[str] = []

    async def progress(_number: float, _total: float | None, message: str | None) -> None:
        seen.extend((message or "").splitlines())

    ran = await mcp("run", progress, script="echo one; echo $WORD >&2; sleep 0.5; exit 3", environment={"WORD": "two"})
    assert (ran["status"], ran["exit_code"]) == ("error", 3)
    assert sorted(ran["output"].splitlines()) == sorted(seen) == ["one", "two"]

    script = "echo hello > index.html; exec python3 -m http.server 8080"
    kept = await mcp("run", script=script, workspace=name, persistent=True, wait=1)
    assert kept["status"] == "running" and "exit_code" not in kept
    await mcp("write_file", workspace=name, path="/root/note", content="written\n")
    done = await mcp("exec", job=name, command="cat note; echo wrong >&2; exit 4")
    assert (done["stdout"], done["stderr"], done["exit_code"]) == ("written\n", "wrong\n", 4)
    assert (await mcp("read_file", workspace=name, path="/root/index.html"))["content"] == "hello\n"
    opened = await mcp("url", job=kept["job_id"], access="signed")
    assert await asyncio.to_thread(visit, opened["url"]) == "hello\n"
    assert (await mcp("stop", job=name))["message"]
    assert "note" in {entry["name"] for entry in (await mcp("list_files", workspace=name))["entries"]}


def visit(url: str) -> str:
    host = url.split("/")[2]
    address = url.replace(host, f"127.0.0.1:{host.rpartition(':')[2]}", 1)  # its names lead to this machine
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host}), timeout=20) as page:
        return page.read().decode()


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_an_agent_runs_scripts_keeps_files_and_opens_a_url(roost: RunningRoost, transport: str) -> None:
    name = f"mcp-{time.monotonic_ns()}"
    if transport == "stdio":
        async with stdio_agent(roost.api.url, roost.api.token) as mcp:
            return await use_everything(mcp, name)
    command = [sys.executable, "-m", "roost.cli", "mcp", "--http", "127.0.0.1:0"]
    environment = clean_environment() | {"MAGS_API_URL": roost.api.url, "PATH": os.environ["PATH"]}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split()[3].rstrip(",")
        async with http_agent(url, roost.api.token) as mcp:
            await use_everything(mcp, name)
    finally:
        process.terminate()
        assert process.wait(20) is not None
    return None
