"""The audit log: who did what in an account, from where, when, and how it was answered.

Entries are rows that nobody changes; they go when they are older than the installation keeps them. They name things and
hold nothing of them: no script, environment, token or password.
"""

import asyncio
from types import TracebackType
from typing import Any, Self, cast

import msgspec
import structlog
from sqlalchemy import Row, delete, insert, select
from structlog.typing import FilteringBoundLogger

from roost.accounts.tokens import Account
from roost.clock import now_ns
from roost.db.database import Bound, Database
from roost.db.schema import audit
from roost.errors import RoostError

DAY_NS = 24 * 3600 * 10**9
SWEEP = 3600.0  # seconds between looks for what is old
LONGEST = 200  # characters of a name that somebody else has chosen

log: FilteringBoundLogger = structlog.get_logger()
_INSERT = insert(audit)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    account_id: int
    at_ns: int
    actor: str  # `user NAME`, `token NAME`, `key ID`, or for a login that failed the name that was tried
    action: str  # the call, like `POST /mags-jobs/{id}/stop`, or `ssh login`
    resource: str | None  # what its path names, or the id of what it has made
    address: str
    status: int  # of the answer


_COLUMNS = [audit.c[name] for name in Entry.__struct_fields__]


def _entry(row: Row[Any]) -> Entry:
    return Entry(**cast("dict[str, Any]", row._mapping))  # pyright: ignore[reportPrivateUsage]


def actor_of(account: Account) -> str:
    if account.session_id is not None or account.roams:
        return f"user {account.user_name}"
    return f"token {account.token_name}" + (f" of {account.user_name}" if account.user_name else "")


class Audit:
    """Enter it to begin forgetting what is old."""

    def __init__(self, database: Database, keep_days: int = 90) -> None:
        """`keep_days` 0: for ever."""
        self._database = database
        self._keep_ns = keep_days * DAY_NS
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._keep_ns:
            self._sweeping = asyncio.create_task(self._sweep(), name="audit")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def record(self, **told: Any) -> None:
        """The fields of an Entry but `id` and `at_ns`. Durable on return. Raises StateUnwritable."""
        await self._database.write(_row(told))

    def record_soon(self, **told: Any) -> None:
        """With the next commit: for what is durable itself, and often."""
        self._database.write_soon(_row(told))

    async def newest(
        self, account_id: int, before: int | None, since_ns: int, filters: dict[str, str], limit: int
    ) -> list[Entry]:
        """`before`: an entry's id. `filters`: columns and how their values begin."""
        query = select(*_COLUMNS).where(audit.c.account_id == account_id, audit.c.at_ns >= since_ns)
        if before is not None:
            query = query.where(audit.c.id < before)
        for name, begins in filters.items():
            query = query.where(audit.c[name].startswith(begins, autoescape=True))
        return [_entry(row) for row in await self._database.read(query.order_by(audit.c.id.desc()).limit(limit))]

    async def forget_old(self) -> None:
        await self._database.write(delete(audit).where(audit.c.at_ns < now_ns() - self._keep_ns))

    async def _sweep(self) -> None:
        while True:
            try:
                await self.forget_old()
            except RoostError as error:
                log.warning("audit.unswept", error=str(error))
            await asyncio.sleep(SWEEP)


def _row(told: dict[str, Any]) -> Bound:
    short = {name: value[:LONGEST] if isinstance(value, str) else value for name, value in told.items()}
    return Bound(_INSERT, {"at_ns": now_ns(), "resource": None, **short})
