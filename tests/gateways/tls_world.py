"""Certificates of a small authority of the tests' own, and a TLS listener on a free port that answers every request.

`Lab` signs with any names and any term; `serving` runs the real listener on an event loop of uvloop, as Roost does.
"""

import asyncio
import contextlib
import datetime
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from roost.gateways.tls.listener import Contexts, TlsListener

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True)
class Pair:
    chain: Path
    key: Path


class Lab:
    """A certificate authority in a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Lab authority")])
        self.certificate = self._sign(self._name, self.key, NOW - DAY, NOW + 365 * DAY, (), authority=True)
        self.root = place / "root.pem"
        self.root.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self, *names: str, begins: datetime.datetime = NOW - DAY, ends: datetime.datetime = NOW + 90 * DAY
    ) -> tuple[bytes, bytes]:
        """Chain and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
        certificate = self._sign(subject, key, begins, ends, names)
        return certificate.public_bytes(Encoding.PEM) + self.certificate.public_bytes(Encoding.PEM), pem_of(key)

    def files(self, *names: str, name: str = "server", **term: datetime.datetime) -> Pair:
        pair = Pair(self.place / f"{name}.pem", self.place / f"{name}-key.pem")
        self.replace(pair, *names, **term)
        return pair

    def replace(self, pair: Pair, *names: str, **term: datetime.datetime) -> None:
        """As a renewal does: new files that take the place of the old ones."""
        for path, data in zip((pair.chain, pair.key), self.issue(*names, **term), strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(data)
            new.replace(path)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        begins: datetime.datetime,
        ends: datetime.datetime,
        names: tuple[str, ...],
        *,
        authority: bool = False,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), False)
        return builder.sign(self.key, hashes.SHA256())


class Greeter(asyncio.Protocol):
    """Answers every request with what was agreed on."""

    def __init__(self, agreed: str | None, peer: tuple[str, int]) -> None:
        self._agreed = agreed or "nothing"
        self._peer = peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            body = f"{self._agreed} from {self._peer[0]}".encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def free_listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    listener.setblocking(False)
    return listener


@contextlib.asynccontextmanager
async def serving(
    contexts: Contexts, protocol_of: Callable[[str | None, tuple[str, int]], asyncio.Protocol] = Greeter
) -> AsyncGenerator[int]:
    """Its port."""
    with free_listener() as listener:
        async with TlsListener(listener, contexts, protocol_of):
            yield listener.getsockname()[1]


def trusting(lab: Lab, *protocols: str) -> ssl.SSLContext:
    """A client that trusts the lab alone."""
    context = ssl.create_default_context(cafile=str(lab.root))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def ask(port: int, host: str, context: ssl.SSLContext) -> bytes:
    """A GET over TLS; the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return await reader.readexactly(length)
    finally:
        writer.close()


async def program(*words: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Exit status and everything it printed."""
    running = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(30):
            printed, _ = await running.communicate(stdin)
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    return running.returncode or 0, printed
