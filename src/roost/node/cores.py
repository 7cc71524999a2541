"""Which processors a sandbox runs on: as many as its share asks for, the least asked for at that moment.

The share itself is the control group's (cgroup.py). Where a sandbox may run is told it by its affinity, which is what
`nproc` and the run-times of languages count. It is a default, not a wall: a sandbox may choose others itself.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """on: the processors; none where it may have all."""

    vcpus: float
    cpus: int
    on: tuple[int, ...] = ()


class Cores:
    def __init__(self, cpus: Sequence[int] | None = None) -> None:
        """`cpus`: those of this machine that may be used; by default this process's own."""
        self._asked = dict.fromkeys(sorted(os.sched_getaffinity(0)) if cpus is None else cpus, 0.0)

    def take(self, vcpus: float) -> Share:
        """Until `give`."""
        count = max(1, math.ceil(vcpus))
        if count >= len(self._asked):
            return Share(vcpus, len(self._asked))
        share = Share(vcpus, count, tuple(sorted(sorted(self._asked, key=self._asked.__getitem__)[:count])))
        self.count(share)
        return share

    def known(self, cpus: set[int]) -> Share:
        """Of a sandbox that runs on these already."""
        on = tuple(sorted(cpus & self._asked.keys()))
        if not on or len(on) == len(self._asked):
            return Share(len(self._asked), len(self._asked))
        share = Share(len(on), len(on), on)
        self.count(share)
        return share

    def give(self, share: Share) -> None:
        """It has ended, or stands still."""
        self._add(share, -1)

    def count(self, share: Share) -> None:
        """It goes on."""
        self._add(share, 1)

    def _add(self, share: Share, sign: int) -> None:
        for cpu in share.on:
            self._asked[cpu] += sign * share.vcpus / len(share.on)
