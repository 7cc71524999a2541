"""`POST …/access` and what it changes: a URL for a port of a persistent job, and who may use it."""

import asyncio
import re
import urllib.parse
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from roost.accounts.tokens import digest
from roost.db.schema import routes
from tests.jobs.memory_node import address_of, until
from tests.workspaces.conftest import Api

JOBS = "/mags-jobs"


async def persistent(api: Api, **fields: Any) -> dict[str, Any]:
    """The status of a persistent job that runs."""
    vm_id = await api.run(persistent=True, **fields)
    listed: Any = (await api.json(JOBS))["jobs"]
    return next(job for job in listed if job["vm_id"] == vm_id)


async def enable(api: Api, job: str, status: int = 200, **body: Any) -> dict[str, Any]:
    return await api.json(f"{JOBS}/{job}/access", status, "POST", json=body)


async def refused(api: Api, job: str, status: int, **body: Any) -> str:
    return (await enable(api, job, status, **body))["error"]


async def test_a_persistent_job_tells_its_url_and_others_tell_none(api: Api) -> None:
    job = await persistent(api)
    assert re.fullmatch(r"[0-9a-f]{12}", job["subdomain"])
    assert job["url"] == f"http://{job['subdomain']}.apps.localhost:8485"
    await api.run(name="short")
    short = await api.json(f"{JOBS}/short/status")
    assert "url" not in short and short["subdomain"]


async def test_access_answers_all_that_any_client_reads(api: Api) -> None:
    job = await persistent(api, name="web")
    answer = await enable(api, "web", port=3000)
    assert answer == {
        "success": True,
        "url": job["url"],
        "subdomain": job["subdomain"],
        "port": 3000,
        "access_type": "http_proxy",
        "access": "public",
        "gateway_url": "http://127.0.0.1:8485",
        "ipv6_address": address_of(job["vm_id"]),
    }
    assert await api.json(f"{JOBS}/web/access") == answer


async def test_the_documented_port_is_the_one_meant_where_none_is_said(api: Api) -> None:
    await persistent(api, name="web")
    assert (await enable(api, "web"))["port"] == 8080


async def test_asking_again_repoints_and_keeps_who_may_enter(api: Api) -> None:
    await persistent(api, name="web")
    token = (await enable(api, "web", port=3000, access="token"))["access_token"]
    again = await enable(api, "web", port=3001)
    assert (again["port"], again["access"]) == (3001, "token")
    assert "access_token" not in again
    (row,) = await api.database.read(select(routes.c.token_hash, routes.c.port))
    assert (row.token_hash, row.port) == (digest(token), 3001)
    assert (await enable(api, "web", port=3001, access="public"))["access"] == "public"


async def test_a_token_is_shown_once_and_stored_as_its_hash_alone(api: Api) -> None:
    await persistent(api, name="web")
    answer = await enable(api, "web", access="token")
    assert re.fullmatch(r"[0-9a-f]{64}", answer["access_token"])
    (row,) = await api.database.read(select(routes))
    assert row.token_hash == digest(answer["access_token"])
    assert answer["access_token"] not in repr(row)
    assert "access_token" not in await api.json(f"{JOBS}/web/access")
    assert (await enable(api, "web", access="token"))["access_token"] != answer["access_token"]


async def test_a_signed_url_tells_when_it_expires(api: Api) -> None:
    job = await persistent(api, name="web")
    answer = await enable(api, "web", access="signed", expires_in=60)
    url = urllib.parse.urlsplit(answer["url"])
    assert f"http://{url.netloc}" == job["url"]
    assert set(urllib.parse.parse_qs(url.query)) == {"roost_expires", "roost_signature"}
    assert answer["expires_at"].endswith("Z")
    plain = await api.json(f"{JOBS}/web/access")
    assert (plain["url"], plain["access"]) == (job["url"], "signed")


async def test_links_outlive_a_repointing_but_not_a_closing(api: Api) -> None:
    await persistent(api, name="web")

    async def since() -> int:
        (row,) = await api.database.read(select(routes.c.created_ns))
        return row.created_ns

    await enable(api, "web", access="signed")
    first = await since()
    await enable(api, "web", port=9000)
    await enable(api, "web", access="signed", expires_in=5)
    assert await since() == first
    await api.json(f"{JOBS}/web/access", method="DELETE")
    await enable(api, "web", access="signed")
    second = await since()
    assert second > first
    await enable(api, "web", access="public")
    await enable(api, "web", access="signed")
    assert await since() > second


async def test_access_is_closed_again(api: Api) -> None:
    await persistent(api, name="web")
    for method in ("GET", "DELETE"):
        assert "opens one" in str((await api.json(f"{JOBS}/web/access", 404, method))["error"])
    await enable(api, "web")
    assert (await api.json(f"{JOBS}/web/access", method="DELETE"))["success"] is True
    assert "opens one" in str((await api.json(f"{JOBS}/web/access", 404))["error"])


async def test_a_sleeping_job_is_woken(api: Api) -> None:
    for depth in ("frozen", "cold"):
        job = await persistent(api, name=depth, workspace_id=depth)
        assert (await api.json(f"{JOBS}/{depth}/sleep", method="POST", json={"depth": depth}))["status"] == "sleeping"
        answer = await enable(api, depth)
        assert (await api.json(f"{JOBS}/{depth}/status"))["status"] == "running"
        assert (answer["ipv6_address"] == address_of(job["vm_id"])) is (depth == "frozen")


async def test_a_job_that_has_no_sandbox_yet_is_waited_for(api: Api) -> None:
    api.node.room = 0
    accepted = await api.json(JOBS, 202, "POST", json={"script": "x", "type": "inline", "persistent": True})
    asking = asyncio.create_task(enable(api, str(accepted["request_id"])))
    await asyncio.sleep(0.05)
    assert not asking.done()
    api.node.room = 1
    assert (await asking)["success"] is True


async def test_jobs_that_end_with_their_script_have_no_url(api: Api) -> None:
    await api.run(name="short")
    assert "persistent: true" in await refused(api, "short", 400)


async def test_a_job_that_has_ended_is_not_running(api: Api) -> None:
    await persistent(api, name="web")
    await api.json(f"{JOBS}/web/stop", method="POST")
    assert "not running" in await refused(api, "web", 409)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"port": 0}, "port: 0 is no port"),
        ({"port": 65536}, "1 to 65535"),
        ({"port": "80"}, "port: expected whole number"),
        ({"port": 80.5}, "port"),
        ({"access": "secret"}, "public, token, signed"),
        ({"expires_in": 60}, "goes with access"),
        ({"access": "token", "expires_in": 60}, "goes with access"),
        ({"access": "signed", "expires_in": 0}, "1 to 604800"),
        ({"access": "signed", "expires_in": 604801}, "7 days"),
        ({"prot": 80}, "did you mean 'port'?"),
        ({"port": 22, "access": "token"}, "SSH"),
    ],
)
async def test_what_cannot_be_meant_is_refused(api: Api, body: dict[str, Any], words: str) -> None:
    await persistent(api, name="web")
    assert words in await refused(api, "web", 400, **body)


async def test_jobs_of_others_are_not_there(api: Api, stranger: httpx.AsyncClient) -> None:
    job = await persistent(api)
    await enable(api, job["request_id"])
    for method in ("POST", "GET", "DELETE"):
        path, body = f"{JOBS}/{job['request_id']}/access", {"port": 80} if method == "POST" else None
        answer = await stranger.request(method, path, json=body)
        assert answer.status_code == 404, answer.text
    assert (await api.json(f"{JOBS}/{job['request_id']}/access"))["port"] == 8080


async def test_the_newer_version_of_the_api_has_it_too(api: Api) -> None:
    await persistent(api, name="web")
    answer = await api.client.post("http://roost/api/v2/mags-jobs/web/access", json={"port": 1})
    assert answer.json()["port"] == 1


async def test_what_was_opened_survives_a_restart_of_the_sandbox(api: Api) -> None:
    job = await persistent(api, name="web", workspace_id="w")
    await enable(api, "web", port=5000, access="token")
    await api.json(f"{JOBS}/web/sleep", method="POST", json={"depth": "cold"})
    await api.json(f"{JOBS}/web/wake", method="POST")
    await until(lambda: len(api.node.requests) == 2)
    shown = await api.json(f"{JOBS}/web/access")
    assert (shown["port"], shown["access"], shown["url"]) == (5000, "token", job["url"])
