"""Revisions of workspaces: which there are, which is the head, and how it moves: by compare-and-set only.

A job pins what it starts from (`pin`). What it saves becomes the head if the head is still what the job started from or
saved itself; the save of its end goes with its result in one transaction (`jobs/job.py:record_end`). An edit or a
restore needs the head it has seen, and no writer.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec
from sqlalchemy import Executable, Integer, String, and_, exists, func, literal, or_, select, update
from sqlalchemy.dialects.sqlite import insert

from roost import ids
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.prefixes import whole_id
from roost.db.schema import jobs, revisions, workspaces
from roost.errors import Conflict, NodeUnavailable, NotFound
from roost.node import protocol
from roost.workspaces import workspace
from roost.workspaces.workspace import Workspace, named, written

if TYPE_CHECKING:
    from roost.jobs.job import Job
    from roost.node.client import NodeClient


PATIENCE = 2.0  # seconds that a listing waits for the node's news
MOST = 1000  # rows that one round of `follow` asks the node about


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """A revision that is listed; the node has its files."""

    id: str
    parent: str | None
    image: str
    request_id: str | None  # of the job that made it; None: an edit
    periodic: bool
    size: int
    stored: bool
    stored_bytes: int
    created_ns: int


@dataclass(frozen=True)
class Start:
    """What a job's files begin as, and where its saves go."""

    revision: str | None
    upload: bool


@dataclass(frozen=True)
class Page:
    revisions: list[Revision]
    total: int


class Unrecorded:
    """Ids under which the node is saving something right now that no row tells of yet: not to be collected."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    @contextmanager
    def chosen(self) -> Generator[str]:
        """A new id, protected until the block ends."""
        revision = ids.revision_id()
        self.ids.add(revision)
        try:
            yield revision
        finally:
            self.ids.discard(revision)


_COLUMNS = [revisions.c[name] for name in Revision.__struct_fields__]


async def page(database: Database, of: Workspace, number: int, size: int) -> Page:
    """Newest first; `number` counts from 1."""
    its_own = revisions.c.workspace_id == of.id
    query = select(*_COLUMNS).where(its_own).order_by(revisions.c.created_ns.desc(), revisions.c.id)
    ((total,),) = await database.read(select(func.count()).select_from(revisions).where(its_own))
    rows = await database.read(query.limit(size).offset((number - 1) * size))
    return Page([Revision(**cast("dict[str, Any]", row._mapping)) for row in rows], total)  # pyright: ignore[reportPrivateUsage]


async def require(database: Database, of: Workspace, revision: str) -> None:
    """Raises NotFound."""
    row = select(revisions.c.id).where(revisions.c.id == revision, revisions.c.workspace_id == of.id)
    if not await database.read(row):
        raise NotFound(
            f"workspace '{of.name}' has no revision {revision!r}; "
            "GET /api/v1/mags-workspaces/:id/revisions lists what is kept"
        )


async def require_base(database: Database, account_id: int, name: str, revision: str | None) -> None:
    """That a job can begin from it. Raises NotFound, Conflict while it holds nothing yet."""
    try:
        base = await workspace.find(database, account_id, name)
    except NotFound as error:
        raise NotFound(
            f"base_workspace_id: {error}; build it first with a job whose workspace_id is '{name}'"
        ) from None
    if revision is not None:
        await require(database, base, revision)
    elif base.head is None:
        filling = await workspace.writer(database, account_id, name)
        cure = f"job {filling} is still filling it" if filling else "no job of it has been saved"
        raise Conflict(f"base_workspace_id: workspace '{name}' holds nothing yet: {cure}; submit again after that")


async def refresh(database: Database, listed: Revision, known: protocol.Revision) -> Revision:
    """What is true now: an upload that the object store could not take at first is made up for by the node later."""
    told = {"stored": known.stored, "size": known.size, "stored_bytes": known.stored_bytes}
    true = msgspec.structs.replace(listed, **told)
    if true != listed:
        await database.write(update(revisions).where(revisions.c.id == listed.id).values(**told))
    return true


async def followed(database: Database, node: "NodeClient", of: Workspace, listed: list[Revision]) -> list[Revision]:
    """The same, with those of a persistent workspace that were not in the object store as the node has them now."""
    if not of.persistent:
        return listed
    true = {one.id: one for one in listed}
    with suppress(NodeUnavailable, TimeoutError):  # then they are told as they were
        async with asyncio.timeout(PATIENCE):
            for one in listed:
                if not one.stored:
                    with suppress(NotFound):
                        true[one.id] = await refresh(database, one, await node.revision(one.id, of.account_id))
    return [true[one.id] for one in listed]


async def follow(database: Database, node: "NodeClient") -> None:
    """The same for all, so that rows nobody looks at are right too. Raises NodeUnavailable."""
    in_store = and_(workspaces.c.id == revisions.c.workspace_id, workspaces.c.persistent)
    query = select(*_COLUMNS, workspaces.c.account_id).where(in_store, revisions.c.stored.is_(False)).limit(MOST)
    for row in await database.read(query):
        values = dict(cast("dict[str, Any]", row._mapping))  # pyright: ignore[reportPrivateUsage]
        account_id = values.pop("account_id")
        with suppress(NotFound):
            await refresh(database, Revision(**values), await node.revision(row.id, account_id))


async def unsaved(database: Database, node: "NodeClient", account_id: int) -> dict[int, list[protocol.Revision]]:
    """What of an account's workspaces could not be saved yet, by workspace; none while the node does not answer."""
    known = {one.id: one for one in await _unsaved(node)}
    if not known:
        return {}
    its_own = and_(workspaces.c.id == revisions.c.workspace_id, workspaces.c.account_id == account_id)
    query = select(revisions.c.id, workspaces.c.id.label("workspace")).where(its_own, revisions.c.id.in_(known))
    found: dict[int, list[protocol.Revision]] = {}
    for row in await database.read(query):
        found.setdefault(row.workspace, []).append(known[row.id])
    return found


async def _unsaved(node: "NodeClient") -> list[protocol.Revision]:
    with suppress(NodeUnavailable, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            return await node.unsaved()
    return []


async def unsaved_of(
    database: Database, node: "NodeClient", of: Workspace, require: bool = False
) -> list[protocol.Revision]:
    """Of one workspace. With `require` raises NodeUnavailable."""
    if require:
        await node.unsaved()
    return (await unsaved(database, node, of.account_id)).get(of.id, [])


async def recover(database: Database, node: "NodeClient", revision: str) -> None:
    """Raises Unsaved, NodeUnavailable."""
    made = await node.recover(revision)
    told = {"stored": made.stored, "size": made.size, "stored_bytes": made.stored_bytes}
    await database.write(update(revisions).where(revisions.c.id == revision).values(**told))


# ---- jobs --------------------------------------------------------------------------------------------------


def _head(account_id: int, name: str | None) -> Any:
    return select(workspaces.c.head).where(named(account_id, name or "")).scalar_subquery()


async def pin(database: Database, job: "Job") -> Start:
    """What the job begins with, the same however often it is asked. Raises Conflict when its base has gone.

    Its workspace's own head, else the revision asked for, else the base's head. Other jobs may move the base's head
    from now on.
    """
    mine, base = _head(job.account_id, job.workspace), _head(job.account_id, job.base_workspace)
    this = jobs.c.seq == job.seq
    await database.write(
        update(jobs)
        .where(this)
        .values(start_revision=func.coalesce(jobs.c.start_revision, mine, job.base_revision, base)),
        update(workspaces).where(named(job.account_id, job.base_workspace or "")).values(used_ns=now_ns()),
    )
    kept = select(workspaces.c.persistent).where(named(job.account_id, job.workspace or "")).scalar_subquery()
    (row,) = await database.read(select(jobs.c.start_revision, kept.label("persistent")).where(this))
    if job.base_workspace is not None and row.start_revision is None:
        raise Conflict(f"base workspace '{job.base_workspace}' has gone since the job was submitted; build it again")
    return Start(row.start_revision, bool(row.persistent) and not job.no_sync)


def saved(job: "Job", revision: protocol.Revision, final: bool) -> tuple[Executable, ...]:
    """What a save changes, as long as the job has not ended: its row, and the head if that is ours to move.

    Only a final save may be older than the head by its time, for clocks may go back and the last word is the last.
    """
    unended = exists().where(jobs.c.seq == job.seq, jobs.c.ended_ns.is_(None))
    its_workspace = named(job.account_id, job.workspace or "")
    periodic = not final and revision.id != job.save_revision
    row = _row(revision, job.request_id, periodic, and_(its_workspace, unended))
    earlier = and_(revisions.c.id == workspaces.c.head, revisions.c.request_id == job.request_id)
    if not final:
        earlier = and_(earlier, revisions.c.created_ns <= revision.created_ns)
    began = select(jobs.c.start_revision).where(jobs.c.seq == job.seq).scalar_subquery()
    ours = or_(workspaces.c.head.is_(None), workspaces.c.head == began, exists().where(earlier))
    move = update(workspaces).where(its_workspace, unended, ours).values(head=revision.id, used_ns=now_ns())
    return row, move


def asked_for(revision: protocol.Revision) -> Executable:
    """The save was somebody's wish: it stays listed, though others follow."""
    return update(revisions).where(revisions.c.id == revision.id).values(periodic=False)


def head_of(job: "Job") -> Any:
    """Its workspace's; none for a job without one."""
    return _head(job.account_id, job.workspace)


def is_head(job: "Job", revision: protocol.Revision) -> Any:
    return _head(job.account_id, job.workspace) == revision.id


def _row(revision: protocol.Revision, request_id: str | None, periodic: bool, where: Any) -> Executable:
    """Nothing happens where there is no such workspace, or the revision is listed already."""
    values = {
        "id": literal(revision.id),
        "workspace_id": workspaces.c.id,
        "parent": literal(revision.parent, String),
        "image": literal(revision.image),
        "request_id": literal(request_id, String),
        "periodic": literal(int(periodic), Integer),
        "size": literal(revision.size),
        "stored": literal(int(revision.stored), Integer),
        "stored_bytes": literal(revision.stored_bytes),
        "created_ns": literal(revision.created_ns),
    }
    source = select(*values.values()).where(where)
    return insert(revisions).from_select(list(values), source).on_conflict_do_nothing()


# ---- the owner's changes -----------------------------------------------------------------------------------


async def settle_edit(database: Database, of: Workspace, revision: protocol.Revision) -> None:
    """The edited revision becomes the head. Raises Conflict if the head is no longer what was edited, or in use."""
    free = _unchanged(of)
    outcomes = await database.write(
        _row(revision, None, False, free),
        update(workspaces).where(free).values(head=revision.id, used_ns=now_ns()),
    )
    if not outcomes[-1].rows:
        await _refuse(database, of)


async def restore(database: Database, of: Workspace, revision: str) -> str:
    """The head is the older revision, whose id is returned, from now on. Raises NotFound, Conflict."""
    revision = await whole_id(database, revisions.c.id, revisions.c.workspace_id == of.id, revision) or revision
    await require(database, of, revision)
    there = exists().where(revisions.c.id == revision, revisions.c.workspace_id == workspaces.c.id)
    outcomes = await database.write(
        update(revisions).where(revisions.c.id == revision).values(periodic=False),
        update(workspaces).where(_unchanged(of), there).values(head=revision, used_ns=now_ns()),
    )
    if not outcomes[-1].rows:
        await _refuse(database, of)
    return revision


def _unchanged(of: Workspace) -> Any:
    same = workspaces.c.head.is_(None) if of.head is None else workspaces.c.head == of.head
    return and_(workspaces.c.id == of.id, same, ~written(of.account_id, of.name))


async def _refuse(database: Database, of: Workspace) -> None:
    holder = await workspace.writer(database, of.account_id, of.name)
    if holder is not None:
        raise workspace.in_use(of.name, holder)
    await workspace.find(database, of.account_id, of.name)
    raise Conflict(f"workspace '{of.name}' was changed meanwhile; look at it and try again")
