"""How busy the machine is: what the pool asks before it grows.

The documented rule is 90 % of CPU and memory. Memory is a hard limit, since it cannot be shared out again; CPU only
stops the making of members that nobody waits for.
"""

import os
import time
from pathlib import Path

FULL = 0.9  # of CPU and memory: the documented rule
MIB = 1024 * 1024


def memory_mb() -> tuple[int, int]:
    """Total and available, in MiB."""
    found: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines()[:3]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) // 1024
    return found["MemTotal"], found["MemAvailable"]


def memory_is_full() -> bool:
    total, available = memory_mb()
    return available < total * (1 - FULL)


def disk_is_full(path: Path, reserve: int = 1024 * MIB) -> bool:
    """Whether the file system that holds the guests' disks is nearly full (`reserve` bytes, or 2 % if that is less)."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize < min(reserve, stat.f_blocks * stat.f_frsize // 50)


class CpuMeter:
    """Share of the CPUs in use between two looks at least half a second apart."""

    def __init__(self) -> None:
        self._busy, self._total = self._read()
        self._looked = time.monotonic()
        self._share = 0.0

    def share(self) -> float:
        if time.monotonic() - self._looked >= 0.5:
            busy, total = self._read()
            self._share = (busy - self._busy) / max(1, total - self._total)
            self._busy, self._total, self._looked = busy, total, time.monotonic()
        return self._share

    @staticmethod
    def _read() -> tuple[int, int]:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks)
