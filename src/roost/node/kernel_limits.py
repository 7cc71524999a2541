"""Limits that the kernel keeps for the whole machine, and that all sandboxes together could meet.

What one sandbox may take of each is bounded by itself (control group, descriptors, filter.c, the owner of its user
namespace), so the machine's number only has to be large enough for all of them. A node raises what is lower when it
starts, and never lowers anything; raised, a limit stays until the machine is booted again. `roost doctor` lists them.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from roost.node.firewall import CONNECTIONS, MEMBERS
from roost.node.protocol import PIDS
from roost.node.runtimes.oci import TERMINALS

SYSCTL = Path("/proc/sys")
OTHERS = 4096  # terminals of the machine itself
HOSTILE = 256  # sandboxes that use up their connections at the same time
FILTERS = 1_000_000_000  # bytes: less than the kernel's own bound for modules, and ten hostile sandboxes' worth
SOCKETS = (0.25, 0.375, 0.5)  # parts of the machine's memory: guests' sockets count for their sandboxes before that

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class Limit:
    name: str  # below /proc/sys
    wanted: tuple[int, ...]  # at least
    what: str

    @property
    def sysctl(self) -> str:
        return self.name.replace("/", ".")

    @property
    def setting(self) -> str:
        """For sysctl.conf(5)."""
        return f"{self.sysctl}={' '.join(map(str, self.wanted))}"

    def now(self, sysctl: Path = SYSCTL) -> tuple[int, ...] | None:
        """None on a machine that has no such limit."""
        with contextlib.suppress(FileNotFoundError):
            return tuple(int(word) for word in (sysctl / self.name).read_text().split())
        return None

    def suffices(self, sysctl: Path = SYSCTL) -> bool:
        now = self.now(sysctl)
        return now is None or all(a >= b for a, b in zip(now, self.wanted, strict=True))


def limits() -> Iterator[Limit]:
    pages = os.sysconf("SC_PHYS_PAGES")
    sockets = tuple(int(part * pages) for part in SOCKETS)
    yield Limit("kernel/pid_max", (4_194_304,), "processes")
    yield Limit("kernel/threads-max", (2 * MEMBERS * PIDS,), "threads")
    yield Limit("fs/file-max", (2**63 - 1,), "open files: each counts as its sandbox's memory")
    yield Limit("kernel/pty/max", (MEMBERS * TERMINALS + OTHERS,), "terminals")
    yield Limit("net/core/bpf_jit_limit", (FILTERS,), "bytes of compiled filters")
    yield Limit("net/ipv4/tcp_mem", sockets, "pages in TCP sockets")
    yield Limit("net/ipv4/udp_mem", sockets, "pages in UDP sockets")
    yield Limit("net/ipv4/tcp_max_orphans", (262_144,), "closed connections with unsent data")
    for family in ("ipv4", "ipv6"):
        yield Limit(f"net/{family}/neigh/default/gc_thresh3", (8 * MEMBERS,), "neighbours")
        yield Limit(f"net/{family}/neigh/default/gc_thresh2", (4 * MEMBERS,), "neighbours before old ones go")
    yield Limit("net/netfilter/nf_conntrack_max", (HOSTILE * CONNECTIONS,), "tracked connections")


def lacking(sysctl: Path = SYSCTL) -> list[Limit]:
    return [limit for limit in limits() if not limit.suffices(sysctl)]


def raise_limits(sysctl: Path = SYSCTL) -> None:
    """What cannot be raised is told and stays: fewer sandboxes then meet it, and wait."""
    for limit in lacking(sysctl):
        now = limit.now(sysctl)
        assert now is not None
        value = " ".join(str(max(pair)) for pair in zip(now, limit.wanted, strict=True))
        try:
            (sysctl / limit.name).write_text(value)
        except OSError as error:
            log.warning("limit.unraised", name=limit.sysctl, now=now, wanted=limit.wanted, error=str(error))
        else:
            log.info("limit.raised", name=limit.sysctl, before=now, now=value)
