"""A delivery: one message for one webhook, from the change that it tells of until it has arrived or was given up.

Its row is made by a trigger (migration 0009); its `data` is what the thing was at that moment, as a JSON object.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import msgspec
from sqlalchemy import Executable, Row, and_, delete, func, insert, literal, or_, select, update

from roost import ids
from roost.clock import rfc3339
from roost.db.database import Database
from roost.db.schema import webhook_deliveries as rows
from roost.db.schema import webhooks
from roost.errors import NotFound
from roost.webhooks.webhook import PATIENCE, Webhook

DeliveryStatus: TypeAlias = Literal["waiting", "delivered", "failed"]

SECOND = 10**9
DAY = 24 * 3600 * SECOND
TRIED_FOR = DAY  # after the event, or the wish to send it again
KEPT = {"delivered": 7 * DAY, "failed": 30 * DAY}
DISABLED = "the webhook was disabled for a day"
GONE = 410  # the receiver wants no more


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """`sequence` counts one webhook's messages from 1 without gaps."""

    id: int
    message_id: str
    webhook_id: str
    sequence: int
    type: str
    data: str
    occurred_ns: int
    status: DeliveryStatus
    attempts: int
    next_ns: int | None  # None: not waiting
    until_ns: int
    attempted_ns: int | None
    response_status: int | None
    error: str | None


@dataclass(frozen=True)
class Attempt:
    """What came of one; `error` is None when it has arrived."""

    at_ns: int
    response_status: int | None
    error: str | None


_COLUMNS = [rows.c[name] for name in Delivery.__struct_fields__]
_WAITING = rows.c.status == literal("waiting", literal_execute=True)  # as it stands in the partial index


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**cast("dict[str, Any]", row._mapping))  # pyright: ignore[reportPrivateUsage]


def body(delivery: Delivery) -> bytes:
    """What is sent: the same bytes at each attempt."""
    data = cast("dict[str, Any]", msgspec.json.decode(delivery.data))
    told = {
        "type": delivery.type,
        "timestamp": rfc3339(delivery.occurred_ns),
        "sequence": delivery.sequence,
        "data": dict(_told(name, value) for name, value in data.items() if value is not None),
    }
    return msgspec.json.encode(told)


def _told(name: str, value: Any) -> tuple[str, Any]:
    return (f"{name[:-3]}_at", rfc3339(value)) if name.endswith("_ns") else (name, value)


async def waiting(database: Database) -> list[tuple[str, int]]:
    """Enabled webhooks that have something to be sent, and when the first of it is due."""
    query = (
        select(rows.c.webhook_id, func.min(rows.c.next_ns).label("next_ns"))
        .join(webhooks, webhooks.c.id == rows.c.webhook_id)
        .where(_WAITING, webhooks.c.enabled)
        .group_by(rows.c.webhook_id)
    )
    return [(row.webhook_id, row.next_ns) for row in await database.read(query)]


async def first_due(database: Database, webhook_id: str, at_ns: int) -> Delivery | None:
    """The oldest message that is due."""
    due = select(*_COLUMNS).where(rows.c.webhook_id == webhook_id, _WAITING, rows.c.next_ns <= at_ns)
    found = await database.read(due.order_by(rows.c.id).limit(1))
    return _delivery(found[0]) if found else None


async def record(database: Database, delivery: Delivery, attempt: Attempt, pause: float) -> None:
    """After a failure it waits for `pause` seconds, unless it was tried long enough. Raises StateUnwritable."""
    told: dict[str, Any] = {
        "attempts": delivery.attempts + 1,
        "attempted_ns": attempt.at_ns,
        "response_status": attempt.response_status,
        "error": attempt.error,
    }
    if attempt.error is None:
        told |= {"status": "delivered", "next_ns": None}
    elif attempt.at_ns >= delivery.until_ns:
        told |= {"status": "failed", "next_ns": None}
    else:
        told |= {"next_ns": attempt.at_ns + int(pause * SECOND)}
    row = update(rows).where(rows.c.id == delivery.id, _WAITING)
    await database.write(row.values(**told), _health(delivery.webhook_id, attempt))


def _health(webhook_id: str, attempt: Attempt) -> Executable:
    row = update(webhooks).where(webhooks.c.id == webhook_id)
    since = webhooks.c.failing_since_ns
    if attempt.error is None:
        return row.where(since.is_not(None)).values(failing_since_ns=None)
    if attempt.response_status == GONE:
        return row.values(enabled=False, failing_since_ns=attempt.at_ns, disabled_reason="the receiver answered 410")
    lasting = since < attempt.at_ns - PATIENCE
    reason = f"nothing has arrived for {PATIENCE // DAY} days; the last attempt: {attempt.error}"
    return row.values(
        failing_since_ns=func.coalesce(since, attempt.at_ns),
        enabled=and_(webhooks.c.enabled, or_(since.is_(None), ~lasting)),
        disabled_reason=func.iif(lasting, reason, webhooks.c.disabled_reason),
    )


async def history(database: Database, webhook: Webhook, status: DeliveryStatus | None, limit: int) -> list[Delivery]:
    """The newest first."""
    query = select(*_COLUMNS).where(rows.c.webhook_id == webhook.id)
    if status is not None:
        query = query.where(rows.c.status == status)
    return [_delivery(row) for row in await database.read(query.order_by(rows.c.sequence.desc()).limit(limit))]


async def find(database: Database, webhook: Webhook, message_id: str) -> Delivery:
    """Raises NotFound."""
    query = select(*_COLUMNS).where(rows.c.message_id == message_id, rows.c.webhook_id == webhook.id)
    found = await database.read(query)
    if not found:
        raise NotFound(
            f"this webhook has no delivery {message_id[:80]!r}; GET /api/v1/webhooks/ID/deliveries lists them"
        )
    return _delivery(found[0])


async def send_again(database: Database, delivery: Delivery, at_ns: int) -> None:
    """With the same id, whatever came of it before."""
    row = update(rows).where(rows.c.id == delivery.id)
    await database.write(row.values(status="waiting", next_ns=at_ns, until_ns=at_ns + TRIED_FOR, error=None))


async def add(database: Database, webhook: Webhook, type: str, data: dict[str, Any], at_ns: int) -> Delivery:
    """A message that tells of no change."""
    message_id = ids.message_id()
    told: dict[str, Any] = {
        "message_id": message_id,
        "webhook_id": webhook.id,
        "type": type,
        "data": msgspec.json.encode(data).decode(),
        "occurred_ns": at_ns,
        "status": "waiting",
        "attempts": 0,
        "next_ns": at_ns,
        "until_ns": at_ns + TRIED_FOR,
    }
    its = webhooks.c.id == webhook.id
    number = select(webhooks.c.sequence).where(its).scalar_subquery()
    counted = update(webhooks).where(its).values(sequence=webhooks.c.sequence + 1)
    await database.write(counted, insert(rows).values(**told, sequence=number))
    return await find(database, webhook, message_id)


async def forget_old(database: Database, at_ns: int) -> None:
    """What has arrived or failed long ago goes; what waits for a disabled webhook is given up after its time."""
    disabled = select(webhooks.c.id).where(webhooks.c.enabled.is_(False))
    held = and_(_WAITING, rows.c.until_ns < at_ns, rows.c.webhook_id.in_(disabled))
    given_up = update(rows).where(held).values(status="failed", next_ns=None, error=DISABLED)
    old = [and_(rows.c.status == status, rows.c.occurred_ns < at_ns - age) for status, age in KEPT.items()]
    await database.write(given_up, delete(rows).where(or_(*old)))
