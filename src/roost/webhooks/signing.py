"""Signatures by the Standard Webhooks scheme: HMAC-SHA256 over `id.timestamp.body`, in base64, as `v1,…`."""

import base64
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
KEY_BYTES = 32  # the scheme asks for 24 to 64


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def headers(message_id: str, timestamp: int, body: bytes, keys: list[str]) -> dict[str, str]:
    """`timestamp`: seconds, of this attempt. One signature for each secret, the newest first."""
    signatures = " ".join(_signature(f"{message_id}.{timestamp}.".encode() + body, key) for key in keys)
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}


def _signature(signed: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
