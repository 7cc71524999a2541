"""What holds for every test, however it ends: it has a limit, its fixtures' ends too, and its processes end with it.

A test that fails may leave anything: a client that waits, a server that waits for that client. So each phase has a
limit of its own: first an exception where the test stands (pytest-timeout), then the end of this worker, which xdist
replaces, naming the test that was running.
"""

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import pytest_timeout

from tests.processes import TICK, children, command, is_alive, kept, since_boot, started_at

ENDING = 10.0  # seconds that a process has after SIGTERM

_setups: list[tuple[float, float]] = []  # when fixtures that outlive a test were set up, in seconds since boot
_errors = -1  # standard error as it was before pytest captured it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("grace", "seconds from a phase's limit to the end of the worker", default="60")


def pytest_configure(config: pytest.Config) -> None:
    global _errors
    _errors = os.dup(2)
    config.pluginmanager.register(Setups())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    _bound(item)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Its own limit: that of a test that ran into its limit is used up."""
    settings = pytest_timeout._get_item_settings(item)
    if settings.timeout:
        item.ihook.pytest_timeout_set_timer(item=item, settings=settings)
    _bound(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _bound(item: pytest.Item) -> None:
    if limit := pytest_timeout._get_item_settings(item).timeout:
        faulthandler.dump_traceback_later(limit + float(item.config.getini("grace")), file=_errors, exit=True)


class Setups:
    """A plugin of its own: of a session's fixtures pytest tells no conftest below the project's root."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        begun = since_boot()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                _setups.append((begun, since_boot()))


@pytest.fixture(autouse=True)
def _processes_end_with_their_test() -> Iterator[None]:
    """Told by when they began, since the kernel's list of children may leave some out while others end."""
    begun = since_boot()
    yield
    left = {pid for pid in children(os.getpid()) - kept if _is_of_the_test(pid, begun)}
    commands = [command(pid) for pid in left]
    _end(left)
    if commands:
        pytest.fail(f"processes that it started were left: {'; '.join(commands)}", pytrace=False)


def _is_of_the_test(pid: int, begun: float) -> bool:
    """Neither older nor begun by a fixture that outlives it; a start is known to a tick, and in doubt it is not."""
    started = started_at(pid)
    return started - TICK > begun and not any(first <= started <= last + TICK for first, last in _setups)


def _end(pids: set[int]) -> None:
    """SIGTERM, so that `roost up` may clean up after itself; then SIGKILL."""
    for number, seconds in ((signal.SIGTERM, ENDING), (signal.SIGKILL, ENDING)):
        deadline = time.monotonic() + seconds
        for pid in filter(is_alive, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.01)
