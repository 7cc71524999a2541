"""What goes by itself: old revisions, local workspaces that nobody uses, expired uploads, and then their space.

Which revisions are listed is decided here, in the database; the node frees what the list it is given does not need.
That list is complete by construction: every row, head and pin, and beside it the ids of saves to come. Nothing of the
last hour is touched, and nothing that could not be saved yet before its workspace is deleted.
"""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, cast

import structlog
from sqlalchemy import delete, exists, func, or_, select, union
from structlog.typing import FilteringBoundLogger

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import accounts, jobs, revisions, workspaces
from roost.errors import RoostError
from roost.workspaces import revisions as revisions_of
from roost.workspaces import uploads
from roost.workspaces.revisions import Unrecorded
from roost.workspaces.workspace import UNFINISHED, based, written

if TYPE_CHECKING:
    from roost.node.client import NodeClient

EVERY = 3600.0  # seconds
GRACE = 3600 * 1_000_000_000  # nanoseconds; a revision younger than this may be one that we have not heard of
DAY = 24 * 3600 * 1_000_000_000  # nanoseconds

log: FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class Retention:
    """Of each workspace the head stays, and what is both among the newest `revisions` and younger than `days`.

    A periodic save stays only as the head. A local workspace is kept for `days` after its last use. 0 days: for ever.
    """

    revisions: int = 20
    days: int = 30

    def oldest_ns(self, now: int) -> int:
        return now - self.days * DAY if self.days else 0


class Link(Protocol):
    """Whether the node has told everything it knows."""

    @property
    def is_up(self) -> bool: ...


class Collection:
    """Enter it to begin: once an hour, and soon after `wake`."""

    def __init__(
        self, database: Database, node: "NodeClient", link: Link, unrecorded: Unrecorded, retention: Retention
    ) -> None:
        self._database = database
        self._node = node
        self._link = link
        self._unrecorded = unrecorded
        self._retention = retention
        self._due = asyncio.Event()
        self.refused: dict[int, str] = {}  # accounts whose space did not come back in the last round, and why
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._go_on(), name="collection")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """Something was deleted."""
        self._due.set()

    async def _go_on(self) -> None:
        while True:
            try:
                async with asyncio.timeout(EVERY):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            try:
                await self.run()
            except RoostError as error:
                log.warning("collection.failed", error=str(error))  # the next round does what this one left
            except Exception:
                log.exception("collection.fault")

    async def run(self) -> None:
        """One round. Without a node, or before it has told what it has, nothing is collected."""
        if not self._link.is_up:
            return
        unsaved = [revision.id for revision in await self._node.unsaved()]
        idle = await self._forget_idle(unsaved)
        unlisted = await self._unlist(unsaved)
        await revisions_of.follow(self._database, self._node)
        expired = await uploads.expire(self._database, self._node)
        before_ns = now_ns() - GRACE
        reserved = await self.reserved()  # before what is live: an id that moves from here to there is in both
        live = await self.live()
        collected = await self._node.collect(live, reserved, before_ns, await self._images(live))
        self.refused = collected.refused
        log.info(
            "collection.end",
            refused=len(self.refused),
            workspaces=idle,
            unlisted=unlisted,
            files=expired,
            revisions=collected.revisions_removed,
            bytes=collected.bytes_freed,
        )

    async def live(self) -> dict[int, list[str]]:
        """By account, every revision that there is and that anybody may want: listed, a head, pinned by a job."""
        pins = (jobs.c.start_revision, jobs.c.base_revision)
        query = union(
            select(workspaces.c.account_id, revisions.c.id).where(workspaces.c.id == revisions.c.workspace_id),
            select(workspaces.c.account_id, workspaces.c.head),
            *(select(jobs.c.account_id, pin).where(UNFINISHED) for pin in pins),
        )
        live = {row.id: set[str]() for row in await self._database.read(select(accounts.c.id))}
        for row in await self._database.read(query):
            account_id, revision = cast("tuple[int, str | None]", tuple(row))
            if revision is not None:
                live[account_id].add(revision)
        return {account_id: sorted(wanted) for account_id, wanted in live.items()}

    async def _images(self, live: dict[int, list[str]]) -> list[str] | None:
        """What all of these stand on; None where one has no row, which only a job pins."""
        rows = await self._database.read(select(revisions.c.id, revisions.c.image))
        known = {row.id: row.image for row in rows}
        ids = [id for one in live.values() for id in one]
        return sorted({known[id] for id in ids}) if all(id in known for id in ids) else None

    async def reserved(self) -> list[str]:
        """Ids that were chosen for saves which may be made, or are being made: there is nothing of most of them yet."""
        writing = set(self._unrecorded.ids)  # before the rows are read: what leaves this set has its row by then
        rows = await self._database.read(select(jobs.c.save_revision).where(UNFINISHED))
        return sorted(writing | {row.save_revision for row in rows if row.save_revision is not None})

    async def _unlist(self, unsaved: list[str]) -> int:
        """`unsaved` stay: they are the only copy of somebody's files, who may not know it yet."""
        newest = (
            func.row_number()
            .over(partition_by=revisions.c.workspace_id, order_by=revisions.c.created_ns.desc())
            .label("rank")
        )
        wished = select(revisions.c.id, newest).where(revisions.c.periodic.is_(False)).subquery()
        many = select(wished.c.id).where(wished.c.rank > self._retention.revisions)
        heads = select(workspaces.c.head).where(workspaces.c.head.is_not(None))
        past = or_(
            revisions.c.periodic.is_(True),
            revisions.c.created_ns < self._retention.oldest_ns(now_ns()),
            revisions.c.id.in_(many),
        )
        (outcome,) = await self._database.write(
            delete(revisions).where(past, revisions.c.id.not_in(heads), revisions.c.id.not_in(unsaved))
        )
        return outcome.rows

    async def _forget_idle(self, unsaved: list[str]) -> int:
        owed = exists().where(revisions.c.workspace_id == workspaces.c.id, revisions.c.id.in_(unsaved))
        account, name = workspaces.c.account_id, workspaces.c.name
        idle = (
            workspaces.c.persistent.is_(False),
            workspaces.c.used_ns < self._retention.oldest_ns(now_ns()),
            ~or_(written(account, name), based(account, name), owed),
        )
        outcomes = await self._database.write(
            delete(revisions).where(revisions.c.workspace_id.in_(select(workspaces.c.id).where(*idle))),
            delete(workspaces).where(*idle),
        )
        return outcomes[-1].rows
