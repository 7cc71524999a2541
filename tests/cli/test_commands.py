"""The program as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost import __version__
from roost.cli.main import COMMANDS


def roost(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("MAGS_", "ROOST_"))} | environment
    command = [sys.executable, "-m", "roost.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=30, check=False)


def test_the_version_is_told() -> None:
    assert roost("--version").stdout == f"roost, version {__version__}\n"


@pytest.mark.parametrize("command", [name for name, (_, _, line) in COMMANDS.items() if not line])
def test_a_command_that_is_not_for_people_explains_itself_too(command: str) -> None:
    shown = roost(command, "--help")
    assert shown.returncode == 0
    assert "Usage:" in shown.stdout


def test_an_unreachable_server_ends_with_one_line_and_a_cure() -> None:
    shown = roost("list", "--url", "http://127.0.0.1:9", "--token", "t")
    assert shown.returncode == 1
    assert shown.stderr.startswith("Error: cannot reach http://127.0.0.1:9")
    assert "roost up" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_the_environment_names_the_server() -> None:
    shown = roost("status", "x", MAGS_API_URL="http://127.0.0.1:9", MAGS_API_TOKEN="t")
    assert "cannot reach http://127.0.0.1:9" in shown.stderr


def test_something_that_is_no_url_is_refused() -> None:
    shown = roost("list", "--url", "localhost:8484", "--token", "t")
    assert shown.returncode == 1
    assert "write it like http://" in shown.stderr


def test_a_state_without_credentials_is_refused(tmp_path: Path) -> None:
    shown = roost("pool", "--state", str(tmp_path))
    assert shown.returncode == 1
    assert "--state DIR" in shown.stderr


def test_doctor_finds_the_kernel_and_a_verdict_for_each_ability() -> None:
    findings = json.loads(roost("doctor", "--json").stdout)
    assert {"kernel", "cgroup", "nftables", "veth", "KVM", "user roost"} <= {f["name"] for f in findings}
    assert all(f["verdict"] in ("ok", "missing", "absent", "unknown") and f["detail"] for f in findings)
