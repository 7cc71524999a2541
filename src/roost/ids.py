"""Identifiers: who makes them and what they look like on the wire."""

import secrets
import uuid


def request_id() -> str:
    """A job's id: a random UUID, as the Mags API documents it."""
    return str(uuid.uuid4())


def vm_id() -> str:
    """A sandbox's id: 8 lower-case hex characters, the form that official clients show."""
    return secrets.token_hex(4)


def subdomain() -> str:
    """A job's host label: 12 lower-case hex characters, unrelated to its request id."""
    return secrets.token_hex(6)


def api_token() -> str:
    """A bearer token: 64 lower-case hex characters (256 random bits)."""
    return secrets.token_hex(32)


def revision_id() -> str:
    """An immutable state of a workspace: 16 lower-case hex characters."""
    return secrets.token_hex(8)


def file_id() -> str:
    """An upload's id: a random UUID, as the Mags API documents it."""
    return str(uuid.uuid4())


def cron_id() -> str:
    """A schedule's id: a random UUID."""
    return str(uuid.uuid4())


def webhook_id() -> str:
    """A random UUID."""
    return str(uuid.uuid4())


def message_id() -> str:
    """A message to a webhook: `msg_` and 24 lower-case hex characters, as the database's triggers make them too."""
    return f"msg_{secrets.token_hex(12)}"


def key_id() -> str:
    """An SSH key's id: 12 lower-case hex characters."""
    return secrets.token_hex(6)
