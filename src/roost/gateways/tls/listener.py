"""Accepts TLS connections: reads what the client asks for, gets the certificate for it, then lets TLS begin.

A certificate may come from an order that takes seconds, which a callback of the TLS library could not wait for. So
the first bytes are looked at (MSG_PEEK) while they stay in the socket, and TLS starts on an untouched connection.
Connections that have not finished their handshake are bounded in number and time: where there are too many, one that
has said nothing, or is slow, makes room for the next, and otherwise the next waits in the kernel's queue.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self, cast

import structlog
from structlog.typing import FilteringBoundLogger

from roost.errors import RoostError
from roost.gateways.tls.hello import MAX_HELLO, ClientHello, NotTls, read_hello

HELLO_SECONDS = 10
HANDSHAKE_SECONDS = 10
SHUTDOWN_SECONDS = 2.0
MOST_HANDSHAKES = 800  # fewer than the files that the gateway leaves to the rest of the process
MOST_WAITING = 200  # of those, for certificates that are being ordered
SILENT_SECONDS = 0.5  # without a hello, and …
SLOW_SECONDS = 3.0  # … without the end of a handshake, until a connection makes room for another
ACCEPTS_AT_ONCE = 64  # before other connections have their turn
PAUSE_WITHOUT_FILES = 0.2  # seconds, when no more sockets can be opened
PAUSE_WITHOUT_ROOM = 0.01
PAUSE_WITHOUT_BYTES = 0.02  # where the kernel wakes us for bytes that we have seen

UNRECOGNIZED_NAME, INTERNAL_ERROR = 112, 80  # alerts (RFC 8446, 6.2)
SAY_HTTPS = b"This port speaks TLS: use https.\n"
PLAIN_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(SAY_HTTPS), SAY_HTTPS)
)

log: FilteringBoundLogger = structlog.get_logger()

Contexts = Callable[[ClientHello], Awaitable[ssl.SSLContext | None]]
ProtocolOf = Callable[[str | None, tuple[str, int]], asyncio.Protocol]


@dataclass
class Beginning:
    """Of a connection whose handshake is not over."""

    since: float = field(default_factory=time.monotonic)
    silent: bool = True  # it has not said what it wants


class TlsListener:
    """Serves a listening, non-blocking socket while it is entered; connections that were made live on after it.

    `contexts` gives what a connection begins with, None where there is no certificate for the name; it may wait.
    `protocol_of` gets the protocol that was agreed on ("h2", "http/1.1", None) and the peer's address and port.
    """

    def __init__(self, listener: socket.socket, contexts: Contexts, protocol_of: ProtocolOf) -> None:
        self._listener = listener
        self._contexts = contexts
        self._protocol_of = protocol_of
        self._beginning: dict[asyncio.Task[None], Beginning] = {}  # oldest first
        self._waiting = 0  # for a certificate
        self._accepting: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._accept_when_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._accepting:
            self._accepting.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        tasks = list(self._beginning)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept_when_ready(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # too many open files: those that are open go on, and the kernel keeps the rest
                log.warning("gateway.accept_failed", reason=error.strerror)
                self._pause(PAUSE_WITHOUT_FILES)
                return
            state = Beginning()
            task = asyncio.create_task(self._begin(connection, (str(peer[0]), int(peer[1])), state))
            self._beginning[task] = state
            task.add_done_callback(self._begun)
            if len(self._beginning) > MOST_HANDSHAKES and not self._make_room():
                self._pause(PAUSE_WITHOUT_ROOM)
                return

    def _make_room(self) -> bool:
        """Ends one that is silent or slow, the oldest of them; whether there was one."""
        now = time.monotonic()
        for task, state in self._beginning.items():
            if now - state.since >= (SILENT_SECONDS if state.silent else SLOW_SECONDS):
                self._beginning.pop(task)
                task.cancel()
                return True
        return False

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._accepting = loop.call_later(seconds, self._accept_when_ready)

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._beginning.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            log.error("gateway.tls_failed", exc_info=error)

    async def _begin(self, connection: socket.socket, peer: tuple[str, int], state: Beginning) -> None:
        handed_over = False
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = await self._context(connection, state)
            if context is not None:
                handed_over = True
                await self._shake_hands(connection, context, peer)
        except (OSError, TimeoutError):
            pass  # the client is gone, too slow, or does not trust the certificate; nobody is left to be told
        finally:
            if not handed_over:
                connection.close()

    async def _context(self, connection: socket.socket, state: Beginning) -> ssl.SSLContext | None:
        """None: the client has been told why not."""
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await _peek_hello(connection)
        except NotTls:
            if connection.recv(MAX_HELLO)[:1].isalpha():
                _last_words(connection, PLAIN_HTTP_ANSWER)
            return None
        state.silent = False
        if self._waiting >= MOST_WAITING:
            _refuse(connection, INTERNAL_ERROR)
            return None
        self._waiting += 1
        try:
            context = await self._contexts(hello)
        except RoostError as error:
            log.warning("gateway.no_certificate", host=hello.server_name, reason=str(error))
            _refuse(connection, INTERNAL_ERROR)
            return None
        finally:
            self._waiting -= 1
        if context is None:
            _refuse(connection, UNRECOGNIZED_NAME)
        return context

    async def _shake_hands(self, connection: socket.socket, context: ssl.SSLContext, peer: tuple[str, int]) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Negotiated(self._protocol_of, peer),
            connection,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )


class Negotiated(asyncio.Protocol):
    """Gives the connection to the protocol that client and server agreed on, before any data is read."""

    def __init__(self, protocol_of: ProtocolOf, peer: tuple[str, int]) -> None:
        self._protocol_of = protocol_of
        self._peer = peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        agreed = cast(ssl.SSLObject, transport.get_extra_info("ssl_object")).selected_alpn_protocol()
        protocol = self._protocol_of(agreed, self._peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


async def _peek_hello(connection: socket.socket) -> ClientHello:
    """Leaves every byte in the socket. Raises NotTls, ConnectionError."""
    seen = 0
    while True:
        try:
            data = connection.recv(MAX_HELLO, socket.MSG_PEEK)
        except BlockingIOError:
            await _readable(connection)
            continue
        if not data:
            raise ConnectionAbortedError
        hello = read_hello(data)
        if hello is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return hello
        if len(data) == seen:  # the client has ended its side, or the kernel has no low-water mark
            await asyncio.sleep(PAUSE_WITHOUT_BYTES)
        seen = len(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)  # what is there must not wake us
        await _readable(connection)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _refuse(connection: socket.socket, alert: int) -> None:
    connection.recv(MAX_HELLO)  # unread bytes would turn the close into a reset, which overtakes the alert
    _last_words(connection, bytes((21, 3, 3, 0, 2, 2, alert)))


def _last_words(connection: socket.socket, words: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.send(words)
        connection.shutdown(socket.SHUT_WR)
