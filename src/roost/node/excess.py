"""Ends the sandbox that keeps others from what all of them share: processors' turns, and memory of TCP.

A sandbox that forks without end stays within its limit, but its processes hold what others wait for (pages of the
image, locks of the kernel) while they wait for their own turn: a start beside it takes seconds. A program that merely
ran into the limit gives up or asks now and then. What comes into a TCP connection that nobody has accepted yet counts
for no sandbox, only for the machine.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from roost.node.protocol import Limits, StopSandbox
from roost.node.sandbox import Sandbox

LOOK = 0.25  # seconds
LOOKS = 4  # in a row at the limit, and the sandbox is ended
REFUSED = 25  # forks that the kernel has to have refused between two looks
TCP_FULL = 0.5  # of what the machine's TCP may take
PROC = Path("/proc")
TCP_REASON = "this machine's memory for TCP was half full, and this sandbox had the most connections"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def forks_reason(limits: Limits) -> str:
    return f"it stayed at its limit of {limits.pids} processes and threads and kept starting more, so it was ended"


class Excess:
    def __init__(self, sandboxes: Callable[[], Iterable[Sandbox]]) -> None:
        self._sandboxes = sandboxes
        self._refused: dict[str, int] = {}  # forks up to the last look
        self._streaks: dict[str, int] = {}  # looks in a row that found it at its limit
        self._ending: set[asyncio.Task[None]] = set()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            living = {one.id: one for one in self._sandboxes() if one.usable and not one.state.frozen}
            for sandbox in living.values():
                self._count_forks(sandbox)
            self._forget_others(set(living))
            if living and not self._ending and tcp_share() > TCP_FULL:  # what one gives back is seen once it has gone
                self._end(max(living.values(), key=connections), TCP_REASON)

    def _count_forks(self, sandbox: Sandbox) -> None:
        if not sandbox.member:
            return
        with contextlib.suppress(OSError):  # it is being ended just now
            refused = sandbox.member.cgroup.refused_forks()
            before = self._refused.get(sandbox.id, refused)
            self._refused[sandbox.id] = refused
            streak = self._streaks.get(sandbox.id, 0) + 1 if refused - before >= REFUSED else 0
            self._streaks[sandbox.id] = streak
            if streak == LOOKS:
                self._end(sandbox, forks_reason(sandbox.limits))

    def _forget_others(self, ids: set[str]) -> None:
        for known in (self._refused, self._streaks):
            for id in known.keys() - ids:
                del known[id]

    def _end(self, sandbox: Sandbox, reason: str) -> None:
        log.warning("sandbox.excess", id=sandbox.id, reason=reason)
        task = asyncio.create_task(sandbox.end_at_once(StopSandbox(grace_seconds=0, reason=reason), "excess"))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def tcp_share(proc: Path = PROC) -> float:
    """Of what all TCP sockets of the machine may hold."""
    most = int((proc / "sys/net/ipv4/tcp_mem").read_text().split()[2])
    return _word(proc / "net/sockstat", "TCP:", "mem") / most


def connections(sandbox: Sandbox) -> int:
    with contextlib.suppress(OSError):  # it has ended
        return sockets_of(sandbox.member.pid) if sandbox.member else 0
    return 0


def sockets_of(pid: int) -> int:
    """TCP sockets in a process's network namespace, also those that nobody has accepted. Raises OSError."""
    net = PROC / f"{pid}/net"
    return _word(net / "sockstat", "TCP:", "inuse") + _word(net / "sockstat6", "TCP6:", "inuse")


def _word(file: Path, line: str, name: str) -> int:
    """The number behind `name` in a line of sockstat."""
    for words in (text.split() for text in file.read_text().splitlines()):
        if words[0] == line:
            return int(words[words.index(name) + 1])
    return 0
