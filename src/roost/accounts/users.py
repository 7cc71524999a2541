"""Users: people with a name, perhaps an e-mail address and a password, and an account of their own.

There is no sign-up: users are made by whoever runs this Roost, or by logging in at an OpenID provider that it trusts.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Row, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from roost.accounts.passwords import Passwords
from roost.accounts.scopes import Role
from roost.accounts.throttle import Throttle
from roost.accounts.tokens import FIRST_ACCOUNT, Account
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import accounts, devices, identities, invitations, members, sessions, ssh_keys, tokens, users
from roost.errors import Conflict, Invalid, NotFound, Unauthenticated

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
EMAIL = re.compile(r"[^\s@<>\",;]{1,64}@[^\s@<>\",;]{1,190}")
MADE_UP = 18  # random bytes of a password that nobody chose
WRONG = "wrong user name or password"


_SPEAKING = (sessions, tokens, devices, ssh_keys, invitations)  # for a user, or to them


@dataclass(frozen=True)
class User:
    id: int
    name: str
    email: str | None
    account_id: int  # their own
    has_password: bool
    disabled: bool
    created_ns: int
    last_login_ns: int | None


class Users:
    def __init__(
        self, database: Database, passwords: Passwords, throttle: Throttle, changed: Callable[[], None]
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._throttle = throttle
        self._changed = changed  # whoever remembers callers forgets them

    async def create(
        self, name: str, email: str | None, password: str | None, joins: tuple[int, Role] | None = None
    ) -> User:
        """With an account of the same name, which is theirs; `joins`: another account's id, and the role there.

        Raises Invalid, Conflict.
        """
        name, email = named(name), mailed(email)
        hashed = None if password is None else await self._passwords.hash(password)
        now = now_ns()
        own = select(accounts.c.id).where(accounts.c.name == name).scalar_subquery()
        user = select(users.c.id).where(users.c.name == name).scalar_subquery()
        row: dict[str, Any] = {"name": name, "email": email, "password_hash": hashed, "created_ns": now}
        member: dict[str, Any] = {"user_id": user, "created_ns": now}
        later = member | {"created_ns": now + 1}  # sessions begin in the account that is theirs
        more = [insert(members).values(account_id=joins[0], role=joins[1], **later)] if joins else []
        try:
            await self._database.write(
                insert(accounts).values(name=name, created_ns=now),
                insert(users).values(account_id=own, **row),
                insert(members).values(account_id=own, role="owner", **member),
                *more,
            )
        except IntegrityError:
            raise Conflict(f"a user or account {name!r} exists, or another user has that e-mail address") from None
        return await self.find(name)

    async def find(self, name: str) -> User:
        """By name or e-mail address. Raises NotFound."""
        row = await self._row(name)
        if row is None:
            raise NotFound(f"there is no user {name[:80]!r}")
        return _user(row)

    async def listed(self) -> list[User]:
        return [_user(row) for row in await self._database.read(select(users).order_by(users.c.name))]

    async def check(self, name: str, password: str, address: str) -> User:
        """Whose name, or address, and password these are. Raises Unauthenticated in the same words and the same time
        whatever is wrong; Throttled."""
        name = name.strip().lower()[:320]
        self._throttle.count("login", name, address)
        row = await self._row(name)
        usable = row is not None and row.disabled_ns is None
        right = await self._passwords.verify(row.password_hash if row is not None and usable else None, password)
        if row is None or not right:
            raise Unauthenticated(WRONG)
        self._throttle.clear("login", name, address)
        if self._passwords.is_outdated(row.password_hash):
            hashed = await self._passwords.hash(password)
            self._database.write_soon(update(users).where(users.c.id == row.id).values(password_hash=hashed))
        return _user(row)

    async def tried(self, name: str) -> tuple[int, str]:
        """Whom a failed login concerns, and the name to tell them: the user's own account, or the first one.

        What has not the form of a name is told as `?`: people type passwords there.
        """
        name = name.strip()
        owner = func.coalesce(
            select(users.c.account_id).where(_called(name)).scalar_subquery(),
            select(accounts.c.id).where(accounts.c.name == FIRST_ACCOUNT).scalar_subquery(),
        )
        known = select(users.c.name).where(_called(name)).scalar_subquery()
        row = (await self._database.read(select(owner.label("account_id"), known.label("name"))))[0]
        shown = name if NAME.fullmatch(name) or EMAIL.fullmatch(name) else "?"
        return row.account_id, row.name or shown

    async def set_password(self, user: User, password: str, by: Account) -> None:
        """Whatever logged in with the old one ends, but for the caller. Raises Invalid."""
        hashed = await self._passwords.hash(password)
        others = (sessions.c.user_id == user.id, sessions.c.id != (by.session_id or 0))
        logins = (tokens.c.user_id == user.id, tokens.c.roams.is_(True), tokens.c.id != (by.token_id or 0))
        await self._database.write(
            update(users).where(users.c.id == user.id).values(password_hash=hashed),
            delete(sessions).where(*others),
            delete(tokens).where(*logins),
            delete(devices).where(devices.c.user_id == user.id),
        )
        self._changed()

    async def disable(self, user: User) -> list[str]:
        """Ends all that speaks for them, in every account; the ids of their SSH keys, to close what those opened."""
        keys = await self._database.read(select(ssh_keys.c.id).where(ssh_keys.c.user_id == user.id))
        await self._database.write(
            update(users).where(users.c.id == user.id).values(disabled_ns=func.coalesce(users.c.disabled_ns, now_ns())),
            *(delete(table).where(table.c.user_id == user.id) for table in _SPEAKING),
            delete(invitations).where(invitations.c.invited_by == user.id),
        )
        self._changed()
        return [row.id for row in keys]

    async def enable(self, user: User) -> None:
        await self._database.write(update(users).where(users.c.id == user.id).values(disabled_ns=None))
        self._changed()

    async def of_identity(self, issuer: str, subject: str) -> User | None:
        linked = (identities.c.issuer == issuer, identities.c.subject == subject)
        query = select(users).join(identities, identities.c.user_id == users.c.id).where(*linked)
        rows = await self._database.read(query)
        return _user(rows[0]) if rows else None

    async def with_email(self, email: str) -> User | None:
        rows = await self._database.read(select(users).where(users.c.email == email))
        return _user(rows[0]) if rows else None

    async def link(self, user: User, issuer: str, subject: str) -> None:
        """Raises Conflict where the user is known to that issuer as somebody else."""
        known = (identities.c.user_id == user.id, identities.c.issuer == issuer)
        if await self._database.read(select(identities.c.subject).where(*known)):
            raise Conflict(f"the user {user.name!r} is linked to another identity there")
        row = insert(identities).values(issuer=issuer, subject=subject, user_id=user.id, created_ns=now_ns())
        await self._database.write(row)

    async def _row(self, name: str) -> Row[Any] | None:
        rows = await self._database.read(select(users).where(_called(name)))
        return rows[0] if rows else None


def _called(name: str) -> Any:
    lower = name.strip().lower()[:320]
    return or_(users.c.name == lower, users.c.email == lower)


def named(name: str) -> str:
    """Raises Invalid."""
    if not NAME.fullmatch(name):
        raise Invalid("name: 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit")
    return name


def mailed(email: str | None) -> str | None:
    """Raises Invalid."""
    if not email:
        return None
    if not EMAIL.fullmatch(email):
        raise Invalid(f"email: {email[:80]!r} is no address like anna@example.com")
    return email.lower()


def made_up_password() -> str:
    return secrets.token_urlsafe(MADE_UP)


def _user(row: Row[Any]) -> User:
    return User(
        row.id,
        row.name,
        row.email,
        row.account_id,
        row.password_hash is not None,
        row.disabled_ns is not None,
        row.created_ns,
        cast("int | None", row.last_login_ns),
    )
