"""Real OCI containers for the driver's tests: a root with a probe as process 1, a slot, and a cgroup of their own."""

import json
import platform
import secrets
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roost.node.cgroup import Cgroup, Hierarchies, sweep
from roost.node.devices import lay_devices
from roost.node.guest.build import build
from roost.node.namespaces import UserNamespace
from roost.node.protocol import Limits
from roost.node.runtimes import oci

SMALL = Limits(vcpus=0.5, memory_mb=64, disk_gb=1, pids=16, timeout_seconds=0)


def build_probe(target: Path) -> None:
    source = Path(__file__).with_name("probe_init.c")
    headers = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{platform.machine()}-linux-gnu"]
    subprocess.run(["musl-gcc", "-static", "-Os", "-Wall", *headers, "-o", target, source], check=True)


@dataclass
class Member:
    """A container that runs, or is about to."""

    id: str
    bundle: Path
    listener: socket.socket
    cgroup: Cgroup
    slot: Path
    first_id: int
    users: UserNamespace
    pid: int = 0

    def ask(self, request: str) -> str:
        """What the probe answers, from inside."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(self.listener.getsockname())
            connection.sendall(request.encode() + b"\n")
            with connection.makefile("r", errors="replace") as answer:
                return answer.read()

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.bundle / "config.json").read_text())


@dataclass
class World:
    """Everything of one test; `close` leaves nothing behind, whatever the test did."""

    path: Path
    runtime: oci.OciRuntime
    hierarchies: Hierarchies
    parent: str = field(default_factory=lambda: f"/roost-test-{secrets.token_hex(4)}")
    members: list[Member] = field(default_factory=list[Member])

    @classmethod
    def make(cls, probe: Path) -> "World":
        path = Path(tempfile.mkdtemp(prefix="roost-test-"))  # tmp_path is closed to the guest's root, nobody outside
        path.chmod(0o711)
        for directory in ("proc", "dev", "sys", "slot"):
            (path / "root" / directory).mkdir(parents=True)
        shutil.copy(probe, path / "root" / "init")
        hierarchies = Hierarchies.here()
        program = oci.choose(None, hierarchies.version)
        return cls(path, oci.OciRuntime(program, path / "runtime"), hierarchies)

    def member(self, name: str = "m0", limits: Limits = SMALL) -> Member:
        first_id = 2**30 + secrets.randbelow(16384) * oci.ID_RANGE
        slot, bundle = self.path / f"slot-{name}", self.path / f"bundle-{name}"
        slot.mkdir()
        bundle.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", slot], check=True)
        subprocess.run(["mount", "--make-shared", slot], check=True)
        cgroup = Cgroup(self.hierarchies, self.parent, name)
        users = UserNamespace.make(build(), first_id)
        (devices := self.path / f"devices-{name}").mkdir()
        lay_devices(devices, first_id)
        container = oci.Container(
            self.path / "root", devices, slot, first_id, cgroup.path, f"host-{name}", limits, users.path
        )
        (bundle / "config.json").write_text(json.dumps(oci.container_config(container, oci.Machine.here())))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path / f"{name}.sock"))
        listener.listen()
        member = Member(f"{self.parent[1:]}-{name}", bundle, listener, cgroup, slot, first_id, users)
        self.members.append(member)
        return member

    async def running(self, name: str = "m0", limits: Limits = SMALL) -> Member:
        member = self.member(name, limits)
        member.pid = await self.runtime.run(member.id, member.bundle, member.listener.fileno())
        return member

    async def close(self) -> None:
        for container_id in self.runtime.list():
            await self.runtime.destroy(container_id)
        await sweep(self.hierarchies, self.parent, keep=set())
        for member in self.members:
            member.listener.close()
            member.users.close()
            subprocess.run(["umount", "-R", member.slot, self.path / f"devices-{member.slot.name[5:]}"], check=True)
        shutil.rmtree(self.path)
