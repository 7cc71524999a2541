"""The port of a job that its own host name leads to, and who may enter: rows of the table `routes`.

There is at most one for each job; asking again repoints it. What a job says about its port goes with the job, through
every sleep and wake.
"""

from typing import Any, cast

import msgspec
from sqlalchemy import case, delete, select
from sqlalchemy.dialects.sqlite import insert

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import routes
from roost.gateways.admission import Access, Kind
from roost.jobs.job import Job


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    port: int
    access: Kind
    token_hash: bytes | None
    created_ns: int

    @property
    def terms(self) -> Access:
        return Access(self.access, self.token_hash, self.created_ns)


async def of(database: Database, job: Job) -> Opening | None:
    columns = [routes.c[name] for name in Opening.__struct_fields__]
    rows = await database.read(select(*columns).where(routes.c.job_seq == job.seq))
    return Opening(**cast("dict[str, Any]", rows[0]._mapping)) if rows else None  # pyright: ignore[reportPrivateUsage]


async def open_port(database: Database, job: Job, port: int, access: Kind | None, token_hash: bytes | None) -> Opening:
    """Opens or repoints. Without `access` it stays as it is, public at first: a new port must not shed a token.

    Signed links hold while the access remains `signed`. Raises StateUnwritable.
    """
    row = insert(routes).values(
        job_seq=job.seq, port=port, access=access or "public", token_hash=token_hash, created_ns=now_ns()
    )
    changed: dict[Any, Any] = {"port": port}
    if access is not None:
        still_signed = (routes.c.access == "signed") & (row.excluded.access == "signed")
        changed |= {"access": access, "token_hash": token_hash}
        changed |= {"created_ns": case((still_signed, routes.c.created_ns), else_=row.excluded.created_ns)}
    await database.write(row.on_conflict_do_update(index_elements=["job_seq"], set_=changed))
    opened = await of(database, job)
    return opened or Opening(port=port, access=access or "public", token_hash=token_hash, created_ns=now_ns())


async def close(database: Database, job: Job) -> bool:
    """Whether one was open."""
    (outcome,) = await database.write(delete(routes).where(routes.c.job_seq == job.seq))
    return outcome.rows > 0
