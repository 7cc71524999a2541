"""What must not lie readable on disk: sealed with AES-256-GCM under a key that only the control plane can read.

The key is made on the first start. Sealed values carry their own nonce, and are bound to the row they belong to, so
that one copied to another row does not open.
"""

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from roost.errors import Conflict

KEY_BYTES = 32
NONCE_BYTES = 12


class Secret:
    """A key that seals and opens."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = AESGCM(key)

    def derive(self, purpose: str) -> bytes:
        """A key for another purpose, which tells nothing about this one (HKDF, RFC 5869)."""
        return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(self._key)

    def seal(self, plain: bytes, owner: str) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        """Raises Conflict when the key is another one, or the bytes were changed."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError):
            raise Conflict(
                "the environment of this job cannot be decrypted: serve/secret.key is not the key it was stored with"
            ) from None


def load(file: Path) -> Secret:
    """The key of `file`; makes it (0600, whole or not at all) where there is none."""
    if not file.exists():
        _create(file)
    key = file.read_bytes()
    if len(key) != KEY_BYTES:
        raise Conflict(f"{file} does not hold a key of {KEY_BYTES} bytes; restore it from a backup")
    return Secret(key)


def _create(file: Path) -> None:
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(secrets.token_bytes(KEY_BYTES))
        opened.flush()
        os.fsync(opened.fileno())
    part.rename(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
