"""What an account may use: sandboxes at a time and what they take, stored bytes, requests a second.

The installation has defaults (`--default-quota`), which hold for every account but the first; a row of `quotas` sets an
account's own. Sandboxes are counted by `jobs/live.py`, under which every submission and wake passes; a save is never
refused, but what would store more is, once an account is over its limit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects.sqlite import insert

from roost.accounts.tokens import FIRST_ACCOUNT
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import accounts, files, quotas, revisions, workspaces
from roost.errors import Invalid, NoCapacity, NotFound, Throttled

REMEMBERED = 4096  # accounts


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """None: as much as there is."""

    running: int | None = None  # sandboxes that run or wait; those that sleep are not among them
    vcpus: float | None = None
    memory_mb: int | None = None
    disk_gb: int | None = None
    stored_bytes: int | None = None  # in workspaces and uploads
    requests_per_second: int | None = None

    @property
    def of_sandboxes(self) -> bool:
        return any(getattr(self, name) is not None for name in Use.names())


@dataclass(frozen=True)
class Use:
    """Of sandboxes, or of one that is wanted."""

    running: int = 0
    vcpus: float = 0.0
    memory_mb: int = 0
    disk_gb: int = 0

    @staticmethod
    def names() -> tuple[str, ...]:
        return ("running", "vcpus", "memory_mb", "disk_gb")

    def __add__(self, other: "Use") -> "Use":
        return Use(*(getattr(self, name) + getattr(other, name) for name in self.names()))

    def __sub__(self, other: "Use") -> "Use":
        return Use(*(getattr(self, name) - getattr(other, name) for name in self.names()))


def require_room(limits: Limits, used: Use, wanted: Use) -> None:
    """Raises Invalid for what could never fit, NoCapacity for what does not fit now."""
    for name in Use.names():
        limit, has, more = getattr(limits, name), getattr(used, name), getattr(wanted, name)
        if limit is None or has + more <= limit:
            continue
        if more > limit:
            raise Invalid(f"{name}: {more:g} is more than your account's quota of {limit:g}; ask for less")
        raise NoCapacity(
            f"{name}: your account's sandboxes have {has:g} of {limit:g}, and {more:g} more are wanted; "
            "stop one or wait until one ends or sleeps, or ask whoever runs this Roost for a larger quota"
        )


def defaults(words: Iterable[str]) -> Limits:
    """Of `NAME=VALUE`, as the command line has them. Raises Invalid."""
    told: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        told[name.strip().replace("-", "_")] = value.strip()
    try:
        made = msgspec.convert(told, Limits, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"--default-quota: {error}; give NAME=VALUE, like running=20") from None
    unknown = [name for name in told if name not in Limits.__struct_fields__]
    if unknown:
        raise Invalid(f"--default-quota: {unknown[0]!r} is none of {', '.join(Limits.__struct_fields__)}")
    return checked("--default-quota", made)


def checked(field: str, limits: Limits) -> Limits:
    """Raises Invalid."""
    for name, value in msgspec.structs.asdict(limits).items():
        if value is not None and value < 0:
            raise Invalid(f"{field}: {name} is {value:g}; give 0 or more")
    return limits


class Quotas:
    """Limits are remembered, so that a request costs no look into the database."""

    def __init__(self, database: Database, default: Limits | None = None) -> None:
        self._database = database
        self._default = default or Limits()
        self._known: dict[int, tuple[Limits, Callable[[], bool]]] = {}

    async def of(self, account_id: int) -> Limits:
        return (self._known.get(account_id) or await self._learn(account_id))[0]

    async def require_request(self, account_id: int) -> None:
        """One more request. Raises Throttled."""
        known = self._known.get(account_id) or await self._learn(account_id)
        if not known[1]():
            rate = known[0].requests_per_second
            raise Throttled(f"your account may make {rate} requests a second; wait a moment, or ask for more", 1)

    async def require_storage(self, account_id: int) -> None:
        """Before something is stored. Raises NoCapacity."""
        limit = (await self.of(account_id)).stored_bytes
        if limit is not None and (stored := await self.stored(account_id)) >= limit:
            raise NoCapacity(
                f"stored_bytes: your workspaces and uploads hold {stored} of {limit} bytes; delete some "
                "(`roost workspace delete`), or ask whoever runs this Roost for a larger quota"
            )

    async def stored(self, account_id: int) -> int:
        """Bytes: revisions in the object store, or as large as they are on the node, and uploads that are kept."""
        size = func.iif(revisions.c.stored, revisions.c.stored_bytes, revisions.c.size)
        kept = (
            select(func.coalesce(func.sum(size), 0))
            .join(workspaces, workspaces.c.id == revisions.c.workspace_id)
            .where(workspaces.c.account_id == account_id)
        )
        uploaded = select(func.coalesce(func.sum(files.c.size), 0)).where(files.c.account_id == account_id)
        ((one,),) = await self._database.read(kept)
        ((other,),) = await self._database.read(uploaded)
        return int(one) + int(other)

    async def own(self, account_id: int) -> Limits:
        """Those that were set for it alone."""
        columns = [quotas.c[name] for name in Limits.__struct_fields__]
        rows = await self._database.read(select(*columns).where(quotas.c.account_id == account_id))
        return Limits(**dict(rows[0]._mapping)) if rows else Limits()  # pyright: ignore[reportPrivateUsage]

    async def set(self, account_id: int, limits: Limits) -> None:
        """What is None is the installation's default from now on. Raises StateUnwritable."""
        told = msgspec.structs.asdict(limits) | {"updated_ns": now_ns()}
        row = insert(quotas).values(account_id=account_id, **told)
        await self._database.write(row.on_conflict_do_update(index_elements=["account_id"], set_=told))
        self._known.pop(account_id, None)

    async def account(self, reference: str) -> int:
        """Of an account by its name or number. Raises NotFound."""
        number = int(reference) if reference.isascii() and reference.isdigit() and len(reference) < 16 else -1
        found = await self._database.read(
            select(accounts.c.id).where((accounts.c.name == reference) | (accounts.c.id == number))
        )
        if not found:
            raise NotFound(f"there is no account {reference[:80]!r}")
        return int(found[0].id)

    async def _learn(self, account_id: int) -> tuple[Limits, Callable[[], bool]]:
        own = await self.own(account_id)
        rows = await self._database.read(select(accounts.c.name).where(accounts.c.id == account_id))
        default = Limits() if rows and rows[0].name == FIRST_ACCOUNT else self._default
        told = {
            name: getattr(default, name) if value is None else value
            for name, value in msgspec.structs.asdict(own).items()
        }
        limits = Limits(**told)
        if len(self._known) >= REMEMBERED:
            self._known.pop(next(iter(self._known)))
        known = self._known[account_id] = limits, _limiter(limits.requests_per_second)
        return known


def _limiter(rate: int | None) -> Callable[[], bool]:
    """Whether there may be one more request."""
    if rate is None:
        return lambda: True
    from limits import RateLimitItemPerSecond  # 3 MB that most installations do without
    from limits.storage import MemoryStorage
    from limits.strategies import SlidingWindowCounterRateLimiter

    if rate == 0:
        return lambda: False
    limiter, limit = SlidingWindowCounterRateLimiter(MemoryStorage()), RateLimitItemPerSecond(rate)
    return lambda: limiter.hit(limit)
