"""Accounts and the bearer tokens that speak for them.

A token is shown once, to its owner; here only its SHA-256 is kept. Every request asks `Tokens.account`, so known
tokens are answered from memory.
"""

import hashlib
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import accounts, tokens
from roost.errors import Unauthenticated

FIRST_ACCOUNT = "default"
FIRST_TOKEN = "credentials.json"  # noqa: S105 - the token's name: it is the one that `roost up` writes there
REMEMBERED = 1024  # tokens
USE_RECORDED_EVERY = 60 * 1_000_000_000  # nanoseconds


@dataclass(frozen=True)
class Account:
    id: int
    name: str


@dataclass
class Use:
    """A token seen since the start, and when its use was last written down."""

    account: Account
    recorded_ns: int


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


async def ensure_account(database: Database, token: str) -> None:
    """Make `token` the first account's token; one that was stored under that name before no longer counts."""
    now = now_ns()
    default = select(accounts.c.id).where(accounts.c.name == FIRST_ACCOUNT).scalar_subquery()
    account = sqlite_insert(accounts).values(name=FIRST_ACCOUNT, created_ns=now).on_conflict_do_nothing()
    if await database.read(select(tokens.c.id).where(tokens.c.hash == digest(token))):
        return
    await database.write(
        account,
        delete(tokens).where(tokens.c.name == FIRST_TOKEN, tokens.c.account_id == default),
        insert(tokens).values(account_id=default, name=FIRST_TOKEN, hash=digest(token), created_ns=now),
    )


class Tokens:
    """Who a bearer token speaks for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: dict[bytes, Use] = {}

    async def account(self, authorization: str) -> Account:
        """The account of an `Authorization` header's value. Raises Unauthenticated."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated('send your API token as the header "Authorization: Bearer <token>"')
        hashed = digest(token.strip())
        use = self._seen.get(hashed) or await self._look_up(hashed)
        self._record(hashed, use)
        return use.account

    async def _look_up(self, hashed: bytes) -> Use:
        query = (
            select(accounts.c.id, accounts.c.name, tokens.c.last_used_ns)
            .join(tokens, tokens.c.account_id == accounts.c.id)
            .where(tokens.c.hash == hashed)
        )
        rows = await self._database.read(query)
        if not rows:
            raise Unauthenticated("this API token is not known here; check MAGS_API_TOKEN or credentials.json")
        row = rows[0]
        if len(self._seen) >= REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        use = Use(Account(row.id, row.name), row.last_used_ns or 0)
        self._seen[hashed] = use
        return use

    def _record(self, hashed: bytes, use: Use) -> None:
        now = now_ns()
        if now - use.recorded_ns > USE_RECORDED_EVERY:
            use.recorded_ns = now
            self._database.write_soon(update(tokens).where(tokens.c.hash == hashed).values(last_used_ns=now))
