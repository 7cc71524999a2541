"""What `roost doctor` runs to know whether sandboxes work here: one is made, entered, held to its limits and removed,
by the functions that a node makes and claims one by.

A program of its own, which writes a finding per line. It takes an instance number and a state directory as `roost up`
does, so it works beside running ones, and what a killed one left is found and removed by the next, or by whoever gets
its number. It ends, cleaned up, with the program that started it.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from roost import instance, linux
from roost.errors import RoostError, SetupMissing, reason
from roost.events import write_events
from roost.instance import Instance
from roost.node import daemon, delegation
from roost.node import member as members
from roost.node.guest import build
from roost.node.guest.channel import GuestLost, GuestRefused
from roost.node.guest.frames import Command
from roost.node.images import Hold, ImageStore
from roost.node.member import Member
from roost.node.protocol import Limits
from roost.node.runtimes import RuntimeFailed
from roost.settings import NodeSettings

PREFIX = ".roost-doctor-"
PREFERRED = "standard"  # image
LIMITS = Limits(vcpus=1, memory_mb=128, disk_gb=members.IDLE.disk_gb, pids=64, timeout_seconds=60)
SECONDS = 120.0  # that any step may take
REFUSALS = (RoostError, RuntimeFailed, GuestLost, GuestRefused, OSError)

KERNEL = "boot Linux 6.1 or newer, and keep --images and --state on ext4, xfs or btrfs"
# What to do about a step that failed: the first whose words its text has; "" is of every text
CURES: dict[str, tuple[tuple[str, str], ...]] = {
    "disk": (
        ("mkfs", "apt-get install e2fsprogs"),
        ("no space", "make room there, or choose another place with --state"),
        ("", "modprobe -a loop ext4"),
    ),
    "container": (
        ("user namespace", "sysctl user.max_user_namespaces=65536"),
        ("cgroup", "enable the cgroup controllers cpu, memory and pids"),
        ("", "install the package of the OCI runtime again, or choose another one with --runtime"),
    ),
    "network": (("", "modprobe veth"),),
    "guest init": (("", "look for what hinders programs in the container (AppArmor, SELinux): dmesg | tail"),),
    "root file system": (("", KERNEL),),
    "command": (("", "build the image again: sudo roost node-image ensure standard"),),
    "limits": (("", "enable the cgroup controllers cpu, memory and pids"),),
    "freezing": (("", "boot Linux 6.1 or newer"),),
    "removal": (("", "try again; a restart of the machine removes what is left"),),
}


@dataclass
class Trial:
    """One run; the steps are in the order of a start, and each needs those before it."""

    settings: NodeSettings
    say: Callable[[str, str, str, str], None]  # name, verdict, detail, cure
    step: str = ""
    ground: members.Ground | None = None
    member: Member | None = None
    hold: Hold | None = None
    removed: bool = True  # or never made

    async def run(self) -> None:
        """Says a finding for each step. `remove` has to follow, also after a cancellation."""
        try:
            for name, work in self._steps():
                self.step = name
                async with asyncio.timeout(SECONDS):
                    self._found(await work())
        except REFUSALS as error:
            self._failed(error)

    def _steps(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        return [
            ("runtime and groups", self._lay_ground),
            ("firewall", self._open_network),
            ("image", self._hold_image),
            ("disk", self._make),  # goes on to the steps that `members.make` names
            ("root file system", self._attach),
            ("command", self._run_command),
            ("limits", self._limit),
            ("freezing", self._freeze),
        ]

    def _found(self, detail: str) -> None:
        self.say(f"sandbox: {self.step}", "ok", detail, "")

    def _failed(self, error: Exception) -> None:
        text = reason(error) if isinstance(error, OSError) else str(error)
        cures = CURES.get(self.step, ())
        cure = next((cure for words, cure in cures if words in text.lower()), "")
        self.say(f"sandbox: {self.step}", "missing", text, cure)

    # ---- the steps

    @property
    def _ground(self) -> members.Ground:
        assert self.ground
        return self.ground

    @property
    def _member(self) -> Member:
        assert self.member
        return self.member

    async def _lay_ground(self) -> str:
        self.settings.state.mkdir(mode=0o700, exist_ok=True)
        ground = self.ground = daemon.build_ground(self.settings)
        delegation.settle(ground.hierarchies, ground.parent)
        daemon.lay_guest_root(self.settings.runtime_dir / "guest", build.build())
        return f"{ground.runtime.name}, cgroup {ground.hierarchies.version}, below {ground.parent}"

    async def _open_network(self) -> str:
        await self._ground.network.open()
        return f"nftables takes the rules; name servers {', '.join(self._ground.network.resolvers)}"

    async def _hold_image(self) -> str:
        if not (self.settings.images / "names").is_dir():
            raise SetupMissing(f"there is none in {self.settings.images}; `make setup` builds one")
        store = ImageStore(self.settings.images)
        names = sorted((image.name for image in store.list()), key=lambda name: (name != PREFERRED, name))
        self.hold = store.hold(next(iter(names), PREFERRED))
        return next(iter(names), PREFERRED)

    async def _make(self) -> str:
        said = {
            "disk": f"ext4 in {self.settings.state}, through a loop device",
            "container": f"namespaces of its own, root is uid {self._ground.site(0).first_id}",
            "network": self._ground.network.link(0).ipv4,
            "guest init": "answers",
        }

        def step(name: str) -> None:
            if name != self.step:
                self._found(said[self.step])
                self.step = name

        self.member = await members.make(self._ground, 0, step)
        return said[self.step]

    async def _attach(self) -> str:
        assert self.hold
        await self._member.mount([self.hold.path], members.IDLE)
        await self._member.guest.attach("doctor", self._member.sight)
        self._member.forget_mounts()
        return "the image with ids mapped, below the sandbox's own disk"

    async def _run_command(self) -> str:
        said = bytearray()
        command = Command(["/bin/sh", "-c", "echo $((6*7)) $(id -u)"], {"PATH": os.defpath}, directory="/")
        process = await self._member.guest.start(1, command, lambda pairs: said.extend(b"".join(p for _, p in pairs)))
        exited = await process.wait()
        if exited.exit_code or bytes(said) != b"42 0\n":
            text = said.decode(errors="replace").strip()
            raise GuestRefused(f"a shell ended with {exited.exit_code} and said {text!r} instead of '42 0'")
        return "a shell ran as root of the sandbox"

    async def _limit(self) -> str:
        self._member.cgroup.apply(LIMITS)
        usage = self._member.cgroup.usage()
        return f"CPU, memory and processes; {usage.memory_bytes / 1e6:.0f} MB in use"

    async def _freeze(self) -> str:
        await self._member.cgroup.freeze()
        self._member.cgroup.thaw()
        await self._member.guest.ping()
        return "stood still and went on"

    async def remove(self) -> None:
        """Whatever there is of it."""
        if self.hold:
            self.hold.release()
        if self.member:
            self.member.let_go()
        if not self.ground:
            return
        failed = self.step
        self.step = "removal"
        try:
            await sweep(self.ground)
        except REFUSALS as error:
            self.removed = False
            self._failed(error)
        else:
            if failed == "freezing":
                self._found("nothing is left")


async def sweep(ground: members.Ground) -> None:
    """Whatever there is of the instance."""
    directory = ground.runtime_dir / "members"
    numbers = {int(entry.name) for entry in directory.iterdir()} if directory.exists() else set[int]()
    numbers |= {int(id.rpartition("-")[2]) for id in ground.runtime.list()}
    for number in sorted(numbers):
        await members.destroy(ground, number)
    await daemon.leave_nothing(ground)


def settings_of(claimed: Instance, images: Path, runtime: str | None) -> NodeSettings:
    return NodeSettings(
        state=claimed.state / "node",
        runtime_dir=claimed.runtime_dir,
        instance=claimed.number,
        store=None,
        store_options=None,
        layer_cache_gb=1,
        images=images,
        prefix6=None,
        runtime=runtime,
        min_pool_size=0,
        max_pool_size=0,
        group="root",
    )


def sweep_dead(home: Path, images: Path, runtime: str | None) -> None:
    """What trials have left that were killed together with whoever had started them."""
    for state in home.glob(f"{PREFIX}*"):
        with contextlib.suppress(*REFUSALS):  # it is at work, has just ended, or lacks what the trial will name
            claimed = instance.claim(state)
            try:
                asyncio.run(sweep(daemon.build_ground(settings_of(claimed, images, runtime))))
                shutil.rmtree(state)
            finally:
                claimed.release()


async def _run(trial: Trial) -> None:
    """Asked to stop, it removes what it has made, however often it is asked."""
    trying = asyncio.create_task(trial.run())
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.set)
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({trying, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    trying.cancel()
    await asyncio.wait({trying})
    await trial.remove()
    if not trying.cancelled():
        trying.result()


def _say(name: str, verdict: str, detail: str, cure: str) -> None:
    line = json.dumps({"name": name, "verdict": verdict, "detail": detail, "cure": cure})
    with contextlib.suppress(OSError):  # who asked has gone
        os.write(sys.stdout.fileno(), line.encode() + b"\n")


def main(home: Path, images: Path, runtime: str | None) -> None:
    write_events("doctor")  # on standard error: the output is the findings'
    sweep_dead(home, images, runtime)
    state = Path(tempfile.mkdtemp(prefix=PREFIX, dir=home))
    try:
        claimed = instance.claim(state)
    except RoostError as error:  # there is no number left
        shutil.rmtree(state)
        return _say("sandbox", "unknown", str(error), "")
    trial = Trial(settings_of(claimed, images, runtime), _say)
    try:
        asyncio.run(_run(trial))
    finally:
        if trial.removed:  # else the next one tries again
            shutil.rmtree(state, ignore_errors=True)
        claimed.release()


if __name__ == "__main__":
    linux.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() == int(sys.argv[1]):
        main(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] or None)
