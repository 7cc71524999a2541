"""Saved jobs: what is run again and again, and its runs, which are ordinary jobs.

A definition has the id of its first run, so that clients which know only one of the two find both. Deleting it leaves
its runs as they are.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
from sqlalchemy import Executable, Row, delete, func, insert, select, update

from roost.clock import now_ns
from roost.db.database import Database, Statement
from roost.db.prefixes import whole_id
from roost.db.schema import jobs, saved_job_runs, saved_jobs
from roost.db.secret import Secret
from roost.errors import NotFound
from roost.jobs.job import Job

Kind: TypeAlias = Literal["inline", "python", "docker"]
_COLUMNS = (
    saved_jobs.c.id,
    saved_jobs.c.account_id,
    saved_jobs.c.name,
    saved_jobs.c.work,
    saved_jobs.c.created_ns,
    saved_jobs.c.updated_ns,
)


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What its owner asked for; it is kept sealed, since environments are secrets."""

    script: str
    kind: Kind = "inline"
    description: str | None = None
    docker_image: str | None = None  # as it was written
    vcpus: int = 2
    memory_mb: int = 512
    environment: dict[str, str] = {}
    stateful: bool = False
    workspace: str | None = None
    workspace_gb: int | None = None
    persist: bool = False
    ip_lease: bool = False
    proxy_port: int | None = None
    file_ids: list[str] = []


class SavedJob(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    account_id: int
    name: str
    definition: Definition
    created_ns: int
    updated_ns: int


@dataclass(frozen=True)
class Page:
    jobs: list[SavedJob]
    total: int


@dataclass(frozen=True)
class SavedRun:
    """What a run has besides its job."""

    job_id: str
    ip_lease: bool


def created(secret: Secret, saved: SavedJob) -> Statement:
    """Goes with the insertion of its first run."""
    return insert(saved_jobs).values(
        id=saved.id,
        account_id=saved.account_id,
        name=saved.name,
        work=_seal(secret, saved.id, saved.definition),
        created_ns=saved.created_ns,
        updated_ns=saved.updated_ns,
    )


def begun(saved: SavedJob, request_id: str) -> Statement:
    """Goes with the insertion of a run."""
    return insert(saved_job_runs).values(
        request_id=request_id, job_id=saved.id, ip_lease=saved.definition.ip_lease, created_ns=now_ns()
    )


async def find(database: Database, secret: Secret, account_id: int, reference: str) -> SavedJob:
    """By its own id or a run's. Raises NotFound."""
    of_run = select(saved_job_runs.c.job_id).where(saved_job_runs.c.request_id == reference).scalar_subquery()
    mine = saved_jobs.c.account_id == account_id
    rows = await database.read(select(*_COLUMNS).where(mine, saved_jobs.c.id == reference))
    rows = rows or await database.read(select(*_COLUMNS).where(mine, saved_jobs.c.id == of_run))
    if not rows and (whole := await whole_id(database, saved_jobs.c.id, mine, reference)):
        return await find(database, secret, account_id, whole)
    if not rows:
        raise NotFound(f"there is no job {reference[:80]!r}; GET /api/v1/jobs lists yours")
    return _saved(secret, rows[0])


async def newest(database: Database, secret: Secret, account_id: int, page: int, page_size: int) -> Page:
    """Newest first; `page` counts from 1, one beyond the end is empty."""
    mine = saved_jobs.c.account_id == account_id
    query = select(*_COLUMNS).where(mine).order_by(saved_jobs.c.created_ns.desc(), saved_jobs.c.id)
    rows = await database.read(query.limit(page_size).offset((page - 1) * page_size))
    ((total,),) = await database.read(select(func.count()).select_from(saved_jobs).where(mine))
    return Page([_saved(secret, row) for row in rows], total)


async def change(database: Database, secret: Secret, saved: SavedJob, *also: Executable) -> None:
    """To what it says now, and `also` with it. Raises StateUnwritable."""
    row = update(saved_jobs).where(saved_jobs.c.id == saved.id, saved_jobs.c.account_id == saved.account_id)
    work = _seal(secret, saved.id, saved.definition)
    await database.write(row.values(name=saved.name, work=work, updated_ns=saved.updated_ns), *also)


async def remove(database: Database, saved: SavedJob, *also: Executable) -> None:
    await database.write(delete(saved_jobs).where(saved_jobs.c.id == saved.id), *also)


async def run_of(database: Database, job: Job) -> SavedRun:
    """One that was not begun here is a run of its own."""
    columns = saved_job_runs.c.job_id, saved_job_runs.c.ip_lease
    rows = await database.read(select(*columns).where(saved_job_runs.c.request_id == job.request_id))
    return SavedRun(rows[0].job_id, rows[0].ip_lease) if rows else SavedRun(job.request_id, ip_lease=False)


async def runs(database: Database, saved: SavedJob, most: int) -> list[str]:
    """Request ids, the newest first."""
    mine = saved_job_runs.c.job_id == saved.id
    query = select(saved_job_runs.c.request_id).where(mine).order_by(saved_job_runs.c.created_ns.desc())
    return [row.request_id for row in await database.read(query.limit(most))]


async def unended(database: Database, saved: SavedJob) -> list[str]:
    """Request ids of its runs that have not ended."""
    joined = select(jobs.c.request_id).join(saved_job_runs, saved_job_runs.c.request_id == jobs.c.request_id)
    rows = await database.read(joined.where(saved_job_runs.c.job_id == saved.id, jobs.c.ended_ns.is_(None)))
    return [row.request_id for row in rows]


def _seal(secret: Secret, id: str, definition: Definition) -> bytes:
    return secret.seal(msgspec.msgpack.encode(definition), id)


def _saved(secret: Secret, row: Row[Any]) -> SavedJob:
    definition = msgspec.msgpack.decode(secret.open(row.work, row.id), type=Definition)
    return SavedJob(
        id=row.id,
        account_id=row.account_id,
        name=row.name,
        definition=definition,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
    )
