"""Invitations: nobody is in an account before they have said so.

An owner invites a user, who gets nothing by it but the choice. There is one at most for a user and an account, so the
two name it. It ends with its answer, when it is withdrawn or too old, and when whoever made it is no owner any more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, exists, func, insert, literal, select
from sqlalchemy.exc import IntegrityError

from roost.accounts.scopes import Role
from roost.accounts.tokens import SECOND, Account
from roost.accounts.users import User
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import accounts, invitations, members, users
from roost.errors import Conflict, NotFound

LIFETIME = 14 * 24 * 3600  # seconds
MOST = 100  # that wait for their answer: of an account, and of a user


@dataclass(frozen=True)
class Invitation:
    account_id: int
    account: str
    user: str
    role: Role
    invited_by: str | None  # None: a token that is nobody's
    created_ns: int
    expires_ns: int


class Invitations:
    def __init__(self, database: Database, changed: Callable[[], None]) -> None:
        self._database = database
        self._changed = changed

    async def invite(self, by: Account, user: User, role: Role) -> Invitation:
        """To the account that the caller speaks for. Raises Conflict."""
        now = now_ns()
        values = {
            "account_id": literal(by.id),
            "user_id": literal(user.id),
            "role": literal(role),
            "invited_by": literal(by.user_id),
            "created_ns": literal(now),
            "expires_ns": literal(now + LIFETIME * SECOND),
        }
        fitting = select(*values.values()).where(
            ~_is_member(by.id, user.id),
            _count(invitations.c.account_id == by.id) < MOST,
            _count(invitations.c.user_id == user.id) < MOST,
        )
        too_old = delete(invitations).where(invitations.c.expires_ns <= now)
        try:
            done = await self._database.write(too_old, insert(invitations).from_select(list(values), fitting))
        except IntegrityError:
            raise Conflict(
                f"{user.name!r} is invited already; withdraw that to invite them as something else"
            ) from None
        if not done[1].rows:
            raise Conflict(await self._why_not(by, user))
        return Invitation(by.id, by.name, user.name, role, by.user_name, now, now + LIFETIME * SECOND)

    async def of_account(self, account_id: int) -> list[Invitation]:
        return await self._listed(invitations.c.account_id == account_id)

    async def of_user(self, user_id: int) -> list[Invitation]:
        return await self._listed(invitations.c.user_id == user_id)

    async def accept(self, user_id: int, account: str) -> Invitation:
        """Makes the membership. Raises NotFound."""
        found = await self._find(invitations.c.user_id == user_id, accounts.c.name == account)
        mine = _waiting(found.account_id, user_id)
        one = invitations.c
        row = select(one.account_id, one.user_id, one.role, literal(now_ns())).where(*mine, one.role == found.role)
        joined = insert(members).from_select(["account_id", "user_id", "role", "created_ns"], row)
        done = await self._database.write(
            joined, delete(invitations).where(_is_member(found.account_id, user_id), *mine)
        )
        if not done[0].rows:
            raise _none()
        self._changed()
        return found

    async def decline(self, user_id: int, account: str) -> Invitation:
        """Raises NotFound."""
        return await self._end(invitations.c.user_id == user_id, accounts.c.name == account)

    async def withdraw(self, account_id: int, user: str) -> Invitation:
        """By the user's name or e-mail address. Raises NotFound."""
        called = (users.c.name == user.lower()) | (users.c.email == user.lower())
        return await self._end(invitations.c.account_id == account_id, called)

    async def _end(self, *which: Any) -> Invitation:
        found = await self._find(*which)
        named = select(users.c.id).where(users.c.name == found.user).scalar_subquery()
        if not (await self._database.write(delete(invitations).where(*_waiting(found.account_id, named))))[0].rows:
            raise _none()
        return found

    async def _find(self, *which: Any) -> Invitation:
        found = await self._listed(*which)
        if not found:
            raise _none()
        return found[0]

    async def _listed(self, *which: Any) -> list[Invitation]:
        inviter, one = users.alias(), invitations.c
        query = (
            select(
                one.account_id, accounts.c.name.label("account"), users.c.name.label("user"), one.role,
                inviter.c.name.label("invited_by"), one.created_ns, one.expires_ns,
            )
            .join_from(invitations, accounts, accounts.c.id == one.account_id)
            .join(users, users.c.id == one.user_id)
            .outerjoin(inviter, inviter.c.id == one.invited_by)
            .where(one.expires_ns > now_ns(), *which)
            .order_by(one.created_ns, one.account_id)
        )  # fmt: skip
        return [_invitation(row) for row in await self._database.read(query)]

    async def _why_not(self, account: Account, user: User) -> str:
        if await self._database.read(select(members.c.role).where(*_of(members, account.id, user.id))):
            return f"{user.name!r} is a member already; change the role instead"
        if len(await self.of_account(account.id)) >= MOST:
            return f"{MOST} invitations of {account.name!r} wait for an answer; withdraw one first"
        return f"{user.name!r} has as many invitations as a user may have; ask them to answer those first"


def _of(table: Any, account_id: Any, user_id: Any) -> tuple[Any, Any]:
    return table.c.account_id == account_id, table.c.user_id == user_id


def _waiting(account_id: int, user_id: Any) -> tuple[Any, ...]:
    return (*_of(invitations, account_id, user_id), invitations.c.expires_ns > now_ns())


def _is_member(account_id: int, user_id: int) -> Any:
    return exists().where(*_of(members, account_id, user_id))


def _count(which: Any) -> Any:
    return select(func.count()).select_from(invitations).where(which).scalar_subquery()


def _none() -> NotFound:
    return NotFound("there is no such invitation (any more); list them to see which wait for an answer")


def _invitation(row: Row[Any]) -> Invitation:
    return Invitation(*row)
