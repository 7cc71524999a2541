"""Cron jobs over HTTP: what may be said, what is told, and whose they are."""

from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

CRON = "/mags-cron"
NIGHTLY = {"name": "nightly", "cron_expression": "0 0 * * *", "script": "echo backup"}


async def made(api: Api, status: int = 201, **more: Any) -> dict[str, Any]:
    return await api.json(CRON, status, "POST", json={**NIGHTLY, **more})


async def test_a_cron_job_has_all_that_was_said_and_when_it_runs_next(api: Api) -> None:
    cron = await made(
        api, workspace_id="backups", environment={"TOKEN": "s3cret"}, persistent=True, timezone="Europe/Berlin",
        missed="all", overlap="queue", timeout=900,
    )  # fmt: skip
    assert {name: cron[name] for name in (*NIGHTLY, "workspace_id", "timezone", "missed", "overlap")} == {
        **NIGHTLY, "workspace_id": "backups", "timezone": "Europe/Berlin", "missed": "all", "overlap": "queue",
    }  # fmt: skip
    assert (cron["persistent"], cron["enabled"], cron["timeout_seconds"]) == (True, True, 900)
    assert cron["environment_names"] == ["TOKEN"] and "s3cret" not in str(cron)
    assert datetime.fromisoformat(cron["next_run_at"]) > datetime.fromisoformat(cron["created_at"])
    assert cron["last_run_at"] is None
    assert await api.json(f"{CRON}/{cron['id']}") == cron
    assert await api.json(CRON) == {"cron_jobs": [cron], "total": 1}
    assert await api.json(f"{CRON}/{cron['id']}/runs") == {"runs": []}


async def test_what_clients_send_for_the_simplest_one_is_enough(api: Api) -> None:
    cron = await made(api, persistent=False, workspace_id=None)
    shown = {name: cron[name] for name in ("persistent", "timezone", "missed", "overlap", "workspace_id")}
    assert shown == {
        "persistent": False,
        "timezone": "UTC",
        "missed": "latest",
        "overlap": "skip",
        "workspace_id": None,
    }
    assert cron["timeout_seconds"] == 300


async def test_disabling_takes_the_next_run_away_and_enabling_gives_it_back(api: Api) -> None:
    cron = await made(api)
    off = await api.json(f"{CRON}/{cron['id']}", 200, "PATCH", json={"enabled": False})
    assert (off["enabled"], off["next_run_at"]) == (False, None)
    on = await api.json(f"{CRON}/{cron['id']}", 200, "PATCH", json={"enabled": True})
    assert (on["enabled"], on["next_run_at"]) == (True, cron["next_run_at"])


async def test_a_change_changes_what_it_names(api: Api) -> None:
    cron = await made(api, workspace_id="w", environment={"A": "1"}, memory_mb=512)
    path = f"{CRON}/{cron['id']}"
    changed = await api.json(path, 200, "PATCH", json={"script": "echo other", "cron_expression": "  */5 *  * * *"})
    assert (changed["script"], changed["cron_expression"]) == ("echo other", "*/5 * * * *")
    assert (changed["workspace_id"], changed["environment_names"], changed["memory_mb"]) == ("w", ["A"], 512)
    assert changed["next_run_at"] <= cron["next_run_at"]
    changed = await api.json(path, 200, "PATCH", json={"workspace_id": "", "environment": {"__MAGS_MEM_GB": "2"}})
    assert (changed["workspace_id"], changed["environment_names"], changed["memory_mb"]) == (None, [], 2048)
    changed = await api.json(path, 200, "PATCH", json={"persistent": True})
    assert (changed["persistent"], changed["timeout_seconds"]) == (True, 0)
    assert (await api.json(path))["cron_expression"] == "*/5 * * * *"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": ""}, "name: missing"),
        ({"name": "a/b"}, "slash"),
        ({"cron_expression": None}, "cron_expression: missing"),
        ({"cron_expression": "every day"}, "give five fields"),
        ({"cron_expression": "0 0 31 2 *"}, "bad day-of-month"),
        ({"script": " "}, "script: missing"),
        ({"timezone": "Berlin"}, "give an IANA name"),
        ({"missed": "some"}, "missed"),
        ({"overlap": "wait"}, "overlap"),
        ({"timeout": 0}, "timeout"),
        ({"workspace": "w"}, "did you mean 'workspace_id'"),
        ({"environment": {"1": "x"}}, "environment"),
        ({"environment": {"A": "x" * 61_440}}, "at most 61440"),
        ({"memory_mb": 10**9}, "memory_mb"),
        ({"enabled": "yes"}, "true or false"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_cure(api: Api, body: dict[str, Any], words: str) -> None:
    assert words in str((await made(api, 400, **body))["error"])
    assert (await api.json(CRON))["total"] == 0


async def test_scripts_have_a_limit_and_images_must_be_there(api: Api) -> None:
    assert "at most 65536" in str((await made(api, 413, script="#" * 65_537))["error"])
    assert "missing-image" in str((await made(api, 400, rootfs_type="missing-image"))["error"])


async def test_other_accounts_cron_jobs_are_not_there(api: Api, stranger: httpx.AsyncClient) -> None:
    path = f"{CRON}/{(await made(api))['id']}"
    assert (await stranger.get(CRON)).json() == {"cron_jobs": [], "total": 0}
    answers = [
        await stranger.get(path), await stranger.get(f"{path}/runs"), await stranger.delete(path),
        await stranger.patch(path, json={"enabled": False}),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [404] * 4
    assert (await api.json(path))["enabled"] is True


async def test_a_deleted_one_is_gone(api: Api) -> None:
    path = f"{CRON}/{(await made(api))['id']}"
    assert await api.json(path, 200, "DELETE") == {"success": True, "message": "Cron job 'nightly' deleted"}
    assert "GET /api/v1/mags-cron" in str((await api.json(path, 404))["error"])
    await api.json(path, 404, "DELETE")


async def test_runs_are_told_with_their_jobs(api: Api) -> None:
    cron = await made(api, cron_expression="* * * * *")
    clock = api.scheduler.clock
    real = clock.now_ns
    clock.now_ns = lambda: real() + 61 * 10**9  # type: ignore[method-assign]
    api.scheduler.changed()
    await until(lambda: len(api.node.requests) == 1)
    (vm_id,) = api.node.requests
    api.node.end(vm_id, exit_code=0)

    async def over() -> bool:
        runs = (await api.json(f"{CRON}/{cron['id']}/runs"))["runs"]
        return runs[0]["status"] == "completed"  # type: ignore[index]

    await until(over)
    ((run,),) = (await api.json(f"{CRON}/{cron['id']}/runs")).values()  # type: ignore[misc]
    assert (run["exit_code"], set(run)) == (
        0, {"scheduled_at", "status", "request_id", "started_at", "ended_at", "exit_code"},
    )  # fmt: skip
    job = await api.json(f"/mags-jobs/{run['request_id']}/status")
    assert (job["name"], job["status"]) == ("nightly", "completed")
    shown = await api.json(f"{CRON}/{cron['id']}")
    assert (shown["last_request_id"], shown["last_status"]) == (run["request_id"], "completed")
    assert shown["last_run_at"] == run["started_at"]
