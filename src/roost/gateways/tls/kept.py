"""Certificates from an authority on disk: HOST.pem holds key and chain, HOST.failed what went wrong the last time.

One directory per authority, for its user alone. Files are written whole or not at all. What the files say of orders in
the last hour counts against the limit also after a restart.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from roost.errors import Invalid
from roost.gateways.tls.certificates import Certificate, certificate_of

_HOST = re.compile(r"(?=.{1,200}\Z)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*\Z")
KEY_END = b"-----END PRIVATE KEY-----\n"


class Failure(msgspec.Struct, frozen=True):
    """Orders for a host that did not end with a certificate, one after the other."""

    count: int
    last: float  # seconds since the epoch
    not_before: float  # … when the next order may be tried
    reason: str


@dataclass(frozen=True)
class Term:
    begins: datetime
    ends: datetime
    ordered: float  # seconds since the epoch


class Kept:
    """Every method blocks on the disk; the directory is made if it is not there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def prepare(self) -> None:
        self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.place.glob("*.new"):  # a write that a crash cut off
            left.unlink()

    def account(self) -> bytes | None:
        return self._read("account.json")

    def keep_account(self, data: bytes) -> None:
        self._write("account.json", data)

    def keep(self, host: str, key: bytes, chain: bytes, ordered: float) -> Certificate:
        """Raises Invalid, and keeps nothing, when they do not belong together or to the host.

        `ordered`, seconds since the epoch, is the file's time: of the clock that limits orders, not of the disk's.
        """
        certificate = certificate_of(chain, key, f"what the authority sent for {host}")
        if not certificate.covers(host):
            raise Invalid(f"the authority sent a certificate for {certificate.names[:5]}, not for {host}")
        self._write(f"{_checked(host)}.pem", key + chain, ordered)
        self.forget_failure(host)
        return certificate

    def load(self, host: str) -> Certificate | None:
        """None: there is none, or it is damaged and another one will be ordered."""
        data = self._read(f"{_checked(host)}.pem")
        if data is None:
            return None
        key, end, chain = data.partition(KEY_END)
        with contextlib.suppress(Invalid):
            return certificate_of(chain, key + end, f"{host}.pem")
        return None

    def remove(self, host: str) -> None:
        (self.place / f"{_checked(host)}.pem").unlink(missing_ok=True)

    def terms(self) -> dict[str, Term]:
        """Of every usable certificate that is kept."""
        found: dict[str, Term] = {}
        for path in self.place.glob("*.pem"):
            host = path.name.removesuffix(".pem")
            if _HOST.match(host) and (certificate := self.load(host)):
                found[host] = Term(certificate.begins, certificate.ends, path.stat().st_mtime)
        return found

    def keep_failure(self, host: str, failure: Failure) -> None:
        self._write(f"{_checked(host)}.failed", msgspec.json.encode(failure))

    def forget_failure(self, host: str) -> None:
        (self.place / f"{_checked(host)}.failed").unlink(missing_ok=True)

    def failures(self) -> dict[str, Failure]:
        found: dict[str, Failure] = {}
        for path in self.place.glob("*.failed"):
            with contextlib.suppress(msgspec.MsgspecError, OSError):
                found[path.name.removesuffix(".failed")] = msgspec.json.decode(path.read_bytes(), type=Failure)
        return found

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.place / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes, modified: float | None = None) -> None:
        new = self.place / f"{name}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            if modified is not None:
                os.utime(file.fileno(), (modified, modified))
            os.fsync(file.fileno())
        new.replace(self.place / name)
        directory = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def is_host(name: str) -> bool:
    """A DNS name that an authority could issue for, fit to name a file."""
    return _HOST.match(name) is not None


def _checked(host: str) -> str:
    if not is_host(host):
        raise ValueError(f"not a host name: {host[:100]!r}")
    return host
