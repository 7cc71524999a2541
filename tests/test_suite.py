"""The suite itself: whatever a failed test leaves, the run ends and names what failed."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STUCK = """
import asyncio
import pytest

async def for_ever():
    while True:
        try:
            await asyncio.sleep(100)
        except BaseException:
            pass

@pytest.fixture
async def never_ends():
    yield
    await for_ever()

async def test_whose_fixture_never_ends(never_ends):
    assert False

async def test_that_never_ends():
    await for_ever()

def test_that_is_fine():
    pass
"""
LEAVING = """
import subprocess
import time

def test_that_leaves_a_child():
    time.sleep(0.1)  # what is begun in the tick of a fixture's end may be the fixture's
    subprocess.Popen(["sleep", "SECONDS.5"])

def test_that_leaves_an_orphan():
    subprocess.run(["sh", "-c", "sleep SECONDS.25 >/dev/null 2>&1 &"])
"""
PROJECT = Path(__file__).parent.parent


def suite(place: Path, tests: str, *options: str, **environment: str) -> tuple[int, str]:
    """Exit status and report of a suite of its own."""
    with begun(place, tests, *options, **environment) as running:
        report, _ = running.communicate(timeout=120)
    return running.returncode, report


def begun(place: Path, tests: str, *options: str, **environment: str) -> "subprocess.Popen[str]":
    (place / "test_them.py").write_text(tests)
    (place / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\ntimeout = 1\ngrace = 2\n")
    words = [sys.executable, "-m", "tests.supervised", "-p", "tests.conftest", "-n", "1", *options, str(place)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=PROJECT, env=os.environ | environment, **pipes)


def test_a_test_or_a_fixture_that_never_ends_is_named_and_the_rest_runs(tmp_path: Path) -> None:
    status, report = suite(tmp_path, STUCK)
    assert status == 1 and "1 passed" in report, report
    for name in ("test_whose_fixture_never_ends", "test_that_never_ends"):
        assert f"::{name}" in report.partition("short test summary")[2], report


def test_what_a_test_starts_ends_with_it_and_is_a_failure(tmp_path: Path) -> None:
    seconds = str(random.randrange(10**6, 10**7))  # by which they are known
    status, report = suite(tmp_path, LEAVING.replace("SECONDS", seconds))
    assert status == 1, report
    assert "ERROR at teardown of test_that_leaves_a_child" in report, report
    assert "processes that it started were left: " in report and f"sleep {seconds}.5" in report, report
    assert "processes that the suite left:\n" in report and f"sleep {seconds}.25" in report, report
    assert not any(seconds.encode() in words for words in _running())


def test_a_suite_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    tests = "import time\ndef test_it(): time.sleep(1000)\n"
    status, report = suite(tmp_path, tests, "-o", "timeout=0", ROOST_TEST_MINUTES="0.02")
    assert status != 0 and "is ended" in report, report


def test_a_suite_that_is_ended_names_what_has_failed(tmp_path: Path) -> None:
    tests = "import time\ndef test_first(): assert False\ndef test_second(): time.sleep(1000)\n"
    with begun(tmp_path, tests, "-v", "-o", "timeout=0") as running:
        assert running.stdout
        begun_reports = iter(running.stdout.readline, "")
        next(line for line in begun_reports if "FAILED" in line and "test_first" in line)
        running.send_signal(signal.SIGTERM)
        report, _ = running.communicate(timeout=60)
    assert running.returncode != 0 and "FAILED" in report and "::test_first" in report, report


def test_what_failed_is_tried_once_more_where_that_is_asked_for(tmp_path: Path) -> None:
    tests = """
from pathlib import Path

def test_that_fails_once():
    mark = Path(__file__).with_name("mark")
    assert mark.exists() or mark.touch()

def test_that_always_fails():
    assert False
"""
    status, report = suite(tmp_path, tests, "--again")
    assert status == 1 and "2 failed" in report and "1 failed, 1 passed" in report, report
    (tmp_path / "mark").unlink()
    status, report = suite(tmp_path, tests.partition("def test_that_always")[0], "--again")
    assert status == 0 and "1 failed" in report and "1 passed" in report, report


def _running() -> list[bytes]:
    found: list[bytes] = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(place.read_bytes())
        except OSError:
            continue
    return found
