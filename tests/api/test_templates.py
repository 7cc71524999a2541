"""Templates and schedules: every change is a revision, runs are jobs, and schedules follow what they are of."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.accounts.tokens import FIRST_ACCOUNT
from tests.e2e.test_clients import interpreter
from tests.jobs.memory_node import until
from tests.workspaces.conftest import TOKEN, Api
from tests.workspaces.test_commands import a_shell

TEMPLATES = "/job-templates"
SCHEDULES = "/schedules"


async def made(api: Api, status: int = 201, **fields: Any) -> dict[str, Any]:
    return await api.json(TEMPLATES, status, "POST", json={"name": "t", "script": "echo 1", **fields})


async def started(api: Api, count: int) -> str:
    """The newest sandbox of that many."""
    await until(lambda: len(api.node.requests) == count)
    return list(api.node.requests)[-1]


async def test_a_template_has_all_that_clients_require_and_no_null(api: Api) -> None:
    template = await made(api, description=None, environment={"KEY": "v"}, vcpus=1, memory_mb=256, comment="first")
    latest = template["latest_revision"]
    assert (template["default_vcpus"], template["default_memory_mb"], template["user_id"]) == (1, 256, "1")
    assert (latest["revision"], latest["script"], latest["environment"]) == (1, "echo 1", {"KEY": "v"})
    assert (latest["template_id"], latest["comment"], latest["created_by"]) == (template["id"], "first", FIRST_ACCOUNT)
    assert None not in template.values() and None not in latest.values()
    assert await api.json(f"{TEMPLATES}/{template['id']}") == template
    assert await api.json(TEMPLATES) == {"templates": [template], "total": 1, "page": 1, "page_size": 20}


async def test_a_change_makes_a_revision_and_leaves_the_ones_before(api: Api) -> None:
    path = f"{TEMPLATES}/{(await made(api))['id']}"
    changed = await api.json(path, 200, "PUT", json={"script": "echo 2", "comment": "why", "name": "u"})
    assert (changed["name"], changed["latest_revision"]["revision"]) == ("u", 2)  # type: ignore[index]
    answer: Any = await api.json(f"{path}/revisions")
    assert [(one["revision"], one["script"], one["name"]) for one in answer["revisions"]] == [
        (2, "echo 2", "u"),
        (1, "echo 1", "t"),
    ]
    first: Any = await api.json(f"{path}/revisions/1")
    restored: Any = await api.json(f"{path}/revisions/1/restore", 200, "POST")
    assert (restored["name"], restored["latest_revision"]["revision"]) == ("t", 3)
    assert (restored["latest_revision"]["script"], restored["latest_revision"]["comment"]) == (
        "echo 1",
        "Restore revision 1",
    )
    assert await api.json(f"{path}/revisions/1") == first
    await api.json(f"{path}/revisions/4", 404)


async def test_two_changes_at_once_are_two_revisions_or_one_is_refused(api: Api) -> None:
    path = f"{TEMPLATES}/{(await made(api))['id']}"
    answers = await asyncio.gather(*(api.client.put(path, json={"script": f"echo {n}"}) for n in range(5)))
    kept = [answer.json()["latest_revision"]["revision"] for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert sorted(kept) == list(range(2, 2 + len(kept)))


async def test_a_run_is_a_job_of_the_revision_that_was_chosen(api: Api) -> None:
    template = await made(api, environment={"A": "1", "B": "1"})
    path = f"{TEMPLATES}/{template['id']}"
    await api.json(path, 200, "PUT", json={"script": "echo 2"})
    newest = await api.json(f"{path}/run", 202, "POST", json={"environment": {"B": "2"}})
    assert (newest["job_id"], newest["status"], newest["job_name"]) == (template["id"], "not_started", "t")
    vm_id = await started(api, 1)
    assert api.node.requests[vm_id].script == b"echo 2"
    assert api.node.requests[vm_id].environment == {"A": "1", "B": "2"}
    older = await api.json(f"{path}/run", 202, "POST", json={"revision": 1})
    assert api.node.requests[await started(api, 2)].script == b"echo 1"
    await api.json(f"{path}/run", 404, "POST", json={"revision": 9})
    listed: Any = await api.json("/jobs", params={"template_id": template["id"]})
    assert [(one["id"], one["script"]) for one in listed["jobs"]] == [(older["id"], "echo 1"), (newest["id"], "echo 2")]
    assert (await api.json("/jobs"))["total"] == 0
    api.node.end(vm_id, exit_code=0)

    async def over() -> bool:
        return (await api.json(f"/jobs/{newest['id']}/status"))["status"] == "completed"

    await until(over)
    await api.json(path, 200, "DELETE")
    await api.json(path, 404)
    assert (await api.json(f"/jobs/{newest['id']}/status"))["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"name": ""}, "name: missing"),
        ({"name": "a/b"}, "slash"),
        ({"script": " "}, "script"),
        ({"script_type": "perl"}, "type"),
        ({"memory_mb": 10**9}, "memory_mb"),
        ({"environment": {"1": "x"}}, "environment"),
        ({"comment": "x" * 5000}, "comment"),
        ({"revision": 1}, "unknown field"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_cure(api: Api, body: dict[str, Any], words: str) -> None:
    assert words in str((await made(api, 400, **body))["error"])
    assert (await api.json(TEMPLATES))["total"] == 0


async def test_environments_lie_nowhere_readable(api: Api, tmp_path: Path) -> None:
    template = await made(api, environment={"PASSWORD": "correct-horse"})
    await api.json(SCHEDULES, 201, "POST", json={"job_id": template["id"], "cron": "0 0 * * *"})
    assert not any(b"correct-horse" in path.read_bytes() for path in tmp_path.glob("roost.db*"))


async def test_other_accounts_templates_and_schedules_are_not_there(api: Api, stranger: httpx.AsyncClient) -> None:
    template = await made(api)
    schedule = await api.json(SCHEDULES, 201, "POST", json={"job_id": template["id"], "cron": "0 0 * * *"})
    path, other = f"{TEMPLATES}/{template['id']}", f"{SCHEDULES}/{schedule['id']}"
    assert (await stranger.get(TEMPLATES)).json()["templates"] == []
    assert (await stranger.get(SCHEDULES)).json() == {"schedules": [], "total": 0}
    calls = [
        ("GET", path), ("PUT", path), ("DELETE", path), ("POST", f"{path}/run"), ("GET", f"{path}/revisions"),
        ("GET", f"{path}/revisions/1"), ("POST", f"{path}/revisions/1/restore"), ("GET", other), ("PATCH", other),
        ("DELETE", other), ("GET", f"{other}/runs"), ("GET", f"/jobs?template_id={template['id']}"),
    ]  # fmt: skip
    for method, where in calls:
        answer = await stranger.request(method, where, json={} if method in ("PUT", "PATCH") else None)
        assert answer.status_code == 404, (method, where, answer.text)
    answer = await stranger.post(SCHEDULES, json={"job_id": template["id"], "cron": "0 0 * * *"})
    assert answer.status_code == 404


# ---- schedules ---------------------------------------------------------------------------------------------


def pass_minute(api: Api, minutes: int = 1) -> None:
    clock = api.scheduler.clock
    real = clock.now_ns
    clock.now_ns = lambda: real() + minutes * 60 * 10**9  # type: ignore[method-assign]
    api.scheduler.changed()


async def test_a_schedule_follows_its_template_or_stays_at_a_revision(api: Api) -> None:
    template = await made(api)
    wish = {"job_id": template["id"], "cron": "* * * * *", "overlap": "parallel"}
    follows = await api.json(SCHEDULES, 201, "POST", json=wish)
    stays = await api.json(SCHEDULES, 201, "POST", json={**wish, "revision": 1})
    await api.json(f"{TEMPLATES}/{template['id']}", 200, "PUT", json={"script": "echo 2"})
    assert (await api.json(f"{SCHEDULES}/{follows['id']}"))["revision"] == 2
    assert (await api.json(f"{SCHEDULES}/{stays['id']}"))["revision"] == 1
    pass_minute(api)
    await started(api, 2)
    assert sorted(one.script for one in api.node.requests.values()) == [b"echo 1", b"echo 2"]
    listed: Any = await api.json("/jobs", params={"template_id": template["id"]})
    assert sorted(one["script"] for one in listed["jobs"]) == ["echo 1", "echo 2"]
    for vm_id in list(api.node.requests):
        api.node.end(vm_id, exit_code=0)

    async def over() -> bool:
        answer: Any = await api.json(f"{SCHEDULES}/{follows['id']}/runs")
        return bool(answer["runs"]) and answer["runs"][0]["status"] == "completed"

    await until(over)
    shown = await api.json(f"{SCHEDULES}/{follows['id']}")
    assert shown["last_status"] == "completed" and shown["last_run_at"]
    run = await api.json(f"/jobs/{shown['last_request_id']}/status")
    assert (run["job_id"], run["status"]) == (template["id"], "completed")
    assert (await api.json("/mags-cron"))["total"] == 0
    await api.json(f"/mags-cron/{follows['id']}", 404)


async def test_a_schedule_of_a_saved_job_follows_it_and_goes_with_it(api: Api) -> None:
    job = await api.json("/jobs", 202, "POST", json={"name": "j", "script": "echo 1"})
    api.node.end(await started(api, 1))
    schedule = await api.json(SCHEDULES, 201, "POST", json={"job_id": job["id"], "cron": "* * * * *"})
    assert (schedule["job_id"], schedule["job_name"], "revision" in schedule) == (job["id"], "j", False)
    await api.json(f"/jobs/{job['id']}", 200, "PUT", json={"script": "echo 2"})
    pass_minute(api)
    assert api.node.requests[await started(api, 2)].script == b"echo 2"
    details: Any = await api.json(f"/jobs/{job['id']}/details")
    assert len(details["runs"]) == 2
    await api.json(f"/jobs/{job['id']}", 200, "DELETE")
    assert await api.json(SCHEDULES) == {"schedules": [], "total": 0}


async def test_a_schedule_rests_and_goes_on(api: Api) -> None:
    template = await made(api)
    schedule = await api.json(SCHEDULES, 201, "POST", json={"job_id": template["id"], "cron": "0 0 * * *"})
    path = f"{SCHEDULES}/{schedule['id']}"
    off = await api.json(path, 200, "PATCH", json={"enabled": False})
    assert (off["enabled"], off["next_run_at"]) == (False, None)
    on = await api.json(path, 200, "PUT", json={"enabled": True, "cron": "*/5 * * * *", "timezone": "Europe/Berlin"})
    assert (on["cron"], on["timezone"]) == ("*/5 * * * *", "Europe/Berlin") and on["next_run_at"]
    assert await api.json(SCHEDULES, params={"job_id": template["id"]}) == {"schedules": [on], "total": 1}
    await api.json(path, 200, "DELETE")
    await api.json(path, 404)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"job_id": None}, 400, "job_id: missing"),
        ({"job_id": "none"}, 404, "there is no job"),
        ({"cron": None}, 400, "cron: missing"),
        ({"cron": "hourly"}, 400, "give five fields"),
        ({"timezone": "Berlin"}, 400, "IANA"),
        ({"revision": 7}, 404, "no revision 7"),
    ],
)
async def test_a_schedule_that_makes_no_sense_is_refused(
    api: Api, body: dict[str, Any], status: int, words: str
) -> None:
    wish = {"job_id": (await made(api))["id"], "cron": "0 0 * * *", **body}
    assert words in str((await api.json(SCHEDULES, status, "POST", json=wish))["error"])


async def test_a_schedule_does_not_open_urls(api: Api) -> None:
    template = await made(api, persist=True, ip_lease=True)
    answer = await api.json(SCHEDULES, 400, "POST", json={"job_id": template["id"], "cron": "0 0 * * *"})
    assert "opens a URL" in str(answer["error"])


# ---- the official client -----------------------------------------------------------------------------------

CLIENT = """
import sys
from magpie import Magpie
url, token = sys.argv[1:]
client = Magpie(api_key=token)
client.base_url = url
made = client.templates.create(name="ingest", script="echo one", script_type="inline", vcpus=1, memory_mb=512)
assert (made.name, made.default_vcpus, made.latest_revision.revision) == ("ingest", 1, 1), made
assert client.templates.get(made.id).latest_revision.script == "echo one"
assert [one.id for one in client.templates.list()] == [made.id]
changed = client.templates.update(made.id, script="echo two", comment="better")
assert (changed.latest_revision.revision, changed.latest_revision.comment) == (2, "better"), changed
run = client.templates.run(made.id, environment={"A": "1"})
assert run.job_id == made.id and run.status.value == "not_started", run
assert [one.id for one in client.jobs.list(template_id=made.id)] == [run.id]
client.jobs.cancel(run.id)
client.templates.delete(made.id)
assert client.templates.list() == []
print("all right")
"""


@pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")
async def test_the_official_client_keeps_and_runs_templates(tmp_path: Path) -> None:
    python = await asyncio.to_thread(interpreter, "0.1.5", "magpie-cloud")
    async with a_shell(tmp_path) as shell:
        command = [python, "-c", CLIENT, shell.url, TOKEN]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "all right\n", done.stderr
