"""Members of accounts. An account is a team: its owners invite others to it (`invitations`), and decide as what.

An account always has an owner who is not disabled; a user's own account always has that user.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from roost.accounts.scopes import Role
from roost.accounts.tokens import Account
from roost.accounts.users import User, named
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import accounts, devices, invitations, members, sessions, ssh_keys, tokens, users
from roost.errors import Conflict, NotFound

ACCOUNTS_OF_USER = 100  # that one may make


@dataclass(frozen=True)
class Member:
    name: str
    email: str | None
    role: Role
    disabled: bool
    created_ns: int


@dataclass(frozen=True)
class Belonging:
    """An account of a user."""

    name: str
    role: Role
    created_ns: int


class Members:
    def __init__(self, database: Database, changed: Callable[[], None]) -> None:
        self._database = database
        self._changed = changed

    async def accounts_of(self, user_id: int) -> list[Belonging]:
        """The first is where sessions begin."""
        query = (
            select(accounts.c.name, members.c.role, members.c.created_ns)
            .join(members, members.c.account_id == accounts.c.id)
            .where(members.c.user_id == user_id)
            .order_by(members.c.created_ns, accounts.c.id)
        )
        return [Belonging(*row) for row in await self._database.read(query)]

    async def create_account(self, name: str, owner_id: int) -> Belonging:
        """Raises Invalid, Conflict."""
        name, now = named(name), now_ns()
        if len(await self.accounts_of(owner_id)) >= ACCOUNTS_OF_USER:
            raise Conflict(f"a user may be in {ACCOUNTS_OF_USER} accounts to make another")
        made = select(accounts.c.id).where(accounts.c.name == name).scalar_subquery()
        try:
            await self._database.write(
                insert(accounts).values(name=name, created_ns=now),
                insert(members).values(account_id=made, user_id=owner_id, role="owner", created_ns=now),
            )
        except IntegrityError:
            raise Conflict(f"there is an account {name!r}; choose another name") from None
        return Belonging(name, "owner", now)

    async def listed(self, account_id: int) -> list[Member]:
        query = (
            select(users.c.name, users.c.email, members.c.role, users.c.disabled_ns, members.c.created_ns)
            .join(members, members.c.user_id == users.c.id)
            .where(members.c.account_id == account_id)
            .order_by(members.c.created_ns, users.c.name)
        )
        rows = await self._database.read(query)
        return [Member(row.name, row.email, row.role, row.disabled_ns is not None, row.created_ns) for row in rows]

    async def find(self, account_id: int, user: str) -> User:
        """A member, by name or e-mail address. Raises NotFound, also for users who are none."""
        named = or_(users.c.name == user.lower(), users.c.email == user.lower())
        joined = select(users).join(members, members.c.user_id == users.c.id)
        rows = await self._database.read(joined.where(members.c.account_id == account_id, named))
        if not rows:
            raise NotFound(f"this account has no member {user[:80]!r}")
        row = rows[0]
        return User(
            row.id, row.name, row.email, row.account_id, row.password_hash is not None, row.disabled_ns is not None,
            row.created_ns, row.last_login_ns,
        )  # fmt: skip

    async def change(self, account: Account, user: User, role: Role) -> list[str]:
        """The ids of SSH keys that go with it, to close what they opened: viewers run nothing. Raises Conflict."""
        mine = _of(account.id, user.id)
        allowed = () if role == "owner" else (_dispensable(account.id, user.id),)
        keys = await self._keys(account.id, user.id) if role == "viewer" else []
        is_viewer = exists().where(*mine, members.c.role == "viewer")
        no_more = delete(ssh_keys).where(ssh_keys.c.account_id == account.id, ssh_keys.c.user_id == user.id, is_viewer)
        changed = update(members).where(*mine, *allowed).values(role=role)
        done = await self._database.write(changed, no_more, _uninvited(account.id, user.id))
        self._changed()
        if not done[0].rows:
            raise Conflict(_needed(account, user))
        return keys

    async def remove(self, account: Account, user: User) -> list[str]:
        """With what speaks for them there; the ids of their SSH keys, to close what those opened. Raises Conflict."""
        keys = await self._keys(account.id, user.id)
        gone = ~exists().where(*_of(account.id, user.id))
        there = {"account_id": account.id, "user_id": user.id}
        theirs = {
            table: (table.c.account_id == there["account_id"], table.c.user_id == there["user_id"], gone)
            for table in (sessions, tokens, devices, ssh_keys)
        }
        done = await self._database.write(
            delete(members).where(*_of(account.id, user.id), _dispensable(account.id, user.id)),
            # who is logged in stays so, in the account that is theirs
            update(sessions).where(*theirs[sessions]).values(account_id=user.account_id),
            update(tokens).where(*theirs[tokens], tokens.c.roams.is_(True)).values(account_id=user.account_id),
            delete(tokens).where(*theirs[tokens], tokens.c.roams.is_(False)),
            delete(devices).where(*theirs[devices]),
            delete(ssh_keys).where(*theirs[ssh_keys]),
            _uninvited(account.id, user.id),
        )
        self._changed()
        if not done[0].rows:
            raise Conflict(_needed(account, user))
        return keys

    async def _keys(self, account_id: int, user_id: int) -> list[str]:
        mine = (ssh_keys.c.account_id == account_id, ssh_keys.c.user_id == user_id)
        return [row.id for row in await self._database.read(select(ssh_keys.c.id).where(*mine))]


def _of(account_id: int, user_id: int) -> tuple[Any, Any]:
    return members.c.account_id == account_id, members.c.user_id == user_id


def _uninvited(account_id: int, user_id: int) -> Any:
    """Ends what they have invited others by, unless they are an owner."""
    is_owner = exists().where(*_of(account_id, user_id), members.c.role == "owner")
    theirs = (invitations.c.account_id == account_id, invitations.c.invited_by == user_id)
    return delete(invitations).where(*theirs, ~is_owner)


def _dispensable(account_id: int, user_id: int) -> Any:
    """The account is not the user's own, and has another owner or this one is none."""
    others = members.alias()
    another = exists().where(
        others.c.account_id == account_id, others.c.user_id != user_id, others.c.role == "owner",
        users.c.id == others.c.user_id, users.c.disabled_ns.is_(None),
    )  # fmt: skip
    own = exists().where(users.c.id == user_id, users.c.account_id == account_id)
    return and_(~own, or_(members.c.role != "owner", another))


def _needed(account: Account, user: User) -> str:
    if account.id == user.account_id:
        return f"{account.name!r} is the account of {user.name!r}, who stays its owner"
    return f"{user.name!r} is the last owner of {account.name!r}; make another member an owner first"
