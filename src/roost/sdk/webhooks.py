"""Webhooks: addresses that are told of jobs and sandboxes."""

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

from roost.sdk import wire
from roost.sdk.results import Deliveries, MadeWebhook, Rotated, Sent, Stopped, Webhook, Webhooks
from roost.sdk.wire import Call, given, quoted

HOOKS = "/webhooks"


class WebhookChange(TypedDict, total=False):
    url: str
    events: Sequence[str]
    description: str
    enabled: bool


def webhook_create(
    url: str, *, events: Sequence[str] = (), description: str | None = None, enabled: bool = True
) -> Call[MadeWebhook]:
    """Post messages of these types, or of all, to an address. `secret` of the answer is shown this once."""
    body = {"url": url, "events": list(events), "enabled": enabled} | given(description=description)
    return (yield from wire.call("POST", HOOKS, body))


def webhook_list() -> Call[Webhooks]:
    """List webhooks, the newest first."""
    return (yield from wire.call("GET", HOOKS))


def webhook_get(webhook_id: str) -> Call[Webhook]:
    """Show a webhook."""
    return (yield from wire.call("GET", HOOKS + quoted(webhook_id)))


def webhook_update(webhook_id: str, **changes: Unpack[WebhookChange]) -> Call[Webhook]:
    """Change a webhook, enable or disable it."""
    return (yield from wire.call("PATCH", HOOKS + quoted(webhook_id), dict(changes), repeatable=True))


def webhook_delete(webhook_id: str) -> Call[Stopped]:
    """Delete a webhook, with all that it has not sent."""
    return (yield from wire.call("DELETE", HOOKS + quoted(webhook_id)))


def webhook_rotate(webhook_id: str) -> Call[Rotated]:
    """Replace its secret; messages are signed with both for a day."""
    return (yield from wire.call("POST", f"{HOOKS}{quoted(webhook_id)}/rotate"))


def webhook_test(webhook_id: str) -> Call[Sent]:
    """Send a message of the type webhook.test."""
    return (yield from wire.call("POST", f"{HOOKS}{quoted(webhook_id)}/test"))


def webhook_deliveries(
    webhook_id: str, *, status: Literal["waiting", "delivered", "failed"] | None = None, limit: int = 100
) -> Call[Deliveries]:
    """List what became of its messages, the newest first."""
    query = {"status": status, "limit": limit}
    return (yield from wire.call("GET", f"{HOOKS}{quoted(webhook_id)}/deliveries", query=query))


def webhook_redeliver(webhook_id: str, message_id: str) -> Call[Sent]:
    """Send a message again, with the same id."""
    path = f"{HOOKS}{quoted(webhook_id)}/deliveries{quoted(message_id)}/redeliver"
    return (yield from wire.call("POST", path))
