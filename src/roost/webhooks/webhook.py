"""A webhook: whom an account wants to be told of its jobs, and of what. Rows only; `deliverer.py` sends.

What is to be sent is written by triggers (migration 0013) in the transaction of the change itself, whoever makes it: so
no event is lost or made up by a crash, and where an account has no webhook a change costs one look into an index.
"""

from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec
from sqlalchemy import Row, delete, func, insert, literal, select, update

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.prefixes import whole_id
from roost.db.schema import webhooks
from roost.db.secret import Secret
from roost.errors import Conflict, NotFound
from roost.webhooks import signing

EventType: TypeAlias = Literal[
    "job.submitted",
    "job.started",
    "job.script_ended",
    "job.completed",
    "job.failed",
    "job.stopped",
    "sandbox.asleep",
    "sandbox.cold",
    "sandbox.awake",
    "workspace.saved",
]
EVENT_TYPES: tuple[str, ...] = get_args(EventType)

MAX_WEBHOOKS = 50  # of one account
GRACE = 24 * 3600 * 10**9  # nanoseconds that a replaced secret still signs
PATIENCE = 5 * 24 * 3600 * 10**9  # nanoseconds of nothing but failures, until it is disabled


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    account_id: int
    url: str
    description: str | None
    events: list[EventType] | None  # None: all
    secret: bytes  # sealed
    previous_secret: bytes | None
    previous_until_ns: int | None
    enabled: bool
    disabled_reason: str | None  # when it was not its owner
    sequence: int  # of its newest message
    failing_since_ns: int | None  # None: its newest attempt has succeeded
    created_ns: int
    updated_ns: int


_COLUMNS = [webhooks.c[name] for name in Webhook.__struct_fields__]


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(**cast("dict[str, Any]", row._mapping))  # pyright: ignore[reportPrivateUsage]


def seal(key: Secret, webhook_id: str, secret: str) -> bytes:
    return key.seal(secret.encode(), webhook_id)


def secrets_of(key: Secret, webhook: Webhook, at_ns: int) -> list[str]:
    """That sign now, the newest first. Raises Conflict if they cannot be decrypted."""
    sealed = [webhook.secret]
    if webhook.previous_secret is not None and (webhook.previous_until_ns or 0) > at_ns:
        sealed.append(webhook.previous_secret)
    return [key.open(one, webhook.id).decode() for one in sealed]


async def create(database: Database, webhook: Webhook) -> None:
    """Raises Conflict when the account has as many as it may."""
    values = [literal(getattr(webhook, column.name), column.type) for column in _COLUMNS]
    mine = select(func.count()).select_from(webhooks).where(webhooks.c.account_id == webhook.account_id)
    row = select(*values).where(mine.scalar_subquery() < MAX_WEBHOOKS)
    (outcome,) = await database.write(insert(webhooks).from_select(Webhook.__struct_fields__, row))
    if not outcome.rows:
        raise Conflict(f"you have {MAX_WEBHOOKS} webhooks, the most there can be; remove some first")


async def of_account(database: Database, account_id: int) -> list[Webhook]:
    """The newest first."""
    mine = select(*_COLUMNS).where(webhooks.c.account_id == account_id)
    return [_webhook(row) for row in await database.read(mine.order_by(webhooks.c.created_ns.desc(), webhooks.c.id))]


async def read(database: Database, webhook_id: str) -> Webhook | None:
    rows = await database.read(select(*_COLUMNS).where(webhooks.c.id == webhook_id))
    return _webhook(rows[0]) if rows else None


async def find(database: Database, account_id: int, webhook_id: str) -> Webhook:
    """Raises NotFound."""
    webhook = await read(database, webhook_id)
    if webhook is None and (
        whole := await whole_id(database, webhooks.c.id, webhooks.c.account_id == account_id, webhook_id)
    ):
        webhook = await read(database, whole)
    if webhook is None or webhook.account_id != account_id:
        raise NotFound(f"there is no webhook {webhook_id[:80]!r}; GET /api/v1/webhooks lists yours")
    return webhook


async def change(database: Database, webhook: Webhook, **values: Any) -> None:
    row = update(webhooks).where(webhooks.c.id == webhook.id)
    await database.write(row.values(**values, updated_ns=now_ns()))


async def rotate(database: Database, key: Secret, webhook: Webhook) -> str:
    """The new secret; the present one signs beside it for a day."""
    secret, now = signing.new_secret(), now_ns()
    row = update(webhooks).where(webhooks.c.id == webhook.id)
    changes = {"secret": seal(key, webhook.id, secret), "previous_secret": webhook.secret}
    await database.write(row.values(**changes, previous_until_ns=now + GRACE, updated_ns=now))
    return secret


async def remove(database: Database, webhook: Webhook) -> None:
    """With its deliveries."""
    await database.write(delete(webhooks).where(webhooks.c.id == webhook.id))


async def any_enabled(database: Database) -> bool:
    return bool(await database.read(select(webhooks.c.id).where(webhooks.c.enabled).limit(1)))
