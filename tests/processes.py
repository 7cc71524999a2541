"""Processes as /proc tells of them, for whoever has to end what is left."""

import contextlib
import os
import time
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds; the kernel rounds down to it

kept: set[int] = set()  # those of fixtures that outlive the test in which they were started


def children(pid: int) -> set[int]:
    """Direct children, without those that have ended and wait for their parent."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                found.update(map(int, task.joinpath("children").read_text().split()))
    return {child for child in found if is_alive(child)}


def descendants(pid: int) -> list[int]:
    """Parents before their children."""
    found: list[int] = []
    level = [pid]
    while level:
        level = sorted({child for parent in level for child in children(parent)})
        found += level
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def since_boot() -> float:
    """Seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def started_at(pid: int) -> float:
    """Seconds since boot, at most a tick too late; 0 when it has ended."""
    with contextlib.suppress(OSError):
        return (int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) + 1) * TICK
    return 0.0


def command(pid: int) -> str:
    """Number and words, for a message."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{pid} {words.strip()[:160]}"
    return str(pid)
