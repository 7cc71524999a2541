"""Schedules of a real Roost: at the full minute, inside a sandbox that slept, across a crash, and by the clients."""

import re
import secrets
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.instance import PROGRAM, Api, RunningRoost, clean_environment, eventually
from tests.e2e.test_clients import VERSIONS, Program, program_with

pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parents[2] / "docs" / "cron.md"
MINUTE = 75.0  # seconds to wait for something that happens each minute


@pytest.fixture(params=VERSIONS)
def program(request: pytest.FixtureRequest, roost: RunningRoost) -> Program:
    return program_with(request.param, roost)


def every_minute(api: Api, script: str, **fields: object) -> str:
    body = {"name": f"each-{secrets.token_hex(3)}", "cron_expression": "* * * * *", "script": script, **fields}
    return api.call("POST", "/mags-cron", body)["id"]


def runs_of(api: Api, cron: str) -> list[dict[str, Any]]:
    return api.call("GET", f"/mags-cron/{cron}/runs")["runs"]


def first_end(api: Api, cron: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        runs = runs_of(api, cron)
        return runs[-1] if runs and "ended_at" in runs[-1] else None

    return eventually(over, MINUTE, f"no run of {cron} has ended")  # type: ignore[return-value]


@pytest.mark.slow
def test_a_minute_runs_scripts_wakes_workspaces_and_survives_a_crash(own_roost: RunningRoost) -> None:
    api, crons = own_roost.api, list[str]()
    for name, depth in (("froze", "frozen"), ("chilled", "cold")):
        job = api.submit("echo first > /root/file", persistent=True, workspace_id=name, no_sync=True)
        eventually(lambda job=job: api.status(job).get("exit_code") == 0)
        api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": depth})
        crons.append(
            every_minute(api, "cat file; echo $WORD >> file; exit 3", workspace_id=name, environment={"WORD": "again"})
        )
    plain = every_minute(api, "echo $WORD", environment={"WORD": "plain"})
    shebang = every_minute(
        api, "#!/usr/bin/env python3\nimport sys; sys.exit(5)", workspace_id="froze", overlap="parallel"
    )
    own_roost.kill("serve")
    own_roost.healthy()
    run = first_end(api, plain)
    assert (run["status"], run["exit_code"]) == ("completed", 0)
    assert api.raw(run["request_id"]) == b"plain\n"
    for name, cron in zip(("froze", "chilled"), crons, strict=True):
        run = first_end(api, cron)
        assert (run["status"], run["exit_code"]) == ("error", 3), run
        output = f"/mags-jobs/{run['request_id']}/execs/{run['exec_id']}/output?format=raw"
        with api.open("GET", output) as answer:
            assert answer.read().startswith(b"first\n")
        assert api.exec(name, "cat /root/file")["stdout"].startswith("first\nagain\n")
    assert first_end(api, shebang)["exit_code"] == 5
    for cron in (plain, shebang, *crons):
        times = [run["scheduled_at"] for run in runs_of(api, cron)]
        assert len(times) == len(set(times))
        api.call("DELETE", f"/mags-cron/{cron}")


def test_the_official_clients_make_change_and_delete_schedules(program: Program) -> None:
    name = f"nightly-{secrets.token_hex(4)}"
    made, shown, listed, changed, after = program(f"""
cron = client.cron_create(name={name!r}, cron_expression="0 0 * * *", script="echo backup", workspace_id="backups")
shown = client.cron_get(cron["id"])
listed = client.cron_list()
changed = client.cron_update(cron["id"], enabled=False)
client.cron_delete(cron["id"])
try: client.cron_get(cron["id"])
except MagsError as e: after = str(e)
tell([cron, shown, listed, changed, after])
""")
    assert made == shown and made["id"]
    assert (made["name"], made["cron_expression"], made["script"]) == (name, "0 0 * * *", "echo backup")
    assert (made["workspace_id"], made["persistent"], made["enabled"]) == ("backups", False, True)
    assert made in listed["cron_jobs"]
    assert (changed["enabled"], changed["next_run_at"]) == (False, None)
    assert "there is no cron job" in after


def test_the_guides_commands_work_as_they_stand(roost: RunningRoost, tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "roost"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    environment = clean_environment() | access
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    script = "set -eux\n" + "\n".join(blocks)
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=tmp_path, env=environment, timeout=120, capture_output=True, check=False,
        stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nightly-backup" in done.stdout and "Europe/Berlin" in done.stdout
    assert not [one for one in roost.api.call("GET", "/mags-cron")["cron_jobs"] if one["name"] == "nightly-backup"]
