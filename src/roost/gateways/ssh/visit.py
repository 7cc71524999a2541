"""One login's way to its sandbox: whose it is, that it is awake, and that its use is counted while the login lasts."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import select

from roost.db.database import Database
from roost.db.schema import aliases
from roost.errors import Conflict, NodeUnavailable, NotFound, Refused
from roost.jobs import job as jobs
from roost.jobs.job import Job

if TYPE_CHECKING:
    from roost.jobs.live import LiveJobs
    from roost.jobs.run import Run

WAKE_WITHIN = 90.0  # seconds
TRY_AGAIN = 0.02  # seconds
Dial: TypeAlias = Callable[[str], Awaitable[socket.socket]]  # of a sandbox's id
SELF = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "")


class Visit:
    """Enter it with `run`, leave it with `close`. `entered` is told each sandbox that it leads to."""

    def __init__(
        self,
        database: Database,
        live: "LiveJobs",
        account_id: int,
        name: str,
        job_seq: int | None,
        entered: "Callable[[Run], None]" = lambda run: None,
        refusal: str | None = None,
    ) -> None:
        self.account_id = account_id
        self.name = name  # as the user gave it; counts where the key or the port does not say which job
        self._job_seq = job_seq
        self._refusal = refusal
        self._database = database
        self._live = live
        self._entered = entered
        self._run: Run | None = None
        self._used = contextlib.ExitStack()
        self._closed = False

    async def run(self) -> "Run":
        """The sandbox, awake; it is woken as often as it has to be. Raises RoostError with what to tell the user."""
        if self._run is not None and self._run.awake and not self._run.done.is_set():
            return self._run
        run = await self._live.awake(await self._job(), WAKE_WITHIN)
        if self._closed:
            raise Conflict("the connection has been closed")
        if run is not self._run:
            self._used.close()
            self._used.enter_context(run.use())
            self._run = run
            self._entered(run)
        return run

    async def _job(self) -> Job:
        """What the login leads to, as it is recorded now: each cold wake changes it."""
        if self._refusal is not None:
            raise NotFound(self._refusal)
        if self._job_seq is not None:
            return await jobs.find_by_seq(self._database, self.account_id, self._job_seq)
        if self.name == "root":
            cure = "give the sandbox's name as the user: `ssh NAME@HOST`; `ssh roost@HOST` lists them"
            raise NotFound(f"this is your account's key, and root is of no particular sandbox; {cure}")
        try:
            found = await jobs.find(self._database, self.account_id, self.name)
        except NotFound:
            found = await self._job_of_alias()
        self._job_seq = found.seq  # the same one for the whole login, whatever takes the name meanwhile
        return found

    async def _job_of_alias(self) -> Job:
        query = select(aliases.c.workspace).where(
            aliases.c.account_id == self.account_id, aliases.c.subdomain == self.name
        )
        rows = await self._database.read(query)
        if not rows:
            cure = "`ssh roost@HOST` lists yours"
            raise NotFound(f"you have no sandbox with the name, workspace, id or alias {self.name!r}; {cure}")
        return await jobs.find(self._database, self.account_id, rows[0].workspace)

    async def patiently(self, dial: Dial) -> socket.socket:
        """A connection into the sandbox. Raises Refused when nothing listens and nothing can be about to."""
        deadline = time.monotonic() + WAKE_WITHIN
        while True:
            run = await self.run()
            try:
                return await dial(run.job.vm_id)
            except Refused:
                if time.time() > run.listens_by() or time.monotonic() > deadline:
                    raise
            except NodeUnavailable as error:  # no connection was made, so none is made twice
                await self.node_back(error, deadline)
            except (Conflict, NotFound):  # it fell asleep between our look and our call
                if run.awake or run.done.is_set() or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(TRY_AGAIN)

    async def node_back(self, error: NodeUnavailable, deadline: float) -> None:
        """Returns when the node may answer again; raises `error` where it does not before the monotonic `deadline`."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._live.link.again()
        except TimeoutError:
            raise error from None

    def close(self) -> None:
        self._closed = True
        self._used.close()
        self._run = None
