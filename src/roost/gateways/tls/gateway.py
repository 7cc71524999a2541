"""TLS as the HTTP gateway uses it: the settings turned into certificates, and those into connections.

Files come first: what they cover needs no authority. Any other name gets a certificate from the authority, if there is
one, and a client that names no host gets the files'.
"""

import asyncio
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Self

import structlog
from structlog.typing import FilteringBoundLogger

from roost.errors import Forbidden, Invalid, NotFound, StateUnwritable
from roost.gateways.tls.certificates import CertificateFiles
from roost.gateways.tls.challenges import Challenges
from roost.gateways.tls.hello import ClientHello
from roost.gateways.tls.issuing import Issuing, Known
from roost.gateways.tls.kept import Kept
from roost.gateways.tls.listener import TlsListener
from roost.settings import ServeSettings

if TYPE_CHECKING:
    from roost.gateways.http.server import Gateway
    from roost.gateways.tls.acme import Authority

BACKLOG = 1024
ORDER_PATIENCE = 15.0  # seconds that a handshake waits for its certificate

log: FilteringBoundLogger = structlog.get_logger()


@asynccontextmanager
async def https(gateway: "Gateway", listener: socket.socket, settings: ServeSettings) -> "AsyncGenerator[Certificates]":
    """Serves HTTPS on a bound, non-blocking socket while it is entered. Raises Invalid for unusable certificates."""

    async def known(host: str) -> bool:
        try:
            await gateway.routes.find(host)
        except (NotFound, Forbidden):
            return False
        return True

    async with Certificates(settings, known) as certificates:
        gateway.challenges = certificates.challenges
        listener.listen(BACKLOG)
        async with TlsListener(
            listener, certificates.context, lambda agreed, peer: gateway.protocol("https", peer[0], agreed)
        ):
            host, port, *_ = listener.getsockname()
            log.info("gateway.listening_tls", host=host, port=port)
            yield certificates


def require_certificates(settings: ServeSettings) -> None:
    """Raises Invalid where `https` could not begin with these."""

    async def nobody(_: str) -> bool:
        return False

    Certificates(settings, nobody)


class Certificates:
    """While entered, files are watched and certificates renewed. Raises Invalid, StateUnwritable when it cannot begin.

    `known` says whether a host (lower case) leads to a sandbox; certificates are ordered for such hosts alone.
    """

    def __init__(self, settings: ServeSettings, known: Known) -> None:
        self.challenges = Challenges()  # nothing is expected without an authority
        self._domains = tuple(domain.lower() for domain in settings.domains)
        self._files = files_of(settings)
        self._issuing: Issuing | None = None
        self._authority: Authority | None = None
        if settings.acme:
            kept = Kept(settings.certificates / hashlib.sha256(settings.acme.encode()).hexdigest()[:12])
            self._authority = authority_of(settings, settings.acme, kept)
            self.challenges = self._authority.challenges
            self._issuing = Issuing(self._authority, kept, known)
        elif self._files is None:
            raise Invalid("--gateway-tls needs certificates: give --certificate and --certificate-key, or --acme URL")
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if self._authority:
            self._open.callback(self._authority.close)
        if self._issuing:
            try:
                await self._open.enter_async_context(self._issuing)
            except OSError as error:
                await self._open.aclose()
                raise StateUnwritable(f"{error.filename} cannot be used: {error.strerror}") from error
        if self._files:
            watching = asyncio.create_task(self._files.watch())
            self._open.callback(watching.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def refresh(self) -> None:
        """Look at the files now, as on SIGHUP."""
        if self._files:
            self._files.refresh()

    async def context(self, hello: ClientHello) -> ssl.SSLContext | None:
        """What a connection begins with; None: there is no certificate for what the client asked for."""
        host, files = hello.server_name, self._files
        if files and (host is None or files.certificate.covers(host)):
            return files.certificate.context
        if self._issuing and host and host.partition(".")[2] in self._domains:
            certificate = await self._issuing.certificate(host, ORDER_PATIENCE)
            if certificate is not None:
                return certificate.context
        return files.certificate.context if files else None


def authority_of(settings: ServeSettings, url: str, kept: Kept) -> "Authority":
    """Raises Invalid for an URL or a file of certificates that cannot be used."""
    from roost.gateways.tls.acme import Authority  # 0.25 s that those who have files need not wait

    if not url.startswith("https://"):
        raise Invalid(f"--acme {url!r} is not an https:// URL of an authority's directory")
    if settings.acme_ca and not os.access(settings.acme_ca, os.R_OK):
        raise Invalid(f"--acme-ca {settings.acme_ca} cannot be read by the user that serves")
    return Authority(url, settings.acme_email, settings.acme_ca, kept)


def files_of(settings: ServeSettings) -> CertificateFiles | None:
    if settings.certificate is None:
        if settings.certificate_key is not None:
            raise Invalid("--certificate-key needs --certificate")
        return None
    return CertificateFiles(settings.certificate, settings.certificate_key, settings.domains)
