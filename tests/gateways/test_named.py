"""The gateway with real routes: what a visitor of a name gets, and what the sandbox sees of it."""

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from roost.gateways.http.server import Gateway
from roost.settings import ServeSettings
from tests.gateways.backends import Backend, backend
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

JOBS = "/mags-jobs"
BROWSER = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}


@dataclass
class Loopback:
    """Every sandbox's ports are this machine's."""

    dialled: list[str]

    async def dial(self, sandbox: str, port: int, host: str | None = None) -> socket.socket:
        self.dialled.append(sandbox)
        connected = socket.create_connection(("127.0.0.1", port), timeout=5)
        connected.setblocking(False)
        return connected


@dataclass
class Visited:
    api: Api
    client: httpx.AsyncClient
    server: Backend
    dialled: list[str]

    async def get(self, url: str, **more: Any) -> httpx.Response:
        """From the gateway, whatever the URL's host resolves to."""
        asked = httpx.URL(url)
        headers = {"Host": asked.host, **more.pop("headers", {})}
        return await self.client.get(asked.raw_path.decode(), headers=headers, **more)

    async def access(self, job: str, **body: Any) -> dict[str, Any]:
        return await self.api.json(f"{JOBS}/{job}/access", method="POST", json={"port": self.server.port, **body})


@pytest.fixture
async def visited(api: Api, tmp_path: Any) -> AsyncIterator[Visited]:
    """A persistent job `web` with workspace `w`, whose ports are those of a server here."""
    await api.run(persistent=True, name="web", workspace_id="w")
    loopback = Loopback([])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = ServeSettings(tmp_path, tmp_path)
        async with backend() as server, Gateway(api.routes, loopback, settings) as gateway:
            await gateway.listen(listener)
            async with httpx.AsyncClient(base_url=address) as client:
                yield Visited(api, client, server, loopback.dialled)


async def test_a_name_leads_to_its_port_and_nowhere_else(visited: Visited) -> None:
    url = (await visited.api.json(f"{JOBS}/web/status"))["url"]
    assert (await visited.get(str(url))).status_code == 404
    opened = await visited.access("web")
    assert (await visited.get(opened["url"])).text == "ok"
    unknown = await visited.get("http://nobody.apps.localhost/")
    assert unknown.status_code == 404 and "no sandbox at nobody.apps.localhost" in unknown.json()["error"]
    await visited.api.json(f"{JOBS}/web/access", method="DELETE")
    closed = await visited.get(opened["url"])
    assert closed.status_code == 404 and "roost url" in closed.json()["error"]
    assert len(visited.server.requests) == 1


async def test_a_token_is_wanted_before_anything_wakes_and_stays_outside(visited: Visited) -> None:
    opened = await visited.access("web", access="token")
    await visited.api.json(f"{JOBS}/web/sleep", method="POST", json={"depth": "frozen"})
    for headers in ({}, {"X-Roost-Token": "wrong"}):
        refused = await visited.get(opened["url"], headers=headers)
        assert refused.status_code == 401 and "X-Roost-Token" in refused.json()["error"]
    assert (await visited.api.json(f"{JOBS}/web/status"))["status"] == "sleeping"
    page = await visited.get(opened["url"], headers=BROWSER)
    assert page.status_code == 401 and "text/html" in page.headers["content-type"]
    token = opened["access_token"]
    shown = {"X-Roost-Token": token, "Cookie": f"a=b; roost_access={token}"}
    assert (await visited.get(opened["url"] + "/x?y=1", headers=shown)).text == "ok"
    (seen,) = visited.server.requests
    assert seen.line.startswith("GET /x?y=1 ")
    assert token not in str(seen.headers) and seen.header("cookie") == "a=b"
    assert (await visited.api.json(f"{JOBS}/web/status"))["status"] == "running"


async def test_a_signed_link_is_turned_into_a_cookie_for_browsers(visited: Visited) -> None:
    opened = await visited.access("web", access="signed")
    link, plain = opened["url"], opened["url"].partition("/?")[0]
    assert (await visited.get(plain)).status_code == 401
    assert (await visited.get(link + "&page=2")).text == "ok"
    sent = await visited.get(link, headers=BROWSER)
    assert (sent.status_code, sent.headers["location"]) == (302, "/")
    cookie = sent.headers["set-cookie"].partition(";")[0]
    assert "HttpOnly" in sent.headers["set-cookie"]
    assert (await visited.get(plain + "/next", headers={**BROWSER, "Cookie": cookie})).text == "ok"
    first, second = visited.server.requests
    assert first.line.startswith("GET /?page=2 ") and second.line.startswith("GET /next ")
    assert second.header("cookie") is None
    await visited.api.json(f"{JOBS}/web/access", method="DELETE")
    await visited.access("web", access="signed")
    assert (await visited.get(link)).status_code == 401


async def test_a_request_wakes_what_sleeps_and_reaches_the_new_sandbox(visited: Visited) -> None:
    opened = await visited.access("web")
    for depth in ("frozen", "cold"):
        assert (await visited.get(opened["url"])).text == "ok"
        before = visited.dialled[-1]
        await visited.api.json(f"{JOBS}/web/sleep", method="POST", json={"depth": depth})
        assert (await visited.get(opened["url"])).text == "ok"
        assert (visited.dialled[-1] == before) is (depth == "frozen")


async def test_an_alias_leads_to_the_workspaces_next_job(visited: Visited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.gateways.routes.HANDOVER", 0.0)
    body = {"subdomain": "shop", "workspace_id": "w", "port": visited.server.port}
    url = str((await visited.api.json("/mags-url-aliases", 201, "POST", json=body))["url"])
    assert (await visited.get(url)).text == "ok"
    first = visited.dialled[-1]
    await visited.api.json(f"{JOBS}/web/stop", method="POST")
    gone = await visited.get(url)
    assert gone.status_code == 404 and "no job has the workspace" in gone.json()["error"]
    vm_id = await visited.api.run(persistent=True, workspace_id="w")
    await until(lambda: vm_id in visited.api.node.states)
    assert (await visited.get(url)).text == "ok"
    assert visited.dialled[-1] == vm_id != first
