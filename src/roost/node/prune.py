"""Whiteouts that hide nothing go from a layer that stands on an image alone.

Merged layers may hold a whiteout for a name that only a layer among them had. Overlayfs does not look for whiteouts in
a directory that is in one layer only, so it would be listed as a name that cannot be opened.
"""

import os
import stat
from contextlib import ExitStack
from pathlib import Path

from roost.node.descent import Descent, Layers, beside, is_opaque, is_whiteout, names_in, status_of


def prune(upper: Path, image: Path) -> int:
    """How many went. Times of directories stay. Nothing else may change `upper` meanwhile."""
    with ExitStack() as opened:
        top = opened.enter_context(Descent(upper))
        return _pruned(top, Layers([opened.enter_context(Descent(image))]))


def _pruned(top: Descent, below: Layers) -> int:
    gone, directories = _cleared(top, below)
    pending = [directories]
    while True:
        if not pending[-1]:
            pending.pop()
            if not pending:
                return gone
            below.leave()
            top.leave()
            continue
        name = pending[-1].pop()
        # The image's directory of this name; a link to one is not merged with it.
        hidden = [] if is_opaque(beside(top.here, name)) else below.find(name)
        top.enter(name)
        below.enter(name, hidden)
        idle, directories = _cleared(top, below)
        gone += idle
        pending.append(directories)


def _cleared(top: Descent, below: Layers) -> tuple[int, list[str]]:
    """How many whiteouts of this directory went, and what directories are in it."""
    before, gone = os.fstat(top.here), 0
    directories: list[str] = []
    for name in names_in(top.here):
        status = status_of(top.here, name)
        if stat.S_ISDIR(status.st_mode):
            directories.append(name)
        elif is_whiteout(status) and not below.find(name):
            os.unlink(name, dir_fd=top.here)
            gone += 1
    if gone:
        os.utime(top.here, ns=(before.st_atime_ns, before.st_mtime_ns))
    return gone, directories
