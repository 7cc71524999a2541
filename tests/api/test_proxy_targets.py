"""Proxy targets over HTTP, as strict as the models of the clients that read them."""

from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.jobs.memory_node import address_of
from tests.workspaces.conftest import Api

TARGETS = "/proxy-targets"


async def made(api: Api, vm_id: str, status: int = 201, **more: Any) -> dict[str, Any]:
    return await api.json(TARGETS, status, "POST", json={"ipv6_address": address_of(vm_id), **more})


async def test_a_target_has_all_that_clients_require_and_no_null(api: Api) -> None:
    vm_id = await api.run(persistent=True)
    target = await made(api, vm_id)
    for field in ("id", "subdomain", "ipv6_address", "proxy_url"):
        assert isinstance(target[field], str) and target[field]
    for field in ("created_at", "updated_at"):
        datetime.fromisoformat(target[field])
    assert (target["port"], target["ipv6_address"]) == (8080, address_of(vm_id))
    assert target["proxy_url"] == f"http://{target['subdomain']}.apps.localhost:8485"
    assert None not in target.values()
    assert await api.json(f"{TARGETS}/{target['id']}") == target
    assert await api.json(TARGETS) == {"proxy_targets": [target], "total": 1}


async def test_addresses_may_come_in_brackets_and_in_any_form(api: Api) -> None:
    vm_id = await api.run(persistent=True)
    long = f"[FD00:0000:0:0:0:0:{vm_id[:4].upper()}:{vm_id[4:]}]"
    target = await api.json(TARGETS, 201, "POST", json={"ipv6_address": long, "subdomain": "Shop", "name": "n"})
    assert (target["subdomain"], target["ipv6_address"]) == ("shop", address_of(vm_id))
    assert (target["name"], "description" in target) == ("n", False)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "ipv6_address: missing"),
        ({"ipv6_address": None}, "ipv6_address: missing"),
        ({"ipv6_address": "127.0.0.1"}, "no IPv6 address"),
        ({"ipv6_address": "localhost"}, "no IPv6 address"),
        ({"ipv6_address": "::1"}, "not the address of a sandbox of yours"),
        ({"ipv6_address": "::ffff:10.0.0.1"}, "not the address of a sandbox of yours"),
        ({"ipv6_address": "[2606:4700::1111]"}, "not the address of a sandbox of yours"),
        ({"ipv6_address": "::1", "port": 0}, "port"),
        ({"ipv6_address": "::1", "subdomain": "www"}, "reserved"),
        ({"ipv6_address": "::1", "name": "x" * 5000}, "name"),
    ],
)
async def test_whatever_is_not_ones_own_sandbox_is_refused(api: Api, body: dict[str, Any], words: str) -> None:
    assert words in str((await api.json(TARGETS, 400, "POST", json=body))["error"])


async def test_other_accounts_sandboxes_and_targets_are_not_there(api: Api, stranger: httpx.AsyncClient) -> None:
    vm_id = await api.run(persistent=True)
    target = await made(api, vm_id)
    answer = await stranger.post(TARGETS, json={"ipv6_address": address_of(vm_id)})
    assert answer.status_code == 400 and "of yours" in answer.json()["error"]
    assert (await stranger.get(TARGETS)).json() == {"proxy_targets": [], "total": 0}
    for method, body in (("GET", None), ("PUT", {"port": 1}), ("DELETE", None)):
        answer = await stranger.request(method, f"{TARGETS}/{target['id']}", json=body)
        assert answer.status_code == 404, answer.text


async def test_an_ended_sandboxs_address_is_nobodys(api: Api) -> None:
    vm_id = await api.run(persistent=True, name="gone")
    await api.json("/mags-jobs/gone/stop", method="POST")
    await made(api, vm_id, 400)


async def test_a_change_keeps_what_it_does_not_name(api: Api) -> None:
    first, second = await api.run(persistent=True), await api.run(persistent=True)
    target = await made(api, first, name="n", description="d", subdomain="shop")
    path = f"{TARGETS}/{target['id']}"
    moved = await api.json(path, method="PUT", json={"ipv6_address": f"[{address_of(second)}]"})
    assert (moved["ipv6_address"], moved["port"], moved["name"]) == (address_of(second), 8080, "n")
    assert moved["request_id"] != target["request_id"]
    assert moved["updated_at"] > target["updated_at"] and moved["created_at"] == target["created_at"]  # type: ignore[operator]
    changed = await api.json(path, method="PUT", json={"port": 3000, "description": "e"})
    assert (changed["port"], changed["description"], changed["subdomain"]) == (3000, "e", "shop")
    assert "not the address" in str((await api.json(path, 400, "PUT", json={"ipv6_address": "::1"}))["error"])
    assert "subdomain" in str((await api.json(path, 400, "PUT", json={"subdomain": "other"}))["error"])


async def test_a_sleeping_sandboxs_target_can_be_changed_with_the_address_it_has(api: Api) -> None:
    vm_id = await api.run(persistent=True, name="web", workspace_id="w")
    target = await made(api, vm_id)
    await api.json("/mags-jobs/web/sleep", method="POST", json={"depth": "cold"})
    body = {"ipv6_address": address_of(vm_id), "port": 81}
    assert (await api.json(f"{TARGETS}/{target['id']}", method="PUT", json=body))["port"] == 81


async def test_a_subdomain_is_given_once_and_aliases_count(api: Api) -> None:
    vm_id = await api.run(persistent=True, workspace_id="w")
    target = await made(api, vm_id, subdomain="shop")
    assert "already exists" in (await made(api, vm_id, 409, subdomain="shop"))["error"]
    body = {"subdomain": "shop", "workspace_id": "w"}
    assert "already exists" in str((await api.json("/mags-url-aliases", 409, "POST", json=body))["error"])
    await api.json(f"{TARGETS}/{target['id']}", method="DELETE")
    await api.json("/mags-url-aliases", 201, "POST", json=body)
    assert "already exists" in (await made(api, vm_id, 409, subdomain="shop"))["error"]


async def test_a_deleted_target_is_gone(api: Api) -> None:
    target = await made(api, await api.run(persistent=True))
    path = f"{TARGETS}/{target['id']}"
    assert (await api.json(path, method="DELETE"))["success"] is True
    for method in ("GET", "DELETE"):
        assert "no proxy target" in str((await api.json(path, 404, method))["error"])
