"""Certificates from PEM files: checked when they are read, ready to serve, read anew when the files change.

What was checked is what is served: the bytes go from here to OpenSSL, not by a second reading of the files. A pair
that cannot be used is refused at the start with what to do; later it is reported, and the last good one stays.
"""

import asyncio
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from structlog.typing import FilteringBoundLogger

from roost.errors import Invalid

POLL_SECONDS = 2.0
MAX_PEM = 1024 * 1024
EXPIRY_WARNING = timedelta(days=14)
EXPIRY_REMINDER = timedelta(days=1)
PROTOCOLS = ["h2", "http/1.1"]
# TLS 1.2: forward secrecy and authenticated encryption only; TLS 1.3 has nothing else
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

log: FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class Certificate:
    """A chain with its key, in a context that connections may begin with."""

    names: tuple[str, ...]  # DNS names, lower case; "*.example.org" is for one label
    begins: datetime
    ends: datetime
    context: ssl.SSLContext

    def covers(self, host: str) -> bool:
        return host in self.names or f"*.{host.partition('.')[2]}" in self.names

    def valid_at(self, instant: datetime) -> bool:
        return self.begins <= instant < self.ends

    @property
    def due(self) -> datetime:
        """When two thirds of its life are over."""
        return self.begins + (self.ends - self.begins) * 2 / 3


def certificate_of(chain: bytes, key: bytes, source: str) -> Certificate:
    """From PEM bytes. Raises Invalid, whose text names `source`; says nothing about the present time."""
    try:
        first = x509.load_pem_x509_certificates(chain)[0]
        names, begins, ends = _names(first), first.not_valid_before_utc, first.not_valid_after_utc
        public = first.public_key()
    except Exception as error:  # the library has a dozen kinds for what may be wrong in a file
        text = f"{source} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----): {error}"
        raise Invalid(text) from None
    try:
        private = load_pem_private_key(key, password=None)
    except TypeError:
        raise Invalid(
            f"the key of {source} has a password; give one without: openssl pkey -in KEY -out PLAIN"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise Invalid(f"the key of {source} is no private key in PEM form") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != public.public_bytes(*form):
        raise Invalid(
            f"the key does not belong to the first certificate of {source}; the server's own certificate "
            "must come first, those of the authority after it"
        )
    try:
        context = _context(chain, key)
    except ssl.SSLError as error:
        raise Invalid(f"{source} cannot be used: {error.reason or error}") from None
    return Certificate(names, begins, ends, context)


def server_context() -> ssl.SSLContext:
    """TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1; without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(PROTOCOLS)
    return context


def _context(chain: bytes, key: bytes) -> ssl.SSLContext:
    context = server_context()
    memory = os.memfd_create("certificate", os.MFD_CLOEXEC)  # OpenSSL by way of `ssl` reads files only
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(key + b"\n" + chain)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))


class CertificateFiles:
    """One chain and its key. Raises Invalid when they cannot be used at the start; the text names the cure."""

    def __init__(self, chain: Path, key: Path | None, domains: tuple[str, ...]) -> None:
        self._chain = chain
        self._key = key or chain
        self._domains = domains
        self._seen = self._signature()
        self._reminded = datetime.now(UTC)
        self.certificate = self._read()
        now = datetime.now(UTC)
        if now >= self.certificate.ends:
            raise Invalid(f"the certificate in {chain} ended on {self.certificate.ends:%Y-%m-%d %H:%M} UTC; renew it")
        if now < self.certificate.begins:
            begins = f"{self.certificate.begins:%Y-%m-%d %H:%M} UTC"
            raise Invalid(f"the certificate in {chain} begins on {begins}; is this machine's clock right?")
        self._tell()

    async def watch(self) -> None:
        """Until cancelled: takes up what changes on disk."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                self.refresh()
            except Exception as error:  # whatever is in the files: the next renewal must be seen
                log.error("certificate.watch_failed", path=str(self._chain), exc_info=error)

    def refresh(self) -> None:
        """Read again if the files have changed; an unusable pair is reported once, and the last good one stays."""
        self._remind()
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            certificate = self._read()
        except Invalid as error:
            # also while one of the two has been replaced and the other has not
            log.warning("certificate.unusable", path=str(self._chain), reason=str(error))
            return
        if not certificate.valid_at(datetime.now(UTC)):
            log.warning("certificate.unusable", path=str(self._chain), reason="it has ended or not begun")
            return
        self.certificate = certificate
        self._tell()

    def _tell(self) -> None:
        ends = self.certificate.ends.isoformat()
        log.info("certificate.loaded", path=str(self._chain), names=self.certificate.names[:20], ends=ends)
        for domain in self._domains:
            if not self.certificate.covers(f"any.{domain}"):
                log.warning("certificate.uncovered", path=str(self._chain), domain=domain, needed=f"*.{domain}")

    def _remind(self) -> None:
        now = datetime.now(UTC)
        if now - self._reminded >= EXPIRY_REMINDER and now >= self.certificate.ends - EXPIRY_WARNING:
            self._reminded = now
            log.warning("certificate.ending", path=str(self._chain), ends=self.certificate.ends.isoformat())

    def _signature(self) -> tuple[object, ...]:
        found: list[object] = []
        for path in (self._chain, self._key):
            try:
                status = path.stat()
                found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError as error:
                found.append(error.errno)
        return tuple(found)

    def _read(self) -> Certificate:
        return certificate_of(_pem(self._chain), _pem(self._key), str(self._chain))


def _pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM + 1)
    except PermissionError:
        text = f"{path} cannot be read by the user that serves; let it: chgrp roost {path} && chmod 640 {path}"
        raise Invalid(f"{text}, and make its directory enterable") from None
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_PEM:
        raise Invalid(f"{path} is larger than {MAX_PEM} bytes; it should hold one chain and its key")
    return data
