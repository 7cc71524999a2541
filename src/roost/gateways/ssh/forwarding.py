"""Forwarded TCP connections: -L and -D into the sandbox and out of it, -R from it to the client.

Sockets come from the node and live in the sandbox's network, so the guest's own firewall decides what a name leads to.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import asyncssh
import structlog
from asyncssh.constants import OPEN_CONNECT_FAILED
from structlog.typing import FilteringBoundLogger

from roost.errors import Refused, RoostError
from roost.gateways.ssh.streams import Inlet, Outlet
from roost.gateways.ssh.visit import SELF, Visit

if TYPE_CHECKING:
    from roost.gateways.ssh.connection import Connection
    from roost.node.client import NodeClient

RESOLVE_WITHIN = 5.0  # seconds
ADDRESSES = 4  # of one name that are tried
CHUNK = 64 * 1024
ACCEPTING = 64  # connections of one listener that wait for the client to take them
OPEN_WITHIN = 30.0  # seconds until the client takes one

log: FilteringBoundLogger = structlog.get_logger()
Address = tuple[str, int]


async def connect(
    connection: "Connection", visit: Visit, node: "NodeClient", target: Address, closed: Callable[[], None]
) -> "Splice":
    """A channel that is joined to a socket. Raises ChannelOpenError with what was wrong."""
    try:
        return Splice(connection, visit, await _dial(visit, node, target), closed)
    except RoostError as error:
        closed()
        raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, str(error)) from error
    except BaseException:
        closed()
        raise


async def _dial(visit: Visit, node: "NodeClient", target: Address) -> socket.socket:
    host, port = target
    if not 0 < port < 65536:
        raise Refused(f"{port} is no TCP port")
    run = await visit.run()
    if host.lower() in SELF or host in (run.job.name, run.job.workspace, run.job.vm_id):
        return await visit.patiently(lambda sandbox: node.dial(sandbox, port))
    refused = Refused(f"{host}: there is no such host")
    for address in await _resolve(host):
        try:
            return await node.dial((await visit.run()).job.vm_id, port, address)
        except Refused as error:
            refused = error
    raise refused


async def _resolve(host: str) -> list[str]:
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_WITHIN):
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        raise Refused(f"{host}: it has no address that could be found") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))[:ADDRESSES]


class Splice(asyncssh.SSHTCPSession[bytes]):
    """A channel and a connected socket; each end's end of data becomes the other's."""

    def __init__(self, connection: "Connection", visit: Visit, end: socket.socket, closed: Callable[[], None]) -> None:
        self._visit = visit
        self._end = end
        self._inlet = Inlet()
        self._outlet = Outlet(connection)
        self._closed = closed
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._carrying: asyncio.Task[None] | None = None

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = self._inlet.channel = self._outlet.channel = chan
        self._carrying = asyncio.create_task(self._carry())

    def connection_lost(self, exc: Exception | None) -> None:
        self._inlet.end()
        self._outlet.resume()
        if self._carrying is not None:
            self._carrying.cancel()
        else:
            self._end.close()
        self._closed()

    def data_received(self, data: bytes, datatype: object) -> None:
        self._inlet.put(data)

    def eof_received(self) -> bool:
        self._inlet.end()
        return True

    def pause_writing(self) -> None:
        self._outlet.pause()

    def resume_writing(self) -> None:
        self._outlet.resume()

    async def _carry(self) -> None:
        assert self._channel
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._out())
                both.create_task(self._in())
        except* (OSError, RoostError):
            pass  # one end broke off; the channel's end tells it
        finally:
            self._end.close()
            self._channel.close()

    async def _out(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._channel
        while data := await loop.sock_recv(self._end, CHUNK):
            await self._outlet.write(data)
        if not self._channel.is_closing():
            self._channel.write_eof()

    async def _in(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await self._inlet.get():
            await self._visit.run()  # it may have been put to sleep meanwhile
            await loop.sock_sendall(self._end, data)
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)


async def listen(
    connection: "Connection", visit: Visit, node: "NodeClient", where: Address, closed: Callable[[], None]
) -> "GuestListener | None":
    """None where it cannot be had; SSH has no words for why."""
    host, port = where
    try:
        run = await visit.run()
        listening = await node.listen(run.job.vm_id, port, _listen_address(host))
    except RoostError as error:
        log.info("ssh.listen_refused", port=port, error=str(error))
        return None
    return GuestListener(connection, visit, listening, where, closed)


def _listen_address(host: str) -> str:
    """As OpenSSH reads it: nothing and * mean every address, a name that is no address the loopback."""
    if host in ("", "*"):
        return "0.0.0.0"  # of the sandbox, as its owner asked
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return "127.0.0.1"


class GuestListener(asyncssh.SSHListener):
    """A socket that listens in the sandbox; what comes there is offered to the client."""

    def __init__(
        self,
        connection: "Connection",
        visit: Visit,
        listening: socket.socket,
        where: Address,
        closed: Callable[[], None],
    ) -> None:
        super().__init__()
        self._connection = connection
        self._visit = visit
        self._listening = listening
        self._host = where[0]
        self._port = where[1] or int(listening.getsockname()[1])
        self._closed = closed
        self._offers: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = asyncio.create_task(self._accept())

    def get_port(self) -> int:
        return self._port

    def close(self) -> None:
        """What is open already stays open."""
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
            self._closed()

    async def wait_closed(self) -> None:
        if self._accepting is not None:
            await asyncio.gather(self._accepting, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(ACCEPTING)
        try:
            while True:
                await room.acquire()
                try:
                    arrived, peer = await loop.sock_accept(self._listening)
                except OSError:
                    await asyncio.sleep(0.2)
                    room.release()
                    continue
                arrived.setblocking(False)
                offer = asyncio.create_task(self._offer(arrived, peer))
                self._offers.add(offer)
                offer.add_done_callback(self._offers.discard)
                offer.add_done_callback(lambda _: room.release())
        finally:
            self._listening.close()

    async def _offer(self, arrived: socket.socket, peer: tuple[str, int]) -> None:
        def splice() -> Splice:
            return Splice(self._connection, self._visit, arrived, lambda: None)

        try:
            async with asyncio.timeout(OPEN_WITHIN):
                await self._connection.create_connection(splice, self._host, self._port, str(peer[0]), int(peer[1]))
        except (asyncssh.Error, OSError):
            arrived.close()
