"""Readings of memory. PSS counts a page that N processes share as 1/N for each, RSS counts it for each of them."""

import asyncio
import statistics
from collections.abc import Iterable
from pathlib import Path

KERNEL_SIDE = ("Slab", "SReclaimable", "SUnreclaim", "KernelStack", "PageTables", "Percpu", "VmallocUsed")
ACCOUNTED = ("Slab", "KernelStack", "PageTables", "Percpu")  # VmallocUsed has the stacks a second time
READINGS = 9
BETWEEN = 0.3  # seconds


async def machine_kb() -> dict[str, int]:
    """/proc/meminfo, each line's median of a few readings, since others use the machine too."""
    readings: list[dict[str, int]] = []
    for _ in range(READINGS):
        lines = Path("/proc/meminfo").read_text().splitlines()
        readings.append({name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)})
        await asyncio.sleep(BETWEEN)
    return {name: round(statistics.median(reading[name] for reading in readings)) for name in readings[0]}


def process_kb(pid: int) -> dict[str, int]:
    """Pss and Rss of one process; zeros for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {"pss": 0, "rss": 0}
    values = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {"pss": values["Pss"], "rss": values["Rss"]}


def together(readings: Iterable[dict[str, int]]) -> dict[str, int]:
    total = {"pss": 0, "rss": 0}
    for reading in readings:
        total = {kind: total[kind] + reading[kind] for kind in total}
    return total


class Groups:
    """The control groups of an instance's members, cgroup v1 or v2."""

    def __init__(self, number: int) -> None:
        v1 = Path(f"/sys/fs/cgroup/memory/roost-{number}")
        self._top = v1 if v1.exists() else Path(f"/sys/fs/cgroup/roost-{number}")
        self._file = "memory.usage_in_bytes" if v1.exists() else "memory.current"

    def members(self) -> list[Path]:
        return [path for path in self._top.iterdir() if path.is_dir()]

    def charged_kb(self) -> list[int]:
        """What the kernel charges each member: its processes' own pages, its cache, and some of the kernel's."""
        return [int((member / self._file).read_text()) // 1024 for member in self.members()]

    def kernel_kb(self) -> list[int]:
        """The kernel's part of `charged_kb`, where it tells it."""
        files = [member / "memory.kmem.usage_in_bytes" for member in self.members()]
        return [int(file.read_text()) // 1024 for file in files if file.exists()]

    def pids(self) -> list[int]:
        return [int(pid) for member in self.members() for pid in (member / "cgroup.procs").read_text().split()]

    def by_program(self) -> dict[str, list[dict[str, int]]]:
        """The memory of every process of the guests, by the program's name."""
        found: dict[str, list[dict[str, int]]] = {}
        for pid in self.pids():
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found.setdefault(name, []).append(process_kb(pid))
        return found
