"""A running machine: QEMU with a bare system on a disk that forgets, reached over SSH as an ordinary user would."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from tests.machines import registries
from tests.machines.disk import PROJECT, USER, System, file_system

MEMORY_MB = 4096
BOOT_SECONDS = 240  # 40 s under emulation on two idle cores
PROBE_SECONDS = 15
NO_ROOT = "Unable to mount root fs"  # how far a kernel comes that is given no disk

Line = Callable[[str], None]


class MachineFailed(Exception):
    """The machine did not do in time what it should; the text says what."""


def accelerator(system: System) -> str:
    """KVM where it boots this kernel: some machines have the device, and no guest comes far with it."""
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _kvm_boots(system) else "tcg,thread=multi"


def _kvm_boots(system: System) -> bool:
    command = ["qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "512", "-no-reboot"]
    command += ["-display", "none", "-monitor", "none", "-serial", "stdio", "-kernel", f"{system.kernel}"]
    command += ["-append", "console=ttyS0 panic=-1"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS).stdout
        return NO_ROOT.encode() in told
    return False


class TimeOver(MachineFailed):
    """The time for the whole machine is over, wherever it was."""


class Machine:
    """One QEMU process. `place` holds this run's key, the disk that is handed in and the console's text."""

    def __init__(self, place: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.place = place
        self.process = process
        self.port = port

    def ssh(self, command: str) -> list[str]:
        options = {
            "IdentityFile": self.place / "key",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": 60,
            "ServerAliveInterval": 30,
            "ServerAliveCountMax": 10,
            "BatchMode": "yes",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", *words, "-p", f"{self.port}", f"{USER}@127.0.0.1", command]

    def run(self, command: str, limit: float, line: Line = lambda _: None) -> int:
        """The exit status of a command line of the user's; `line` is called with each line of what it writes."""
        with lines_of(self.ssh(command), limit) as (process, lines):
            for text in lines:
                line(text)
            return process.wait()

    def told(self, command: str, limit: float = 60) -> str:
        """What a command wrote; MachineFailed where it failed."""
        lines: list[str] = []
        if self.run(command, limit, lines.append):
            raise MachineFailed(f"`{command}` failed:\n" + "\n".join(lines[-20:]))
        return "\n".join(lines)

    def wait_until_up(self, limit: float = BOOT_SECONDS, *, other_than: str = "") -> str:
        """Returns the boot's id, once somebody can log in; `other_than` is the one before a reboot."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise MachineFailed("QEMU ended")
            with contextlib.suppress(MachineFailed):
                boot = self.told("cat /proc/sys/kernel/random/boot_id", min(60, end - time.monotonic()))
                if boot.strip() != other_than:
                    return boot.strip()
            time.sleep(1)
        raise MachineFailed(f"nobody could log in within {limit:.0f} s")

    def reboot(self, limit: float = BOOT_SECONDS) -> None:
        boot = self.told("cat /proc/sys/kernel/random/boot_id")
        self.run("sudo systemctl reboot", 60)
        self.wait_until_up(limit, other_than=boot.strip())

    def console(self) -> str:
        return (self.place / "console").read_text(errors="replace")


@contextlib.contextmanager
def lines_of(command: list[str], limit: float) -> Generator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A process and the lines it writes, ended after `limit` seconds with MachineFailed."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    killer = _Killer(process, limit)
    try:
        assert process.stdout
        yield process, (text.rstrip("\r\n") for text in process.stdout)
        if killer.fired:
            raise MachineFailed(f"`{command[-1]}` took longer than {limit:.0f} s")
    finally:
        killer.cancel()
        process.kill()
        process.wait(10)


class _Killer:
    def __init__(self, process: subprocess.Popen[str], limit: float) -> None:
        import threading

        self.fired = False
        self._process = process
        self._timer = threading.Timer(limit, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def _fire(self) -> None:
        self.fired = self._process.poll() is None
        self._process.kill()

    def cancel(self) -> None:
        self._timer.cancel()


@contextlib.contextmanager
def booted(system: System, suite: str, accel: str, scratch: Path, images: Path | None) -> Generator[Machine]:
    """A machine in which somebody can log in soon; it and what it wrote are gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix=f"{suite}-", dir=scratch))
    process = None
    try:
        _hand_in(place, suite, images)
        port = _free_port()
        process = subprocess.Popen(
            qemu(system, place, accel, port), stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": f"{place}"}
        )
        yield Machine(place, process, port)
    finally:
        if process is not None:
            process.kill()
            process.wait(30)
        shutil.rmtree(place)


def qemu(system: System, place: Path, accel: str, port: int) -> list[str]:
    return [
        *("qemu-system-x86_64", "-machine", "q35", "-accel", accel, "-cpu", "host" if accel == "kvm" else "max"),
        *(
            "-smp",
            "2",
            "-m",
            f"{MEMORY_MB}",
            "-display",
            "none",
            "-monitor",
            "none",
            "-serial",
            f"file:{place}/console",
        ),
        # what it writes goes to a temporary file, so the system's disk stays as it was built
        *("-drive", f"file={system.disk},format=raw,if=virtio,snapshot=on,cache=unsafe,discard=unmap"),
        *("-drive", f"file={place}/handed-in.disk,format=raw,if=virtio,readonly=on"),
        *("-kernel", f"{system.kernel}", "-initrd", f"{system.initrd}"),
        *("-append", "root=LABEL=system rw console=ttyS0 loglevel=4 systemd.show_status=0 net.ifnames=0"),
        *("-netdev", f"user,id=n,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=n,romfile=", "-device", "virtio-rng-pci"),
    ]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


SETUP = f"""# Runs as root at each start, from the disk that this run handed in
cd /handed-in
test -e /home/{USER}/.ssh/authorized_keys && exit 0
rm -f /etc/apt/sources.list.d/*
cp -r root/. /
install -d -o {USER} -g {USER} -m 700 /home/{USER}/.ssh
install -o {USER} -g {USER} -m 600 key.pub /home/{USER}/.ssh/authorized_keys
if [ -d images ]; then mkdir -p -m 711 /var/lib/roost; cp -a images /var/lib/roost/; fi
"""


def _hand_in(place: Path, suite: str, images: Path | None) -> None:
    root = place / "handed-in"
    registries.hand_in(root / "root", suite)
    (root / "root/etc/resolv.conf").write_text("nameserver 10.0.2.3\n")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "key"], check=True, timeout=60)
    shutil.copy(place / "key.pub", root / "key.pub")
    (root / "setup").write_text(SETUP)
    subprocess.run(
        ["git", "-C", PROJECT, "bundle", "create", "--quiet", root / "roost.bundle", "HEAD"], check=True, timeout=120
    )
    shutil.copytree(Path(__file__).parent, root / "machines", ignore=shutil.ignore_patterns("__pycache__"))
    if images is not None:
        _standard_image(images, root / "images")
    file_system(root, place / "handed-in.disk", "handed-in", "16G")
    shutil.rmtree(root)


def _standard_image(images: Path, target: Path) -> None:
    """A store that has what `make setup` built here, and nothing of what else is there."""
    name = Path("names/standard.json")
    if not (images / name).is_file():
        return
    content = Path("rootfs", json.loads((images / name).read_text())["content"])
    for one in (name, content):
        (target / one).parent.mkdir(parents=True)
        subprocess.run(["cp", "-a", images / one, target / one], check=True, timeout=300)
    for directory in (target, target / "names", target / "rootfs"):
        directory.chmod(0o700)


def quoted(*words: str) -> str:
    return shlex.join(words)
