"""What happens to bytes on their way to the store: named by BLAKE3, compressed by zstd, encrypted if there is a key.

With a key, names are keyed hashes and contents AES-256-GCM, so the store learns neither; equal chunks still have equal
names within what shares the key. A sealed value is bound to its role, so that one cannot be passed off as another.
"""

import os
import threading

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from roost.errors import Damaged, Invalid

LEVEL = 3
KEY_BYTES = 32
NONCE_BYTES = 12
ID_BYTES = 32
PLAIN, SECRET = b"\x01", b"\x02"
OVERHEAD = 1 + NONCE_BYTES + 16  # bytes that sealing adds to a compressed value at most


class Seal:
    """Safe to use from several threads."""

    def __init__(self, key: bytes | None) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise Invalid(f"an encryption key has {KEY_BYTES} bytes, this one {len(key)}")
        self._names = None if key is None else _derived(key, "names of chunks")
        self._cipher = None if key is None else AESGCM(_derived(key, "contents"))
        self.domain = None if key is None else _derived(key, "domain")[:8].hex()
        self._threads = threading.local()

    def name(self, data: bytes | memoryview) -> bytes:
        return blake3(data).digest() if self._names is None else blake3(data, key=self._names).digest()

    def close(self, data: bytes, role: bytes) -> bytes:
        packed = self._compressor().compress(data)
        if self._cipher is None:
            return PLAIN + packed
        nonce = os.urandom(NONCE_BYTES)
        return SECRET + nonce + self._cipher.encrypt(nonce, packed, role)

    def open(self, data: bytes, role: bytes, limit: int) -> bytes:
        """At most `limit` bytes, or Damaged."""
        packed = memoryview(data)[1:]
        if self._cipher is not None:
            if data[:1] != SECRET:
                raise Damaged("the object store returned something that is not encrypted")
            try:
                packed = self._cipher.decrypt(bytes(packed[:NONCE_BYTES]), packed[NONCE_BYTES:], role)
            except (InvalidTag, ValueError) as error:
                raise Damaged("the object store returned something that this key does not open") from error
        elif data[:1] != PLAIN:
            raise Damaged("the object store returned something that is encrypted or damaged; give the workspace's key")
        return self._expand(packed, limit)

    def _expand(self, packed: bytes | memoryview, limit: int) -> bytes:
        try:
            # The header's size decides how much is allocated, so it is looked at first.
            size = zstandard.frame_content_size(packed)
            if not 0 <= size <= limit:
                raise Damaged(f"the object store returned a value of {size} bytes; at most {limit} are allowed")
            return self._decompressor().decompress(packed, max_output_size=limit)
        except zstandard.ZstdError as error:
            raise Damaged("the object store returned something that does not decompress") from error

    def _compressor(self) -> zstandard.ZstdCompressor:
        if not hasattr(self._threads, "compressor"):
            self._threads.compressor = zstandard.ZstdCompressor(LEVEL)
        return self._threads.compressor

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._threads, "decompressor"):
            self._threads.decompressor = zstandard.ZstdDecompressor(max_window_size=2**23)
        return self._threads.decompressor


def _derived(key: bytes, purpose: str) -> bytes:
    return blake3(key, derive_key_context=f"roost workspaces 1: {purpose}").digest()
