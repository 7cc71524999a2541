"""`roost url` against a control plane that listens, with a node in memory behind it."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.workspaces.test_commands import Shell, a_shell

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with a_shell(tmp_path) as shell:
        yield shell


async def test_a_jobs_url_is_opened_repointed_guarded_and_closed(shell: Shell) -> None:
    await shell.roost("run", "-p", "-n", "web", "sleep 100")
    url = await shell.roost("url", "web")
    assert re.fullmatch(r"http://[0-9a-f]{12}\.apps\.localhost:8485\n", url)
    assert await shell.roost("url", "web", "3000") == url
    opened = json.loads(await shell.roost("url", "--json", "web", "3000"))
    assert (opened["url"] + "\n", opened["port"]) == (url, 3000)
    guarded = await shell.roost("url", "web", "--access", "token")
    assert guarded.startswith(url) and re.search(r"X-Roost-Token: [0-9a-f]{64} \(shown this once\)", guarded)
    link = await shell.roost("url", "web", "--access", "signed", "--expires-in", "60")
    assert link.startswith(url.strip() + "/?roost_expires=") and "until 2" in link
    assert "closed" in await shell.roost("url", "web", "--close")
    assert "no URL open" in await shell.roost("url", "web", "--close", status=1)


async def test_aliases_are_made_listed_and_removed(shell: Shell) -> None:
    await shell.roost("run", "-p", "-w", "site", "sleep 100")
    assert await shell.roost("url", "alias", "shop", "site") == "http://shop.apps.localhost:8485\n"
    assert "already exists" in await shell.roost("url", "alias", "shop", "site", status=1)
    assert "no workspace" in await shell.roost("url", "alias", "other", "none", status=1)
    made = json.loads(await shell.roost("url", "alias", "--json", "api2", "site", "--port", "3000"))
    assert (made["subdomain"], made["port"], made["workspace_id"]) == ("api2", 3000, "site")
    listed = (await shell.roost("url", "alias", "list")).splitlines()
    assert [line.split()[:3] for line in listed] == [
        ["URL", "WORKSPACE", "PORT"],
        ["http://api2.apps.localhost:8485", "site", "3000"],
        ["http://shop.apps.localhost:8485", "site", "8080"],
    ]
    assert "deleted" in await shell.roost("url", "alias", "remove", "shop")
    assert "no alias" in await shell.roost("url", "alias", "remove", "shop", status=1)
    assert json.loads(await shell.roost("url", "alias", "list", "--json"))["total"] == 1


async def test_what_cannot_be_opened_is_said(shell: Shell) -> None:
    assert "no job has the id" in await shell.roost("url", "none", status=1)
    await shell.roost("run", "-p", "-n", "web", "sleep 100")
    assert "65535" in await shell.roost("url", "web", "70000", status=2)
    assert "goes with access" in await shell.roost("url", "web", "--expires-in", "5", status=1)
