"""What a sandbox may use and has used, as control groups: one group by name under the parent `/roost-N`, which
`delegation.py` places.

The OCI runtime makes a pool member's group; at claim the node gives it the job's limits here, later asks it for use and
OOM kills, freezes and ends it here. On cgroup v1 (hybrid machines count as v1) the group exists once in each hierarchy,
always counted from the hierarchy's root, wherever the node itself may sit. A group's contents are hostile: pids are
read afresh for each signal and every wait has a limit.
"""

import asyncio
import contextlib
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roost.errors import SetupMissing, about
from roost.node.protocol import Limits

Version = Literal["v1", "v2"]

PERIOD_US = 100_000  # the kernel's own default
QUOTA_MIN_US = 1_000  # the kernel refuses less
MIB = 1024 * 1024
UNIFIED = ""  # the name that `Hierarchies.mounts` gives to the cgroup v2 tree
V1_NEEDED = ("cpu", "cpuacct", "devices", "freezer", "memory", "pids")
RECLAIM = 3.0  # seconds
RECLAIM_STEP = 16 * MIB
SOCKETS = "memory/memory.kmem.tcp.limit_in_bytes"  # of all sockets; v1 counts them apart, v2 as memory
SOCKETS_SHARE = 8  # parts of the memory limit; all limits together may be four times the machine's memory
SOCKETS_MIN = 8 * MIB
_POLL = 0.002  # seconds; neither v1 nor rmdir tells when a group has become empty


@dataclass(frozen=True)
class Hierarchies:
    """Where this machine's cgroup trees are mounted: by controller on v1, under `UNIFIED` on v2."""

    version: Version
    mounts: Mapping[str, Path]

    @classmethod
    def here(cls) -> "Hierarchies":
        """Raises SetupMissing where a controller that Roost needs is not mounted."""
        return cls.parse(Path("/proc/self/mountinfo").read_text())

    @classmethod
    def parse(cls, mountinfo: str) -> "Hierarchies":
        """From the text of /proc/self/mountinfo (proc_pid_mountinfo(5))."""
        found: dict[str, Path] = {}
        for line in mountinfo.splitlines():
            point, controllers = _cgroup_mount(line)
            for controller in controllers:
                found.setdefault(controller, point)
        named = {controller for controller in found if controller != UNIFIED}
        if not named and UNIFIED in found:
            return cls("v2", found)
        missing = [controller for controller in V1_NEEDED if controller not in named]
        if missing:
            raise SetupMissing(
                f"no cgroup controller {', '.join(missing)} is mounted under /sys/fs/cgroup; install "
                "cgroupfs-mount, or boot with systemd.unified_cgroup_hierarchy=1"
            )
        return cls("v1", found)

    def roots(self) -> list[Path]:
        """Every tree once; a v1 mount may carry several controllers."""
        return sorted(set(self.mounts.values()))


def version() -> Version:
    return Hierarchies.here().version


def settings(limits: Limits, version: Version) -> dict[str, str]:
    """What to write into which file: `CONTROLLER/FILE` on v1, `FILE` on v2. Swap is never granted beyond memory."""
    memory = str(limits.memory_mb * MIB)
    quota = quota_us(limits.vcpus)
    if version == "v1":
        return {
            "memory/memory.limit_in_bytes": memory,
            "memory/memory.memsw.limit_in_bytes": memory,
            SOCKETS: str(sockets_bytes(limits.memory_mb)),
            "cpu/cpu.cfs_period_us": str(PERIOD_US),
            "cpu/cpu.cfs_quota_us": str(quota),
            "cpu/cpu.shares": str(shares(limits.vcpus)),
            "pids/pids.max": str(limits.pids),
        }
    return {
        "memory.max": memory,
        "memory.swap.max": "0",
        "cpu.max": f"{quota} {PERIOD_US}",
        "cpu.weight": str(min(10_000, max(1, round(limits.vcpus * 100)))),  # 100 is the default weight
        "pids.max": str(limits.pids),
    }


def quota_us(vcpus: float) -> int:
    """CPU time per PERIOD_US."""
    return max(QUOTA_MIN_US, round(vcpus * PERIOD_US))


def sockets_bytes(memory_mb: int) -> int:
    """What may wait in a sandbox's sockets on cgroup v1, beside its memory."""
    return max(SOCKETS_MIN, memory_mb * MIB // SOCKETS_SHARE)


def shares(vcpus: float) -> int:
    """cgroup v1's cpu weight: 1024 is the default and stands for one CPU here."""
    return min(262_144, max(2, round(vcpus * 1024)))


@dataclass(frozen=True)
class Usage:
    memory_bytes: int
    cpu_ns: int


@dataclass(frozen=True)
class Cgroup:
    """One sandbox's group, `…/roost-N/NAME`, in every hierarchy of the machine."""

    hierarchies: Hierarchies
    parent: str  # "/roost-N", below the group that was delegated to us
    name: str

    @property
    def path(self) -> str:
        """As an OCI config's `cgroupsPath` wants it: absolute, counted from the hierarchy's root."""
        return f"{self.parent}/{self.name}"

    def create(self) -> None:
        """Make the group in every hierarchy; for what the OCI runtime does not make itself."""
        for root in self.hierarchies.roots():
            above = root
            for step in self.path.strip("/").split("/"):
                group = above / step
                group.mkdir(exist_ok=True)
                _inherit_cpuset(above, group)
                above = group

    def enter(self, pid: int) -> None:
        """Move a process, with all its threads, into the group."""
        for group in self._groups():
            _set(group / "cgroup.procs", str(pid))

    def apply(self, limits: Limits) -> None:
        """Write `settings(limits)`. Raises OSError when the kernel refuses one (memory below what is in use)."""
        for file, value in self._in_order(settings(limits, self.hierarchies.version)):
            if (_is_swap(file) or file == SOCKETS) and not self._file(file).exists():
                continue  # the kernel counts no swap here (swapaccount=0), or no sockets: there is none to limit
            _set(self._file(file), value)

    def bound_sockets(self, limits: Limits) -> None:
        """The limit that the OCI programs do not set. Before the first socket: what is open by then never counts."""
        if self._v1 and self._file(SOCKETS).exists():
            _set(self._file(SOCKETS), str(sockets_bytes(limits.memory_mb)))

    def oom_kills(self) -> int:
        """Processes that the kernel has killed in this group for want of memory, since it was made."""
        file = "memory/memory.oom_control" if self._v1 else "memory.events"
        return _field(self._file(file).read_text(), "oom_kill")

    def refused_forks(self) -> int:
        """How often a process or thread was not started for the limit of them, since the group was made."""
        return _field(self._file("pids/pids.events" if self._v1 else "pids.events").read_text(), "max")

    def usage(self) -> Usage:
        if self._v1:
            memory = self._file("memory/memory.usage_in_bytes").read_text()
            return Usage(int(memory), int(self._file("cpuacct/cpuacct.usage").read_text()))
        cpu_us = _field(self._file("cpu.stat").read_text(), "usage_usec")
        return Usage(int(self._file("memory.current").read_text()), cpu_us * 1000)

    async def freeze(self, timeout: float = 5.0) -> None:
        """Returns when every process stands still; TimeoutError (and thawed again) if one does not."""
        self._set_frozen(True)
        try:
            await _until(self._is_frozen, timeout, f"cgroup {self.path} did not freeze")
        except BaseException:
            self.thaw()
            raise

    def thaw(self) -> None:
        self._set_frozen(False)

    async def reclaim(self, timeout: float = RECLAIM) -> None:
        """Give back what can be read again or swapped out. Best effort: it returns after `timeout` in any case.

        The kernel does this in the calling thread, and nothing but a signal stops it: so it gets one of its own that
        nobody waits for at the end of the program.
        """
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def work() -> None:
            with contextlib.suppress(OSError):  # the group is gone, or this kernel (before 5.19) cannot
                self._reclaim(time.monotonic() + timeout)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=work, name="reclaim", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await done.wait()

    def _reclaim(self, deadline: float) -> None:
        if self._v1:
            self._file("memory/memory.force_empty").write_text("0")
            return
        while time.monotonic() < deadline:
            try:
                self._file("memory.reclaim").write_text(str(RECLAIM_STEP))
            except BlockingIOError:  # EAGAIN: less than that was left to give
                return

    async def kill_all(self, timeout: float = 10.0) -> None:
        """SIGKILL everything in it, faster than it can fork; returns when the group is empty, or TimeoutError.

        A group that does not exist is empty.
        """
        await _until(self._kill_once, timeout, f"processes in cgroup {self.path} did not die")

    async def kill_others(self, spared: int, timeout: float = 10.0) -> None:
        """The same, but for one process."""
        await _until(lambda: self._kill_frozen(spared), timeout, f"processes in cgroup {self.path} did not die")

    async def remove(self, timeout: float = 5.0) -> None:
        """Remove the emptied group from every hierarchy; TimeoutError while a process is left in it."""
        await _until(self._remove_once, timeout, f"cgroup {self.path} is still in use")

    @property
    def _v1(self) -> bool:
        return self.hierarchies.version == "v1"

    def _groups(self) -> list[Path]:
        return [root / self.path.lstrip("/") for root in self.hierarchies.roots()]

    def directory(self, controller: str) -> Path:
        """Where the group's files of a controller are."""
        return self.hierarchies.mounts[controller if self._v1 else UNIFIED] / self.path.lstrip("/")

    def _file(self, file: str) -> Path:
        controller, _, name = file.rpartition("/")
        return self.hierarchies.mounts[controller] / self.path.lstrip("/") / name

    def _in_order(self, files: dict[str, str]) -> list[tuple[str, str]]:
        """v1 keeps memory ≤ memory + swap at every moment, so which is written first depends on the direction."""
        limit = "memory/memory.limit_in_bytes"
        ordered = list(files.items())
        if limit in files and int(files[limit]) > int(self._file(limit).read_text()):
            ordered.sort(key=lambda item: not _is_swap(item[0]))
        return ordered

    def _set_frozen(self, frozen: bool) -> None:
        if self._v1:
            _set(self._file("freezer/freezer.state"), "FROZEN" if frozen else "THAWED")
        else:
            _set(self._file("cgroup.freeze"), "1" if frozen else "0")

    def _is_frozen(self) -> bool:
        if not self._v1:
            return _field(self._file("cgroup.events").read_text(), "frozen") == 1
        if self._file("freezer/freezer.state").read_text().strip() == "FROZEN":
            return True
        self._set_frozen(True)  # a task that was being born in between keeps a v1 group FREEZING until asked again
        return False

    def _kill_once(self) -> bool:
        """Signal what is there; True when nothing was."""
        if not self._v1 and self._file("cgroup.kill").exists():
            self._file("cgroup.kill").write_text("1")
            return not self.pids()
        return self._kill_frozen()

    def _kill_frozen(self, spared: int | None = None) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self._set_frozen(True)  # what is frozen cannot fork away while its siblings are signalled
        for pid in self.pids() - {spared}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            self.thaw()
        return not self.pids() - {spared}

    def pids(self) -> set[int]:
        """Processes in any hierarchy's group or below it: one may have been half moved by a runtime that died."""
        return {pid for group in self._groups() for pid in _pids_below(group)}

    def _remove_once(self) -> bool:
        gone = [_remove_tree(group) for group in self._groups()]  # a busy one must not keep the others
        return all(gone)


async def sweep(hierarchies: Hierarchies, parent: str, keep: set[str], timeout: float = 10.0) -> set[str]:
    """End and remove every group under `parent` whose name is not in `keep`, in all hierarchies.

    Returns the names of those in which something does not die. With nothing left the parent itself goes too.
    """
    parents = [root / parent.lstrip("/") for root in hierarchies.roots()]
    names = {entry.name for path in parents for entry in _subdirectories(path)} - keep
    swept = await asyncio.gather(*(_swept(Cgroup(hierarchies, parent, name), timeout) for name in sorted(names)))
    undying = {name for name in swept if name is not None}
    if not keep and not undying:
        for path in parents:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()
    return undying


async def _swept(group: Cgroup, timeout: float) -> str | None:
    """The group's name, if it is left."""
    try:
        await group.kill_all(timeout)
        await group.remove(timeout)
        return None
    except TimeoutError:
        return group.name


def _cgroup_mount(line: str) -> tuple[Path, list[str]]:
    """The mount point and the controllers of one mountinfo line; no controllers for any other file system.

    A v1 mount's super options name its controllers, and flags that match nothing that Roost asks for.
    """
    before, _, after = line.partition(" - ")
    fields, source = before.split(), after.split()
    if len(fields) < 6 or len(source) < 3 or source[0] not in ("cgroup", "cgroup2"):
        return Path(), []
    point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
    return point, [UNIFIED] if source[0] == "cgroup2" else source[2].split(",")


def _inherit_cpuset(above: Path, group: Path) -> None:
    """A new v1 cpuset is empty, and no process may enter it before it has CPUs and memory nodes."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        with contextlib.suppress(FileNotFoundError):
            inherited = (above / file).read_text()
            if inherited.strip() and not (group / file).read_text().strip():
                (group / file).write_text(inherited)


def _set(file: Path, value: str) -> None:
    with about(file):
        file.write_text(value)


def _field(text: str, name: str) -> int:
    """The number behind `name` in a flat keyed file; 0 where the kernel does not tell it."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _is_swap(file: str) -> bool:
    return "memsw" in file or "swap" in file


def _subdirectories(path: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        yield from (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def _pids_below(group: Path) -> Iterator[int]:
    for below in _subdirectories(group):
        yield from _pids_below(below)
    try:
        yield from map(int, (group / "cgroup.procs").read_text().split())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            raise


def _remove_tree(group: Path) -> bool:
    """True when the group is gone; the kernel answers EBUSY for one with processes, for a moment after they died."""
    for below in list(_subdirectories(group)):
        _remove_tree(below)
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True


async def _until(done: Callable[[], bool], timeout: float, otherwise: str) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        await asyncio.sleep(_POLL)
