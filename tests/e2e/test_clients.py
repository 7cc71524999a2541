"""The official `magpie-mags` clients from the package index, unmodified, each in an environment of its own.

Each test is a small program of a user, run as a process with MAGS_API_URL and MAGS_API_TOKEN and nothing else.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.instance import RunningRoost, clean_environment

VERSIONS = ("1.3.8", "1.0.0")
CACHE = Path(tempfile.gettempdir()) / f"roost-e2e-clients-{os.getuid()}"
PREAMBLE = """
import json, sys, time
from mags import Mags
from mags.client import MagsError
client = Mags()
def tell(value): print(json.dumps(value))
"""

Program = Callable[..., Any]


def interpreter(version: str, package: str = "magpie-mags") -> Path:
    """Python of an environment that holds this version; made once for each machine."""
    CACHE.mkdir(mode=0o700, exist_ok=True)
    place = CACHE / (version if package == "magpie-mags" else f"{package}-{version}")
    python = place / "bin" / "python"
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            for command in installing(place, f"{package}=={version}"):
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
                if done.returncode:
                    pytest.skip(f"{package} {version} could not be installed: {done.stderr[-400:]}")
            (place / "ready").touch()
    return python


def installing(place: Path, requirement: str) -> list[list[str]]:
    python = str(place / "bin" / "python")
    if uv := shutil.which("uv"):
        return [[uv, "venv", "-q", "--python", sys.executable, str(place)],
                [uv, "pip", "install", "-q", "--python", python, requirement]]  # fmt: skip
    return [[sys.executable, "-m", "venv", str(place)], [python, "-m", "pip", "install", "-q", requirement]]


@pytest.fixture(params=VERSIONS)
def program(request: pytest.FixtureRequest, roost: RunningRoost) -> Program:
    """Runs a program with one version of the client and gives what it told."""
    return program_with(request.param, roost)


@pytest.fixture
def new_program(roost: RunningRoost) -> Program:
    """With the version that also stops, finds and executes."""
    return program_with("1.3.8", roost)


def program_with(version: str, roost: RunningRoost) -> Program:
    python = interpreter(version)

    def run(text: str, **variables: str) -> Any:
        access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
        done = subprocess.run(
            [python, "-c", PREAMBLE + text],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env=clean_environment() | access | variables,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_short_script_is_over_at_the_first_question_after_it(program: Program) -> None:
    """A second passes before the client asks again."""
    asked = program(
        "ask, asked = client.status, []\n"
        "client.status = lambda *what: asked.append(what) or ask(*what)\n"
        "for _ in range(5): client.run_and_wait('echo')\n"
        "tell(len(asked))"
    )
    assert asked < 10


def test_a_script_is_run_and_waited_for(program: Program) -> None:
    result = program("tell(client.run_and_wait('echo hello; echo wrong >&2; exit 0', poll_interval=0.05))")
    assert (result["status"], result["exit_code"]) == ("completed", 0)
    assert result["duration_ms"] >= 0
    assert {(entry["message"], entry["source"]) for entry in result["logs"]} == {
        ("hello", "stdout"),
        ("wrong", "stderr"),
    }
    assert set(result["logs"][0]) == {"timestamp", "level", "message", "source"}


def test_a_script_that_fails_is_an_error_with_its_status(program: Program) -> None:
    result = program("tell(client.run_and_wait('echo before; exit 3', poll_interval=0.05))")
    assert (result["status"], result["exit_code"]) == ("error", 3)
    assert result["logs"][0]["message"] == "before"


def test_name_and_environment_are_handed_on(program: Program) -> None:
    name = f"client-{time.monotonic_ns()}"
    result = program(
        f"""
job = client.run('echo $GREETING', name={name!r}, environment={{'GREETING': 'good day'}}, ephemeral=True)
assert job['status'] == 'accepted', job
while client.status(job['request_id'])['status'] not in ('completed', 'error'): time.sleep(0.02)
tell([client.status(job['request_id']), client.logs(job['request_id']), client.list_jobs(page=1, page_size=5)])
"""
    )
    status, logs, page = result
    assert (status["name"], status["status"], status["exit_code"]) == (name, "completed", 0)
    assert status["script_duration_ms"] >= 0
    assert [entry["message"] for entry in logs["logs"]] == ["good day"]
    assert page["jobs"][0]["request_id"] == status["request_id"]
    assert (page["page"], page["page_size"]) == (1, 5)
    assert page["total"] >= 1


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("client.status('no-such-job')", 404, "no-such-job"),
        ("client.logs('no-such-job')", 404, "no-such-job"),
        ("client.run('')", 400, "script"),
        ("client.run('true', name='a/b')", 400, "name"),
        ("client.run('true', environment={'1x': 'y'})", 400, "environment"),
        ("Mags(api_token='wrong' * 10).list_jobs()", 401, "token"),
    ],
)
def test_refusals_are_errors_with_status_and_text(program: Program, call: str, status: int, words: str) -> None:
    text, code = program(f"try: {call}\nexcept MagsError as e: tell([str(e), e.status_code])")
    assert code == status
    assert words in text
    assert "{" not in text


def test_a_job_that_outlasts_the_wait_is_the_clients_own_error(program: Program) -> None:
    text = program("""
try: client.run_and_wait('sleep 5', timeout=0.3, poll_interval=0.05)
except MagsError as e: tell(str(e))
""")
    assert "timed out" in text


def test_the_older_name_of_the_token_and_a_slash_at_the_end_of_the_address_work(
    program: Program, roost: RunningRoost
) -> None:
    result = program(
        "tell(client.list_jobs()['page'])",
        MAGS_API_TOKEN="",
        MAGS_TOKEN=roost.api.token,
        MAGS_API_URL=f"{roost.api.url}/",
    )
    assert result == 1


def test_running_jobs_are_found_entered_and_stopped_by_name(new_program: Program) -> None:
    name = f"found-{time.monotonic_ns()}"
    found, result, failed, stopped, after = new_program(
        f"""
job = client.run('echo ready; sleep 100', name={name!r})
while not client.logs(job['request_id'])['logs']: time.sleep(0.02)
found = client.find_job({name!r})
result = client.exec({name!r}, 'echo out; echo err >&2; exit 7')
failed = client.exec({name!r}, 'sleep 20', timeout=1)
stopped = client.stop({name!r})
tell([found, result, failed, stopped, client.status(job['request_id'])])
"""
    )
    assert (found["name"], found["status"]) == (name, "running")
    assert result == {"exit_code": 7, "output": "out\n", "stderr": "err\n"}
    assert failed["exit_code"] == 137
    assert stopped["success"] is True
    assert after["status"] == "completed"


def test_nothing_is_found_where_there_is_nothing(new_program: Program) -> None:
    found, text = new_program("""
found = client.find_job('nobody')
try: client.stop('nobody')
except MagsError as e: tell([found, str(e)])
""")
    assert found is None
    assert "nobody" in text


def test_image_and_disk_are_asked_for_by_the_newer_client(new_program: Program) -> None:
    result = new_program(
        "tell(client.run_and_wait('df -k / | tail -1', rootfs_type='standard', disk_gb=1, poll_interval=0.05))"
    )
    assert result["exit_code"] == 0
    assert int(result["logs"][0]["message"].split()[1]) <= 1024**2


def test_a_setting_that_cannot_hold_is_refused_in_words(new_program: Program) -> None:
    text, code = new_program("""
try: client.run('true', environment={'__MAGS_IDLE_MIN': '5'})
except MagsError as e: tell([str(e), e.status_code])
""")
    assert code == 400
    assert "needs persistent" in text
