"""The client as one file, as somebody gets and uses it who has curl and Python: no checkout, no environment of ours."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.instance import RunningRoost

NAMES = ("mags-darwin-arm64", "mags-darwin-amd64", "mags-linux-amd64")
LIMIT = 15_000_000  # bytes


def bare(home: Path, **variables: str) -> dict[str, str]:
    """The environment of somebody who has the system's programs only."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), **variables}


def downloaded(roost: RunningRoost, place: Path, name: str = "mags-linux-amd64") -> Path:
    """By the documents' own lines."""
    url = f"{roost.api.url}/mags/latest/{name}"
    script = f"curl -fsSL {url} -o mags && chmod +x mags && curl -fsSL {url}.sha256 -o {name}.sha256"
    subprocess.run(["sh", "-ec", script], cwd=place, check=True, env=bare(place))
    return place / "mags"


@pytest.mark.parametrize("name", NAMES)
def test_each_download_of_the_documents_is_there_with_its_checksum(
    roost: RunningRoost, tmp_path: Path, name: str
) -> None:
    program = downloaded(roost, tmp_path, name)
    assert program.stat().st_size < LIMIT
    program.rename(tmp_path / name)
    subprocess.run(["sha256sum", "-c", f"{name}.sha256"], cwd=tmp_path, check=True, capture_output=True)
    again = downloaded(roost, tmp_path, name)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256((tmp_path / name).read_bytes()).digest()


def test_it_needs_python_alone(roost: RunningRoost, tmp_path: Path) -> None:
    program = downloaded(roost, tmp_path)
    variables = bare(tmp_path, MAGS_API_URL=roost.api.url, MAGS_API_TOKEN=roost.api.token)

    def mags(*words: str, status: int = 0, **more: object) -> bytes:
        shown = subprocess.run(
            ["python3", "-I", str(program), *words], capture_output=True, env=variables, timeout=90, cwd="/", **more
        )  # type: ignore[call-overload]
        assert shown.returncode == status, shown
        return shown.stdout

    assert mags("run", "printf 'a\\377b'; exit 3", status=3) == b"a\xffb"
    name = f"one-file-{os.getpid()}"
    mags("new", name)
    assert mags("exec", name, "--", "echo", "a  b") == b"a  b\n"
    assert mags("exec", "-i", name, "cat", input=bytes(range(256))) == bytes(range(256))  # by its WebSocket
    assert name.encode() in mags("ps")
    assert b"mags exec NAME" in mags("skill", "show")
    assert b"mags" in mags("completion", "bash")
    mags("stop", name)


def test_it_says_what_it_leaves_to_a_whole_roost(roost: RunningRoost, tmp_path: Path) -> None:
    program = downloaded(roost, tmp_path)
    shown = subprocess.run([program, "up"], capture_output=True, text=True, env=bare(tmp_path), check=False)
    assert shown.returncode == 2 and "for the machine that runs Roost" in shown.stderr
    brief = subprocess.run([program, "--help"], capture_output=True, text=True, env=bare(tmp_path), check=True).stdout
    assert "Usage: mags" in brief and "\n  up " not in brief and "\n  run " in brief


def test_what_is_not_there_says_what_is(roost: RunningRoost) -> None:
    shown = subprocess.run(["curl", "-s", f"{roost.api.url}/mags/latest/mags-plan9"], capture_output=True, check=True)
    assert b"mags-linux-amd64" in shown.stdout
