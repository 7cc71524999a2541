"""The key by which clients know this gateway again: made on the first start, kept ever after.

ed25519 alone: every client of the last ten years knows it, and one key is what a client can pin.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from roost.errors import StateUnwritable


@dataclass(frozen=True)
class HostKey:
    private: bytes = b""  # OpenSSH PEM
    public: str = ""  # "ssh-ed25519 AAAA…"

    def __repr__(self) -> str:
        return f"HostKey({self.public})"


def openssh(key: Ed25519PrivateKey) -> bytes:
    """PEM that OpenSSH, paramiko and asyncssh load."""
    kind = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def public_line(key: Ed25519PrivateKey) -> str:
    kind = serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, kind).decode()


def load(path: Path) -> HostKey:
    """Raises StateUnwritable where it can be neither read nor made."""
    try:
        if not path.exists():
            _make(path)
        private = path.read_bytes()
        key = serialization.load_ssh_private_key(private, password=None)
    except OSError as error:
        raise StateUnwritable(f"the SSH host key {path} cannot be read or made: {error.strerror}") from error
    except ValueError as error:
        text = f"{path} holds no SSH key ({error}); put it back, or remove it and let clients accept a new one"
        raise StateUnwritable(text) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StateUnwritable(f"{path} is no ed25519 key; put back the one that Roost made, or remove it")
    return HostKey(private, public_line(key))


def _make(path: Path) -> None:
    """Whole or not at all: a crash leaves no half key that the next start would refuse."""
    unfinished = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        unfinished.unlink()
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(openssh(Ed25519PrivateKey.generate()))
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
