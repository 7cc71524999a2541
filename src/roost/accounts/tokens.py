"""Accounts and the bearer tokens that speak for them.

A token is shown once, to its owner; here only its SHA-256 is kept. Every request asks `Tokens.account`, so known
tokens are answered from memory. A token may do what its scope says and its maker's role allows, the less of the two.
One that roams was made by `roost login`: it speaks for its user, in whichever of their accounts is chosen.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from roost import ids
from roost.accounts.known import Known
from roost.accounts.scopes import OF_ROLE, Role, Scope, includes, lesser
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import accounts, members, tokens, users
from roost.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated

FIRST_ACCOUNT = "default"
FIRST_TOKEN = "credentials.json"  # noqa: S105 - the token's name: it is the one that `roost up` writes there
USE_RECORDED_EVERY = 60 * 1_000_000_000  # nanoseconds
TOKENS_OF_ACCOUNT = 1000
MAX_NAME = 100  # characters
MAX_LIFETIME = 10 * 366 * 24 * 3600  # seconds; for longer ones there are tokens that do not expire
SECOND = 1_000_000_000


@dataclass(frozen=True)
class Account:
    """Whom a request speaks for, by whom, and what it may do there."""

    id: int
    name: str
    scope: Scope = "admin"
    role: Role | None = None  # None: nobody's token, as the first one of all
    user_id: int | None = None
    user_name: str | None = None
    token_id: int | None = None
    token_name: str | None = None
    session_id: int | None = None
    roams: bool = False

    def may(self, wanted: Scope) -> bool:
        return includes(self.scope, wanted)

    @property
    def first(self) -> bool:
        """Whether it is the account of whoever runs this Roost."""
        return self.name == FIRST_ACCOUNT

    @property
    def is_person(self) -> bool:
        """A user who logged in, rather than a program with a token."""
        return self.session_id is not None or self.roams


@dataclass
class Use:
    """A token seen since the last change, and when its use was last written down."""

    account: Account
    expires_ns: int | None
    recorded_ns: int


@dataclass(frozen=True)
class Token:
    """As it is listed; the token itself is not known here."""

    id: int
    name: str
    scope: Scope
    created_ns: int
    expires_ns: int | None
    last_used_ns: int | None
    user_name: str | None
    roams: bool


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


async def standing(database: Database, user_id: int, account: int | str) -> Row[Any]:
    """`id`, `name` and `role` of the user's account by id or name; without a name, the first one is what 0 means.

    Raises NotFound, also for accounts of others.
    """
    query = select(accounts.c.id, accounts.c.name, members.c.role).join(members, members.c.account_id == accounts.c.id)
    query = query.where(members.c.user_id == user_id).order_by(members.c.created_ns, accounts.c.id).limit(1)
    if account:
        query = query.where(accounts.c.name == account if isinstance(account, str) else accounts.c.id == account)
    rows = await database.read(query)
    if not rows:
        raise NotFound(f"you are in no account {str(account)[:80]!r}; GET /api/v1/accounts lists yours")
    return rows[0]


class Tokens:
    """Who a bearer token speaks for; and their making, listing and end."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = Known[Use]()

    async def account(self, authorization: str, chosen: str = "") -> Account:
        """The account of an `Authorization` header's value; `chosen` names another of a roaming token's user.

        Raises Unauthenticated, NotFound (`chosen`).
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated('send your API token as the header "Authorization: Bearer <token>"')
        hashed = digest(token.strip())
        key = (hashed, chosen)
        use = self._known.get(key) or await self._known.find(key, lambda: self._look_up(hashed, chosen))
        now = now_ns()
        if use.expires_ns is not None and use.expires_ns <= now:
            raise Unauthenticated("this API token has expired; make another, or log in again with `roost login`")
        if now - use.recorded_ns > USE_RECORDED_EVERY:
            use.recorded_ns = now
            self._database.write_soon(update(tokens).where(tokens.c.hash == hashed).values(last_used_ns=now))
        return use.account

    def forget(self) -> None:
        self._known.forget()

    async def _look_up(self, hashed: bytes, chosen: str) -> Use:
        query = (
            select(tokens, accounts.c.name.label("account"), users.c.name.label("user"))
            .join_from(tokens, accounts, tokens.c.account_id == accounts.c.id)
            .outerjoin(users, tokens.c.user_id == users.c.id)
            .where(tokens.c.hash == hashed, users.c.disabled_ns.is_(None))
        )
        rows = await self._database.read(query)
        if not rows:
            raise Unauthenticated("this API token is not known here; check MAGS_API_TOKEN or credentials.json")
        account = await self._account(rows[0], chosen)
        return Use(account, rows[0].expires_ns, rows[0].last_used_ns or 0)

    async def _account(self, row: Row[Any], chosen: str) -> Account:
        if chosen not in ("", row.account) and not row.roams:
            raise NotFound(f"this token speaks for the account {row.account!r} alone; leave out X-Roost-Account")
        id, name, scope, role = row.account_id, row.account, cast(Scope, row.scope), None
        if row.user_id is not None:
            found = await standing(self._database, row.user_id, chosen or row.account_id)
            id, name, role = found.id, found.name, cast(Role, found.role)
            scope = lesser(scope, OF_ROLE[role])
        return Account(
            id, name, scope, role, row.user_id, row.user, token_id=row.id, token_name=row.name, roams=bool(row.roams)
        )

    # ---- making, listing, ending

    async def create(self, by: Account, name: str, scope: Scope, expires_ns: int | None) -> tuple[Token, str]:
        """A token of the caller's account, and what to show once. Raises Invalid, Forbidden, Conflict."""
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise Invalid(f"name: 1 to {MAX_NAME} printable characters; say what it is for, for example 'ci'")
        _require_maker(by)
        if not by.may(scope):
            raise Forbidden(f"scope: you have {by.scope!r} here, and a token may not have more; ask for {by.scope!r}")
        if name == FIRST_TOKEN and by.first:
            raise Conflict(f"name: {FIRST_TOKEN!r} is the first token's own; choose another")
        count = select(func.count()).select_from(tokens).where(tokens.c.account_id == by.id)
        if (await self._database.read(count))[0][0] >= TOKENS_OF_ACCOUNT:
            raise Conflict(f"an account may have {TOKENS_OF_ACCOUNT} tokens; revoke one first")
        secret, now = ids.api_token(), now_ns()
        row = insert(tokens).values(
            account_id=by.id, name=name, hash=digest(secret), created_ns=now, scope=scope, expires_ns=expires_ns,
            user_id=by.user_id,
        )  # fmt: skip
        outcome = (await self._database.write(row))[0]
        return Token(outcome.row_id, name, scope, now, expires_ns, None, by.user_name, False), secret

    async def listed(self, by: Account) -> list[Token]:
        """The account's, the oldest first; who is not its admin sees their own."""
        query = (
            select(tokens, users.c.name.label("user"))
            .outerjoin(users, tokens.c.user_id == users.c.id)
            .where(_visible(by))
            .order_by(tokens.c.id)
        )
        return [_token(row) for row in await self._database.read(query)]

    async def revoke(self, by: Account, id: int) -> None:
        """It does not count from the next request on. Raises NotFound, Forbidden, Conflict."""
        _require_maker(by)
        row = (tokens.c.id == id, _visible(by))
        found = await self._database.read(select(tokens.c.name).where(*row))
        if found and by.first and found[0].name == FIRST_TOKEN:
            raise Conflict(
                "this is the first account's token, which `roost up` keeps; to replace it, remove credentials.json "
                "from its state directory and start `roost up` again"
            )
        if not (await self._database.write(delete(tokens).where(*row)))[0].rows:
            raise NotFound(f"there is no token {id} here; list them to see their ids")
        self.forget()

    async def log_out(self, by: Account) -> bool:
        """Ends the token that the caller came with, if `roost login` made it."""
        if not by.roams:
            return False
        await self._database.write(delete(tokens).where(tokens.c.id == by.token_id))
        self.forget()
        return True

    async def switch(self, by: Account, account: str) -> None:
        """Lets a roaming token speak for another account of its user from now on. Raises NotFound, Forbidden."""
        if not by.roams or by.user_id is None:
            raise Forbidden("an API token speaks for the account it was made in; log in with `roost login` to switch")
        found = await standing(self._database, by.user_id, account)
        await self._database.write(update(tokens).where(tokens.c.id == by.token_id).values(account_id=found.id))
        self.forget()


def _require_maker(by: Account) -> None:
    """A program's token that leaks must not make others that outlive it."""
    if not by.is_person and not by.may("admin"):
        raise Forbidden("this needs a token with scope admin, or somebody who logged in (`roost login`)")


def _visible(by: Account) -> Any:
    if by.may("admin"):
        return or_(
            and_(tokens.c.account_id == by.id, tokens.c.roams.is_(False)),
            and_(tokens.c.roams.is_(True), tokens.c.user_id == by.user_id),
        )
    mine = or_(tokens.c.account_id == by.id, tokens.c.roams.is_(True))
    return and_(tokens.c.user_id == by.user_id, mine)


def _token(row: Row[Any]) -> Token:
    return Token(
        row.id, row.name, row.scope, row.created_ns, row.expires_ns, row.last_used_ns, row.user, bool(row.roams)
    )
