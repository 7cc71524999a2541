"""Webhooks over HTTP: whom to tell of jobs, and what became of each message.

A secret is told once, when it is made. `docs/webhooks.md` says what is sent and how it is checked.
"""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.datastructures import State
from litestar.params import Parameter
from msgspec import Meta

from roost import ids
from roost.accounts.tokens import Account
from roost.api.bodies import JsonBody
from roost.api.mags import Stopped
from roost.api.plane import Plane
from roost.clock import now_ns, rfc3339
from roost.errors import Conflict, Invalid
from roost.outward import check_url
from roost.webhooks import delivery as deliveries
from roost.webhooks import signing
from roost.webhooks import webhook as rows
from roost.webhooks.delivery import Delivery, DeliveryStatus
from roost.webhooks.webhook import EVENT_TYPES, EventType

Caller = Request[Account, str, State]
WebhookId = Annotated[str, Parameter(description="Id of a webhook")]
MessageId = Annotated[str, Parameter(description="Id of a message, as in its webhook-id header")]

MAX_DESCRIPTION = 1024  # characters
MAX_LISTED = 1000


def _note(text: str) -> Meta:
    return Meta(description=text)


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """null counts as absent."""

    url: Annotated[str | None, _note("http or https; where messages are posted (required)")] = None
    events: Annotated[list[str] | None, _note("Types, like job.completed; absent or empty: all")] = None
    description: str | None = None
    enabled: bool | None = None


class WebhookChange(NewWebhook, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is absent or null stays; an empty list of events means all."""


class Webhook(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    url: str
    events: list[EventType]  # empty: all
    enabled: bool
    created_at: str
    updated_at: str
    description: str | None = None
    failing_since: str | None = None
    disabled_reason: str | None = None


class MadeWebhook(Webhook, frozen=True, kw_only=True):
    secret: str  # shown this once


class Webhooks(msgspec.Struct, frozen=True):
    webhooks: list[Webhook]
    total: int


class Rotated(msgspec.Struct, frozen=True):
    secret: str  # shown this once
    previous_until: str  # until then the one before it signs too


class Sent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message."""

    id: str
    sequence: int
    type: str
    status: DeliveryStatus
    attempts: int
    created_at: str
    payload: dict[str, Any]
    last_attempt_at: str | None = None
    next_attempt_at: str | None = None
    response_status: int | None = None
    error: str | None = None


class Deliveries(msgspec.Struct, frozen=True):
    deliveries: list[Sent]


@post(
    "/webhooks", status_code=201, dto=JsonBody, return_dto=None, summary="Be told of jobs and sandboxes",
    description=f"Types: {', '.join(EVENT_TYPES)}. The answer alone shows the secret. At most {rows.MAX_WEBHOOKS}.",
)  # fmt: skip
async def create(request: Caller, plane: Plane, data: NewWebhook) -> MadeWebhook:
    if not data.url:
        raise Invalid("url: missing; give the address that messages are posted to")
    id, secret, now = ids.webhook_id(), signing.new_secret(), now_ns()
    made = rows.Webhook(
        id=id, account_id=request.user.id, url=str(check_url("url", data.url, plane.webhooks.may)),
        description=_description(data.description), events=_events(data.events),
        secret=rows.seal(plane.secret, id, secret), previous_secret=None, previous_until_ns=None,
        enabled=data.enabled is not False, disabled_reason=None, sequence=0, failing_since_ns=None, created_ns=now,
        updated_ns=now,
    )  # fmt: skip
    await rows.create(plane.database, made)
    plane.webhooks.changed()
    shown = msgspec.structs.asdict(_record(made))
    return MadeWebhook(**shown, secret=secret)


@get("/webhooks", summary="List webhooks, the newest first")
async def list_webhooks(request: Caller, plane: Plane) -> Webhooks:
    found = await rows.of_account(plane.database, request.user.id)
    return Webhooks([_record(one) for one in found], len(found))


@get("/webhooks/{id:str}", summary="Show a webhook")
async def show(request: Caller, plane: Plane, id: WebhookId) -> Webhook:
    return _record(await rows.find(plane.database, request.user.id, id))


@patch(
    "/webhooks/{id:str}", dto=JsonBody, return_dto=None, summary="Change a webhook, enable or disable it",
    description="While it is disabled nothing happens for it; messages that waited before wait for a day.",
)  # fmt: skip
async def change(request: Caller, plane: Plane, id: WebhookId, data: WebhookChange) -> Webhook:
    found = await rows.find(plane.database, request.user.id, id)
    changes: dict[str, Any] = {
        "url": str(check_url("url", data.url, plane.webhooks.may)) if data.url else None,
        "description": _description(data.description),
        "enabled": data.enabled,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if data.events is not None:
        changes["events"] = _events(data.events)
    if data.enabled and not found.enabled:
        changes |= {"disabled_reason": None, "failing_since_ns": None}
    await rows.change(plane.database, found, **changes)
    plane.webhooks.changed()
    return _record(await rows.find(plane.database, request.user.id, id))


@delete("/webhooks/{id:str}", status_code=200, summary="Delete a webhook, with all that it has not sent")
async def remove(request: Caller, plane: Plane, id: WebhookId) -> Stopped:
    found = await rows.find(plane.database, request.user.id, id)
    await rows.remove(plane.database, found)
    return Stopped(True, f"Webhook '{found.id}' deleted")


@post(
    "/webhooks/{id:str}/rotate", status_code=200, summary="Replace a webhook's secret",
    description="Messages are signed with both for a day.",
)  # fmt: skip
async def rotate(request: Caller, plane: Plane, id: WebhookId) -> Rotated:
    found = await rows.find(plane.database, request.user.id, id)
    secret = await rows.rotate(plane.database, plane.secret, found)
    return Rotated(secret, rfc3339(now_ns() + rows.GRACE))


@post("/webhooks/{id:str}/test", status_code=202, summary="Send a message of the type webhook.test")
async def send_test(request: Caller, plane: Plane, id: WebhookId) -> Sent:
    found = await rows.find(plane.database, request.user.id, id)
    _require_enabled(found)
    data = {"webhook_id": found.id}
    sent = await deliveries.add(plane.database, found, "webhook.test", data, plane.webhooks.clock.now_ns())
    plane.webhooks.changed()
    return _sent(sent)


@get("/webhooks/{id:str}/deliveries", summary="What became of a webhook's messages, the newest first")
async def list_deliveries(
    request: Caller,
    plane: Plane,
    id: WebhookId,
    status: DeliveryStatus | None = None,
    limit: Annotated[int, Parameter(ge=1, le=MAX_LISTED)] = 100,
) -> Deliveries:
    found = await rows.find(plane.database, request.user.id, id)
    return Deliveries([_sent(one) for one in await deliveries.history(plane.database, found, status, limit)])


@post(
    "/webhooks/{id:str}/deliveries/{message_id:str}/redeliver", status_code=202,
    summary="Send a message again, now, with the same id",
)  # fmt: skip
async def send_again(request: Caller, plane: Plane, id: WebhookId, message_id: MessageId) -> Sent:
    found = await rows.find(plane.database, request.user.id, id)
    delivery = await deliveries.find(plane.database, found, message_id)
    _require_enabled(found)
    await deliveries.send_again(plane.database, delivery, plane.webhooks.clock.now_ns())
    plane.webhooks.changed()
    return _sent(await deliveries.find(plane.database, found, message_id))


def _require_enabled(webhook: rows.Webhook) -> None:
    if not webhook.enabled:
        raise Conflict('this webhook is disabled; PATCH it with {"enabled": true} first')


def _events(events: list[str] | None) -> Any:
    """Raises Invalid."""
    for one in events or ():
        if one not in EVENT_TYPES:
            raise Invalid(f"events: there is no type {one[:40]!r}; known are {', '.join(EVENT_TYPES)}")
    return sorted(set(events)) if events else None


def _description(text: str | None) -> str | None:
    if text is not None and len(text) > MAX_DESCRIPTION:
        raise Invalid(f"description: {len(text)} characters; at most {MAX_DESCRIPTION}")
    return text


def _record(webhook: rows.Webhook) -> Webhook:
    return Webhook(
        id=webhook.id,
        url=webhook.url,
        events=webhook.events or [],
        enabled=webhook.enabled,
        created_at=rfc3339(webhook.created_ns),
        updated_at=rfc3339(webhook.updated_ns),
        description=webhook.description,
        failing_since=_instant(webhook.failing_since_ns),
        disabled_reason=webhook.disabled_reason,
    )


def _sent(delivery: Delivery) -> Sent:
    return Sent(
        id=delivery.message_id,
        sequence=delivery.sequence,
        type=delivery.type,
        status=delivery.status,
        attempts=delivery.attempts,
        created_at=rfc3339(delivery.occurred_ns),
        payload=msgspec.json.decode(deliveries.body(delivery)),
        last_attempt_at=_instant(delivery.attempted_ns),
        next_attempt_at=_instant(delivery.next_ns),
        response_status=delivery.response_status,
        error=delivery.error,
    )


def _instant(instant_ns: int | None) -> str | None:
    return None if instant_ns is None else rfc3339(instant_ns)
