"""Where the files are that the protocol's file calls ask for: in a running sandbox, or in a revision.

A running sandbox's files are seen through its own root; a revision's through a read-only mount of its stack on this
machine, which no program is ever run from.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from roost import linux
from roost.errors import Conflict
from roost.node.disk import OVERLAY, Disk, Disks, unmount
from roost.node.layers import Layers
from roost.node.protocol import Revision, SaveRequest
from roost.node.sandboxes import Sandboxes
from roost.node.saver import Saver
from roost.node.threads import Threads
from roost.node.tree import Tree, process_root

EDIT_GIB = 64  # the largest disk_gb; what the workspace holds is part of it
EDITING = 64  # at once; each has a thread that waits for its caller's bytes


class NodePlaces:
    def __init__(self, directory: Path, sandboxes: Sandboxes, layers: Layers, saver: Saver, disks: Disks) -> None:
        """`directory`: for mount points; it is empty between calls."""
        self._directory = directory
        self._sandboxes = sandboxes
        self._layers = layers
        self._saver = saver
        self._disks = disks
        self._editing = Threads(EDITING, "edits")
        directory.mkdir(mode=0o700, exist_ok=True)
        self._unmount()

    def close(self) -> None:
        self._editing.close()
        self._unmount()

    def _unmount(self) -> None:
        """Whatever is still mounted, also by a node that was killed."""
        for left in self._directory.iterdir():
            unmount(left)
            left.rmdir()

    def live(self, id: str) -> Tree:
        """Raises NotFound, Conflict."""
        member = self._sandboxes.member_of(id)
        first_id = member.site.first_id
        return Tree(process_root(member.pid, first_id), first_id)

    def owner(self, id: str) -> int:
        return self._sandboxes.account_of(id)

    @asynccontextmanager
    async def stored(self, revision: str, account: int) -> AsyncGenerator[Tree]:
        stack = await self._layers.stack(account, revision)
        try:
            async with self._mounted(stack.lowers) as point:
                with Tree(point, 0) as tree:
                    yield tree
        finally:
            stack.release()

    async def edit(self, revision: str, save: SaveRequest, change: Callable[[Tree], None]) -> Revision:
        """Raises Conflict when `save` names a revision that exists already with another parent."""
        if self._layers.has(save.revision):
            made = self._layers.find(save.revision)
            if made.parent != revision:
                raise Conflict(f"revision {save.revision} exists already and was not made from {revision}")
            return made
        stack = await self._layers.stack(save.account, revision)
        name = f"edit-{save.revision}"
        disk = await self._disks.make(name, self._directory / name, EDIT_GIB, owner=0)
        try:
            await asyncio.to_thread(disk.hold, stack.size)
            async with self._mounted(stack.lowers, disk) as point:
                with Tree(point, 0) as tree:
                    await self._editing.run(lambda: change(tree))
            disk.ballast.unlink(missing_ok=True)
            return await self._saver.keep_edit(save, disk, stack.revision)
        finally:
            stack.release()
            await asyncio.to_thread(disk.remove)
            disk.mountpoint.rmdir()

    @asynccontextmanager
    async def _mounted(self, lowers: Sequence[Path], disk: Disk | None = None) -> AsyncGenerator[Path]:
        point = self._directory / secrets.token_hex(8)
        point.mkdir()
        await asyncio.to_thread(mount_overlay, point, lowers, disk)
        try:
            yield point
        finally:
            await asyncio.to_thread(unmount, point)
            with suppress(FileNotFoundError):  # the node is closing, and was faster
                point.rmdir()


def mount_overlay(point: Path, lowers: Sequence[Path], disk: Disk | None = None) -> None:
    """Read-only without a disk. Layers are named by descriptors: the options of a deep stack have to fit in a page."""
    with ExitStack() as opened:
        named: list[str] = []
        for lower in lowers:
            descriptor = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            named.append(f"/proc/self/fd/{descriptor}")
        options = f"lowerdir={':'.join(named)}"
        if disk:
            options += f",upperdir={disk.upper},workdir={disk.work},{OVERLAY}"
        linux.mount("overlay", point, "overlay", linux.MS_SEALED | (0 if disk else linux.MS_RDONLY), options)
