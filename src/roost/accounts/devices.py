"""Logging in a program by a browser elsewhere: the device authorization grant, RFC 8628.

The program gets a device code, and shows its user a short code to type in where they are logged in. When they have said
yes, the program's next question is answered with a token that speaks for them. Both codes are kept as SHA-256.
"""

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, insert, literal, select, update

from roost import ids
from roost.accounts.scopes import Scope
from roost.accounts.throttle import Throttle
from roost.accounts.tokens import MAX_NAME, SECOND, Account, digest
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import devices, tokens, users
from roost.errors import Forbidden, NoCapacity, NotFound

LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, so no words; RFC 8628, 6.1
LENGTH = 8  # of a user code: 34 bits, and few tries
EXPIRES_IN = 900  # seconds
INTERVAL = 5  # seconds between a program's questions
TOKEN_LIFETIME = 90 * 24 * 3600  # seconds
MOST_WAITING = 1000  # devices


class NotGranted(Exception):
    """Why there is no token (yet): `code` is RFC 8628's word, and the text says what it means."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Begun:
    device_code: str
    user_code: str
    expires_in: int
    interval: int


@dataclass(frozen=True)
class Device:
    """As its user sees it before they decide."""

    name: str
    address: str
    scope: Scope


class Devices:
    def __init__(self, database: Database, throttle: Throttle, interval: int = INTERVAL) -> None:
        self._database = database
        self._throttle = throttle
        self.interval = interval
        self._asked: dict[bytes, tuple[int, int]] = {}  # device -> when it asked last, seconds until it may again

    async def begin(self, name: str, scope: Scope, address: str) -> Begun:
        """Raises Throttled, NoCapacity."""
        self._throttle.count("device", "", address)
        now = now_ns()
        await self._database.write(delete(devices).where(devices.c.expires_ns <= now))
        if (await self._database.read(select(func.count()).select_from(devices)))[0][0] >= MOST_WAITING:
            raise NoCapacity(f"{MOST_WAITING} logins wait for their users; try again in {EXPIRES_IN // 60} minutes")
        code = ids.api_token()
        letters = "".join(secrets.choice(LETTERS) for _ in range(LENGTH))
        row = insert(devices).values(
            hash=digest(code), user_code=digest(letters), name=_shown(name), address=address, scope=scope,
            created_ns=now, expires_ns=now + EXPIRES_IN * SECOND, status="pending",
        )  # fmt: skip
        await self._database.write(row)
        return Begun(code, f"{letters[:4]}-{letters[4:]}", EXPIRES_IN, self.interval)

    async def waiting(self, user_code: str, by: Account, address: str) -> Device:
        """Which device shows that code. Raises NotFound, Throttled."""
        self._throttle.count("user code", f"{by.user_id}", address)
        query = select(devices).where(*_pending(user_code))
        rows = await self._database.read(query)
        if not rows:
            raise NotFound("no device waits with this code; check it, or begin again there: codes last 15 minutes")
        self._throttle.clear("user code", f"{by.user_id}", address)
        return Device(rows[0].name, rows[0].address, rows[0].scope)

    async def decide(self, user_code: str, by: Account, approve: bool) -> None:
        """The device speaks for the caller, beginning in the account that the caller speaks for now, or gets nothing.

        Raises NotFound, Forbidden (a program may not let in others).
        """
        if not by.is_person:
            raise Forbidden("only somebody who is logged in can decide this; open /device in a browser")
        status = "approved" if approve else "denied"
        decided = update(devices).where(*_pending(user_code))
        outcome = await self._database.write(decided.values(status=status, user_id=by.user_id, account_id=by.id))
        if not outcome[0].rows:
            raise NotFound("no device waits with this code any more; begin again there")

    async def ask(self, device_code: str) -> str:
        """The token, once. Raises NotGranted."""
        hashed = digest(device_code)
        query = select(devices, users.c.disabled_ns).outerjoin(users, devices.c.user_id == users.c.id)
        rows = await self._database.read(query.where(devices.c.hash == hashed, devices.c.expires_ns > now_ns()))
        if not rows:
            self._asked.pop(hashed, None)
            raise NotGranted("expired_token", "this login has expired, or was used; begin again with `roost login`")
        self._require_patience(hashed)
        row = rows[0]
        if row.status == "pending":
            raise NotGranted("authorization_pending", "the user has not decided yet; ask again after the interval")
        self._asked.pop(hashed, None)
        if row.status == "denied" or row.disabled_ns is not None:
            await self._database.write(delete(devices).where(devices.c.hash == hashed))
            raise NotGranted("access_denied", "the user refused")
        return await self._grant(row)

    async def _grant(self, row: Row[Any]) -> str:
        secret, now = ids.api_token(), now_ns()
        values = {
            "account_id": devices.c.account_id,
            "user_id": devices.c.user_id,
            "scope": devices.c.scope,
            "name": literal(f"roost login on {row.name}"[:MAX_NAME]),
            "hash": literal(digest(secret)),
            "created_ns": literal(now),
            "expires_ns": literal(now + TOKEN_LIFETIME * SECOND),
            "roams": literal(True),
        }
        approved = select(*values.values()).where(devices.c.hash == row.hash, devices.c.status == "approved")
        granted = insert(tokens).from_select(list(values), approved)
        done = await self._database.write(granted, delete(devices).where(devices.c.hash == row.hash))
        if not done[0].rows:
            raise NotGranted("expired_token", "another has taken this login's token; begin again with `roost login`")
        return secret

    def _require_patience(self, hashed: bytes) -> None:
        now = now_ns()
        last, pause = self._asked.get(hashed, (0, self.interval))
        if now - last < pause * SECOND - SECOND // 2:  # a network may bring two questions closer together
            self._asked[hashed] = now, pause + INTERVAL
            raise NotGranted("slow_down", f"asked too soon; wait {pause + INTERVAL} s between questions")
        if len(self._asked) > 2 * MOST_WAITING:
            self._asked.clear()
        self._asked[hashed] = now, pause


def _pending(user_code: str) -> tuple[Any, Any, Any]:
    letters = "".join(letter for letter in user_code.upper()[:40] if letter in LETTERS)
    pending = devices.c.status == "pending"
    return devices.c.user_code == digest(letters), pending, devices.c.expires_ns > now_ns()


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name.strip())[:60] or "a device without a name"
