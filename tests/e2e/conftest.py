"""Instances of the real thing: one that a worker's tests share, and one's own for tests that kill or fill things.

Each lives in a directory below /tmp, is stopped by SIGTERM, and must then have left nothing on the machine. What
`roost up` wrote is shown with every test that fails.
"""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.instance import FINAL, Api, RunningRoost, eventually
from tests.processes import kept

LOG_TAIL = 12_000  # characters of `roost up` shown with a failure

Start = Callable[..., RunningRoost]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.skipif(os.geteuid() != 0, reason="roost up needs root"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo[None], None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        values = getattr(item, "funcargs", {}).values()
        for instance in [value for value in values if isinstance(value, RunningRoost)]:
            report.sections.append((f"roost up in {instance.place}", instance.tail(LOG_TAIL)))


@contextlib.contextmanager
def an_instance(*arguments: str) -> Generator[RunningRoost]:
    """Not started yet; stopped and checked on the way out, and ended by force where that fails."""
    with a_place() as place:
        instance = RunningRoost(place, arguments)
        try:
            yield instance
            if instance.process and instance.process.poll() is None:
                assert instance.terminate() == 0, instance.said()[-LOG_TAIL:]
            eventually(lambda: not instance.left_behind(), 10, f"left behind: {instance.left_behind()}")
        finally:
            end_by_force(instance)
            instance.remember()


@contextlib.contextmanager
def a_place() -> Generator[Path]:
    place = Path(tempfile.mkdtemp(prefix="roost-e2e-", dir="/tmp"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def end_by_force(instance: RunningRoost) -> None:
    """After a failure: what is left would trouble the tests that follow."""
    if instance.process and instance.process.poll() is None:
        instance.process.kill()
        instance.process.wait(10)
    if instance.left_behind():  # the next start on the same state removes all of it
        with contextlib.suppress(AssertionError, OSError):
            instance.start()
            instance.terminate()
    if instance.process and instance.process.poll() is None:
        instance.process.send_signal(signal.SIGKILL)
        instance.process.wait(10)


@pytest.fixture(scope="session")
def roost() -> Iterator[RunningRoost]:
    """Running; shared by tests that leave it as it was but for more jobs."""
    with an_instance() as instance:
        yield instance.start()


@pytest.fixture
def api(roost: RunningRoost) -> Api:
    return roost.api


@pytest.fixture
def own_roost() -> Iterator[RunningRoost]:
    """Running, for one test alone."""
    with an_instance("--min-pool-size", "1") as instance:
        yield instance.start()


@pytest.fixture(scope="session")
def _mortal_roost() -> Iterator[RunningRoost]:
    with an_instance("--min-pool-size", "1") as instance:
        yield instance.start()


@pytest.fixture
def mortal_roost(_mortal_roost: RunningRoost) -> Iterator[RunningRoost]:
    """Running; shared by tests that kill its programs and see that all comes back, under names of their own."""
    if not _mortal_roost.process or _mortal_roost.process.poll() is not None:
        _mortal_roost.start()  # the test before failed half-way
    _mortal_roost.healthy()
    yield _mortal_roost
    kept.add(_mortal_roost.process.pid)  # of a start that the test made
    with contextlib.suppress(OSError, http.client.HTTPException):
        for job in _mortal_roost.api.jobs():
            if job["status"] not in FINAL:
                _mortal_roost.api.ask("POST", f"/mags-jobs/{job['request_id']}/stop")


@pytest.fixture
def unstarted_roost() -> Iterator[RunningRoost]:
    with an_instance("--min-pool-size", "1") as instance:
        yield instance


@pytest.fixture(scope="session")
def probe_shell(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static /bin/sh for images that hold nothing else; see probe_shell.c."""
    program = tmp_path_factory.mktemp("probe") / "sh"
    source = Path(__file__).with_name("probe_shell.c")
    subprocess.run(["musl-gcc", "-static", "-Os", "-Wall", "-o", program, source], check=True)
    return program.read_bytes()
