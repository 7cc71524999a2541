"""Schedules, and what became of each of their instants: rows only; `scheduler.py` acts on them.

An instant becomes a row of `cron_runs` in the transaction that moves the schedule on to its next one, and that row
becomes `running` in the transaction that writes its job. So a crash anywhere loses no run and makes none twice.
"""

from typing import Any, Literal, TypeAlias, cast

import msgspec
from sqlalchemy import (
    BigInteger,
    Executable,
    Integer,
    Row,
    String,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError

from roost.clock import now_ns
from roost.db.database import Bound, Database
from roost.db.prefixes import whole_id
from roost.db.schema import cron_runs, crons, jobs, saved_job_runs, schedules, template_runs
from roost.db.secret import Secret
from roost.errors import Conflict, NotFound
from roost.jobs.cron_times import Missed
from roost.jobs.job import Job, Order
from roost.workspaces.workspace import UNFINISHED, WRITES

Overlap: TypeAlias = Literal["skip", "queue", "parallel"]
RunStatus: TypeAlias = Literal["queued", "running", "completed", "error", "skipped"]

MAX_CRONS = 1000  # of one account
MAX_QUEUED = 24  # runs of one schedule that wait
KEPT_RUNS = 1000  # of one schedule, the newest
TOO_MANY = f"you have {MAX_CRONS} cron jobs and schedules, the most there can be; remove some first"
FULL = f"{MAX_QUEUED} earlier runs wait already"


class Cron(msgspec.Struct, frozen=True, kw_only=True):
    """`work` is a sealed Order. `next_ns` is None while it is disabled."""

    id: str
    account_id: int
    name: str
    expression: str
    timezone: str
    workspace: str | None
    persistent: bool
    work: bytes
    enabled: bool
    missed: Missed
    overlap: Overlap
    created_ns: int
    updated_ns: int
    next_ns: int | None


class CronRun(msgspec.Struct, frozen=True, kw_only=True):
    """One instant of a schedule."""

    id: int
    cron_id: str
    scheduled_ns: int
    status: RunStatus
    waits: bool
    reason: str | None
    request_id: str | None
    exec_number: int | None
    vm_id: str | None
    exit_code: int | None
    started_ns: int | None
    ended_ns: int | None


class Listed(msgspec.Struct, frozen=True):
    """A schedule, and the newest of its runs that were started."""

    cron: Cron
    last: CronRun | None


# literally, or SQLite does not use the partial index
_UNENDED = text("cron_runs.status IN ('queued', 'running')")
_IS_SCHEDULE = exists().where(schedules.c.cron_id == crons.c.id)  # told by /schedules (`schedules.py`) alone
_COLUMNS = [crons.c[name] for name in Cron.__struct_fields__]
_JOBS = select(*(jobs.c[name] for name in Job.__struct_fields__))
_RUN_COLUMNS = [cron_runs.c[name] for name in CronRun.__struct_fields__]


def of_row(row: Row[Any]) -> Cron:
    return Cron(**cast("dict[str, Any]", row._mapping))  # pyright: ignore[reportPrivateUsage]


def _run(row: Row[Any]) -> CronRun:
    return CronRun(**cast("dict[str, Any]", row._mapping))  # pyright: ignore[reportPrivateUsage]


def seal(secret: Secret, cron_id: str, order: Order) -> bytes:
    return secret.seal(msgspec.msgpack.encode(order), cron_id)


def order_of(secret: Secret, cron: Cron) -> Order:
    """Raises Conflict if it cannot be decrypted."""
    return msgspec.msgpack.decode(secret.open(cron.work, cron.id), type=Order)


# ---- what owners do ----------------------------------------------------------------------------------------


async def create(database: Database, cron: Cron) -> None:
    """Raises Conflict when the account has as many as it may."""
    (outcome,) = await database.write(inserted(cron))
    if not outcome.rows:
        raise Conflict(TOO_MANY)


def inserted(cron: Cron) -> Executable:
    """Inserts nothing when the account has as many as it may."""
    values = [literal(getattr(cron, column.name), column.type) for column in _COLUMNS]
    mine = select(func.count()).select_from(crons).where(crons.c.account_id == cron.account_id).scalar_subquery()
    return insert(crons).from_select(Cron.__struct_fields__, select(*values).where(mine < MAX_CRONS))


async def of_account(database: Database, account_id: int) -> list[Cron]:
    """The newest first."""
    mine = select(*_COLUMNS).where(crons.c.account_id == account_id, ~_IS_SCHEDULE)
    return [of_row(row) for row in await database.read(mine.order_by(crons.c.created_ns.desc(), crons.c.id))]


async def find(database: Database, account_id: int, cron_id: str) -> Cron:
    """Raises NotFound."""
    mine = select(*_COLUMNS).where(crons.c.account_id == account_id, ~_IS_SCHEDULE)
    rows = await database.read(mine.where(crons.c.id == cron_id))
    its = and_(crons.c.account_id == account_id, ~_IS_SCHEDULE)
    if not rows and (whole := await whole_id(database, crons.c.id, its, cron_id)):
        return await find(database, account_id, whole)
    if not rows:
        raise NotFound(f"there is no cron job {cron_id[:80]!r}; GET /api/v1/mags-cron lists yours")
    return of_row(rows[0])


async def with_last(database: Database, listed: list[Cron]) -> list[Listed]:
    """In the same order."""
    if not listed:
        return []
    mine = crons.c.account_id == listed[0].account_id
    newest = (
        select(cron_runs.c.id)
        .where(cron_runs.c.cron_id == crons.c.id, cron_runs.c.started_ns.is_not(None))
        .order_by(cron_runs.c.scheduled_ns.desc())
        .limit(1)
        .correlate(crons)
        .scalar_subquery()
    )
    one = crons.c.id == listed[0].id if len(listed) == 1 else mine
    query = select(*_RUN_COLUMNS).select_from(crons).join(cron_runs, cron_runs.c.id == newest).where(one)
    last = {row.cron_id: _run(row) for row in await database.read(query)}
    return [Listed(cron, last.get(cron.id)) for cron in listed]


async def change(database: Database, cron: Cron, **values: Any) -> None:
    await database.write(update(crons).where(crons.c.id == cron.id).values(**values, updated_ns=now_ns()))


async def remove(database: Database, cron: Cron) -> None:
    """With its history; the jobs that it started are their own."""
    await database.write(delete(crons).where(crons.c.id == cron.id))


async def history(database: Database, cron: Cron, most: int) -> list[CronRun]:
    """The newest first."""
    query = select(*_RUN_COLUMNS).where(cron_runs.c.cron_id == cron.id)
    return [_run(row) for row in await database.read(query.order_by(cron_runs.c.scheduled_ns.desc()).limit(most))]


# ---- what the scheduler does -------------------------------------------------------------------------------


_BY_ID = select(*_COLUMNS).where(crons.c.id == bindparam("cron", type_=String))


async def read(database: Database, cron_id: str) -> Cron | None:
    rows = await database.read(_BY_ID, cron=cron_id)
    return of_row(rows[0]) if rows else None


async def next_due(database: Database) -> int | None:
    """The earliest instant of any schedule."""
    query = select(crons.c.next_ns).where(crons.c.next_ns.is_not(None)).order_by(crons.c.next_ns).limit(1)
    rows = await database.read(query)
    return rows[0].next_ns if rows else None


async def due(database: Database, until_ns: int, most: int) -> list[Cron]:
    query = select(*_COLUMNS).where(crons.c.next_ns.is_not(None), crons.c.next_ns <= until_ns)
    return [of_row(row) for row in await database.read(query.order_by(crons.c.next_ns).limit(most))]


def _forget_old() -> Executable:
    of_it = cron_runs.c.cron_id == bindparam("cron", type_=String)
    newest_first = select(cron_runs.c.id).where(of_it).order_by(cron_runs.c.scheduled_ns.desc())
    old = newest_first.offset(bindparam("kept", type_=Integer)).limit(-1)
    return delete(cron_runs).where(cron_runs.c.id.in_(old), cron_runs.c.status.not_in(("queued", "running")))


_FORGET_OLD = _forget_old()
_NEW_RUN = upsert(cron_runs).on_conflict_do_nothing()
_MOVE_ON = (
    update(crons)
    .where(
        crons.c.id == bindparam("cron", type_=String),
        crons.c.next_ns == bindparam("expected", type_=BigInteger),
    )
    .values(next_ns=bindparam("next_ns", type_=BigInteger))
)


async def record_due(database: Database, cron: Cron, runs: list[CronRun], next_ns: int | None) -> None:
    """The instants that have come, and the next one, together. Raises StateUnwritable.

    A schedule that was changed meanwhile keeps its new next instant; of one that was removed nothing is written.
    """
    rows = [Bound(_NEW_RUN, _values(run)) for run in runs]
    moved = Bound(_MOVE_ON, {"cron": cron.id, "expected": cron.next_ns, "next_ns": next_ns})
    try:
        await database.write(*rows, moved, Bound(_FORGET_OLD, {"cron": cron.id, "kept": KEPT_RUNS}))
    except IntegrityError:
        if await read(database, cron.id) is not None:
            raise


def _values(run: CronRun) -> dict[str, Any]:
    return {name: getattr(run, name) for name in CronRun.__struct_fields__ if name != "id"}


def instant(cron: Cron, scheduled_ns: int, waits: bool) -> CronRun:
    """Before it is anything but due; its id is chosen by the database."""
    return CronRun(
        id=0, cron_id=cron.id, scheduled_ns=scheduled_ns, status="queued", waits=waits, reason=None, request_id=None,
        exec_number=None, vm_id=None, exit_code=None, started_ns=None, ended_ns=None,
    )  # fmt: skip


_QUEUED = (
    select(*_RUN_COLUMNS)
    .where(cron_runs.c.cron_id == bindparam("cron", type_=String), cron_runs.c.status == "queued", _UNENDED)
    .order_by(cron_runs.c.scheduled_ns)
)


async def queued(database: Database, cron_id: str) -> list[CronRun]:
    """Oldest first."""
    return [_run(row) for row in await database.read(_QUEUED, cron=cron_id)]


async def unended(database: Database) -> list[CronRun]:
    """Of all schedules; what the last process left behind."""
    return [_run(row) for row in await database.read(select(*_RUN_COLUMNS).where(_UNENDED).order_by(cron_runs.c.id))]


_START = update(cron_runs).where(cron_runs.c.id == bindparam("run", type_=Integer), cron_runs.c.status == "queued")


def started(run: CronRun, request_id: str, started_ns: int, exec_number: int | None = None) -> Bound:
    """Goes with the insertion of its job, or before its sandbox is entered."""
    changes = {"request_id": request_id, "started_ns": started_ns, "exec_number": exec_number}
    return Bound(_START, {"run": run.id, "status": "running", **changes})


_OF = schedules.c.cron_id == bindparam("cron", type_=String)
_AT, _REQUEST = bindparam("at", type_=BigInteger), bindparam("request", type_=String)
_SAVED_RUN = insert(saved_job_runs).from_select(
    ["request_id", "job_id", "ip_lease", "created_ns"],
    select(_REQUEST, schedules.c.job_id, schedules.c.ip_lease, _AT).where(_OF),
)
_TEMPLATE_RUN = insert(template_runs).from_select(
    ["request_id", "template_id", "revision", "created_ns"],
    select(_REQUEST, schedules.c.job_id, schedules.c.revision, _AT).where(_OF, schedules.c.revision.is_not(None)),
)


def begun(run: CronRun, request_id: str, started_ns: int) -> tuple[Bound, ...]:
    """Goes with the insertion of its job; of a schedule it is also a run of the saved job or template."""
    values = {"cron": run.cron_id, "request": request_id, "at": started_ns}
    return started(run, request_id, started_ns), Bound(_SAVED_RUN, values), Bound(_TEMPLATE_RUN, values)


async def record(database: Database, run: CronRun, **values: Any) -> None:
    """Raises StateUnwritable."""
    await database.write(update(cron_runs).where(cron_runs.c.id == run.id, _UNENDED).values(**values))


async def job_of(database: Database, request_id: str) -> Job | None:
    rows = await database.read(_JOBS.where(jobs.c.request_id == request_id))
    return Job(**cast("dict[str, Any]", rows[0]._mapping)) if rows else None  # pyright: ignore[reportPrivateUsage]


async def holder(database: Database, cron: Cron) -> Job | None:
    """The job whose sandbox the schedule's next run would need: its workspace's writer, or its own that stays."""
    if cron.workspace is not None:
        mine = jobs.c.account_id == cron.account_id
        rows = await database.read(_JOBS.where(mine, jobs.c.workspace == cron.workspace, WRITES))
    elif cron.persistent:
        own = and_(jobs.c.persistent, jobs.c.workspace.is_(None))
        newest = (
            select(cron_runs.c.request_id)
            .where(cron_runs.c.cron_id == cron.id, cron_runs.c.request_id.is_not(None))
            .order_by(cron_runs.c.scheduled_ns.desc())
            .limit(1)
        )
        rows = await database.read(_JOBS.where(jobs.c.request_id == newest.scalar_subquery(), own, UNFINISHED))
    else:
        return None
    return Job(**cast("dict[str, Any]", rows[0]._mapping)) if rows else None  # pyright: ignore[reportPrivateUsage]
