"""The Jobs API: saved jobs and their runs, in the shapes that `magpie-cloud` insists on."""

import asyncio
from pathlib import Path

import httpx
import pytest

from roost.node.protocol import Image, Progress, PullImage
from roost.sandboxes.pulls import image_of
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

JOBS = "/jobs"
UNKNOWN = "11111111-2222-4333-8444-555555555555"


async def create(api: Api, **fields: object) -> str:
    answer = await api.json(JOBS, 202, "POST", json={"name": "n", "script": "echo hi", **fields})
    return str(answer["request_id"])


async def begun(api: Api, id: str) -> str:
    """Its sandbox."""
    shown = await api.json(f"/mags-jobs/{id}")

    async def there() -> bool:
        return (await api.json(f"{JOBS}/{id}/status"))["status"] == "in_progress"

    await until(there)
    return str((await api.json(f"/mags-jobs/{id}"))["vm_id"] or shown["vm_id"])


async def until_state(api: Api, id: str, state: str) -> dict[str, object]:
    async def reached() -> bool:
        return (await api.json(f"{JOBS}/{id}/status"))["status"] == state

    await until(reached)
    return await api.json(f"{JOBS}/{id}/status")


async def test_one_answer_serves_both_kinds_of_callers(api: Api) -> None:
    answer = await api.json(JOBS, 202, "POST", json={"script": "true"})
    assert answer["request_id"] == answer["id"] == answer["job_id"]
    assert answer["status"] == "not_started"
    assert answer["message"]


async def test_what_is_saved_is_shown_changed_listed_and_deleted(api: Api) -> None:
    id = await create(api, environment={"KEY": "v"}, description="d")
    shown = await api.json(f"{JOBS}/{id}")
    assert shown | {"script_type": "inline", "vcpus": 2, "memory_mb": 512, "environment": {"KEY": "v"}} == shown
    assert (shown["user_id"], shown["description"]) == ("1", "d")
    changed = await api.json(f"{JOBS}/{id}", 200, "PUT", json={"script": "echo 2", "name": "m", "memory_mb": 256})
    assert (changed["script"], changed["name"], changed["memory_mb"], changed["environment"]) == (
        "echo 2", "m", 256, {"KEY": "v"},
    )  # fmt: skip
    assert (await api.json(JOBS))["jobs"] == [changed]
    await api.json(f"{JOBS}/{id}", 200, "DELETE")
    assert (await api.json(JOBS))["jobs"] == []
    await api.json(f"{JOBS}/{id}", 404)
    assert (await api.json(f"{JOBS}/{id}/status"))["status"] == "cancelled"


async def test_a_run_goes_from_not_started_to_its_result(api: Api) -> None:
    id = await create(api)
    vm_id = await begun(api, id)
    api.node.end(vm_id)
    state = await until_state(api, id, "completed")
    assert state["exit_code"] == 0
    assert isinstance(state["duration"], int) and state["duration"] == state["duration_ms"]
    assert state["logs"] == []
    assert state["persist"] is False
    assert None not in state.values()


async def test_a_script_that_fails_is_failed_and_one_that_is_cancelled_is_cancelled(api: Api) -> None:
    failing = await create(api)
    api.node.end(await begun(api, failing), exit_code=3)
    assert (await until_state(api, failing, "failed"))["exit_code"] == 3
    endless = await create(api)
    await begun(api, endless)
    await api.json(f"{JOBS}/{endless}/cancel", 200, "POST")
    await until_state(api, endless, "cancelled")


async def test_a_saved_job_is_run_again_with_another_environment(api: Api) -> None:
    id = await create(api, environment={"A": "1", "B": "1"})
    api.node.end(await begun(api, id))
    run = await api.json(f"{JOBS}/{id}/run", 202, "POST", json={"environment": {"B": "2"}})
    assert (run["job_id"], run["status"], run["job_name"]) == (id, "not_started", "n")
    assert run["id"] == run["request_id"] != id
    vm_id = await begun(api, str(run["id"]))
    assert api.node.requests[vm_id].environment == {"A": "1", "B": "2"}
    details = await api.json(f"{JOBS}/{run['id']}/details")
    assert details["job"]["id"] == id
    assert [one["id"] for one in details["runs"]] == [run["id"], id]
    assert (await api.json(f"{JOBS}/{run['id']}"))["id"] == id


async def test_deleting_a_job_cancels_what_runs_of_it(api: Api) -> None:
    id = await create(api, persist=True)
    await begun(api, id)
    await api.json(f"{JOBS}/{id}", 200, "DELETE")
    assert (await api.json(f"/mags-jobs/{id}"))["status"] == "completed"


async def test_a_stateful_job_has_a_workspace_of_its_own_with_a_directory(api: Api) -> None:
    id = await create(api, stateful=True, workspace_size_gb=3)
    vm_id = await begun(api, id)
    asked = api.node.requests[vm_id]
    assert asked.directories == ["workspace"] and asked.limits.disk_gb == 3
    assert (await api.json(f"{JOBS}/{id}/details"))["workspace_id"] == id
    api.node.end(vm_id)
    await until_state(api, id, "completed")
    again = await api.json(JOBS, 202, "POST", json={"script": "ls", "stateful": True, "workspace_id": id})
    started = api.node.requests[await begun(api, str(again["id"]))]
    assert started.start_from == asked.save.revision  # type: ignore[union-attr]


async def test_addresses_are_told_of_jobs_with_a_lease_and_a_url_of_those_that_stay(api: Api) -> None:
    id = await create(api, persist=True, ip_lease=True, proxy_port=3000)
    await begun(api, id)
    info = await api.json(f"{JOBS}/{id}/vm-info")
    assert info["ip_address"] == info["ipv6_address"]
    assert f"//{id[:12]}." in str(info["proxy_url"])
    assert (await api.json(f"/mags-jobs/{id}/access"))["port"] == 3000
    bare = await create(api)
    await begun(api, bare)
    assert set(await api.json(f"{JOBS}/{bare}/vm-info")) == {"vm_id", "agent_id"}
    assert await api.json(f"{JOBS}/{UNKNOWN}/vm-info", 404)


async def test_python_is_run_by_python(api: Api) -> None:
    id = await create(api, type="python", script="print(6 * 7)")
    script = api.node.requests[await begun(api, id)].script
    assert script == b"#!/usr/bin/env python3\nprint(6 * 7)"
    assert (await api.json(f"{JOBS}/{id}"))["script"] == "print(6 * 7)"


# ---- images ------------------------------------------------------------------------------------------------


class Registry:
    """The node's part of a pull."""

    def __init__(self, api: Api, error: str | None = None) -> None:
        self.node, self.error, self.asked, self.may_end = (
            api.node,
            error,
            list[tuple[str, PullImage]](),
            asyncio.Event(),
        )
        self.images = [Image(name="standard", digest="d", size=1, source="t", created_ns=1)]
        api.node.images = self._images  # type: ignore[method-assign]
        api.node.pull_image = self._pull  # type: ignore[attr-defined]

    async def _images(self) -> list[Image]:
        return self.images

    async def _pull(self, name: str, wanted: PullImage):  # type: ignore[no-untyped-def]
        self.asked.append((name, wanted))
        yield Progress(message="asking")
        await self.may_end.wait()
        if self.error is None:
            self.images.append(Image(name=name, digest="d", size=1, source="t", created_ns=1))
        yield Progress(message="end", error=self.error)


async def test_an_image_is_pulled_once_for_all_who_wait_for_it(api: Api) -> None:
    registry = Registry(api)
    ids = [await create(api, type="docker", docker_image="python:3.12-slim") for _ in range(2)]
    await until(lambda: len(registry.asked) == 1)
    assert (await api.json(f"{JOBS}/{ids[0]}/status"))["status"] == "not_started"
    registry.may_end.set()
    for id in ids:
        vm_id = await begun(api, id)
        assert api.node.requests[vm_id].image == image_of("docker://docker.io/library/python:3.12-slim")
    (asked,) = registry.asked
    assert (asked[1].reference, asked[1].tls_verify) == ("docker://docker.io/library/python:3.12-slim", True)


async def test_an_image_that_cannot_be_pulled_is_the_jobs_error(api: Api) -> None:
    registry = Registry(api, error="no such tag")
    registry.may_end.set()
    id = await create(api, type="docker", docker_image="ghcr.io/nobody/nothing:1")
    state = await until_state(api, id, "error")
    assert "no such tag" in str(state["error_message"]) and "exit_code" not in state


async def test_a_job_that_waits_for_its_image_can_be_cancelled(api: Api) -> None:
    registry = Registry(api)
    id = await create(api, type="docker", docker_image="alpine")
    await until(lambda: len(registry.asked) == 1)
    cancelling = asyncio.create_task(api.json(f"{JOBS}/{id}/cancel", 200, "POST"))
    await asyncio.sleep(0.05)
    registry.may_end.set()
    await cancelling
    await until_state(api, id, "cancelled")
    assert api.node.started == []


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"script": ""}, ["script", "empty"]),
        ({"type": "ruby"}, ["type", "python"]),
        ({"type": "python", "script_type": "inline"}, ["script_type"]),
        ({"vcpus": 0}, ["vcpus"]),
        ({"vcpus": 1.5}, ["vcpus", "whole number"]),
        ({"memory_mb": 1}, ["memory_mb"]),
        ({"workspace_id": "w"}, ["workspace_id", "stateful"]),
        ({"workspace_size_gb": 3}, ["workspace_size_gb", "stateful"]),
        ({"stateful": True, "workspace_id": "a/b"}, ["workspace_id", "slash"]),
        ({"stateful": True, "workspace_size_gb": 100}, ["disk_gb", "64"]),
        ({"proxy_port": 0}, ["proxy_port"]),
        ({"type": "docker"}, ["docker_image", "missing"]),
        ({"docker_image": "alpine"}, ["docker_image", "docker"]),
        ({"type": "docker", "docker_image": "not an image"}, ["docker_image", "reference"]),
        ({"type": "docker", "docker_image": "oci:/etc:x"}, ["docker_image", "--registry"]),
        ({"type": "docker", "docker_image": "169.254.169.254/a/b"}, ["docker_image", "--registry"]),
        ({"name": "a/b"}, ["name", "slash"]),
        ({"environment": {"1": "x"}}, ["environment"]),
        ({"persistent": True}, ["persistent", "did you mean"]),
        ({"description": "x" * 5000}, ["description", "4096"]),
    ],
)
async def test_bad_fields_are_refused_and_leave_nothing(api: Api, fields: dict[str, object], words: list[str]) -> None:
    answer = await api.client.post(JOBS, json={"script": "true", **fields})
    assert answer.status_code == 400, answer.text
    assert all(word in answer.json()["error"] for word in words), answer.json()
    assert (await api.json(JOBS))["total"] == 0 and (await api.json("/mags-jobs"))["total"] == 0


async def test_a_change_that_could_not_be_run_changes_nothing(api: Api) -> None:
    id = await create(api)
    for change in ({"vcpus": 0}, {"script": " "}, {"environment": {"": "x"}}, {"docker_image": "alpine"}):
        await api.json(f"{JOBS}/{id}", 400, "PUT", json=change)
    assert (await api.json(f"{JOBS}/{id}"))["script"] == "echo hi"


async def test_another_account_finds_nothing_of_it(api: Api, stranger: httpx.AsyncClient) -> None:
    id = await create(api)
    for method, path in (
        ("GET", ""), ("PUT", ""), ("DELETE", ""), ("POST", "/run"), ("GET", "/status"), ("GET", "/logs"),
        ("GET", "/vm-info"), ("POST", "/ssh"), ("POST", "/cancel"), ("GET", "/details"),
    ):  # fmt: skip
        body = {"command": "id"} if path == "/ssh" else {}
        answer = await stranger.request(method, f"{JOBS}/{id}{path}", json=body)
        assert answer.status_code == 404, (method, path, answer.text)
    assert (await stranger.get(JOBS)).json()["jobs"] == []


async def test_environments_are_not_in_the_database_in_clear(api: Api, tmp_path: Path) -> None:
    await create(api, environment={"KEY": "in-clear-nowhere"})
    await api.database.write()
    content = b"".join(file.read_bytes() for file in tmp_path.glob("roost.db*"))
    assert b"in-clear-nowhere" not in content
