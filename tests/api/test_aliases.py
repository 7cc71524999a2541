"""Aliases over HTTP: made, listed, refused and removed; each name is one account's."""

import asyncio
from typing import Any

import httpx
import pytest

from roost.gateways.hosts import Hosts
from tests.workspaces.conftest import Api

ALIASES = "/mags-url-aliases"


async def made(api: Api, subdomain: str = "shop", status: int = 201, **more: Any) -> dict[str, Any]:
    return await api.json(ALIASES, status, "POST", json={"subdomain": subdomain, "workspace_id": "w", **more})


async def refused(api: Api, subdomain: str = "shop", status: int = 400, **more: Any) -> str:
    return (await made(api, subdomain, status, **more))["error"]


@pytest.fixture(autouse=True)
async def workspace(api: Api) -> None:
    await api.run(workspace_id="w")


async def test_an_alias_is_made_and_listed_with_its_url(api: Api) -> None:
    alias = await made(api)
    assert alias == {
        "id": alias["id"],
        "subdomain": "shop",
        "url": "http://shop.apps.localhost:8485",
        "workspace_id": "w",
        "domain": "apps.localhost",
        "port": 8080,
        "access": "public",
        "created_at": alias["created_at"],
    }
    newer = await made(api, "Other", port=3000)
    assert newer["subdomain"] == "other"
    assert await api.json(ALIASES) == {"aliases": [newer, alias], "total": 2}


async def test_without_aliases_the_list_is_empty(api: Api) -> None:
    assert await api.json(ALIASES) == {"aliases": [], "total": 0}


async def test_the_domains_that_clients_hard_code_mean_the_first_one(api: Api) -> None:
    for subdomain, domain in (("one", "apps.magpiecloud.com"), ("two", "app.lfg.run"), ("three", None)):
        alias = await made(api, subdomain, domain=domain)
        assert (alias["domain"], alias["url"]) == ("apps.localhost", f"http://{subdomain}.apps.localhost:8485")
    assert "configured are apps.localhost" in await refused(api, domain="evil.org")


async def test_one_subdomain_may_be_in_several_domains(api: Api) -> None:
    api.routes.hosts = Hosts(("apps.localhost", "example.org"))
    await made(api)
    assert (await made(api, domain="example.org"))["url"] == "http://shop.example.org"
    assert "?domain=" in str((await api.json(f"{ALIASES}/shop", 409, "DELETE"))["error"])
    await api.json(f"{ALIASES}/shop?domain=example.org", method="DELETE")
    (left,) = (await api.json(ALIASES))["aliases"]  # type: ignore[misc]
    assert left["domain"] == "apps.localhost"


async def test_a_name_is_given_once(api: Api, stranger: httpx.AsyncClient) -> None:
    await made(api)
    assert "already exists" in await refused(api, status=409)
    body = {"script": "x", "type": "inline", "workspace_id": "theirs"}
    assert (await stranger.post("/mags-jobs", json=body)).status_code == 202
    answer = await stranger.post(ALIASES, json={"subdomain": "shop", "workspace_id": "theirs"})
    assert answer.status_code == 409 and "already exists" in answer.json()["error"]


async def test_of_many_who_want_a_name_at_once_one_gets_it(api: Api) -> None:
    body = {"subdomain": "shop", "workspace_id": "w"}
    answers = await asyncio.gather(*(api.client.post(ALIASES, json=body) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 19


async def test_another_accounts_alias_is_not_there(api: Api, stranger: httpx.AsyncClient) -> None:
    await made(api)
    assert (await stranger.delete(f"{ALIASES}/shop")).status_code == 404
    assert (await stranger.post(f"{ALIASES}/shop/link", json={})).status_code == 404
    assert (await stranger.get(ALIASES)).json() == {"aliases": [], "total": 0}
    answer = await stranger.post(ALIASES, json={"subdomain": "mine", "workspace_id": "w"})
    assert answer.status_code == 404 and "no workspace 'w'" in answer.json()["error"]
    assert (await api.json(ALIASES))["total"] == 1


async def test_a_removed_name_is_free_again(api: Api) -> None:
    await made(api)
    assert (await api.json(f"{ALIASES}/SHOP", method="DELETE"))["success"] is True
    assert "no alias 'shop'" in str((await api.json(f"{ALIASES}/shop", 404, "DELETE"))["error"])
    await made(api)


async def test_the_workspace_must_be_there(api: Api) -> None:
    assert "no workspace 'none'" in await refused(api, status=404, workspace_id="none")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"subdomain": ""}, "subdomain: missing"),
        ({"subdomain": None}, "subdomain: missing"),
        ({"workspace_id": ""}, "workspace_id: missing"),
        ({"subdomain": "a_b"}, "DNS label"),
        ({"subdomain": "x" * 64}, "1 to 63"),
        ({"subdomain": "www"}, "reserved"),
        ({"subdomain": "0123456789ab"}, "12 hex"),
        ({"subdomain": "01234567-89a"}, "request id"),
        ({"port": 0}, "port"),
        ({"access": "x"}, "access"),
        ({"expires_in": 5}, "expires_in"),
        ({"subdomian": "x"}, "did you mean 'subdomain'?"),
    ],
)
async def test_what_cannot_be_a_name_is_refused_with_the_reason(api: Api, body: dict[str, Any], words: str) -> None:
    assert words in str(
        (await api.json(ALIASES, 400, "POST", json={"subdomain": "a", "workspace_id": "w", **body}))["error"]
    )


async def test_an_alias_may_want_a_token(api: Api) -> None:
    alias = await made(api, access="token")
    assert len(alias["access_token"]) == 64
    (listed,) = (await api.json(ALIASES))["aliases"]  # type: ignore[misc]
    assert listed["access"] == "token" and "access_token" not in listed


async def test_an_alias_may_want_signed_links_and_makes_more_of_them(api: Api) -> None:
    alias = await made(api, access="signed", expires_in=60)
    assert "roost_signature=" in alias["url"]
    later = await api.json(f"{ALIASES}/shop/link", method="POST", json={"expires_in": 600})
    assert later["url"] != alias["url"] and str(later["expires_at"]) > alias["expires_at"]
    (listed,) = (await api.json(ALIASES))["aliases"]  # type: ignore[misc]
    assert listed["url"] == "http://shop.apps.localhost:8485"
    await made(api, "open")
    assert "signed" in str((await api.json(f"{ALIASES}/open/link", 400, "POST", json={}))["error"])


async def test_aliases_outlive_their_workspace(api: Api) -> None:
    await api.fill("w2")
    await made(api, workspace_id="w2")
    await api.json("/mags-workspaces/w2", method="DELETE")
    assert (await api.json(ALIASES))["total"] == 1
    await api.json(f"{ALIASES}/shop", method="DELETE")
