"""What one caller leaves behind, or begins, is not another's: names, files, streams, tries of a password."""

import asyncio
from typing import Any

import httpx
import pytest

from roost.accounts import throttle
from roost.accounts.throttle import Throttle
from roost.api import followed
from roost.errors import Throttled
from roost.gateways import former_names
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

ALIASES = "/mags-url-aliases"
TARGETS = "/proxy-targets"
INVISIBLE = ["a\u202eb", "a\u200bb", "\ufeffa", "a\u2066b", "a\u00adb", "a\U000e0041"]


# -- names


@pytest.mark.parametrize("name", INVISIBLE)
async def test_names_hold_nothing_that_nobody_sees(api: Api, name: str) -> None:
    for field in ("name", "workspace_id"):
        answer = await api.json("/mags-jobs", 400, "POST", json={"script": "x", "type": "inline", field: name})
        assert f"{field}: may not hold characters that nobody sees" in str(answer["error"])
    for path in ("/job-templates", "/jobs", "/mags-cron"):
        body = {"name": name, "script": "x", "cron_expression": "@daily"}
        answer = await api.client.post(path, json=body if path == "/mags-cron" else {"name": name, "script": "x"})
        assert answer.status_code == 400, (path, answer.text)


@pytest.mark.parametrize("name", ["naïve", "日本語", "می‌خواهم", "👩‍💻", "ไทย", "עברית"])
async def test_names_in_any_script_are_taken(api: Api, name: str) -> None:
    await api.json("/mags-jobs", 202, "POST", json={"script": "x", "type": "inline", "name": name})


async def alias(client: httpx.AsyncClient, subdomain: str) -> httpx.Response:
    return await client.post(ALIASES, json={"subdomain": subdomain, "workspace_id": "site"})


async def test_an_alias_that_was_removed_is_for_a_while_nobody_elses(
    api: Api, stranger: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for client in (api.client, stranger):
        body = {"script": "x", "type": "inline", "workspace_id": "site", "persistent": True}
        assert (await client.post("/mags-jobs", json=body)).status_code == 202
    assert (await alias(api.client, "shop")).status_code == 201
    await api.json(f"{ALIASES}/shop", 200, "DELETE")
    refused = await alias(stranger, "shop")
    assert refused.status_code == 409
    assert "kept for it until" in refused.json()["error"]
    assert (await alias(api.client, "shop")).status_code == 201  # its owner may have it back at once
    monkeypatch.setattr(former_names, "KEPT_DAYS", -1)
    await api.json(f"{ALIASES}/shop", 200, "DELETE")
    assert (await alias(stranger, "shop")).status_code == 201


async def test_templates_and_saved_jobs_take_no_files_of_others(api: Api, stranger: httpx.AsyncClient) -> None:
    form = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n--B--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    theirs = (await stranger.post("/mags-files", content=form, headers=kind)).json()["file_id"]
    mine = (await api.client.post("/mags-files", content=form, headers=kind)).json()["file_id"]
    body: dict[str, Any] = {"name": "t", "script": "x"}
    await api.json("/job-templates", 400, "POST", json=body | {"file_ids": [theirs]})
    await api.json("/job-templates", 201, "POST", json=body | {"file_ids": [mine]})
    await api.json("/jobs", 400, "POST", json=body | {"file_ids": [theirs]})


# -- streams


async def test_a_log_is_followed_no_longer_than_its_token_counts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "AGAIN", 0.0)
    made = await api.json("/tokens", 201, "POST", json={"name": "ci", "scope": "read"})
    vm_id = await api.run(name="talks")
    headers = {"Authorization": f"Bearer {made['token']}"}
    asking = asyncio.create_task(api.client.get("/mags-jobs/talks/logs?follow=true", headers=headers))
    present = api.live._present  # pyright: ignore[reportPrivateUsage]
    await until(lambda: any(run.uses for run in present.values()))
    await api.json(f"/tokens/{made['id']}", 200, "DELETE")
    api.node.say(vm_id, b"a secret\n")
    async with asyncio.timeout(10):
        answer = await asking
    assert answer.status_code == 200
    assert "secret" not in answer.text
    api.node.end(vm_id)


# -- tries


def test_who_guesses_from_one_address_locks_nobody_else_out() -> None:
    tries = Throttle()
    for _ in range(throttle.OF_NAME):
        tries.count("login", "anna", "203.0.113.9")
    with pytest.raises(Throttled):
        tries.count("login", "anna", "203.0.113.9")
    tries.count("login", "anna", "198.51.100.1")


def test_what_many_addresses_guess_is_bounded_and_does_not_concern_where_the_owner_comes_from() -> None:
    tries = Throttle()
    tries.count("login", "anna", "198.51.100.1")
    tries.clear("login", "anna", "198.51.100.1")
    with pytest.raises(Throttled):
        for number in range(throttle.OF_STRANGERS + 1):
            tries.count("login", "anna", f"203.0.{number}.9")
    tries.count("login", "anna", "198.51.100.1")
    tries.count("login", "bert", "203.0.113.9")


def test_an_address_that_was_right_once_has_as_few_tries_as_others() -> None:
    tries = Throttle()
    tries.clear("login", "anna", "198.51.100.1")
    for _ in range(throttle.OF_NAME):
        tries.count("login", "anna", "198.51.100.1")
    with pytest.raises(Throttled):
        tries.count("login", "anna", "198.51.100.1")
