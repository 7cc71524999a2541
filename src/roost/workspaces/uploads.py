"""Uploaded files: kept by the node until they expire, placed in the sandboxes of jobs that name them.

The row comes first and gets its size last, so that an upload that broke off is found and removed like an expired one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import delete, insert, select, update

from roost import ids
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import files, jobs
from roost.errors import Invalid
from roost.workspaces.workspace import UNFINISHED

if TYPE_CHECKING:
    from roost.node.client import NodeClient

SECOND = 1_000_000_000  # nanoseconds
KEPT = 7 * 24 * 3600 * SECOND  # nanoseconds from its upload
UPLOADING = 3600 * SECOND  # nanoseconds that one upload may take


@dataclass(frozen=True)
class Upload:
    id: str
    name: str
    size: int  # bytes


async def begin(database: Database, account_id: int, name: str) -> str:
    """The id under which the node is to keep it."""
    file_id, now = ids.file_id(), now_ns()
    row = insert(files).values(id=file_id, account_id=account_id, name=name, created_ns=now, expires_ns=now + UPLOADING)
    await database.write(row)
    return file_id


async def complete(database: Database, file_id: str, size: int) -> None:
    await database.write(update(files).where(files.c.id == file_id).values(size=size, expires_ns=now_ns() + KEPT))


async def abandon(database: Database, file_id: str) -> None:
    """It expires now; the collection removes whatever there is of it."""
    await database.write(update(files).where(files.c.id == file_id).values(expires_ns=0))


async def require(database: Database, account_id: int, file_ids: list[str]) -> None:
    """Raises Invalid, naming what is not the caller's or two files of one name."""
    found = {upload.id: upload for upload in await _find(database, account_id, file_ids, now_ns())}
    missing = [one for one in file_ids if one not in found]
    if missing:
        raise Invalid(f"file_ids: {missing[0][:80]!r} is not there (files are kept for 7 days); upload it again")
    names: set[str] = set()
    for file_id in file_ids:
        name = found[file_id].name
        if name in names:
            raise Invalid(f"file_ids: two files are named {name!r}, and both would be /root/{name}; rename one")
        names.add(name)


async def of_job(database: Database, account_id: int, file_ids: list[str]) -> list[Upload]:
    """Raises Invalid: an expired file is gone only when no job that has not ended names it."""
    found = {upload.id: upload for upload in await _find(database, account_id, file_ids, 0)}
    if len(found) != len(file_ids):
        raise Invalid("file_ids: a file has gone since the job was submitted; upload it again")
    return [found[file_id] for file_id in file_ids]


async def _find(database: Database, account_id: int, file_ids: list[str], unexpired_ns: int) -> list[Upload]:
    query = select(files.c.id, files.c.name, files.c.size).where(
        files.c.id.in_(file_ids),
        files.c.account_id == account_id,
        files.c.size.is_not(None),
        files.c.expires_ns > unexpired_ns,
    )
    return [Upload(row.id, row.name, row.size) for row in await database.read(query)]


async def expire(database: Database, node: "NodeClient") -> int:
    """Removes what is past its time and awaited by no job; how many that were. Raises NodeUnavailable."""
    late = [row.id for row in await database.read(select(files.c.id).where(files.c.expires_ns < now_ns()))]
    if not late:
        return 0
    query = select(jobs.c.file_ids).where(jobs.c.file_ids.is_not(None), UNFINISHED)
    awaited = {one for row in await database.read(query) for one in msgspec.convert(row.file_ids, list[str])}
    gone = [one for one in late if one not in awaited]
    for file_id in gone:
        await node.remove_file(file_id)
        await database.write(delete(files).where(files.c.id == file_id))
    return len(gone)
