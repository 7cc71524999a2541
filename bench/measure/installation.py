"""A Roost of the benchmark's own: `roost up` in a temporary directory, on a free port, and what must be gone after."""

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure.client import Client

ROOST = Path(sys.executable).with_name("roost")
READY_SECONDS = 60
SETTLE_SECONDS = 60
STOP_SECONDS = 90
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Installation:
    """A running Roost. `start_seconds`: from its start until it said that it is ready."""

    state: Path
    client: Client
    pid: int
    number: int
    start_seconds: float
    gateway: tuple[str, int]  # where sandboxes' ports are reached by host name
    ssh: tuple[str, int]

    @property
    def programs(self) -> dict[str, int]:
        """The pids of `up` and of the two programs that it keeps running."""
        found = {"up": self.pid}
        for pid in children(self.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            found |= {name: pid for name in ("serve", "node") if name.encode() in words}
        return found

    async def settled(self, idle: int | None = None) -> dict[str, int]:
        """Waits until nothing runs and the pool holds `idle` members (None: at least its minimum); tells the pool."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            pool = await self.client.pool()
            enough = pool["idle_vms"] == idle if idle is not None else pool["idle_vms"] >= pool["min_pool_size"]
            if enough and pool["busy_vms"] == 0 and pool["total_vms"] == pool["idle_vms"]:
                return pool
            if time.monotonic() > deadline:
                raise TimeoutError(f"the pool did not settle: {pool}")
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def installation(min_pool_size: int = 3, options: Sequence[str] = ()) -> AsyncGenerator[Installation]:
    """Stopped at the end, however that comes. RuntimeError when it cannot start, or leaves something behind."""
    state = Path(tempfile.mkdtemp(prefix="roost-bench-"))
    errors = state / "stderr"
    gateway, ssh = free_address(), free_address()
    command = [str(ROOST), "up", "--state", str(state / "state"), "--listen", "127.0.0.1:0"]
    command += ["--gateway", ":".join(map(str, gateway)), "--ssh", ":".join(map(str, ssh)), *options]
    begun = time.monotonic()
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--min-pool-size", str(min_pool_size)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=_stop_with_parent,
        )
    number = -1
    try:
        await asyncio.wait_for(asyncio.to_thread(_await_ready, process, errors), READY_SECONDS)
        number = _number(state / "state")
        credentials = json.loads((state / "state/credentials.json").read_bytes())
        async with Client(credentials["api_url"], credentials["api_token"]) as client:
            here = Installation(state / "state", client, process.pid, number, time.monotonic() - begun, gateway, ssh)
            await here.settled()
            yield here
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS)
        finally:
            process.kill()
            process.wait()
        left = leftovers(state, number)
        if left:
            raise RuntimeError(f"Roost left behind: {'; '.join(left)} (its state is in {state})")
        shutil.rmtree(state)


def free_address() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1", probe.getsockname()[1]


def _stop_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _await_ready(process: "subprocess.Popen[bytes]", errors: Path) -> None:
    assert process.stdout
    for line in process.stdout:
        if b"ready" in line:
            return
    said = errors.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"`roost up` ended with status {process.wait()}: {said}")


def _number(state: Path) -> int:
    for file in Path("/run/roost").glob("*/state"):
        if file.read_text().strip() == str(state):
            return int(file.parent.name)
    raise RuntimeError(f"no instance in /run/roost has the state {state}")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def leftovers(state: Path, number: int) -> list[str]:
    """What is still there of an instance that has stopped; each thing in its own words."""
    left = [f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    left = [mount for mount in left if str(state) in mount or f"/run/roost/{number}/" in mount]
    left += [f"link {name}" for name in os.listdir("/sys/class/net") if name.startswith(f"r{number}v")]
    left += [f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"**/roost-{number}")]
    left += [f"loop device on {text}" for text in _loop_files() if str(state) in text]
    runtime_dir = Path(f"/run/roost/{number}")
    left += [f"directory {runtime_dir}"] if runtime_dir.exists() else []
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=20).stdout
    return left + [f"nft table {line}" for line in tables.splitlines() if line.endswith(f" roost{number}")]


def _loop_files() -> list[str]:
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    texts: list[str] = []
    for file in files:
        with contextlib.suppress(OSError):
            texts.append(file.read_text().strip())
    return texts
