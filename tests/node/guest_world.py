"""Real pool members for the tests: a node's ground under an instance number of the tests' own, and an image.

Numbers 8 to 11 are the tests', each for whoever holds its lock; what a killed run left under it is removed first.
"""

import asyncio
import contextlib
import fcntl
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from roost.node import cgroup, daemon
from roost.node import member as members
from roost.node.disk import unmount
from roost.node.guest import build
from roost.node.guest.channel import Guest, GuestProcess
from roost.node.guest.frames import STDERR, STDOUT, Command, Exited, Sight
from roost.node.member import IDLE, MEMBERS, Ground, Member
from roost.settings import NodeSettings

NUMBERS = range(8, 12)
PATH = {"PATH": "/bin"}
SIGHT = Sight(256 * 2**20, 1)  # what programs are told of their machine
LIMIT = 20.0  # seconds that anything may take here


@contextlib.contextmanager
def own_number() -> Generator[int]:
    """An instance number that no other test uses."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for number in NUMBERS:
            with open(f"/tmp/roost-test-instance-{number}.lock", "a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield number
                return
        time.sleep(0.1)
    raise RuntimeError("instance numbers 8 to 11 are all in use by other tests")


def lay_image(directory: Path) -> None:
    """A root file system of busybox and the probe."""
    for name in ("bin", "etc", "root", "tmp", "home"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox" if Path("/bin/busybox").exists() else "/usr/bin/busybox", directory / "bin/busybox")
    applets = subprocess.run(["busybox", "--list"], stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    for applet in {*applets} - {"busybox"}:
        (directory / "bin" / applet).symlink_to("busybox")
    source = Path(__file__).with_name("guest_probe.c")
    headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{platform.machine()}-linux-gnu"]
    probe = directory / "bin/probe"
    subprocess.run(["musl-gcc", "-static", "-Os", "-Wall", *headers, "-o", probe, source], check=True)


def settings_of(directory: Path, number: int) -> NodeSettings:
    return NodeSettings(
        state=directory / "state",
        runtime_dir=directory / "run",
        instance=number,
        images=directory / "images",
        store=None,
        store_options=None,
        layer_cache_gb=1,
        prefix6=None,
        runtime=None,
        min_pool_size=0,
        max_pool_size=0,
        group="root",
    )


@dataclass
class World:
    """What members stand on, and the image that they may be given; `open` makes it, leaving it leaves nothing."""

    directory: Path
    ground: Ground

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls) -> AsyncGenerator["World"]:
        with own_number() as number:
            world = await cls._lay(number)
            try:
                await world.ground.network.open()
                yield world
            finally:
                await world.close()

    @classmethod
    async def _lay(cls, number: int) -> "World":
        directory = Path(f"/tmp/roost-test-node-{number}")  # not tmp_path, which is closed to a guest's root
        directory.mkdir(mode=0o711, exist_ok=True)
        (directory / "state").mkdir(mode=0o700, exist_ok=True)
        (directory / "run").mkdir(mode=0o711, exist_ok=True)
        settings = settings_of(directory, number)
        world = cls(directory, daemon.build_ground(settings))
        await world.sweep()
        shutil.rmtree(world.image, ignore_errors=True)
        lay_image(world.image)
        daemon.lay_guest_root(settings.runtime_dir / "guest", build.build())
        return world

    @property
    def image(self) -> Path:
        return self.directory / "image"

    async def member(self, number: int = 0) -> Member:
        async with asyncio.timeout(LIMIT):
            return await members.make(self.ground, number)

    async def attach(self, member: Member, image: Path | None = None) -> None:
        async with asyncio.timeout(LIMIT):
            await member.mount([image or self.image], IDLE)
            await member.guest.attach("nest", SIGHT)
        member.forget_mounts()

    def leftovers(self) -> set[str]:
        """Everything on this machine that belongs to a member of this instance."""
        number = self.ground.instance
        found = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
        found = {point for point in found if point.startswith(f"{self.directory}/run/members")}
        found |= {f"container {name}" for name in self.ground.runtime.list()}
        found |= {name for _, name in socket.if_nameindex() if name.startswith(f"r{number}v")}
        for root in self.ground.hierarchies.roots():
            found |= {str(path) for path in (root / self.ground.parent.lstrip("/")).glob("*/")}
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if f"{self.directory}/" in (image := backing.read_text().strip()):
                    found.add(f"loop device of {image}")
        found |= {str(path) for path in (self.directory / "run/members").glob("*")}
        found |= {str(path) for path in (self.directory / "state/disks").glob("roost-*")}
        return found | {f"process {pid}" for pid in self._processes()}

    def _processes(self) -> Iterator[int]:
        first = members.FIRST_ID + self.ground.instance * MEMBERS * members.IDS
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = first <= entry.stat().st_uid < first + MEMBERS * members.IDS
                if ours and "State:\tZ" not in (entry / "status").read_text():  # those are for the machine to reap
                    yield int(entry.name)

    async def emptied(self) -> set[str]:
        """What is still left after the moment that the kernel takes to end a detached loop device."""
        deadline = time.monotonic() + 5
        while (found := self.leftovers()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        return found

    async def sweep(self) -> None:
        numbers = {int(path.name) for path in (self.directory / "run/members").glob("*")}
        numbers |= {int(name.rpartition("-")[2]) for name in self.ground.runtime.list()}
        for number in numbers:
            await members.destroy(self.ground, number)

    async def close(self) -> None:
        await self.sweep()
        await self.ground.network.close()
        await cgroup.sweep(self.ground.hierarchies, self.ground.parent, keep=set())
        unmount(self.directory / "run/guest")
        shutil.rmtree(self.directory)


@dataclass
class Output:
    """What a process said, in the order of arrival."""

    parts: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, pairs: list[tuple[int, bytes]]) -> None:
        self.parts += pairs
        self._came.set()

    @property
    def out(self) -> bytes:
        return b"".join(data for stream, data in self.parts if stream == STDOUT)

    @property
    def err(self) -> bytes:
        return b"".join(data for stream, data in self.parts if stream == STDERR)

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(LIMIT):
            while text not in self.out:
                self._came.clear()
                await self._came.wait()


@dataclass
class Inside:
    """Processes in one attached guest, numbered as they come."""

    guest: Guest
    member: Member
    last: int = 0

    async def start(self, *arguments: str, **fields: object) -> tuple[GuestProcess, Output]:
        """`fields` are those of Command."""
        self.last += 1
        output = Output()
        command = Command(arguments, **({"environment": PATH, "directory": "/"} | fields))  # pyright: ignore[reportArgumentType]
        async with asyncio.timeout(LIMIT):
            return await self.guest.start(self.last, command, output.take), output

    async def run(self, *arguments: str, **fields: object) -> tuple[Exited, Output]:
        process, output = await self.start(*arguments, **fields)
        return await ended(process), output

    async def shell(self, script: str, **fields: object) -> str:
        """Standard output of a shell's script that has to succeed."""
        exited, output = await self.run("sh", "-c", script, **fields)
        assert (exited.exit_code, output.err) == (0, b"")
        return output.out.decode()

    async def until_gone(self, command: str) -> None:
        """Returns when no process of the guest has `command` in its command line; the killed take a moment."""
        async with asyncio.timeout(LIMIT):
            while command in await self.shell("ps"):
                pass


async def ended(process: GuestProcess) -> Exited:
    async with asyncio.timeout(LIMIT):
        exited = await process.wait()
    process.release()
    return exited


def host_pid(pid_inside: int, init: int) -> int:
    """The machine's number of a process of the guest whose init is `init`."""
    namespace = os.readlink(f"/proc/{init}/ns/pid")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "ns/pid") != namespace:
                continue
            numbers = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("NSpid:"))
            if int(numbers.split()[-1]) == pid_inside:
                return int(entry.name)
    raise ProcessLookupError(f"no process {pid_inside} in the guest of {init}")
