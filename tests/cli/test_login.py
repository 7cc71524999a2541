"""`roost login`, `logout`, `whoami`, `token`, `user` and `team` against a control plane that listens."""

import asyncio
import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from roost import instance
from roost.cli.login import server_here
from roost.credentials import URL_VARIABLES
from roost.errors import Conflict
from tests.api.people import PASSWORD
from tests.workspaces.conftest import TOKEN
from tests.workspaces.test_commands import a_shell

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


@dataclass
class Home:
    """A machine of somebody who has not logged in yet."""

    path: Path
    url: str

    @property
    def config(self) -> Path:
        return self.path / ".config" / "roost" / "config.json"

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAGS_", "ROOST_", "XDG_"))}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "roost.cli", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=kept | {"HOME": str(self.path)},
        )  # fmt: skip

    async def roost(self, *arguments: str, status: int = 0, typed: str = "") -> str:
        process = await self.start(*arguments)
        async with asyncio.timeout(30):
            out, errors = await process.communicate(typed.encode())
        assert process.returncode == status, (out, errors)
        return (out + errors).decode()


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    (tmp_path / "home").mkdir()
    (tmp_path / "plane").mkdir()
    async with a_shell(tmp_path / "plane") as shell:
        shell.plane.app.state.plane.identity.devices.interval = 1
        yield Home(tmp_path / "home", shell.url)


async def test_a_pasted_token_is_tried_before_it_is_kept(home: Home) -> None:
    said = await home.roost("login", "--api-url", home.url, "--token", "wrong", status=1)
    assert "not known here" in said and not home.config.exists()
    said = await home.roost("login", "--api-url", home.url, "--token", typed=f"{TOKEN}\n")
    assert "account default" in said and TOKEN not in said
    assert stat.S_IMODE(home.config.stat().st_mode) == 0o600
    assert "may read, run, admin" in await home.roost("whoami")
    assert "still good" in await home.roost("logout")
    assert not home.config.exists()
    assert "not logged in" in await home.roost("logout", status=1)


async def test_a_login_by_browser_from_its_beginning_to_its_end(home: Home) -> None:
    await home.roost("login", "--api-url", home.url, "--token", TOKEN)
    added = await home.roost("user", "add", "anna", "--role", "member", "--password", typed=f"{PASSWORD}\n")
    assert "User anna added" in added and "Password" not in added

    process = await home.start("login", "--no-browser", "--scope", "admin")
    assert process.stderr is not None
    async with asyncio.timeout(30):
        address = (await process.stderr.readline()).decode().split()[-1]
        code = (await process.stderr.readline()).decode().split()[-1]
        async with httpx.AsyncClient(base_url=home.url, follow_redirects=True) as browser:
            page = await browser.get(address)
            next = fields(page.text)["next"].replace("&amp;", "&")
            page = await browser.post("/login", data={"user": "anna", "password": PASSWORD, "next": next})
            assert code in page.text
            page = await browser.post("/device", data=fields(page.text) | {"decision": "approve"})
            assert "is logged in" in page.text
        out, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert "as anna, account anna (owner)" in out.decode()

    who = json.loads(await home.roost("whoami", "--json"))
    assert (who["user"], who["account"], who["authentication"]) == ("anna", "anna", "token")
    assert "default" in await home.roost("team", "list")
    assert "act in default (member)" in await home.roost("team", "use", "default")
    assert json.loads(home.config.read_text())["account"] == "default"
    assert "anna, account default (member); may read, run;" in await home.roost("whoami")
    token = json.loads(home.config.read_text())["token"]

    admin = ("--api-url", home.url, "--token", TOKEN)
    await home.roost("team", "use", "anna")
    await home.roost("team", "remove", "anna", *admin)
    await home.roost("team", "add", "anna", *admin)
    assert "default" in await home.roost("team", "invitations")
    assert "not invited to 'default' any more" in await home.roost("team", "decline", "default")
    await home.roost("team", "add", "anna", "--role", "viewer", *admin)
    assert "default" not in await home.roost("team", "list")
    assert "You are viewer of default; `roost team use default`" in await home.roost("team", "accept", "default")
    assert "default" in await home.roost("team", "list")

    assert "Logged out" in await home.roost("logout")
    assert "not known" in await home.roost("whoami", "--api-url", home.url, "--token", token, status=1)


def test_login_finds_the_instance_that_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*URL_VARIABLES, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(instance, "RUN", tmp_path / "run")
    assert server_here() == "http://127.0.0.1:8484"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    instance.claim(tmp_path / "a").announce("http://127.0.0.1:9000")
    assert server_here() == "http://127.0.0.1:9000"
    instance.claim(tmp_path / "b").announce("http://127.0.0.1:9001")
    with pytest.raises(Conflict, match=r"--api-url: http://127\.0\.0\.1:9000, http://127\.0\.0\.1:9001"):
        server_here()
    monkeypatch.setattr(instance, "DEFAULT_STATE", tmp_path / "b")
    assert server_here() == "http://127.0.0.1:9001"


async def test_login_says_how_the_first_user_is_made_and_asks_for_no_more_than_most_need(home: Home) -> None:
    process = await home.start("login", "--api-url", home.url)
    assert process.stderr is not None
    async with asyncio.timeout(30):
        address = (await process.stderr.readline()).decode().split()[-1]
        await process.stderr.readline()
        assert b"sudo roost user add NAME --role owner" in await process.stderr.readline()
        added = await home.roost("user", "add", "anna", "--role", "owner", "--api-url", home.url, "--token", TOKEN)
        password = re.search("Password: (.+)", added)
        assert password is not None
        async with httpx.AsyncClient(base_url=home.url, follow_redirects=True) as browser:
            assert "sudo roost user add NAME" in (await browser.get(address)).text
            await browser.post("/login", data={"user": "anna", "password": password[1]})
            page = await browser.get(address)
            assert "scope run" in page.text
            await browser.post("/device", data=fields(page.text) | {"decision": "approve"})
        await process.communicate()
    assert process.returncode == 0
    assert "login --scope admin" in await home.roost("user", "list", status=1)


async def test_a_login_that_is_refused_keeps_nothing(home: Home) -> None:
    api = ("--api-url", home.url, "--token", TOKEN)
    await home.roost("user", "add", "anna", "--password", *api, typed=f"{PASSWORD}\n")
    process = await home.start("login", "--api-url", home.url)
    assert process.stderr is not None
    async with asyncio.timeout(30):
        address = (await process.stderr.readline()).decode().split()[-1]
        async with httpx.AsyncClient(base_url=home.url, follow_redirects=True) as browser:
            await browser.post("/login", data={"user": "anna", "password": PASSWORD})
            page = await browser.get(address)
            await browser.post("/device", data=fields(page.text) | {"decision": "deny"})
        _, errors = await process.communicate()
    assert process.returncode == 1 and b"refused in the browser" in errors
    assert not home.config.exists()


async def test_tokens_users_and_teams_from_the_command_line(home: Home) -> None:
    api = ("--api-url", home.url, "--token", TOKEN)
    made = (await home.roost("token", "create", "ci", "--scope", "read", "--expires-in", "30d", *api)).splitlines()
    assert re.fullmatch("[0-9a-f]{64}", made[0]) and "scope read" in made[1]
    listed = json.loads(await home.roost("token", "list", "--json", *api))["tokens"]
    (id,) = [one["id"] for one in listed if one["name"] == "ci"]
    refused = await home.roost("stop", "x", "--api-url", home.url, "--token", made[0], status=1)
    assert "scope run" in refused
    assert "Token revoked" in await home.roost("token", "revoke", id, *api)
    assert "there is no token" in await home.roost("token", "revoke", id, *api, status=1)
    assert "no time like" in await home.roost("token", "create", "x", "--expires-in", "soon", *api, status=2)

    made_up = re.search("Password: (.+)", await home.roost("user", "add", "bert", *api))
    assert made_up is not None
    assert "Password of 'bert' set" in await home.roost("user", "password", "bert", *api, typed=f"{PASSWORD}\n")
    assert "bert" in await home.roost("user", "list", *api)

    assert "Account web made" in await home.roost("team", "create", "web", "--owner", "bert", *api)
    assert "'bert' is invited to 'default' as viewer" in await home.roost(
        "team", "add", "bert", "--role", "viewer", *api
    )
    assert "bert" in await home.roost("team", "invited", *api)
    assert "bert" not in await home.roost("team", "members", *api)
    assert "not invited to 'default' any more" in await home.roost("team", "withdraw", "bert", *api)
    assert "bert" not in await home.roost("team", "invited", *api)
    refused = await home.roost("team", "invitations", *api, status=1)
    assert "only somebody who is logged in has invitations" in refused
    await home.roost("user", "add", "carl", "--role", "viewer", *api)
    assert "viewer" in await home.roost("team", "members", *api)
    assert "'carl' is member" in await home.roost("team", "role", "carl", "member", *api)
    assert "no member" in await home.roost("team", "remove", "carl", *api)
    assert "speaks for the account 'default' alone" in await home.roost(
        "team", "members", "--team", "web", *api, status=1
    )
    assert "is disabled" in await home.roost("user", "disable", "bert", *api)
    assert "may log in" in await home.roost("user", "enable", "bert", *api)


def fields(page: str) -> dict[str, str]:
    return dict(re.findall(r'name="(\w+)" value="([^"]+)"', page))
