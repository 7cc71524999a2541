"""Schedules of saved jobs and templates: rows of `crons`, which the one scheduler fires, beside what they are of.

A schedule's row holds a copy of the order that its job or template stands for; whoever changes that changes the copies
in the same transaction (`follow`), under the scheduler's lock `defining`, so that none is missed.
"""

from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import Executable, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from roost.db.database import Database
from roost.db.prefixes import whole_id
from roost.db.schema import crons, schedules
from roost.db.secret import Secret
from roost.errors import Conflict, NotFound
from roost.jobs import cron as cron_rows
from roost.jobs.cron import Cron
from roost.jobs.job import Order


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """`revision` is a template's: the one that its order is, now or, if it is pinned, for good."""

    cron: Cron
    job_id: str  # a saved job's or a template's
    ip_lease: bool
    revision: int | None
    pinned: bool


@dataclass(frozen=True)
class Wanted:
    """What a saved job or template stands for now."""

    job_id: str
    order: Order
    ip_lease: bool
    revision: int | None


_COLUMNS = [crons.c[name] for name in Cron.__struct_fields__]
_OWN = (schedules.c.job_id, schedules.c.ip_lease, schedules.c.revision, schedules.c.pinned)
_BOTH = select(*_COLUMNS, *_OWN).join(schedules, schedules.c.cron_id == crons.c.id)


def _schedule(row: Any) -> Schedule:
    told = cast("dict[str, Any]", dict(row._mapping))
    own = {column.name: told.pop(column.name) for column in _OWN}
    return Schedule(cron=Cron(**told), **own)


async def create(database: Database, schedule: Schedule) -> None:
    """Raises Conflict when the account has as many as it may, cron jobs included."""
    row = insert(schedules).values(
        cron_id=schedule.cron.id,
        account_id=schedule.cron.account_id,
        job_id=schedule.job_id,
        ip_lease=schedule.ip_lease,
        revision=schedule.revision,
        pinned=schedule.pinned,
    )
    try:
        await database.write(cron_rows.inserted(schedule.cron), row)
    except IntegrityError:
        raise Conflict(cron_rows.TOO_MANY) from None


async def of_account(database: Database, account_id: int, job_id: str | None) -> list[Schedule]:
    """The newest first."""
    mine = _BOTH.where(schedules.c.account_id == account_id)
    if job_id is not None:
        mine = mine.where(schedules.c.job_id == job_id)
    return [_schedule(row) for row in await database.read(mine.order_by(crons.c.created_ns.desc(), crons.c.id))]


async def find(database: Database, account_id: int, schedule_id: str) -> Schedule:
    """Raises NotFound."""
    rows = await database.read(_BOTH.where(schedules.c.account_id == account_id, crons.c.id == schedule_id))
    if not rows and (
        whole := await whole_id(database, schedules.c.cron_id, schedules.c.account_id == account_id, schedule_id)
    ):
        return await find(database, account_id, whole)
    if not rows:
        raise NotFound(f"there is no schedule {schedule_id[:80]!r}; GET /api/v1/schedules lists yours")
    return _schedule(rows[0])


def copied(secret: Secret, cron: Cron, order: Order) -> dict[str, Any]:
    """The columns of `crons` that come from an order."""
    keeping = order.keeping
    return {
        "name": order.name or cron.name,
        "workspace": keeping.workspace,
        "persistent": keeping.persistent,
        "work": cron_rows.seal(secret, cron.id, order),
    }


async def follow(database: Database, secret: Secret, account_id: int, now: Wanted) -> list[Executable]:
    """Goes with a change of what schedules are of; those that are pinned stay as they are."""
    statements: list[Executable] = []
    for schedule in await of_account(database, account_id, now.job_id):
        if not schedule.pinned:
            row = update(crons).where(crons.c.id == schedule.cron.id)
            statements.append(row.values(**copied(secret, schedule.cron, now.order)))
    its = update(schedules).where(schedules.c.job_id == now.job_id, schedules.c.pinned.is_(False))
    return [*statements, its.values(revision=now.revision, ip_lease=now.ip_lease)] if statements else []


def removed_with(job_id: str) -> Executable:
    """Goes with the removal of what they are of."""
    of_it = select(schedules.c.cron_id).where(schedules.c.job_id == job_id)
    return delete(crons).where(crons.c.id.in_(of_it))
