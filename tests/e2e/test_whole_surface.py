"""Every public method of the official `magpie-mags` clients, each called and its result looked at.

The client itself tells which methods it has, so that none is forgotten.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.instance import RunningRoost
from tests.e2e.test_clients import program_with

STEPS = """
import inspect
told = {}
public = [one for one, _ in inspect.getmembers(Mags, callable) if not one.startswith('_')]
def do(method, *values, **named):
    if method not in public:
        return None
    told.setdefault(method, []).append(getattr(client, method)(*values, **named))
    return told[method][-1]
def until(request, *states):
    for _ in range(1500):
        if client.status(request)['status'] in states: return
        time.sleep(0.02)
    raise SystemExit(f"{request} did not become {states}: {client.status(request)}")

file = do('upload_file', f'{directory}/one.txt')
do('upload_files', [f'{directory}/one.txt', f'{directory}/two.txt'])
done = do('run_and_wait', 'cat one.txt; echo $WHO', file_ids=[file], environment={'WHO': 'me'}, poll_interval=0.05)
job = do('run', 'echo begun; sleep 300', name=name, workspace_id=name, persistent=True, startup_command='true')
request = job['request_id']
until(request, 'running')
do('status', request)
while not client.logs(request)['logs']: time.sleep(0.02)
do('logs', request)
do('list_jobs', page=1, page_size=50)
do('find_job', name)
do('enable_access', request, port=8080)
do('url', name, port=8081)
do('exec', name, 'echo entered; exit 5')
do('update_job', request, startup_command='echo again')
do('url_alias_create', name, name)
do('url_alias_list')
do('url_alias_delete', name)
do('sync', request)
cron = do('cron_create', name=name, cron_expression='0 0 1 1 *', script='true')
do('cron_list')
do('cron_update', cron['id'], enabled=False)
do('cron_get', cron['id'])
do('cron_delete', cron['id'])
if 'stop' in public: do('stop', name)
until(request, 'completed', 'error') if 'stop' in public else None
do('list_workspaces')
if 'resize' in public:
    do('new', name + '-new', disk_gb=1, poll_interval=0.05)
    do('resize', name + '-new', 3, poll_interval=0.05)
else:
    do('new', name + '-new', poll_interval=0.05)
if 'new' in public: client.stop(name + '-new')
do('delete_workspace', name)
do('usage', window_days=7)
tell([public, request, told])
"""


def entries_of(answer: dict[str, Any], key: str, value: str) -> list[dict[str, Any]]:
    """Of the one list that an answer holds."""
    (found,) = [items for items in answer.values() if isinstance(items, list)]
    return [item for item in found if item.get(key) == value]


def checks(name: str, request: str) -> dict[str, Callable[[Any], bool]]:
    return {
        "run": lambda it: it["status"] == "accepted" and it["request_id"] == request,
        "run_and_wait": lambda it: (
            (it["status"], it["exit_code"]) == ("completed", 0)
            and [entry["message"] for entry in it["logs"]] == ["first", "me"]
        ),
        "status": lambda it: (it["status"], it["name"], it["workspace_id"]) == ("running", name, name) and it["vm_id"],
        "logs": lambda it: it["logs"][0]["message"] == "begun",
        "list_jobs": lambda it: it["page_size"] == 50 and len(entries_of(it, "request_id", request)) == 1,
        "find_job": lambda it: it["request_id"] == request,
        "update_job": lambda it: it["startup_command"] == "echo again",
        "enable_access": lambda it: it["success"] and it["url"].startswith("http"),
        "url": lambda it: it["success"] and it["url"].startswith("http"),
        "exec": lambda it: (it["exit_code"], it["output"].strip()) == (5, "entered"),
        "stop": lambda it: it["success"] is True,
        "sync": lambda it: it["success"] is True,
        "new": lambda it: it["status"] == "running" and it["request_id"],
        "resize": lambda it: it["status"] == "running" and it["request_id"],
        "usage": lambda it: it["window_days"] == 7 and it["total_jobs"] >= 2 and it["vm_seconds"] >= 0,
        "upload_file": lambda it: isinstance(it, str) and len(it) > 8,
        "upload_files": lambda it: len(set(it)) == 2,
        "list_workspaces": lambda it: len(entries_of(it, "workspace_id", name)) == 1,
        "delete_workspace": lambda it: it["success"] is True,
        "cron_create": lambda it: it["id"] and it["cron_expression"] == "0 0 1 1 *",
        "cron_list": lambda it: len(entries_of(it, "name", name)) == 1,
        "cron_update": lambda it: it["enabled"] is False,
        "cron_get": lambda it: it["name"] == name and it["enabled"] is False,
        "cron_delete": lambda it: it["success"] is True,
        "url_alias_create": lambda it: it["url"].startswith("http") and name in it["url"],
        "url_alias_list": lambda it: len(entries_of(it, "subdomain", name)) == 1,
        "url_alias_delete": lambda it: it["success"] is True,
    }


@pytest.mark.parametrize("version", ["1.0.0", "1.2.0", "1.3.8"])
def test_every_method_of_the_official_client_works(roost: RunningRoost, tmp_path: Path, version: str) -> None:
    name = f"surface-{time.monotonic_ns()}"
    (tmp_path / "one.txt").write_text("first\n")
    (tmp_path / "two.txt").write_text("second\n")
    preamble = f"name, directory = {name!r}, {str(tmp_path)!r}\n"
    public, request, told = program_with(version, roost)(preamble + STEPS)
    right = checks(name, request)
    assert set(public) == set(told) and set(told) <= set(right)
    for method, results in told.items():
        for result in results:
            assert right[method](result), f"{method}: {result}"
    if "stop" not in public:
        roost.api.stop(request)
