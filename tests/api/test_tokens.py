"""API tokens: scopes, expiry, revocation, and who may make which."""

import time

import httpx
import pytest
from sqlalchemy import select, update

from roost.db.schema import tokens
from tests.api.people import bearer, somebody
from tests.workspaces.conftest import JOBS, Api, another_account

SCRIPT = {"script": "x", "type": "inline"}
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIpZKVJCnaYb4mMRpG9sTtDyEbQl2dSTwPQ1Xo4cdYcP me"


async def made(client: httpx.AsyncClient, status: int = 201, **fields: object) -> dict[str, str]:
    answer = await client.post("/tokens", json={"name": "ci", **fields})
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_token_is_shown_once_and_kept_as_its_hash(api: Api) -> None:
    token = await made(api.client)
    assert token["scope"] == "run" and token["expires_at"] is None and token["last_used_at"] is None
    listed = (await api.json("/tokens"))["tokens"]
    assert [one["name"] for one in listed] == ["credentials.json", "ci"]  # type: ignore[attr-defined]
    assert token["token"] not in str(listed)
    assert token["token"] not in repr([tuple(row) for row in await api.database.read(select(tokens))])


async def test_a_scope_says_what_a_token_may_do(api: Api) -> None:
    read, run = await made(api.client, scope="read"), await made(api.client, scope="run")
    async with bearer(api, read["token"]) as reader, bearer(api, run["token"]) as runner:
        assert (await reader.get(JOBS)).status_code == 200
        assert (await reader.get("/whoami")).json()["scopes"] == ["read"]
        refused = await reader.post(JOBS, json=SCRIPT)
        assert refused.status_code == 403 and "scope run" in refused.json()["error"]
        for method, path in (
            ("PUT", "/mags-workspaces/w/files/x"),
            ("DELETE", "/mags-jobs/x/access"),
            ("PATCH", "/mags-jobs/x"),
        ):
            assert (await reader.request(method, path)).status_code == 403
        assert (await reader.post("/ssh-keys", json={"public_key": PUBLIC_KEY})).status_code == 403
        assert (await runner.post(JOBS, json=SCRIPT)).status_code == 202
        assert (await runner.post("/ssh-keys", json={"public_key": PUBLIC_KEY})).status_code == 201
        await made(runner, 403, scope="read")
        for call in (("GET", "/users"), ("POST", "/members"), ("DELETE", "/images/base")):
            assert (await runner.request(*call, json={"user": "x"})).status_code == 403


async def test_a_token_makes_none_that_may_more(api: Api) -> None:
    admin = await made(api.client, scope="admin")
    async with bearer(api, admin["token"]) as client:
        assert (await made(client, scope="admin"))["scope"] == "admin"
    async with somebody(api, "vera", "viewer") as viewer:
        await made(viewer, 403, scope="run")
        assert (await made(viewer, scope="read"))["created_by"] == "vera"
    async with somebody(api, "max", "member") as member:
        await made(member, 403, scope="admin")
        run = await made(member, scope="run")
        async with bearer(api, run["token"]) as program:  # a leaked one shall not make others that outlive it
            await made(program, 403, scope="read")


async def test_a_revoked_token_counts_no_more_from_the_next_request_on(api: Api) -> None:
    token = await made(api.client)
    async with bearer(api, token["token"]) as client:
        assert (await client.get(JOBS)).status_code == 200
        await api.json(f"/tokens/{token['id']}", 200, "DELETE")
        assert (await client.get(JOBS)).status_code == 401
    await api.json(f"/tokens/{token['id']}", 404, "DELETE")
    await api.json("/tokens/x", 404, "DELETE")


async def test_an_expired_token_counts_no_more_also_from_memory(api: Api) -> None:
    token = await made(api.client, expires_in=3600)
    async with bearer(api, token["token"]) as client:
        assert (await client.get(JOBS)).status_code == 200
    soon = await made(api.client, expires_in=1)
    async with bearer(api, soon["token"]) as client:
        assert (await client.get(JOBS)).status_code == 200  # known from now on
        while (answer := await client.get(JOBS)).status_code == 200:
            pass
        assert answer.status_code == 401 and "expired" in answer.json()["error"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"expires_in": 0}, "future"),
        ({"expires_in": 10**12}, "ten years"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "future"),
        ({"expires_at": "2027-01-01T00:00:00"}, "no instant"),
        ({"expires_at": "soon"}, "no instant"),
        ({"expires_at": "2099-01-01T00:00:00Z", "expires_in": 5}, "not both"),
        ({"scope": "root"}, "none of read, run, admin"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
    ],
    ids=str,
)
async def test_what_cannot_be_is_refused_in_words(api: Api, fields: dict[str, object], words: str) -> None:
    assert words in str(await made(api.client, 400, **fields))


async def test_use_is_recorded(api: Api) -> None:
    token = await made(api.client)
    async with bearer(api, token["token"]) as client:
        await client.get(JOBS)
    await api.database.write(update(tokens).where(tokens.c.name == "none").values(last_used_ns=1))  # those before it
    listed = {one["id"]: one for one in (await api.json("/tokens"))["tokens"]}  # type: ignore[attr-defined]
    assert listed[token["id"]]["last_used_at"].startswith(time.strftime("%Y-%m-", time.gmtime()))


async def test_the_first_token_stays(api: Api) -> None:
    first = (await api.json("/tokens"))["tokens"][0]  # type: ignore[index]
    answer = await api.json(f"/tokens/{first['id']}", 409, "DELETE")
    assert "credentials.json" in str(answer["error"])


async def test_anothers_token_is_not_there(api: Api) -> None:
    token = await made(api.client)
    async with another_account(api) as stranger:
        assert [one["name"] for one in (await stranger.get("/tokens")).json()["tokens"]] == ["its"]
        assert (await stranger.delete(f"/tokens/{token['id']}")).status_code == 404
        answer = await stranger.get(JOBS, headers={"X-Roost-Account": "default"})
        assert answer.status_code == 404
        for call in (("GET", "/users"), ("POST", "/users"), ("POST", "/images/base/pull"), ("DELETE", "/images/base")):
            assert (await stranger.request(*call, json={"name": "x", "reference": "x"})).status_code == 403
        assert (await stranger.get("http://roost/metrics")).status_code == 403
    async with somebody(api, "max", "member") as member:
        assert (await member.get("/tokens")).json() == {"tokens": []}
        assert (await member.delete(f"/tokens/{token['id']}")).status_code == 404
        assert (await member.get("http://roost/metrics")).status_code == 200
