"""The HTTP gateway as a part of the control plane: it listens, counts what is open, and ends in order."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import structlog
from structlog.typing import FilteringBoundLogger

from roost.gateways.http import pages
from roost.gateways.http.connection import Connection
from roost.gateways.http.exchange import Exchange
from roost.gateways.http.pool import Pool
from roost.gateways.http.quotas import Quotas
from roost.gateways.http.request import Origin
from roost.gateways.http.routing import Dialer, Routes
from roost.gateways.tls.challenges import Challenges
from roost.listening import open_files
from roost.settings import ServeSettings
from roost.tracing import OFF, Tracer

if TYPE_CHECKING:
    from roost.gateways.http.h2 import Http2Connection

MOST_CONNECTIONS = 20_000
RESERVED_FILES = 1000  # of what this process may have open, for SSH, the database and the node; the API has a fifth
SWEEP = 1.0  # seconds between two looks at deadlines
LAST_ANSWERS = 10.0  # seconds for exchanges that are under way when the gateway stops
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 20, socket.TCP_KEEPCNT: 4}  # seconds, seconds, probes
LOOPBACK = ("127.", "::1", "::ffff:127.")

log: FilteringBoundLogger = structlog.get_logger()


class Gateway:
    """Serves the listeners that it is given while it is entered; closes them."""

    def __init__(self, routes: Routes, dialer: Dialer, settings: ServeSettings, tracer: Tracer = OFF) -> None:
        self.routes = routes
        self.tracer = tracer
        self.pool = Pool(dialer, self._has_room)
        self.quotas = Quotas(settings)
        self.connections: set[Connection | Http2Connection] = set()
        self.challenges = Challenges()  # of an authority that looks whether hosts are ours
        self.exchanges: set[Exchange] = set()
        self.requests = 0  # so far
        self.stopping = False
        self._behind = settings.gateway_url
        self._most = MOST_CONNECTIONS
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._most = min(MOST_CONNECTIONS, open_files() * 4 // 5 - RESERVED_FILES)
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def listen(self, listener: socket.socket) -> None:
        """Plain HTTP/1 on a bound socket. Connections inherit its options: peers that vanished are noticed."""
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
        server = await asyncio.get_running_loop().create_server(lambda: Greeting(self), sock=listener, backlog=1024)
        self._servers.append(server)
        host, port, *_ = listener.getsockname()
        log.info("gateway.listening", host=host, port=port)

    def protocol(self, scheme: str, peer: str, agreed: str | None = None) -> asyncio.Protocol:
        """For a connection that was accepted elsewhere; `agreed`: "h2" where TLS settled on it."""
        room = not self.stopping and self._has_room()
        origin = self.origin(scheme, peer)
        if agreed == "h2":
            from roost.gateways.http.h2 import Http2Connection  # 3 MB that plain HTTP does without

            return Http2Connection(self, origin, room)
        return Connection(self, origin) if room else Full()

    def origin(self, scheme: str, peer: str) -> Origin:
        """Of a connection from the address `peer`. A proxy of ours comes from this very machine, if there is one."""
        trusted = self._behind is not None and peer.startswith(LOOPBACK)
        secure = scheme == "https" or (trusted and str(self._behind).startswith("https"))
        return Origin(peer, secure, trusted)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self) -> None:
        """No new connections; what is under way has a little time; then everything is closed."""
        if self.stopping:
            return
        self.stopping = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ANSWERS):
                while any(not exchange.tunnel for exchange in self.exchanges):
                    await asyncio.sleep(0.02)
        for connection in list(self.connections):
            connection.close()
        self.pool.close()
        tasks = [*self._tasks, *([self._sweeping] if self._sweeping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _has_room(self) -> bool:
        return len(self.connections) + len(self.pool) < self._most

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("gateway.exchange_failed", exc_info=error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            now = time.monotonic()
            for connection in [one for one in self.connections if one.deadline < now]:
                connection.expire()
            for exchange in [one for one in self.exchanges if one.deadline < now]:
                exchange.expire()
            self.pool.sweep()


class Greeting(asyncio.Protocol):
    """Lasts until the client's address is known."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        protocol = self._gateway.protocol("http", str(peer[0]) if peer else "")
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class Full(asyncio.Protocol):
    """For connections beyond what we can have open."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        connection = cast(asyncio.Transport, transport)
        text = "the gateway has as many connections open as it can have; try again in a moment"
        connection.write(pages.last_words(503, text))
        connection.close()
