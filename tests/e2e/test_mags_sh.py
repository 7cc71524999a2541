"""`mags.sh`, the client that needs nothing but bash, curl and jq."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.instance import RunningRoost, clean_environment, eventually

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "sdk" / "sh" / "mags.sh"


class Shell:
    """Calls it as a user of one Roost."""

    def __init__(self, roost: RunningRoost) -> None:
        self.environment = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}

    def __call__(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = clean_environment() | self.environment | variables
        return subprocess.run(
            [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def mags(roost: RunningRoost) -> Shell:
    return Shell(roost)


@pytest.fixture
def name() -> str:
    return f"sh-{time.monotonic_ns()}"


def test_shellcheck_has_no_complaint() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_run_shows_the_output_and_ends_with_the_scripts_status(mags: Shell) -> None:
    script = """printf '%s\\n' "it's \\"quoted\\" \\$HOME \\\\n"; echo "$GREETING"; echo wrong >&2; exit 7"""
    done = mags("run", "--env", "GREETING=a=b c", script)
    assert done.stdout == 'it\'s "quoted" $HOME \\n\na=b c\n'
    assert (done.returncode, done.stderr) == (7, "wrong\n")


def test_a_workspace_is_kept_and_is_a_base_for_others(mags: Shell, name: str) -> None:
    assert mags("run", "-w", name, "echo kept > file").returncode == 0
    assert mags("run", "-w", name, "cat file").stdout == "kept\n"
    forked = mags("run", "--base", name, "-e", "cat file; echo gone > file")
    assert (forked.returncode, forked.stdout) == (0, "kept\n")
    assert mags("run", "-w", name, "cat file").stdout == "kept\n"


def test_a_sandbox_that_stays_is_entered_reached_and_stopped(mags: Shell, roost: RunningRoost, name: str) -> None:
    begun = mags("run", "-w", name, "-p", "--url", "--port", "8081", "echo up; sleep 300")
    assert begun.returncode == 0, begun.stderr
    job, url = begun.stdout.split()[1:]
    assert roost.api.status(name)["request_id"] == job
    assert url.startswith("http")
    assert mags("url", name, "8082").stdout == f"{url}\n"
    done = mags("exec", name, "echo in; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\n", "err\n")
    eventually(lambda: mags("logs", name).stdout == "up\n")
    assert '"running"' in mags("status", name).stdout
    assert f"{job}\trunning\t{name}\t{name}\n" in mags("list").stdout
    assert mags("sync", name).returncode == 0
    assert mags("stop", name).returncode == 0
    assert roost.api.wait(name).status == "completed"


def test_schedules_are_added_listed_and_removed(mags: Shell, name: str) -> None:
    added = mags("cron", "add", name, "0 0 1 1 *", "echo tick")
    assert f"{added.stdout.strip()}\t0 0 1 1 *\ttrue\t{name}\n" in mags("cron", "list").stdout
    assert mags("cron", "remove", added.stdout.strip()).returncode == 0
    assert name not in mags("cron", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 0, ""),
        (("nonsense",), 2, "unknown command"),
        (("run",), 2, "give a script"),
        (("run", "--url", "true"), 2, "needs -p"),
        (("run", "-t", "soon", "true"), 2, "whole number"),
        (("run", "one", "two"), 2, "quotes"),
        (("run", "--env", "X", "true"), 2, "no such variable here"),
        (("run", "-w"), 2, "needs a value"),
        (("run", "--nonsense", "true"), 2, "unknown option"),
        (("run", ""), 1, "empty"),
        (("status",), 2, "which job"),
        (("status", "no such job"), 1, "no such job"),
        (("logs", "nobody"), 1, "nobody"),
        (("url", "nobody", "x"), 2, "whole number"),
    ],
)
def test_what_is_wrong_is_said(mags: Shell, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = mags(*arguments)
    assert done.returncode == status, done.stderr
    assert words in done.stderr


def test_without_a_token_or_a_server_it_says_what_to_set(mags: Shell) -> None:
    assert "MAGS_API_TOKEN" in mags("list", MAGS_API_TOKEN="").stderr
    assert "MAGS_API_URL" in mags("list", MAGS_API_URL="http://127.0.0.1:9").stderr
    assert "not known" in mags("list", MAGS_API_TOKEN="wrong").stderr


def test_the_guides_commands_work_as_written(mags: Shell, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "shell.md").read_text()
    (commands,) = re.findall(r"^```sh\n(.*?)^```", guide, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mags.sh").symlink_to(SCRIPT)
    environment = clean_environment() | mags.environment
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", commands], env=environment, capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.startswith("Hello\ndata\njob ")
