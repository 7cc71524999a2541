"""What one sandbox has used since its start: counters that only grow, as the kernel keeps them or by looking often.

CPU time and bytes are the kernel's own counts, less what the pool member had before it was claimed. Time and
memory-time are added at each look. What a meter holds goes into the sandbox's record, so a node that follows counts
on: of time and the kernel's counts nothing is lost, of memory's course what happened while no node looked.
"""

import time
from pathlib import Path

import msgspec

from roost.clock import now_ns
from roost.node.cgroup import MIB, Cgroup
from roost.node.protocol import Usage

LINKS = Path("/sys/class/net")


class Counters(msgspec.Struct, frozen=True):
    """The kernel's, of a cgroup and of the host's end of its link."""

    cpu_ns: int = 0
    rx_bytes: int = 0  # that the sandbox received
    tx_bytes: int = 0


class Metered(msgspec.Struct, frozen=True):
    """What survives the node."""

    usage: Usage
    before: Counters  # of the member, when it was claimed
    at_monotonic_ns: int  # of the last look; this clock goes on while no node runs


def read(cgroup: Cgroup, interface: str) -> tuple[Counters, int]:
    """And the bytes of memory in use. What leaves the host's end is what the sandbox receives. Raises OSError."""
    used, statistics = cgroup.usage(), LINKS / interface / "statistics"
    received = int((statistics / "tx_bytes").read_bytes())
    sent = int((statistics / "rx_bytes").read_bytes())
    return Counters(used.cpu_ns, received, sent), used.memory_bytes


class Meter:
    def __init__(self, cgroup: Cgroup, interface: str, metered: Metered) -> None:
        self.metered = metered
        self._cgroup, self._interface = cgroup, interface
        self._memory: int | None = None  # bytes, at the last look

    @classmethod
    def begin(cls, sandbox: str, cgroup: Cgroup, interface: str, before: Counters) -> "Meter":
        usage = Usage(sandbox=sandbox, at_ns=now_ns())
        return cls(cgroup, interface, Metered(usage, before, time.monotonic_ns()))

    def look(self, frozen: bool) -> Usage:
        """`frozen`: whether it stood still since the last look. What has gone meanwhile keeps its last count."""
        try:
            counted, memory = read(self._cgroup, self._interface)
        except OSError:
            return self.tick(frozen)
        usage = self._advanced(frozen, memory if self._memory is None else (self._memory + memory) // 2)
        before, self._memory = self.metered.before, memory
        usage = msgspec.structs.replace(
            usage,
            cpu_ns=max(usage.cpu_ns, counted.cpu_ns - before.cpu_ns),
            rx_bytes=max(usage.rx_bytes, counted.rx_bytes - before.rx_bytes),
            tx_bytes=max(usage.tx_bytes, counted.tx_bytes - before.tx_bytes),
        )
        return self._keep(usage)

    def tick(self, frozen: bool) -> Usage:
        """Adds time alone, without asking the kernel: for the moment before it freezes or thaws."""
        return self._keep(self._advanced(frozen, self._memory or 0))

    def _advanced(self, frozen: bool, memory: int) -> Usage:
        usage = self.metered.usage
        passed = max(0, time.monotonic_ns() - self.metered.at_monotonic_ns)
        return msgspec.structs.replace(
            usage,
            at_ns=now_ns(),
            awake_ns=usage.awake_ns + (0 if frozen else passed),
            frozen_ns=usage.frozen_ns + (passed if frozen else 0),
            memory_mb_seconds=usage.memory_mb_seconds + memory / MIB * passed / 1e9,
        )

    def _keep(self, usage: Usage) -> Usage:
        self.metered = Metered(usage, self.metered.before, time.monotonic_ns())
        return usage
