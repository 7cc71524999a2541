"""Host names that were given back: links to them are out in the world, so for a while nobody else gets them."""

from typing import Any

from sqlalchemy import delete, exists, select
from sqlalchemy.dialects.sqlite import insert

from roost.clock import now_ns, rfc3339
from roost.db.database import Database
from roost.db.schema import former_names
from roost.errors import Conflict

KEPT_DAYS = 30
DAY = 24 * 3600 * 10**9  # nanoseconds


def give_back(account_id: int, label: str) -> tuple[Any, Any]:
    """Statements for the transaction that removes whatever had the name."""
    values = {"account_id": account_id, "until_ns": now_ns() + KEPT_DAYS * DAY}
    kept = insert(former_names).values(subdomain=label, **values)
    over = delete(former_names).where(former_names.c.until_ns < now_ns())
    return kept.on_conflict_do_update(index_elements=["subdomain"], set_=values), over


def is_free(account_id: int, label: str) -> Any:
    """A condition: it is kept for nobody else."""
    return ~exists().where(*_anothers(account_id, label))


async def require_free(database: Database, account_id: int, label: str) -> None:
    """Raises Conflict."""
    rows = await database.read(select(former_names.c.until_ns).where(*_anothers(account_id, label)))
    if rows:
        until = rfc3339(rows[0].until_ns)[:10]
        raise Conflict(f"subdomain: {label!r} was another account's and is kept for it until {until}; choose another")


def _anothers(account_id: int, label: str) -> tuple[Any, ...]:
    whose = former_names.c.account_id != account_id
    return former_names.c.subdomain == label, whose, former_names.c.until_ns > now_ns()
