"""A control plane as `roost up` starts it: a process of its own, an ordinary user, here without any node."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.workspaces.conftest import Api, an_api, another_account

TOKEN = "test-token-0123456789abcdef"
NOBODY = 65534
START = """
import resource
import sys
from pathlib import Path
from roost.serve import serve
from roost.settings import ServeSettings
state, listen, limit = sys.argv[1:]
if limit != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
free = {"gateway": "127.0.0.1:0", "ssh": "127.0.0.1:0"}
settings = ServeSettings(Path(state), Path(state) / "no-node.sock", listen, **free)
serve(settings, sys.stdin.readline().strip())
"""


@dataclass
class Served:
    """A running control plane."""

    process: subprocess.Popen[str]
    url: str
    events: Path

    def client(self, token: str = TOKEN) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=10)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def launch(
    state: Path, events: Path, port: int = 0, token: str = TOKEN, root: bool = False, file_size: int = 0
) -> subprocess.Popen[str]:
    ordinary = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 and not root else {}
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(state), f"127.0.0.1:{port}", str(file_size)],
        stdin=subprocess.PIPE,
        stderr=events.open("w"),
        text=True,
        cwd="/",
        **ordinary,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(token + "\n")
        process.stdin.close()
    return process


def serving(state: Path, token: str = TOKEN, file_size: int = 0) -> Served:
    events = state.parent / "events"
    process = launch(state, events, token=token, file_size=file_size)
    while process.poll() is None:
        for line in events.read_text().splitlines():
            if '"serve.listening"' in line:
                return Served(process, f"http://127.0.0.1:{json.loads(line)['port']}", events)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    raise AssertionError(f"the control plane ended: {events.read_text()}")


def _state() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="roost-serve-", dir="/tmp"))
    place.chmod(0o711)
    state = place / "serve"
    state.mkdir()
    if os.geteuid() == 0:
        os.chown(state, NOBODY, NOBODY)
    try:
        yield state
    finally:
        shutil.rmtree(place)


def _served(state: Path) -> Iterator[Served]:
    served = serving(state)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.kill()


@pytest.fixture
def state() -> Iterator[Path]:
    """An empty directory that an ordinary user may write."""
    yield from _state()


@pytest.fixture
def served(state: Path) -> Iterator[Served]:
    yield from _served(state)


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    """A client of one control plane for all tests of a module, which leave no mark that another would see."""
    for state in _state():
        for served in _served(state):
            with served.client() as client:
                yield client


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """The application with a node in memory behind it."""
    async with an_api(tmp_path) as api:
        yield api


@pytest.fixture
async def stranger(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the same server with another account."""
    async with another_account(api) as client:
        yield client
