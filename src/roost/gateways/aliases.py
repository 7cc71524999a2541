"""Aliases: names that people choose for a workspace; each follows the job that has it.

The unique index over label and domain decides who of several gets a name. Proxy targets share the labels, so both look
at each other's rows in the statement that inserts.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import delete, exists, func, insert, literal, select
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import aliases, proxy_targets
from roost.errors import Conflict, NotFound
from roost.gateways import former_names
from roost.gateways.admission import Access, Kind
from roost.gateways.hosts import Name

MAX_ALIASES = 10_000  # of one account


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    account_id: int
    subdomain: str
    domain: str
    workspace: str
    port: int
    access: Kind
    token_hash: bytes | None
    created_ns: int

    @property
    def name(self) -> Name:
        return Name(self.subdomain, self.domain)

    @property
    def terms(self) -> Access:
        return Access(self.access, self.token_hash, self.created_ns)


@dataclass(frozen=True)
class Leading:
    """What an alias leads to."""

    workspace: str
    port: int
    access: Kind = "public"
    token_hash: bytes | None = None


COLUMNS = [aliases.c[name] for name in Alias.__struct_fields__]


async def create(database: Database, account_id: int, name: Name, to: Leading) -> Alias:
    """Raises Conflict for a name that is taken, by whomever."""
    made = Alias(
        id=ids.file_id(), account_id=account_id, subdomain=name.label, domain=name.domain, workspace=to.workspace,
        port=to.port, access=to.access, token_hash=to.token_hash, created_ns=now_ns(),
    )  # fmt: skip
    values = [literal(getattr(made, column.name), column.type) for column in COLUMNS]
    mine = select(func.count()).select_from(aliases).where(aliases.c.account_id == account_id).scalar_subquery()
    free = ~exists().where(proxy_targets.c.subdomain == name.label)
    kept = former_names.is_free(account_id, name.label)
    row = insert(aliases).from_select(Alias.__struct_fields__, select(*values).where(free, kept, mine < MAX_ALIASES))
    try:
        (outcome,) = await database.write(row)
    except IntegrityError:
        raise _taken(name) from None
    if not outcome.rows:
        await _require_room(database, account_id)
        await former_names.require_free(database, account_id, name.label)
        raise _taken(name)
    return made


async def _require_room(database: Database, account_id: int) -> None:
    if len(await of_account(database, account_id)) >= MAX_ALIASES:
        raise Conflict(f"you have {MAX_ALIASES} aliases, the most there can be; remove some first")


def _taken(name: Name) -> Conflict:
    return Conflict(
        f"alias '{name.host}' already exists; choose another subdomain, or delete it first if it is yours "
        f"(DELETE /api/v1/mags-url-aliases/{name.label})"
    )


async def of_account(database: Database, account_id: int) -> list[Alias]:
    """The newest first."""
    mine = select(*COLUMNS).where(aliases.c.account_id == account_id)
    rows = await database.read(mine.order_by(aliases.c.created_ns.desc(), aliases.c.id))
    return [alias_of(row._mapping) for row in rows]  # pyright: ignore[reportPrivateUsage]


async def find(database: Database, account_id: int, label: str, domain: str | None) -> Alias:
    """Without `domain`: in whichever it is. Raises NotFound, Conflict when it is in several."""
    named = (aliases.c.subdomain == label) & (aliases.c.account_id == account_id)
    rows = await database.read(select(*COLUMNS).where(named))
    mine = [alias_of(row._mapping) for row in rows]  # pyright: ignore[reportPrivateUsage]
    mine = [one for one in mine if domain in (None, one.domain)]
    if not mine:
        raise NotFound(f"you have no alias '{label[:80]}'; GET /api/v1/mags-url-aliases lists yours")
    if len(mine) > 1:
        domains = ", ".join(one.domain for one in mine)
        raise Conflict(f"alias '{label}' is there in several domains ({domains}); name one with ?domain=")
    return mine[0]


async def remove(database: Database, alias: Alias) -> None:
    given_back = former_names.give_back(alias.account_id, alias.subdomain)
    await database.write(delete(aliases).where(aliases.c.id == alias.id), *given_back)


def alias_of(mapping: Any) -> Alias:
    """From a row that holds at least its columns."""
    return Alias(**{column.name: mapping[column] for column in COLUMNS})
