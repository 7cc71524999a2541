"""Proxy targets: names for a port of one sandbox, told by its IPv6 address, as clients of the Jobs API make them.

Kept with the job that had the address, so that the name follows it through every wake, and so that nobody makes a proxy
of Roost for addresses that are not their own sandboxes'. They are reached in every domain.
"""

import ipaddress
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import delete, exists, func, insert, literal, select, update
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import aliases, proxy_targets
from roost.errors import Conflict, Invalid, NotFound
from roost.gateways import former_names

MAX_TARGETS = 10_000  # of one account


class ProxyTarget(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    account_id: int
    subdomain: str
    request_id: str  # of the job whose sandbox had the address
    ipv6_address: str
    port: int
    name: str | None
    description: str | None
    created_ns: int
    updated_ns: int


@dataclass(frozen=True)
class Sandbox:
    """Where a target leads to."""

    request_id: str
    ipv6_address: str


COLUMNS = [proxy_targets.c[name] for name in ProxyTarget.__struct_fields__]


def address(text: str) -> str:
    """An IPv6 address in its usual form, whether or not it came in brackets. Raises Invalid."""
    bare = text.strip()
    bare = bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare
    try:
        return str(ipaddress.IPv6Address(bare))
    except ValueError:
        raise Invalid(f"ipv6_address: {text[:80]!r} is no IPv6 address; give that of one of your sandboxes") from None


async def create(
    database: Database, account_id: int, label: str, to: Sandbox, port: int, about: tuple[str | None, str | None]
) -> ProxyTarget:
    """`about`: name and description. Raises Conflict for a subdomain that is taken, by whomever."""
    now = now_ns()
    made = ProxyTarget(
        id=ids.file_id(), account_id=account_id, subdomain=label, request_id=to.request_id,
        ipv6_address=to.ipv6_address, port=port, name=about[0], description=about[1], created_ns=now, updated_ns=now,
    )  # fmt: skip
    values = [literal(getattr(made, column.name), column.type) for column in COLUMNS]
    of_mine = proxy_targets.c.account_id == account_id
    mine = select(func.count()).select_from(proxy_targets).where(of_mine).scalar_subquery()
    free = ~exists().where(aliases.c.subdomain == label)
    kept = former_names.is_free(account_id, label)
    row = insert(proxy_targets).from_select(
        ProxyTarget.__struct_fields__, select(*values).where(free, kept, mine < MAX_TARGETS)
    )
    try:
        (outcome,) = await database.write(row)
    except IntegrityError:
        raise _taken(label) from None
    if not outcome.rows:
        if len(await of_account(database, account_id)) >= MAX_TARGETS:
            raise Conflict(f"you have {MAX_TARGETS} proxy targets, the most there can be; delete some first")
        await former_names.require_free(database, account_id, label)
        raise _taken(label)
    return made


def _taken(label: str) -> Conflict:
    return Conflict(f"subdomain '{label}' already exists; choose another, or leave it out and one is made up")


async def of_account(database: Database, account_id: int) -> list[ProxyTarget]:
    """The newest first."""
    mine = select(*COLUMNS).where(proxy_targets.c.account_id == account_id)
    rows = await database.read(mine.order_by(proxy_targets.c.created_ns.desc(), proxy_targets.c.id))
    return [target_of(row._mapping) for row in rows]  # pyright: ignore[reportPrivateUsage]


async def find(database: Database, account_id: int, target_id: str) -> ProxyTarget:
    """Raises NotFound."""
    one = (proxy_targets.c.account_id == account_id) & (proxy_targets.c.id == target_id)
    rows = await database.read(select(*COLUMNS).where(one))
    if not rows:
        raise NotFound(f"you have no proxy target {target_id[:80]!r}; GET /api/v1/proxy-targets lists yours")
    return target_of(rows[0]._mapping)  # pyright: ignore[reportPrivateUsage]


async def change(database: Database, target: ProxyTarget, **changed: Any) -> ProxyTarget:
    """With the fields that are given. Raises NotFound if it was deleted meanwhile."""
    changed["updated_ns"] = now_ns()
    await database.write(update(proxy_targets).where(proxy_targets.c.id == target.id).values(**changed))
    return await find(database, target.account_id, target.id)


async def remove(database: Database, target: ProxyTarget) -> None:
    given_back = former_names.give_back(target.account_id, target.subdomain)
    await database.write(delete(proxy_targets).where(proxy_targets.c.id == target.id), *given_back)


def target_of(mapping: Any) -> ProxyTarget:
    """From a row that holds at least its columns."""
    return ProxyTarget(**{column.name: mapping[column] for column in COLUMNS})
