"""Saves that did not come to their end: files that could not be made a layer, and layers that the store did not take.

What is owed stands beside the layer on the disk (`layers.Kept`), so a node that starts again goes on with it. A
round ends where the store does not answer; the pause before the next doubles until the store has taken something.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from roost.errors import RoostError, StateUnwritable, StoreUnavailable
from roost.node.protocol import Revision

if TYPE_CHECKING:
    from roost.node.layers import Layers
    from roost.node.saver import Saver

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class Pause:
    """Seconds between attempts: the first, and the longest."""

    first: float = 5.0
    longest: float = 300.0


class Arrears:
    def __init__(self, layers: "Layers", saver: "Saver", pause: Pause | None = None) -> None:
        self._layers = layers
        self._saver = saver
        self._pause = pause or Pause()
        self._grown = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._go_on(), name="arrears")

    def grown(self) -> None:
        """One more is owed."""
        self._grown.set()

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            self._grown.clear()
            pause = self._pause.first
            while owed := await asyncio.to_thread(self._layers.owed):
                log.info("arrears.wait", revisions=len(owed), seconds=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._pause.longest)
                if await self._pay():
                    pause = self._pause.first
            await self._grown.wait()

    async def _pay(self) -> bool:
        """One round: whether the store took anything. One layer that cannot be sent does not hold up the others."""
        paid = False
        for account, revision in await asyncio.to_thread(self._layers.owed):
            if not self._layers.has(revision.id):
                continue  # collected meanwhile
            error = await self._settle(account, revision)
            if error is None:
                paid = True
            elif isinstance(error, StoreUnavailable | StateUnwritable):
                break
        return paid

    async def _settle(self, account: int | None, revision: Revision) -> RoostError | OSError | None:
        """What still hinders it."""
        try:
            if revision.unsaved:
                await self._saver.recover(revision.id)
            error = None if account is None else await self._saver.upload(account, revision.id)
        except Exception as fault:  # of this one; the others are not held up
            log.exception("arrears.fault", revision=revision.id)
            return fault if isinstance(fault, RoostError) else RoostError(type(fault).__name__)
        if error is None:
            log.info("arrears.settled", revision=revision.id)
        return error
