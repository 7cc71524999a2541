"""Usage of real sandboxes: what is burnt and sent is told once, also when the control plane is killed meanwhile."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.instance import PROGRAM, Api, RunningRoost, clean_environment, eventually
from tests.e2e.test_urls import program_with

pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parents[2] / "docs" / "usage.md"
BURN = "(ulimit -t 1; while :; do :; done); true"  # a second of CPU
SEND = """python3 -c '
import socket
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(1100): out.sendto(b"x" * 1000, ("192.0.2.1", 9))
'"""  # 1.1 MB that leave by eth0, wherever they get to


def of_workspace(api: Api, name: str) -> dict[str, Any]:
    told = api.call("GET", "/mags-jobs/usage?window_days=1")
    found = [one for one in told["workspaces"] if one["workspace_id"] == name]
    return found[0] if found else {}


def kernels_count(roost: RunningRoost, job: str) -> float:
    """Seconds of CPU that the job's sandbox has had."""
    site = roost.site_of(job)
    if Path("/sys/fs/cgroup/cpuacct").is_dir():
        return int(site.control("cpuacct", "cpuacct.usage")) / 1e9
    return int(site.control("", "cpu.stat").split()[1]) / 1e6


def counted(api: Api, name: str) -> dict[str, Any]:
    """Once its sandbox has gone, which is after its job has ended."""
    eventually(lambda: of_workspace(api, name).get("cpu_seconds"), 20)
    return of_workspace(api, name)


def test_cpu_and_traffic_of_a_job_are_told(roost: RunningRoost) -> None:
    ended = roost.api.run(f"{BURN}\n{SEND}", workspace_id="usage-burn")
    assert ended.exit_code == 0, ended.stderr
    used = counted(roost.api, "usage-burn")
    assert 0.5 < used["cpu_seconds"] < 6
    assert used["total_jobs"] == 1
    assert 1_100_000 < used["bytes_out"] < 1_500_000
    assert 0.5 < used["vm_seconds"] < 60
    assert used["memory_mb_seconds"] > 0.1  # about a megabyte, for about a second
    assert used["frozen_seconds"] == 0


def test_kills_of_the_control_plane_count_nothing_twice_and_lose_nothing(mortal_roost: RunningRoost) -> None:
    api, script = mortal_roost.api, f"{BURN}\necho burnt\nsleep 1000"
    job = api.submit(script, workspace_id="usage-killed", timeout_seconds=600)
    api.said(job, b"burnt")
    first = eventually(lambda: of_workspace(api, "usage-killed").get("cpu_seconds"), 60)  # the first reading
    burnt = kernels_count(mortal_roost, job)
    for _ in range(2):
        mortal_roost.kill("serve")
        mortal_roost.healthy()
    mortal_roost.kill("serve", "node")
    mortal_roost.healthy()
    api.stop(job)
    api.wait(job)
    used = eventually(lambda: (now := of_workspace(api, "usage-killed"))["vm_seconds"] > 1 and now, 20)
    assert first <= used["cpu_seconds"]
    assert burnt - 0.1 < used["cpu_seconds"] < 1.5 * burnt
    state = api.status(job)
    assert used["vm_seconds"] < 600, state


@pytest.mark.parametrize("version", ["1.3.8"])
def test_the_official_client_tells_usage(roost: RunningRoost, version: str) -> None:
    roost.api.run("true")
    told = program_with(version, roost)("tell(client.usage(window_days=7))")
    assert told["window_days"] == 7
    assert told["total_jobs"] >= 1
    assert f"{told['vm_seconds']:.0f}"


def test_the_guides_commands_do_what_it_says(roost: RunningRoost, tmp_path: Path) -> None:
    program = tmp_path / "roost"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    environment = clean_environment() | access | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL))
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", commands], env=environment, timeout=120, capture_output=True,
        check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert re.search(r"^WORKSPACE +JOBS +AWAKE", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^reports +1 ", done.stdout, flags=re.MULTILINE)
    assert '"window_days": 1' in done.stdout
    assert '"window_days":7' in done.stdout
    assert 'roost_jobs{status="running"}' in done.stdout


def test_quotas_are_set_shown_and_hold(roost: RunningRoost) -> None:
    def said(*words: str) -> str:
        done = roost.command("quota", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    assert "no limit" in said("show")
    assert "100000" in said("set", "default", "--running", "100000")
    assert roost.api.run("true").status == "completed"
    assert '"running": 100000' in said("show", "default", "--json")
    said("set", "default")
    assert "100000" not in said("show")


def test_the_audit_log_tells_who_did_what(roost: RunningRoost) -> None:
    job = roost.api.submit("true")
    roost.api.wait(job)
    told = eventually(
        lambda: (said := roost.command("audit", "--resource", job).stdout.decode()) and job in said and said
    )
    assert "token credentials.json" in told and "POST /mags-jobs" in told
