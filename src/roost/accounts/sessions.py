"""Browsers' sessions: a cookie of 256 random bits, of which the SHA-256 is kept; it speaks for a user in one account.

A session ends after a time without use, at the latest after a longer one, and at once when its user logs out, is
disabled or gets another password. Logging in always makes a new one.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import cast

from sqlalchemy import delete, insert, select, update

from roost import ids
from roost.accounts.known import Known
from roost.accounts.scopes import OF_ROLE, Role
from roost.accounts.tokens import SECOND, USE_RECORDED_EVERY, Account, digest, standing
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import sessions, users
from roost.errors import Unauthenticated

IDLE = 7 * 24 * 3600  # seconds without use
LIFETIME = 30 * 24 * 3600  # seconds
SESSIONS_OF_USER = 100  # the least recently used go

GONE = "your session has ended; log in again"


@dataclass
class Visit:
    """A session seen since the last change."""

    account: Account
    expires_ns: int
    used_ns: int
    recorded_ns: int = field(default=0)

    def over(self, now: int) -> bool:
        return now >= self.expires_ns or now - self.used_ns >= IDLE * SECOND


class Sessions:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = Known[Visit]()

    async def begin(self, user_id: int, replaced: str = "") -> str:
        """A new session's cookie; it begins in the user's first account. `replaced` is one that ends by it."""
        account = await standing(self._database, user_id, 0)
        cookie, now = ids.api_token(), now_ns()
        of_user = sessions.c.user_id == user_id
        newest = select(sessions.c.id).where(of_user).order_by(sessions.c.used_ns.desc()).limit(SESSIONS_OF_USER)
        await self._database.write(
            insert(sessions).values(
                hash=digest(cookie), user_id=user_id, account_id=account.id, created_ns=now, used_ns=now,
                expires_ns=now + LIFETIME * SECOND,
            ),
            update(users).where(users.c.id == user_id).values(last_login_ns=now),
            delete(sessions).where(sessions.c.hash == digest(replaced)),
            delete(sessions).where(of_user, sessions.c.id.not_in(newest)),
            delete(sessions).where(sessions.c.expires_ns <= now),
        )  # fmt: skip
        self.forget()
        return cookie

    async def account(self, cookie: str, chosen: str = "") -> Account:
        """Whom it speaks for; `chosen` names another account of the user. Raises Unauthenticated, NotFound."""
        hashed = digest(cookie)
        key = (hashed, chosen)
        now, visit = now_ns(), self._known.get(key)
        if visit is None or visit.over(now):  # it may have been used meanwhile, for another account
            visit = await self._known.find(key, lambda: self._look_up(hashed, chosen))
        if visit.over(now):
            raise Unauthenticated(GONE)
        visit.used_ns = now
        if now - visit.recorded_ns > USE_RECORDED_EVERY:
            visit.recorded_ns = now
            self._database.write_soon(update(sessions).where(sessions.c.hash == hashed).values(used_ns=now))
        return visit.account

    def csrf(self, cookie: str) -> str:
        """What a session's own pages send along with what changes something; it tells nothing about the cookie."""
        made = hmac.digest(cookie.encode("utf-8", "surrogateescape"), b"roost csrf", hashlib.sha256)
        return base64.urlsafe_b64encode(made).decode().rstrip("=")

    async def end(self, by: Account) -> None:
        await self._database.write(delete(sessions).where(sessions.c.id == by.session_id))
        self.forget()

    async def switch(self, by: Account, account: str) -> None:
        """Lets the session speak for another account of its user from now on. Raises NotFound."""
        assert by.user_id is not None
        found = await standing(self._database, by.user_id, account)
        await self._database.write(update(sessions).where(sessions.c.id == by.session_id).values(account_id=found.id))
        self.forget()

    def forget(self) -> None:
        self._known.forget()

    async def _look_up(self, hashed: bytes, chosen: str) -> Visit:
        query = (
            select(sessions, users.c.name)
            .join(users, sessions.c.user_id == users.c.id)
            .where(sessions.c.hash == hashed, users.c.disabled_ns.is_(None))
        )
        rows = await self._database.read(query)
        if not rows:
            raise Unauthenticated(GONE)
        row = rows[0]
        found = await standing(self._database, row.user_id, chosen or row.account_id)
        role = cast(Role, found.role)
        account = Account(found.id, found.name, OF_ROLE[role], role, row.user_id, row.name, session_id=row.id)
        return Visit(account, row.expires_ns, row.used_ns)
