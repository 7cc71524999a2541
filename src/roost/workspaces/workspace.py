"""Workspaces: named file systems that outlive their jobs, each with a head revision and at most one writer.

The lock is the index `one_writer` over the jobs that have not ended, so whoever races, SQLite lets one submission in.
The transaction that records the job's end hands it to the one that has waited longest (`jobs.waits`), or frees it.
Readers (`base_workspace_id`) never take it.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import Executable, Row, and_, case, delete, exists, func, literal, null, or_, select, text, update
from sqlalchemy.dialects.sqlite import insert

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import jobs, revisions, workspaces
from roost.errors import Conflict, NoCapacity, NotFound

# literally, or SQLite does not use the partial indexes
UNFINISHED = text("jobs.status IN ('pending', 'running', 'sleeping')")
WRITES = text("NOT jobs.waits AND jobs.status IN ('pending', 'running', 'sleeping')")
MAX_LINE = 100  # jobs that wait for one workspace

_AT_REVISION = re.compile(r"(?P<name>.+)@(?P<revision>[0-9a-f]{16})\Z", re.DOTALL)


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    account_id: int
    name: str
    head: str | None  # None before the first save
    persistent: bool
    created_ns: int
    used_ns: int


@dataclass(frozen=True)
class Listed:
    """A workspace as its owner's list shows it."""

    workspace: Workspace
    jobs: int  # that wrote to it, ever
    active: bool  # a job that has not ended writes to it or began from it


@dataclass(frozen=True)
class Page:
    workspaces: list[Listed]
    total: int


_COLUMNS = [workspaces.c[name] for name in Workspace.__struct_fields__]


def named(account_id: int, name: str) -> Any:
    """The condition on `workspaces` for one of an account's."""
    return and_(workspaces.c.account_id == account_id, workspaces.c.name == name)


def written(account_id: Any, name: Any) -> Any:
    """The condition that a job which has not ended writes to the workspace. While jobs wait for it, one does."""
    return exists().where(jobs.c.account_id == account_id, jobs.c.workspace == name, WRITES)


def based(account_id: Any, name: Any) -> Any:
    return exists().where(jobs.c.account_id == account_id, jobs.c.base_workspace == name, UNFINISHED)


def split(reference: str) -> tuple[str, str | None]:
    """`name@revision` or `name`."""
    found = _AT_REVISION.match(reference)
    return (found["name"], found["revision"]) if found else (reference, None)


def used(account_id: int, name: str, persistent: bool) -> Executable:
    """Makes the workspace if it is not there; one that was persistent stays so. Goes with the insertion of its job."""
    now = now_ns()
    row = insert(workspaces).values(
        account_id=account_id, name=name, persistent=persistent, created_ns=now, used_ns=now
    )
    return row.on_conflict_do_update(
        index_elements=["account_id", "name"],
        set_={"used_ns": now, "persistent": or_(workspaces.c.persistent, row.excluded.persistent)},
    )


async def find(database: Database, account_id: int, name: str) -> Workspace:
    """Raises NotFound."""
    rows = await database.read(select(*_COLUMNS).where(named(account_id, name)))
    if not rows:
        raise NotFound(f"there is no workspace '{name}'; GET /api/v1/mags-workspaces lists yours")
    return _workspace(rows[0])


def _workspace(row: Row[Any]) -> Workspace:
    mapping = cast("dict[str, Any]", row._mapping)  # pyright: ignore[reportPrivateUsage]
    return Workspace(**{name: mapping[name] for name in Workspace.__struct_fields__})


async def writer(database: Database, account_id: int, name: str) -> str | None:
    """The request id of the job that writes to it."""
    query = select(jobs.c.request_id).where(jobs.c.account_id == account_id, jobs.c.workspace == name, WRITES)
    rows = await database.read(query)
    return rows[0].request_id if rows else None


async def writer_seq(database: Database, account_id: int, name: str) -> int | None:
    query = select(jobs.c.seq).where(jobs.c.account_id == account_id, jobs.c.workspace == name, WRITES)
    rows = await database.read(query)
    return rows[0].seq if rows else None


def place_in_line(account_id: Any, name: Any) -> Any:
    """The value of `waits` for a job that is being accepted: NULL, which its row refuses, where it may not wait.

    It may not behind a job that stays, nor behind MAX_LINE others.
    """
    unfinished = jobs.alias("unfinished")
    its = and_(
        unfinished.c.account_id == account_id,
        unfinished.c.workspace == name,
        text("unfinished.status IN ('pending', 'running', 'sleeping')"),
    )
    ahead = select(func.count()).select_from(unfinished).where(its).scalar_subquery()
    stays = exists().where(its, unfinished.c.persistent)
    return case((ahead == 0, literal(0)), (or_(stays, ahead > MAX_LINE), null()), else_=literal(1))


def handed_on(account_id: int, name: str) -> Executable:
    """Whoever waits longest writes from now on, unless somebody does. Goes with the end of a job that did."""
    line, writers = jobs.alias("line"), jobs.alias("writers")
    first = select(func.min(line.c.seq)).where(
        line.c.account_id == account_id, line.c.workspace == name, text("line.waits")
    )
    held = exists().where(
        writers.c.account_id == account_id,
        writers.c.workspace == name,
        text("writers.workspace IS NOT NULL"),
        text("NOT writers.waits AND writers.status IN ('pending', 'running', 'sleeping')"),
    )
    return update(jobs).where(jobs.c.seq == first.scalar_subquery(), ~held).values(waits=False)


async def refuse_writer(database: Database, account_id: int, name: str, in_line: bool) -> None:
    """Why a job may not even wait for it, if it would: raises Conflict, NoCapacity; returns when that has changed."""
    mine = and_(jobs.c.account_id == account_id, jobs.c.workspace == name)
    query = select(jobs.c.request_id, jobs.c.persistent).where(mine, UNFINISHED).order_by(jobs.c.seq)
    ahead = await database.read(query)
    for job in ahead:
        if job.persistent or not in_line:
            raise in_use(name, job.request_id)
    if len(ahead) > MAX_LINE:
        cure = "submit it when some have ended, or begin from it with base_workspace_id, as any number may at a time"
        raise NoCapacity(f"{MAX_LINE} jobs wait for workspace '{name}' already; {cure}")


def in_use(name: str, request_id: str) -> Conflict:
    return Conflict(
        f"workspace '{name}' is already in use by job {request_id}; stop it, or fork it with base_workspace_id"
    )


async def page(database: Database, account_id: int, number: int, size: int) -> Page:
    """Those used last come first; `number` counts from 1."""
    mine = workspaces.c.account_id == account_id
    of_it = and_(jobs.c.account_id == workspaces.c.account_id, jobs.c.workspace == workspaces.c.name)
    count = select(func.count()).select_from(jobs).where(of_it).correlate(workspaces).scalar_subquery()
    account, name = workspaces.c.account_id, workspaces.c.name
    active = or_(written(account, name), based(account, name))
    query = (
        select(*_COLUMNS, count.label("jobs"), active.label("active"))
        .where(mine)
        .order_by(workspaces.c.used_ns.desc(), workspaces.c.id.desc())
        .limit(size)
        .offset((number - 1) * size)
    )
    ((total,),) = await database.read(select(func.count()).select_from(workspaces).where(mine))
    return Page([Listed(_workspace(row), row.jobs, bool(row.active)) for row in await database.read(query)], total)


async def remove(database: Database, account_id: int, name: str) -> None:
    """The workspace and the list of its revisions. Raises Conflict while jobs use it, NotFound."""
    unused = ~or_(written(account_id, name), based(account_id, name))
    its_id = select(workspaces.c.id).where(named(account_id, name), unused).scalar_subquery()
    outcomes = await database.write(
        delete(revisions).where(revisions.c.workspace_id == its_id),
        delete(workspaces).where(named(account_id, name), unused),
    )
    if outcomes[-1].rows:
        return
    await find(database, account_id, name)
    users = or_(jobs.c.workspace == name, jobs.c.base_workspace == name)
    query = select(func.count()).select_from(jobs).where(jobs.c.account_id == account_id, users, UNFINISHED)
    ((active,),) = await database.read(query)
    raise Conflict(f"workspace '{name}' has {max(active, 1)} active job(s); stop them first")
