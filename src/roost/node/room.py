"""What a sandbox deletes of the layers below its disk gives room on it, though those layers never change.

A disk begins with the bytes of these layers as its ballast. Where it is nearly full, what is hidden by now is measured,
and the ballast shrinks by that. It never grows, so that nobody loses what he was told to have.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from roost.node.disk import Disk
from roost.node.layers import Layers
from roost.node.moved import has_moved
from roost.node.sandbox import Sandbox
from roost.node.usage import measured

LOOK = 2.0  # seconds
NEARLY = 0.15  # of a disk that are free: then it is worth a walk of what the sandbox has changed
PAUSE = 20.0  # times as long as a walk took, until the next one of the same sandbox
WORTH = 1024 * 1024  # bytes

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Room:
    def __init__(self, layers: Layers, sandboxes: Callable[[], Iterable[Sandbox]]) -> None:
        self._layers = layers
        self._sandboxes = sandboxes
        self._next: dict[str, float] = {}  # when a sandbox may be walked again
        self._seen: dict[str, int] = {}  # free bytes after the last look

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            looked = [sandbox for sandbox in self._sandboxes() if sandbox.record.start_from and sandbox.usable]
            for sandbox in looked:
                try:
                    await self._look(sandbox)
                except Exception:  # of one that is being ended just now; the others get their turn
                    log.exception("room.fault", id=sandbox.id)
            known = {sandbox.id for sandbox in looked}
            self._next = {id: when for id, when in self._next.items() if id in known}
            self._seen = {id: free for id, free in self._seen.items() if id in known}

    async def _look(self, sandbox: Sandbox) -> None:
        member, below = sandbox.member, sandbox.record.start_from
        if not member or not below or sandbox.state.frozen or self._next.get(sandbox.id, 0) > time.monotonic():
            return
        free = _nearly_full(member.disk)
        if free is None or free == self._seen.get(sandbox.id):
            return
        begun = time.monotonic()
        lowers = await self._layers.below(below)
        freed = await asyncio.to_thread(_shrink, member.disk, lowers, self._layers.find(below).size)
        if freed:
            log.info("room.given_back", id=sandbox.id, bytes=freed)
        self._next[sandbox.id] = time.monotonic() + PAUSE * (time.monotonic() - begun)
        self._seen[sandbox.id] = _free(member.disk)


def _nearly_full(disk: Disk) -> int | None:
    """What is free, where that is little and something of it is ballast."""
    status = os.statvfs(disk.mountpoint)
    nearly = status.f_bfree < NEARLY * status.f_blocks
    return status.f_bfree * status.f_frsize if nearly and disk.ballast.exists() else None


def _free(disk: Disk) -> int:
    status = os.statvfs(disk.mountpoint)
    return status.f_bfree * status.f_frsize


def _shrink(disk: Disk, lowers: list[Path], held: int) -> int:
    """How many bytes can be written more. What was only moved looks deleted where it was, and is seen elsewhere."""
    if has_moved(disk):
        return 0
    wanted, before = max(0, held - round(measured(disk.upper, lowers).hidden)), disk.ballast.stat().st_size
    if before - wanted < WORTH:
        return 0
    os.truncate(disk.ballast, wanted)
    return before - wanted
