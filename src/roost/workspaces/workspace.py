"""Workspaces: named file systems that outlive their jobs, each with a head revision and at most one writer.

The lock is the index `one_writer` over the jobs that have not ended, so whoever races, SQLite lets one submission in;
it is free again in the transaction that records the job's end. Readers (`base_workspace_id`) never take it.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import Executable, Row, and_, delete, exists, func, or_, select, text
from sqlalchemy.dialects.sqlite import insert

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import jobs, revisions, workspaces
from roost.errors import Conflict, NotFound

# literally, or SQLite does not use the partial indexes
UNFINISHED = text("jobs.status IN ('pending', 'running', 'sleeping')")

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
    """The condition that a job which has not ended writes to the workspace."""
    return exists().where(jobs.c.account_id == account_id, jobs.c.workspace == name, UNFINISHED)


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
    query = select(jobs.c.request_id).where(jobs.c.account_id == account_id, jobs.c.workspace == name, UNFINISHED)
    rows = await database.read(query)
    return rows[0].request_id if rows else None


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
