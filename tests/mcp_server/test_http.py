"""The HTTP door: everybody with a token of their own, and nobody by way of somebody's browser."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.mcp_server.agent import http_agent, mcp_server
from tests.mcp_server.test_tools import app_of
from tests.served import served
from tests.workspaces.conftest import TOKEN, Api, an_api, another_account

HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
}  # fmt: skip
ACCEPTED = {"Accept": "application/json, text/event-stream"}
MINE = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def a_door(directory: Path, *names: str) -> AsyncIterator[tuple[httpx2.AsyncClient, Api]]:
    async with (
        an_api(directory) as api,
        served(app_of(api)) as api_url,
        mcp_server(api_url, *names) as url,
        httpx2.AsyncClient(base_url=url.removesuffix("/mcp"), headers=ACCEPTED, timeout=20) as client,
    ):
        yield client, api


async def test_who_brings_no_token_or_a_wrong_one_stays_outside(tmp_path: Path) -> None:
    async with a_door(tmp_path) as (door, _):
        for headers in [{}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {TOKEN}"}, {"X-Token": TOKEN}]:
            answer = await door.post("/mcp", json=HELLO, headers=headers)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            assert "Authorization: Bearer TOKEN" in answer.json()["error"]
        for path in ("/mcp", "/other"):
            answer = await door.post(path, json=HELLO, headers={"Authorization": "Bearer wrong"})
            assert answer.status_code == 401 and "token" in answer.json()["error"]
        twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other"), *ACCEPTED.items()]
        assert (await door.post("/mcp", json=HELLO, headers=twice)).status_code == 401
        assert (await door.post("/mcp", json=HELLO, headers=MINE)).status_code == 200


async def test_a_page_in_a_browser_is_refused_by_its_origin_and_by_the_name_it_asks_for(tmp_path: Path) -> None:
    async with a_door(tmp_path, "roost.example") as (door, _):
        for origin in ("http://evil.example", "http://localhost:3000", "null"):
            assert (await door.post("/mcp", json=HELLO, headers=MINE | {"Origin": origin})).status_code == 403
        for host in ("evil.example", "127.0.0.1.evil.example:80", "other.roost.example"):
            assert (await door.post("/mcp", json=HELLO, headers=MINE | {"Host": host})).status_code == 421
        for host in ("roost.example", "roost.example:8486", "localhost"):
            assert (await door.post("/mcp", json=HELLO, headers=MINE | {"Host": host})).status_code == 200


async def test_nothing_is_kept_of_a_caller_and_nothing_too_large_is_read(tmp_path: Path) -> None:
    async with a_door(tmp_path) as (door, _):
        answer = await door.post("/mcp", json=HELLO, headers=MINE)
        assert "mcp-session-id" not in answer.headers and "set-cookie" not in answer.headers
        large = json.dumps(HELLO | {"params": "x" * 5_000_000}).encode()
        answer = await door.post("/mcp", content=large, headers=MINE | {"Content-Type": "application/json"})
        assert answer.status_code == 413


async def test_callers_at_the_same_time_each_speak_for_themselves(tmp_path: Path) -> None:
    async with a_door(tmp_path) as (door, api), another_account(api):
        await api.fill("mine")
        url = f"{str(door.base_url).rstrip('/')}/mcp"
        async with http_agent(url, TOKEN) as owner, http_agent(url, "s" * 32) as stranger:
            asked = [one("workspaces") for _ in range(10) for one in (owner, stranger)]
            found = [answer["total"] for answer in await asyncio.gather(*asked)]
        assert found == [1, 0] * 10


async def test_a_token_that_is_revoked_counts_no_more_from_the_next_call_on(tmp_path: Path) -> None:
    async with a_door(tmp_path) as (door, api):
        made: Any = await api.json("/tokens", 201, "POST", json={"name": "agent"})
        headers = {"Authorization": f"Bearer {made['token']}"}
        assert (await door.post("/mcp", json=HELLO, headers=headers)).status_code == 200
        assert (await api.client.delete(f"/tokens/{made['id']}")).status_code < 300
        assert (await door.post("/mcp", json=HELLO, headers=headers)).status_code == 401


async def test_an_api_that_is_away_is_told(tmp_path: Path) -> None:
    async with mcp_server("http://127.0.0.1:9") as url, httpx2.AsyncClient(headers=ACCEPTED | MINE) as door:
        answer = await door.post(url, json=HELLO)
        assert answer.status_code == 503 and "`sudo roost up`" in answer.json()["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--http", "8486"], "HOST:PORT"),
        (["--http", "0.0.0.0:0"], "--allow-host NAME"),
        (["--http", "127.0.0.1:0", "--token", "t"], "a token of their own"),
        (["--allow-host", "x"], "is for --http"),
        (["--api-url", "nothing", "--token", "t"], "is no URL"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MAGS_", "ROOST_"))}
    environment = known | {"HOME": str(tmp_path), "MAGS_API_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "roost.cli", "mcp", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.returncode == 1 and words in done.stderr
