"""What an account has used in the last days: sums over `usage_days` (see jobs/metering.py) and counts of jobs.

Both are index ranges of one account and window: a row per workspace and day, an index entry per job.
"""

from dataclasses import dataclass, field, fields

from sqlalchemy import and_, func, select

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import jobs, revisions, usage_days, workspaces
from roost.jobs.metering import DAY_NS

COUNTERS = ("cpu_ns", "memory_mb_seconds", "rx_bytes", "tx_bytes", "awake_ns", "frozen_ns")


@dataclass
class Used:
    jobs: int = 0  # submitted
    cpu_ns: int = 0
    memory_mb_seconds: float = 0.0
    rx_bytes: int = 0
    tx_bytes: int = 0
    awake_ns: int = 0
    frozen_ns: int = 0
    stored_bytes: int = 0  # now: the heads of workspaces

    def add(self, other: "Used") -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass
class AccountUsage:
    since_ns: int
    total: Used = field(default_factory=Used)
    workspaces: dict[str, Used] = field(default_factory=dict[str, Used])  # jobs without one are in the total only


async def of_account(database: Database, account_id: int, days: int) -> AccountUsage:
    """Of today (UTC) and the days before it, `days` in all."""
    first = now_ns() // DAY_NS - days + 1
    usage = AccountUsage(first * DAY_NS)
    found: dict[str, Used] = {}

    mine = and_(usage_days.c.account_id == account_id, usage_days.c.day >= first)
    sums = [func.sum(usage_days.c[name]).label(name) for name in COUNTERS]
    query = select(usage_days.c.workspace, *sums).where(mine).group_by(usage_days.c.workspace)
    for name, *counted in await database.read(query):
        found[name] = Used(0, *counted)

    submitted = and_(jobs.c.account_id == account_id, jobs.c.created_ns >= usage.since_ns)
    counts = (
        select(func.coalesce(jobs.c.workspace, "").label("name"), func.count().label("jobs"))
        .where(submitted)
        .group_by(jobs.c.workspace)
    )
    for row in await database.read(counts):
        found.setdefault(row.name, Used()).jobs = row.jobs

    head = and_(revisions.c.id == workspaces.c.head, workspaces.c.account_id == account_id)
    stored = select(workspaces.c.name, revisions.c.size).join_from(workspaces, revisions, head)
    for row in await database.read(stored):
        found.setdefault(row.name, Used()).stored_bytes = row.size

    for used in found.values():
        usage.total.add(used)
    usage.workspaces = {name: used for name, used in sorted(found.items()) if name}
    return usage
