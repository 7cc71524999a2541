"""Sandboxes as OCI containers: the config of a pool member, and the program (runc, crun, runsc) that makes it.

A container is made idle: its root is a tiny read-only directory with guest init, and the job's file system comes
later through the slave mount at `/slot`. Root inside is nobody outside: its ids lie in a range of its own. The OCI
program runs once for `run` and once for `destroy`; in between there is guest init alone, with no supervisor.

Under ROOT: `containers/` belongs to the OCI program; `records/ID` is made before anything else of a container and
removed after everything else. It holds the cgroup, then pid and start time once it is up, and is locked while the
program makes it.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from roost.errors import SetupMissing
from roost.node import cgroup
from roost.node.cgroup import Cgroup, Hierarchies
from roost.node.protocol import Limits
from roost.node.runtimes import RuntimeFailed, seccomp

RUN_TIMEOUT = 30.0  # seconds; tens of milliseconds are usual, a loaded machine takes longer
DESTROY_TIMEOUT = 30.0
ID_RANGE = 65536
LOG_TAIL = 4096  # bytes of the program's log that are read back

# What guest init needs before it drops everything that a user's root may not have (Docker's default set, less
# CAP_NET_RAW: there are no raw sockets).
_INIT_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_TIME")
GUEST_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

_VIRTUAL_DISKS = "/sys/devices/virtual/block"
# What tells of the machine and its other sandboxes, or takes part in its affairs: who registers with /proc/pressure has
# the kernel wait for each registration when the process ends.
_MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/diskstats",
    "/proc/driver",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/mdstat",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/schedstat",
    "/proc/scsi",
    "/proc/softirqs",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/block",
    "/sys/class/bdi",
    "/sys/class/block",
    "/sys/dev/block",
    "/sys/devices/virtual/bdi",
    _VIRTUAL_DISKS,
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/btrfs",
    "/sys/fs/ext4",
    "/sys/fs/xfs",
    "/sys/kernel/slab",
    "/sys/module/loop",
)
_READONLY_PATHS = ("/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Character devices (major, minor) that the OCI programs put into every /dev, and pseudo terminals.
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))
TERMINALS = 128  # of one sandbox; the kernel's own bound (kernel.pty.max) holds for all of them together
_PTS = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5", f"max={TERMINALS}")
_OOM_SCORE = 500  # out of 1000: the kernel takes a guest's process before any of the machine's own


@dataclass(frozen=True)
class Machine:
    """What the config depends on besides the container itself."""

    cgroup: cgroup.Version
    architecture: seccomp.Architecture
    ipv6: bool
    thermal_throttle: tuple[str, ...] = ()  # directories that tell the heat, and so the load, of real processors
    disks: tuple[str, ...] = ()  # directories of real disks, which tell what is read and written

    @classmethod
    def here(cls) -> "Machine":
        """Raises SetupMissing on an architecture that guest init does not know."""
        architecture: Mapping[str, seccomp.Architecture] = {"x86_64": "x86_64", "aarch64": "aarch64"}
        if platform.machine() not in architecture:
            raise SetupMissing(f"Roost runs on x86_64 and aarch64, not on {platform.machine()}")
        throttles = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")
        disks = {_disk_directory(disk) for disk in Path("/sys/class/block").glob("*")} - {_VIRTUAL_DISKS}
        return cls(
            cgroup=cgroup.version(),
            architecture=architecture[platform.machine()],
            ipv6=Path("/proc/sys/net/ipv6").is_dir(),
            thermal_throttle=tuple(sorted(map(str, throttles))),
            disks=tuple(sorted(disks)),
        )


def _disk_directory(disk: Path) -> str:
    """The directory with this disk or partition, its siblings, and nothing else."""
    real = disk.resolve()
    return next((str(place) for place in real.parents if place.name == "block"), str(real))


@dataclass(frozen=True)
class Container:
    """What tells one pool member from another."""

    root: Path  # the tiny read-only root: `/init` and empty `/proc /dev /sys /slot`
    devices: Path  # what becomes its /dev (devices.py)
    slot: Path  # on a shared mount of the host; what is mounted below it later appears under /slot
    first_id: int  # uid and gid of the guest's root on this machine
    cgroups_path: str  # absolute
    hostname: str
    limits: Limits  # of the idle member; `Cgroup.apply` sets the job's own at claim
    user_namespace: Path | None = None  # to enter; else the program makes one, of this machine's root


def container_config(container: Container, machine: Machine) -> dict[str, Any]:
    """The OCI `config.json` (runtime-spec 1.0.2) of an idle pool member."""
    return {
        "ociVersion": "1.0.2",
        "hostname": container.hostname,
        "root": {"path": str(container.root), "readonly": True},
        "process": _process(),
        "mounts": _mounts(container, machine),
        "linux": {
            "namespaces": _namespaces(container),
            "uidMappings": _id_range(container),
            "gidMappings": _id_range(container),
            "cgroupsPath": container.cgroups_path,
            "resources": _resources(container.limits),
            "sysctl": _sysctl(machine),
            "maskedPaths": [*_MASKED_PATHS, *machine.disks, *machine.thermal_throttle],
            "readonlyPaths": list(_READONLY_PATHS),
            "seccomp": seccomp.profile(machine.architecture),
            # crun makes every mount private without it, and what is mounted below the slot later would not arrive.
            "rootfsPropagation": "slave",
        },
    }


def _namespaces(container: Container) -> list[dict[str, str]]:
    entered = {"path": str(container.user_namespace)} if container.user_namespace else {}
    made = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup", "network")]
    return [{"type": "user"} | entered, *made]


def _process() -> dict[str, Any]:
    capabilities = sorted({*_INIT_CAPABILITIES, *GUEST_CAPABILITIES})
    return {
        "args": ["/init"],
        "cwd": "/",
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "user": {"uid": 0, "gid": 0},
        "terminal": False,
        "noNewPrivileges": True,
        # Neither inheritable nor ambient: what init drops, its children cannot pick up again.
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "oomScoreAdj": _OOM_SCORE,
    }


def _mounts(container: Container, machine: Machine) -> list[dict[str, Any]]:
    sealed = ["nosuid", "noexec", "nodev"]
    mounts = [
        _mount("proc", "/proc", sealed),
        _mount("bind", "/dev", ["bind"], source=str(container.devices)),
        _mount("devpts", "/dev/pts", ["nosuid", "noexec", *_PTS]),
        _mount("tmpfs", "/dev/shm", [*sealed, "mode=1777", "size=65536k"], source="shm"),
        _mount("mqueue", "/dev/mqueue", sealed),
        _mount("sysfs", "/sys", [*sealed, "ro"]),
        _mount("bind", "/slot", ["rbind", "rslave"], source=str(container.slot)),
    ]
    if machine.cgroup == "v2":
        mounts.append(_mount("cgroup", "/sys/fs/cgroup", [*sealed, "relatime", "ro"]))
    return mounts


def _mount(kind: str, destination: str, options: list[str], source: str | None = None) -> dict[str, Any]:
    return {"type": kind, "destination": destination, "source": source or kind, "options": options}


def _id_range(container: Container) -> list[dict[str, int]]:
    return [{"containerID": 0, "hostID": container.first_id, "size": ID_RANGE}]


def _resources(limits: Limits) -> dict[str, Any]:
    memory = limits.memory_mb * cgroup.MIB
    return {
        "devices": [
            {"allow": False, "access": "rwm"},
            *(
                {"allow": True, "type": "c", "major": major, "access": "rw"}
                | ({} if minor is None else {"minor": minor})
                for major, minor in _DEVICES
            ),
        ],
        "memory": {"limit": memory, "swap": memory},
        "cpu": {
            "shares": cgroup.shares(limits.vcpus),
            "quota": cgroup.quota_us(limits.vcpus),
            "period": cgroup.PERIOD_US,
        },
        "pids": {"limit": limits.pids},
    }


def _sysctl(machine: Machine) -> dict[str, str]:
    """As Docker sets them, and an address that is usable at once: nobody else is on a member's own link."""
    values = {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": f"0 {ID_RANGE - 1}",
        # Least, first and most bytes: what comes in before accept() counts for nobody, and stays as it was at first
        "net.ipv4.tcp_rmem": "4096 65536 4194304",
        "net.ipv4.tcp_wmem": "4096 16384 4194304",
    }
    if machine.ipv6:
        for scope in ("all", "default"):
            values[f"net.ipv6.conf.{scope}.accept_dad"] = "0"
            values[f"net.ipv6.conf.{scope}.accept_ra"] = "0"
    return values


def choose(program: str | None, cgroup_version: Literal["v1", "v2"]) -> str:
    """The OCI program to use, as an absolute path: the configured one, else the best that this machine has.

    Raises SetupMissing, naming the package, where there is none. crun comes first on v2, where it starts containers
    several times faster; on v1 and hybrid machines it refuses to run, so runc is asked alone.
    """
    if program is not None:
        found = shutil.which(program)
        if found is None:
            raise SetupMissing(
                f"the configured OCI runtime {program!r} was not found; install it or correct the setting"
            )
        return found
    candidates = ("crun", "runc") if cgroup_version == "v2" else ("runc",)
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is not None:
            return found
    raise SetupMissing(f"no OCI runtime was found; install the package {candidates[0]!r}")


def run_args(program: str, root: Path, container_id: str, bundle: Path) -> list[str]:
    """`--preserve-fds 1`: descriptor 3 of the program becomes descriptor 3 of guest init."""
    return [
        *_program_args(program, root, container_id),
        *("run", "--detach", "--preserve-fds", "1", "--pid-file", str(bundle / "pid")),
        *("--bundle", str(bundle), container_id),
    ]


def delete_args(program: str, root: Path, container_id: str) -> list[str]:
    return [*_program_args(program, root, container_id), "delete", "--force", container_id]


def _program_args(program: str, root: Path, container_id: str) -> list[str]:
    # Its words go to a file: guest init inherits its stderr, and a pipe would stay open as long as the container lives.
    log = root / "logs" / container_id
    return [program, "--root", str(root / "containers"), "--log", str(log), "--log-format", "json"]


class OciRuntime:
    """`Runtime` by an OCI command-line program. One instance per ROOT; ROOT outlives this process, not the machine."""

    def __init__(self, program: str, root: Path) -> None:
        self._program = program
        self._root = root
        self._records = root / "records"
        self._hierarchies = Hierarchies.here()

    @property
    def name(self) -> str:
        return Path(self._program).name

    async def run(self, container_id: str, bundle: Path, listen_fd: int) -> int:
        for directory in (self._records, self._root / "logs"):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = os.open(self._records / container_id, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(record, f"{_cgroups_path(bundle)}\n".encode())
            # The program holds the lock too: if we are killed, `destroy` waits until it has finished or given up.
            await self._call(
                run_args(self._program, self._root, container_id, bundle),
                container_id,
                RUN_TIMEOUT,
                (listen_fd, record),
            )
            pid = int((bundle / "pid").read_text())
            os.write(record, f"{pid} {_start_time(pid)}".encode())
            return pid
        finally:
            os.close(record)

    async def destroy(self, container_id: str) -> None:
        if container_id not in self.list():
            return
        group = await self._kill(self._records / container_id)
        if any((self._root / "containers").glob(f"{container_id}*")):  # else the program has never come to make it
            await self._call(delete_args(self._program, self._root, container_id), container_id, DESTROY_TIMEOUT)
        if group is not None:  # a program that was killed half-way leaves groups that it does not find again
            await group.remove()
        for leftover in (self._root / "logs" / container_id, self._records / container_id):
            leftover.unlink(missing_ok=True)

    def list(self) -> set[str]:
        known: set[str] = set()
        for directory in (self._records, self._root / "containers"):
            with contextlib.suppress(FileNotFoundError):
                # crun 1.20 and later keeps compiled filters in `.cache`, beside the containers
                known.update(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        return known

    async def _kill(self, record: Path) -> Cgroup | None:
        """Kill guest init, and with it its whole pid namespace, before the OCI program is asked to delete.

        The program would do it too, but looks only every 100 ms whether it is dead. Without a pid the container was
        never up, or we were killed before its start time was known: then everything in its cgroup is killed instead.
        """
        try:
            path, up = await _read_record(record)
        except FileNotFoundError:
            return None
        if up is not None:
            await _end(*up, DESTROY_TIMEOUT)
        if not path:
            return None
        parent, _, name = path.rpartition("/")
        group = Cgroup(self._hierarchies, parent, name)
        if up is None:
            await group.kill_all(DESTROY_TIMEOUT)
        return group

    async def _call(self, args: Sequence[str], container_id: str, timeout: float, fds: tuple[int, ...] = ()) -> None:
        try:
            status = await _spawn(args, fds, timeout)
        except TimeoutError as error:
            raise RuntimeFailed(str(error)) from None
        if status != 0:
            said = _tail(self._root / "logs" / container_id)
            raise RuntimeFailed(f"{' '.join(args)} failed with status {status}: {said or 'it said nothing'}")


async def _spawn(args: Sequence[str], fds: tuple[int, ...], timeout: float) -> int:
    """Run a program with silent standard streams and `fds` as 3, 4, ...; its exit status, -N for signal N.

    asyncio's own subprocesses cannot place a descriptor at a number. Killed when it takes longer than `timeout` seconds
    (TimeoutError) or the caller is cancelled.
    """
    with contextlib.ExitStack() as stack:
        clear_of_targets = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)) for fd in (*_silence(stack), *fds)]
        for fd in clear_of_targets:
            stack.callback(os.close, fd)
        pid = os.posix_spawn(  # noqa: ASYNC221 - returns as soon as the program is loaded
            args[0],
            list(args),
            {"PATH": os.defpath},
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in enumerate(clear_of_targets)],
            setsid=True,  # a Ctrl-C at our terminal is for us to answer
        )
    try:
        await _ended(os.pidfd_open(pid), timeout, args[0])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended or been killed
    return os.waitstatus_to_exitcode(status)


async def _end(pid: int, start_time: int, timeout: float) -> None:
    """SIGKILL the process that had `pid` when it started at `start_time`, and wait until it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    if _start_time(pid) != start_time:  # read after the pidfd was opened, so both mean the same process
        os.close(pidfd)
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    await _ended(pidfd, timeout, f"process {pid}")
    with contextlib.suppress(ChildProcessError):  # ours to reap only where the node is a subreaper
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - does not wait


def _silence(stack: contextlib.ExitStack) -> tuple[int, int, int]:
    """Standard streams at their end. Not /dev/null: crun gives its streams to the container's root, and that is the
    machine's own device node.
    """
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends[0], ends[1], ends[1]


async def _ended(pidfd: int, timeout: float, what: str) -> None:
    """Wait for the process of `pidfd` to end, then close it; TimeoutError after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    loop.add_reader(pidfd, lambda: ended.done() or ended.set_result(None))
    try:
        await asyncio.wait_for(ended, timeout)
    except TimeoutError:
        raise TimeoutError(f"{what} has not ended within {timeout:g} s") from None
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def _read_record(path: Path) -> tuple[str, tuple[int, int] | None]:
    """The container's cgroup, empty if not even that was written, and (pid, start time) if it came up."""
    record = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await _locked(record, RUN_TIMEOUT)
        cgroups_path, _, up = os.read(record, 4096).decode().partition("\n")
    finally:
        os.close(record)
    numbers = [int(word) for word in up.split()]
    return cgroups_path, (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _cgroups_path(bundle: Path) -> str:
    return json.loads((bundle / "config.json").read_bytes())["linux"]["cgroupsPath"]


async def _locked(fd: int, timeout: float) -> None:
    """Wait for the exclusive lock; only a program that outlived a killed node ever holds it."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.01)


def _start_time(pid: int) -> int:
    """Clock ticks since boot at which the process started (proc_pid_stat(5), field 22); 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat.rpartition(")")[2].split()[19])  # the name in brackets may hold anything


def _tail(log: Path) -> str:
    """The last messages of the program's JSON log, in its own words."""
    try:
        lines = log.read_bytes()[-LOG_TAIL:].decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return "; ".join(map(_message, lines[-3:]))


def _message(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry["msg"]) if "msg" in entry else line
