"""A real node for the tests: `roost node` as a process of its own, which can be killed and started again.

It stands on an instance number of the tests' own and an image of busybox. Leaving it ends every sandbox, then the
node by SIGTERM, which must leave nothing behind.
"""

import asyncio
import contextlib
import grp
import io
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from roost.errors import NodeUnavailable
from roost.node.client import NodeClient
from roost.node.protocol import Limits, SandboxState, StartProcess, StartSandbox, StopSandbox
from tests.processes import kept

from .guest_world import LIMIT, lay_image, own_number

IMAGE = "busybox"
START = 60.0  # seconds
_boxes = itertools.count()


@dataclass
class RealNode:
    directory: Path
    number: int
    process: asyncio.subprocess.Process | None = None
    client: NodeClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = NodeClient(self.directory / "run/node.sock")

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncGenerator["RealNode"]:
        with own_number() as number:
            directory = Path(f"/tmp/roost-test-daemon-{number}")
            if directory.exists():
                await _sweep(directory, number)
            (directory / "run").mkdir(parents=True, mode=0o711)
            directory.chmod(0o711)
            node = cls(directory, number)
            async with node.client:
                try:
                    await node.start()
                    await node._import_image()
                    yield node
                    await node.end()
                finally:
                    await node.kill()
                    await _sweep(directory, number)

    async def start(self) -> None:
        """Returns when it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command_of(self.directory, self.number), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        kept.add(self.process.pid)  # of a start that a test made, too; leaving the node ends it
        deadline = time.monotonic() + START
        while True:
            try:
                await self.client.info()
                return
            except NodeUnavailable:
                assert self.process.returncode is None and time.monotonic() < deadline, self.said()
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        await self._leave(signal.SIGKILL)

    async def terminate(self) -> None:
        await self._leave(signal.SIGTERM)

    async def _leave(self, number: int) -> None:
        if self.process and self.process.returncode is None:
            self.process.send_signal(number)
            async with asyncio.timeout(START):
                await self.process.wait()

    async def restart(self) -> None:
        """As after a crash."""
        await self.kill()
        await self.start()

    async def end(self) -> None:
        """Everything ends in order, and nothing is left."""
        if self.process and self.process.returncode is None:
            await self.stop_all()
            await self.terminate()
            assert not list((self.directory / "run").iterdir()), self.said()
            assert self.process.returncode == 0, self.said()

    async def stop_all(self) -> None:
        async for event in self.client.events():
            if event.snapshot:
                break
            if event.state and event.state.phase != "ended":
                await self.client.stop(event.state.id, StopSandbox(grace_seconds=0))

    def said(self) -> str:
        return (self.directory / "log").read_text()[-8000:]

    async def box(self, script: str = "exec sleep 1000", **fields: object) -> "Box":
        """A sandbox that runs the script; `fields` are those of StartSandbox."""
        id = f"t{next(_boxes)}{secrets.token_hex(3)}"
        limits = Limits(vcpus=2, memory_mb=256, disk_gb=1, pids=256, timeout_seconds=0)
        wanted = {"image": IMAGE, "environment": {"COLOR": "red"}, "hostname": id, "limits": limits} | fields
        request = StartSandbox(script=script.encode(), **wanted)  # pyright: ignore[reportArgumentType]
        async with asyncio.timeout(START):
            return Box(self, id, await self.client.start(id, request))

    async def _import_image(self) -> None:
        packed = await asyncio.to_thread(_packed_image, self.directory / "rootfs")

        async def chunks() -> AsyncIterator[bytes]:
            yield packed

        async for progress in self.client.import_image(IMAGE, chunks()):
            assert not progress.error, progress.error


@dataclass
class Box:
    """A sandbox of a real node."""

    node: RealNode
    id: str
    state: SandboxState

    async def said(self) -> bytes:
        return b"".join([record.data async for record in self.node.client.log(self.id) if record.source == "stdout"])

    async def run(self, command: str, **fields: object) -> tuple[bytes, int | None]:
        """Standard output and exit code of a shell command in a session. `fields` are those of StartProcess."""
        async with asyncio.timeout(LIMIT), self.node.client.session(self.id, shell(command, **fields)) as session:
            output = b"".join([data async for source, data in session.output() if source == "stdout"])
            return output, (await session.end()).exit_code

    async def stop(self) -> SandboxState:
        return await self.node.client.stop(self.id, StopSandbox(grace_seconds=0))

    async def until_gone(self, command: str) -> None:
        """Returns when no process of the sandbox has `command` in its command line."""
        async with asyncio.timeout(LIMIT):
            while command.encode() in (await self.run("ps -o args"))[0]:
                await asyncio.sleep(0.02)


def shell(command: str, **fields: object) -> StartProcess:
    return StartProcess(arguments=["sh", "-c", command], **fields)  # pyright: ignore[reportArgumentType]


def command_of(directory: Path, number: int) -> list[str]:
    group = grp.getgrgid(os.getgid()).gr_name
    places = [("--state", "state"), ("--images", "images"), ("--runtime-dir", "run")]
    command = [sys.executable, "-m", "roost.cli", "node", "--instance", f"{number}", "--group", group]
    command += [word for option, name in places for word in (option, f"{directory / name}")]
    return [*command, "--min-pool-size", "1", "--max-pool-size", "0"]


def _packed_image(rootfs: Path) -> bytes:
    lay_image(rootfs)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(rootfs, ".")
    shutil.rmtree(rootfs)
    return packed.getvalue()


async def _sweep(directory: Path, number: int) -> None:
    """Removes what a node that was killed has left: the next one does it, as it is meant to."""
    left = directory / "run"
    if left.exists() and any(left.iterdir()):
        node = RealNode(directory, number)
        async with node.client:
            await node.start()
            await node.end()
    shutil.rmtree(directory)
