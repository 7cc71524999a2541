"""What a benchmark tells: facts of the machine, percentiles, a table, and the raw values as a JSON file."""

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measure.client import Timing

RESULTS = Path(__file__).parents[1] / "results"


def facts() -> dict[str, Any]:
    memory = Path("/proc/meminfo").read_text().split()
    revision = subprocess.run(
        ["git", "-C", str(RESULTS.parents[1]), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision.stdout.strip(),
        "cpus": os.cpu_count(),
        "cpu": _cpu_name(),
        "memory_mb": int(memory[memory.index("MemTotal:") + 1]) // 1024,
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "busy_before": round(busy_share(1.0), 3),
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def busy_share(seconds: float) -> float:
    """Of all CPUs, how much everybody together uses during the next `seconds`."""
    idle, total = _ticks()
    time.sleep(seconds)
    idle_after, total_after = _ticks()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def _ticks() -> tuple[int, int]:
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def own_cpu_ms() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * 1000


def cpu_ms(pids: Sequence[int]) -> float:
    """CPU time of other processes so far, without their ended children."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: a value that was really measured."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(timings: Sequence[Timing], field: str) -> dict[str, float]:
    """Of those that went well; empty where none did, or none has this time."""
    values = [value for timing in timings if timing.ok and (value := getattr(timing, field)) is not None]
    if not values:
        return {}
    shares = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
    return {name: round(percentile(values, share), 2) for name, share in shares.items()} | {
        "mean": round(statistics.fmean(values), 2),
        "max": round(max(values), 2),
    }


def success(timings: Sequence[Timing]) -> str:
    return f"{sum(timing.ok for timing in timings)}/{len(timings)}"


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *rows]:
        first, *others = (cell for cell in row)
        print("  ".join([first.ljust(widths[0])] + [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]))


def write(name: str, values: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path
