"""What agents can do with Roost, and what they are told when they cannot."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.memory_node import until
from tests.mcp_server.agent import TRANSPORTS, Agent, agent, http_agent, mcp_server
from tests.served import served
from tests.workspaces.conftest import TOKEN, Api, an_api, another_account


@asynccontextmanager
async def a_world(directory: Path, transport: str = "http") -> AsyncIterator[tuple[Agent, Api]]:
    """An agent, and the Roost that it uses."""
    async with an_api(directory) as api, served(app_of(api)) as url, agent(transport, url, TOKEN) as one:
        yield one, api


def app_of(api: Api) -> Any:
    return api.client._transport.app  # type: ignore[attr-defined]


async def begun(api: Api, count: int = 1) -> str:
    """The sandbox of the newest job, once there are so many."""
    await until(lambda: len(api.node.requests) >= count)
    return list(api.node.requests)[-1]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_tool_says_what_it_is_for_and_what_it_takes_and_tells(tmp_path: Path, transport: str) -> None:
    async with a_world(tmp_path, transport) as (mcp, _):
        tools = {tool.name: tool for tool in (await mcp.client.list_tools()).tools}
        assert set(tools) == {
            "run", "exec", "read_file", "write_file", "list_files", "delete_file", "url", "workspaces", "jobs",
            "status", "logs", "stop",
        }  # fmt: skip
        assert all(tool.description and tool.output_schema and tool.annotations for tool in tools.values())
        described = [one for tool in tools.values() for one in tool.input_schema["properties"].items()]
        assert not [name for name, field in described if name != "content" and "description" not in field]
        reading = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}
        assert reading == {"read_file", "list_files", "workspaces", "jobs", "status", "logs"}
        harmless = {name for name, tool in tools.items() if tool.annotations and not tool.annotations.destructive_hint}
        assert harmless == reading | {"url"}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_argument_that_a_tool_does_not_have_is_refused_with_those_that_it_has(
    tmp_path: Path, transport: str
) -> None:
    async with a_world(tmp_path, transport) as (mcp, api):
        said = await mcp.refused("run", script="true", workspce="files")
        assert "unknown argument 'workspce'" in said
        assert "script" in said and "workspace" in said
        assert not api.node.requests
        assert "unknown argument 'status'" in await mcp.refused("workspaces", status="x")
        tools = (await mcp.client.list_tools()).tools
        assert all(tool.input_schema["additionalProperties"] is False for tool in tools)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_script_runs_and_its_lines_come_while_it_does(tmp_path: Path, transport: str) -> None:
    async with a_world(tmp_path, transport) as (mcp, api):
        seen: list[str] = []

        async def progress(_number: float, _total: float | None, message: str | None) -> None:
            seen.append(message or "")

        running = asyncio.create_task(
            mcp("run", progress, script="make", workspace="app", environment={"A": "b"}, timeout=77)
        )
        sandbox = await begun(api)
        api.node.say(sandbox, b"one\n")
        await until(lambda: "one" in seen)
        assert not running.done()
        api.node.say(sandbox, b"two\nthree")
        api.node.end(sandbox, exit_code=3)
        ran = await running
        assert (ran["exit_code"], ran["output"]) == (3, "one\ntwo\nthree\n")
        assert "\n".join(seen).splitlines() == ["one", "two", "three"]
        assert api.node.started == ["make"] and api.node.environments[0]["A"] == "b"
        assert (await api.json(f"/mags-jobs/{ran['job_id']}"))["timeout_seconds"] == 77
        status = await mcp("status", job=ran["job_id"])
        assert (status["job_id"], status["workspace"], status["exit_code"]) == (ran["job_id"], "app", 3)
        assert [job["job_id"] for job in (await mcp("jobs"))["jobs"]] == [ran["job_id"]]


async def test_a_script_that_takes_longer_goes_on_and_its_end_can_be_asked_for(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (mcp, api):
        ran = await mcp("run", script="long", wait=0.2)
        assert "exit_code" not in ran and ran["status"] in ("pending", "running")
        assert f"status and logs of job {ran['job_id']}" in ran["note"]
        sandbox = await begun(api)
        api.node.say(sandbox, b"late\n")
        assert (await mcp("logs", job=ran["job_id"]))["output"] == "late\n"
        assert (await mcp("stop", job=ran["job_id"]))["message"] == "Job stopped"
        assert (await mcp("status", job=ran["job_id"]))["stopped"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_run_that_its_caller_cancels_is_stopped(tmp_path: Path, transport: str) -> None:
    async with a_world(tmp_path, transport) as (mcp, api):
        running = asyncio.create_task(mcp("run", script="endless"))
        sandbox = await begun(api)
        running.cancel()
        await until(lambda: sandbox in api.node.stops)


async def test_a_sandbox_that_stays_is_given_a_url_and_stopped(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (mcp, api):
        running = asyncio.create_task(mcp("run", script="serve", workspace="web", persistent=True, wait=60))
        sandbox = await begun(api)
        api.node.say(sandbox, b"up\n")
        api.node.exit_script(sandbox)
        ran = await running
        assert (ran["status"], ran["exit_code"], ran["output"]) == ("running", 0, "up\n")
        assert "the sandbox stays" in ran["note"]
        opened = await mcp("url", job="web", port=3000, access="token")
        assert opened["url"].startswith("http://") and opened["port"] == 3000 and opened["access_token"]
        assert "SSH" in await mcp.refused("url", job="web", port=22)
        assert "less than or equal to 65535" in await mcp.refused("url", job="web", port=70000)
        assert (await mcp("stop", job="web"))["message"] == "Job stopped"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_files_of_a_workspace_are_written_listed_read_and_deleted(tmp_path: Path, transport: str) -> None:
    async with a_world(tmp_path, transport) as (mcp, api):
        await api.fill("app")
        assert (await mcp("write_file", workspace="app", path="/root/a ü.txt", content="çontent"))["revision"]
        await mcp("write_file", workspace="app", path="/root/b", content=base64.b64encode(b"\0\xff").decode(),
                  encoding="base64")  # fmt: skip
        await mcp("write_file", workspace="app", path="/root/empty", content="")
        listed = await mcp("list_files", workspace="app")
        assert {entry["name"]: entry["size"] for entry in listed["entries"]} == {"a ü.txt": 8, "b": 2, "empty": 0}
        text = await mcp("read_file", workspace="app", path="root/a ü.txt")
        assert text == {"path": "root/a ü.txt", "encoding": "utf-8", "content": "çontent", "size": 8}
        other = await mcp("read_file", workspace="app", path="/root/b")
        assert (other["encoding"], base64.b64decode(other["content"])) == ("base64", b"\0\xff")
        empty = await mcp("read_file", workspace="app", path="/root/empty")
        assert (empty["content"], empty["size"]) == ("", 0)
        await mcp("delete_file", workspace="app", path="/root/b")
        assert "no such file" in await mcp.refused("read_file", workspace="app", path="/root/b")
        found = await mcp("workspaces")
        assert [one["workspace"] for one in found["workspaces"]] == ["app"]


async def test_a_long_file_comes_in_parts_that_cut_no_character(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (mcp, api):
        content = "é" * 60_001
        await api.fill("app", **{"root/long": content.encode()})
        offset, read = 0, ""
        while offset is not None:
            part = await mcp("read_file", workspace="app", path="/root/long", offset=offset, limit=49_999)
            assert part["encoding"] == "utf-8"
            read, offset = read + part["content"], part.get("next_offset")
        assert read == content
        words = await mcp.refused("read_file", workspace="app", path="/root/long", offset=120_002)
        assert "120002 bytes" in words


async def test_a_large_directory_comes_in_parts(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (mcp, api):
        await api.fill("app", **{f"root/{number}": b"" for number in range(600)})
        offset, names = 0, list[str]()
        while offset is not None:
            part = await mcp("list_files", workspace="app", path="/root", offset=offset)
            assert part["total"] == 600
            names, offset = names + [entry["name"] for entry in part["entries"]], part.get("next_offset")
        assert len(set(names)) == len(names) == 600


async def test_long_output_is_cut_in_the_middle_and_the_rest_can_be_read(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (mcp, api):
        running = asyncio.create_task(mcp("run", script="flood"))
        sandbox = await begun(api)
        lines = "".join(f"line {number} of many\n" for number in range(4_000))
        for start in range(0, len(lines), 60_000):
            api.node.say(sandbox, lines[start : start + 60_000].encode())
        api.node.end(sandbox)
        ran = await running
        left_out = len(lines) - 50_000
        note = (
            f"\n[… {left_out} characters are left out here; logs of job {ran['job_id']} with offset=25000 has them …]\n"
        )
        assert ran["output"] == lines[:25_000] + note + lines[-25_000:]
        assert len((await mcp("logs", job=ran["job_id"]))["output"]) < 50_200
        offset, read = 0, ""
        while offset is not None:
            part = await mcp("logs", job=ran["job_id"], offset=offset)
            assert part["total"] == len(lines)
            read, offset = read + part["output"], part.get("next_offset")
        assert read == lines


REFUSED = [
    ("run", {"script": ""}, "script"),
    ("run", {"script": "x", "workspace": "no/slash"}, "workspace_id"),
    ("run", {"script": "x", "base": "nothing"}, "nothing"),
    ("run", {"script": "x", "image": "nothing"}, "nothing"),
    ("run", {"script": "x", "timeout": 100_000}, "86400"),
    ("run", {"script": "x", "environment": {"1": "x"}}, "environment"),
    ("run", {}, "Field required"),
    ("exec", {"job": "nothing", "command": "true"}, "nothing"),
    ("exec", {"job": "nothing", "command": "true", "timeout": 0}, "greater than 0"),
    ("read_file", {"workspace": "nothing", "path": "/x"}, "nothing"),
    ("read_file", {"workspace": "app", "path": "/root"}, "list_files"),
    ("read_file", {"workspace": "app", "path": "/root/../x"}, "from the root"),
    ("write_file", {"workspace": "nothing", "path": "/x", "content": ""}, "nothing"),
    ("write_file", {"workspace": "app", "path": "/", "content": ""}, "name a file"),
    ("write_file", {"workspace": "app", "path": "/x", "content": "?", "encoding": "base64"}, "not base64"),
    ("write_file", {"workspace": "app", "path": "/x", "content": "", "mode": "rwx"}, "pattern"),
    ("list_files", {"workspace": "app", "path": "/root/file"}, "read_file"),
    ("list_files", {"workspace": "nothing"}, "nothing"),
    ("delete_file", {"workspace": "app", "path": "/missing"}, "no such file"),
    ("url", {"job": "nothing"}, "nothing"),
    ("url", {"job": "app"}, "submit it again"),
    ("workspaces", {"page": 0}, "greater than or equal to 1"),
    ("jobs", {"page": 10**9}, "page"),
    ("status", {"job": "nothing"}, "nothing"),
    ("logs", {"job": "nothing"}, "nothing"),
    ("stop", {"job": "no/thing?"}, "no/thing?"),
]  # fmt: skip


async def test_what_cannot_be_is_refused_in_words_that_name_the_cure(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (mcp, api):
        await api.fill("app", **{"root/file": b""})
        for tool, arguments, words in REFUSED:
            said = await mcp.refused(tool, **arguments)
            assert words in said, (tool, arguments, said)
        assert len(api.node.started) == 1


async def test_a_server_that_is_away_is_told_with_how_to_start_it(tmp_path: Path) -> None:
    async with agent("stdio", "http://127.0.0.1:9", TOKEN) as mcp:
        assert "`sudo roost up` starts it" in await mcp.refused("jobs")


async def test_a_token_that_is_unknown_is_told_by_the_api(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api, served(app_of(api)) as url, agent("stdio", url, "wrong") as mcp:
        assert "token" in await mcp.refused("jobs")


HIDDEN = [
    ("status", {"job": "mine"}),
    ("logs", {"job": "mine"}),
    ("stop", {"job": "mine"}),
    ("exec", {"job": "mine", "command": "id"}),
    ("url", {"job": "mine"}),
    ("read_file", {"workspace": "app", "path": "/root/file"}),
    ("write_file", {"workspace": "app", "path": "/root/file", "content": ""}),
    ("delete_file", {"workspace": "app", "path": "/root/file"}),
    ("list_files", {"workspace": "app"}),
    ("run", {"script": "x", "base": "app"}),
]


async def test_another_account_sees_nothing(tmp_path: Path) -> None:
    async with a_world(tmp_path) as (_, api), another_account(api):
        await api.fill("app", **{"root/file": b"secret"})
        api.node.say(await api.run(name="mine"), b"secret\n")
        async with (
            served(app_of(api)) as api_url,
            mcp_server(api_url) as url,
            http_agent(url, "s" * 32) as stranger,
            http_agent(url, TOKEN) as owner,
        ):
            assert (await owner("jobs"))["total"] == 2
            assert (await stranger("jobs"))["jobs"] == (await stranger("workspaces"))["workspaces"] == []
            for tool, arguments in HIDDEN:
                mine = await stranger.refused(tool, **arguments)
                missing = {key: "missing" if value in ("mine", "app") else value for key, value in arguments.items()}
                there_is_none = await stranger.refused(tool, **missing)
                assert mine == there_is_none.replace("missing", "mine" if "job" in arguments else "app")
            assert (await owner("read_file", workspace="app", path="/root/file"))["content"] == "secret"
