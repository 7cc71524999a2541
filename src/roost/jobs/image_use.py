"""What would be without its image if that were removed: jobs, schedules and workspaces, in words.

A registry's image that saved jobs, templates or their schedules name is no hindrance: the next run pulls it anew.
"""

from collections.abc import Sequence

from sqlalchemy import select

from roost.db.database import Database
from roost.db.schema import crons, jobs, revisions, workspaces
from roost.db.secret import Secret
from roost.errors import Conflict
from roost.jobs import cron
from roost.workspaces.workspace import UNFINISHED

SHOWN = 3  # names of each kind


async def uses(database: Database, secret: Secret, name: str, content: str) -> list[str]:
    """Of the image `name`, which means `content` now; a sentence each."""
    running = [row.name for row in await database.read(select(jobs.c.name).where(UNFINISHED, jobs.c.image == name))]
    standing = select(workspaces.c.name).join(revisions, revisions.c.workspace_id == workspaces.c.id).distinct()
    kept = [row.name for row in await database.read(standing.where(revisions.c.image == content))]
    told = (
        ("job(s) that have not ended started from it", running, "stop them first"),
        ("workspace(s) stand on it", kept, "delete them first: their files need it"),
        ("schedule(s) start from it", await _schedules(database, secret, name), "change or remove them first"),
    )
    return [f"{len(who)} {what}: {_names(who)}; {cure}" for what, who, cure in told if who]


async def _schedules(database: Database, secret: Secret, name: str) -> list[str]:
    found: list[str] = []
    for row in await database.read(select(crons)):
        one = cron.of_row(row)
        try:
            order = cron.order_of(secret, one)
        except Conflict:
            continue  # nobody can run it
        if order.image == name and order.image_source is None:
            found.append(one.name)
    return found


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
