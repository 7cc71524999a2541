"""What a layer adds to the layers below it, in bytes on the disk as `du` counts them.

A revision's size is its parent's and this, so a save looks at what changed and at what that hides, never at the rest.
A name's lower counterparts are looked for only where its directory is in a layer below; what is hidden whole (a deleted
or replaced directory) is walked once. A file of several names counts a share for each of them.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from roost.node.descent import VANISHED, Descent, Layers, beside, is_opaque, is_whiteout, names_in, status_of

BLOCK = 512  # bytes; the unit of st_blocks


@dataclass(frozen=True)
class Measured:
    """Bytes. `hidden`: what of the layers below is seen no more, deleted, replaced, or copied up to be changed.

    `largest`: of its files.
    """

    added: float = 0.0
    hidden: float = 0.0
    largest: int = 0

    @property
    def grown(self) -> int:
        """Less than 0 where more is hidden than added."""
        return round(self.added - self.hidden)


def grown(upper: Path, lowers: Sequence[Path]) -> int:
    return measured(upper, lowers).grown


def measured(upper: Path, lowers: Sequence[Path]) -> Measured:
    """`lowers`: the newest first, without the image.

    Names that vanish meanwhile, from a layer that a sandbox is writing to, are left out.
    """
    with ExitStack() as opened:
        try:
            top = opened.enter_context(Descent(upper))
        except FileNotFoundError:
            return Measured()
        return _compared(top, Layers([opened.enter_context(Descent(lower)) for lower in lowers]))


def _compared(top: Descent, below: Layers) -> Measured:
    added, gone, largest = 0.0, 0.0, 0
    pending = [names_in(top.here)]
    while True:
        if not pending[-1]:
            pending.pop()
            if not pending:
                return Measured(added, gone, largest)
            below.leave()
            _leave(top, pending[-1])
            continue
        name = pending[-1].pop()
        try:
            status = status_of(top.here, name)
        except FileNotFoundError:
            continue
        lower, directory = below.find(name), stat.S_ISDIR(status.st_mode)
        if not is_whiteout(status):
            added += _bytes(status)
        if stat.S_ISREG(status.st_mode):
            largest = max(largest, status.st_blocks * BLOCK)
        if directory and not is_opaque(beside(top.here, name)):
            gone += _bytes(lower[0][1]) if lower else 0
        else:
            gone += _shown(below, name, lower)
            lower = []
        if directory and (names := _entered(top, name)) is not None:
            below.enter(name, lower)
            pending.append(names)


def _entered(top: Descent, name: str) -> list[str] | None:
    try:
        return names_in(top.enter(name))
    except OSError as error:
        if error.errno not in VANISHED:
            raise
        return None


def _leave(top: Descent, rest: list[str]) -> None:
    """What was still to be looked at above has gone, too, if what is above has."""
    try:
        top.leave()
    except OSError as error:
        if error.errno not in VANISHED:
            raise
        rest.clear()


def _shown(below: Layers, name: str, found: Sequence[tuple[Descent, os.stat_result]]) -> float:
    """All that is seen below a name."""
    if not found:
        return 0.0
    total, top = _bytes(found[0][1]), found[0][1]
    if not stat.S_ISDIR(top.st_mode):
        return total
    below.enter(name, found)
    pending = [list(below.names())]
    while pending:
        if not pending[-1]:
            pending.pop()
            below.leave()
            continue
        inner = pending[-1].pop()
        found = below.find(inner)
        total += _bytes(found[0][1]) if found else 0
        if found and stat.S_ISDIR(found[0][1].st_mode):
            below.enter(inner, found)
            pending.append(list(below.names()))
    return total


def _bytes(status: os.stat_result) -> float:
    blocks = status.st_blocks * BLOCK
    return blocks if stat.S_ISDIR(status.st_mode) else blocks / status.st_nlink
