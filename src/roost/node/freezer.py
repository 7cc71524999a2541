"""Whether the processes of one sandbox stand still: because it was frozen, or for the second pass of a save.

Either reason alone holds them, so a save does not wake a frozen sandbox, and one that is frozen meanwhile stays so.
Guest init stands still too: what it was asked before has the time until it goes on.
"""

import asyncio
import contextlib
from collections.abc import Callable

from roost.errors import Conflict
from roost.node.member import Member


class Freezer:
    def __init__(self, member: Member, frozen: bool, write: Callable[[bool], None]) -> None:
        """`frozen`: it was already, by an earlier node. `write` makes the change durable, before it takes effect."""
        self._cgroup, self._guest = member.cgroup, member.guest
        self._frozen = frozen
        self._saving = False
        self._write = write
        self._changing = asyncio.Lock()
        self._moves = asyncio.Event()
        self.thaws = 0  # so far: files may have changed since an earlier count
        if frozen:
            self._guest.pause()
        else:
            self._moves.set()

    async def freeze(self) -> bool:
        """False when it was frozen already. Raises Conflict when a process does not stand still, and what `write` does.

        Cancelled, it is as if nothing had been asked.
        """
        async with self._changing:
            if self._frozen:
                return False
            self._write(True)
            self._frozen = True
            try:
                await self._stand_still()
            except BaseException:
                self._frozen = False
                self._write(False)
                self._go_on()
                raise
            return True

    async def thaw(self) -> bool:
        """False when it was not frozen."""
        async with self._changing:
            if not self._frozen:
                return False
            self._write(False)
            self._frozen = False
            self.thaws += 1
            self._go_on()
            return True

    async def moves(self) -> None:
        """Returns when neither reason holds it."""
        await self._moves.wait()

    async def hold(self) -> None:
        """For a save, until `release`. Raises TimeoutError."""
        async with self._changing:
            self._saving = True
            try:
                await self._stand_still()
            except Conflict as error:
                self.release()
                raise TimeoutError(str(error)) from error
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        self._saving = False
        self._go_on()

    async def _stand_still(self) -> None:
        self._moves.clear()
        self._guest.pause()
        try:
            await self._cgroup.freeze()
        except OSError as error:  # TimeoutError is one too
            raise Conflict(f"the sandbox does not stand still ({error}); try again") from error

    def _go_on(self) -> None:
        if self._frozen or self._saving:
            return
        with contextlib.suppress(OSError):  # it is gone
            self._cgroup.thaw()
        self._guest.resume()
        self._moves.set()
