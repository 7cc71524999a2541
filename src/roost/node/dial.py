"""Sockets inside sandboxes for the control plane: `dial.sock`, the `Dial` and `Dialled` of `protocol.py`.

A socket belongs to the network namespace in which it was made, whoever holds it. So it is made inside the guest's, by
a thread that enters that namespace for nothing else, connected here without blocking, and handed over: what is sent on
it later passes neither this node nor any route of the host. Guests have no say in any of it but to refuse.
"""

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv6Address, ip_address

import msgspec
import structlog

from roost import linux
from roost.errors import Conflict, Invalid, Refused, RoostError, condition_of
from roost.node.member import Member
from roost.node.protocol import MAX_DIAL, Dial, Dialled, Fault

INSIDE = 2.0  # seconds that the sandbox itself may take to accept; only a full backlog takes any
OUTSIDE = 10.0  # seconds for what is reached through its network
UNDER_WAY = 256  # dials of one sandbox at once
BACKLOG = 128
LISTEN_ON = ("127.0.0.1", "::1", "0.0.0.0", "::")
BATCH = 32  # requests taken at a time
GOES_ON = (  # nobody listens at this address, or there is no way to it: the next may do
    errno.ECONNREFUSED,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EAFNOSUPPORT,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Dial).decode


class Dialer:
    """Makes sockets in members' network namespaces. Close it when no more are asked for."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dial")

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self._home)

    async def connect(self, member: Member, port: int, host: str | None) -> socket.socket:
        """Connected, non-blocking; the caller closes it. `host` None: the sandbox itself. Raises Refused, Invalid."""
        if not 0 < port < 65536:
            raise Invalid(f"{port} is not a TCP port: 1 to 65535")
        own = ("127.0.0.1", "::1", *member.addresses)
        hosts = own if host is None else (_address(host),)
        inside = host is None or ip_address(hosts[0]).is_loopback or hosts[0] in own
        limit = INSIDE if inside else OUTSIDE
        try:
            async with asyncio.timeout(limit):
                for address in hosts:
                    if connected := await self._reach(member, address, port):
                        return connected
        except TimeoutError:
            raise Refused(f"port {port} of {_named(hosts)} did not accept within {limit:g} s") from None
        except OSError as error:
            raise Refused(f"port {port} of {_named(hosts)} cannot be reached: {error.strerror}") from error
        raise Refused(f"nothing listens on port {port} of {_named(hosts)}")

    async def _reach(self, member: Member, address: str, port: int) -> socket.socket | None:
        """None where another address should be tried. Raises OSError."""
        made = await self._make(member, address)
        if made is None:
            return None
        try:
            code = await _connected(made, (address, port))
            if code == 0:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return made
        except BaseException:
            made.close()
            raise
        made.close()
        if code in GOES_ON:
            return None
        raise OSError(code, os.strerror(code))

    async def listen(self, member: Member, port: int, host: str | None) -> socket.socket:
        """Listening in the sandbox, non-blocking. Port 0: any free one. Raises Invalid, Conflict when it is taken."""
        if host not in LISTEN_ON:
            raise Invalid(f"{host!r} is not an address to listen on in a sandbox: {', '.join(LISTEN_ON)}")
        if not 0 <= port < 65536:
            raise Invalid(f"{port} is not a TCP port: 0 to 65535")
        made = await self._make(member, host)
        if made is None:
            raise Conflict(f"the sandbox has no address of {host}'s family")
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if made.family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((host, port))
            made.listen(BACKLOG)
        except OSError as error:
            made.close()
            raise Conflict(f"port {port} of {host} in the sandbox cannot be had: {error.strerror}") from error
        except BaseException:
            made.close()
            raise
        return made

    async def _make(self, member: Member, address: str) -> socket.socket | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        call = partial(self._make_inside, member.network(), family)
        making = asyncio.get_running_loop().run_in_executor(self._thread, call)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_close_made)
            raise

    def _make_inside(self, namespace: int, family: socket.AddressFamily) -> socket.socket | None:
        """In the thread. Wherever it was left by a failure before, it enters the right namespace first."""
        try:
            linux.setns(namespace, linux.CLONE_NEWNET)
        finally:
            os.close(namespace)
        try:
            return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return None
            raise
        finally:
            linux.setns(self._home, linux.CLONE_NEWNET)


def _close_made(making: asyncio.Future[socket.socket | None]) -> None:
    """Nobody waits for it any more."""
    if not making.cancelled() and making.exception() is None and (made := making.result()):
        made.close()


async def _connected(made: socket.socket, address: tuple[str, int]) -> int:
    """0, or the errno."""
    code = made.connect_ex(address)
    if code != errno.EINPROGRESS:
        return code
    look = select.poll()
    look.register(made, select.POLLOUT)
    if not look.poll(0):  # on the loopback it is decided by now, as a rule
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[None] = loop.create_future()
        loop.add_writer(made, lambda: decided.done() or decided.set_result(None))
        try:
            await decided
        finally:
            loop.remove_writer(made)
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _address(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise Invalid(f"{text!r} is not an IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id:
        raise Invalid(f"{text!r} names an interface; leave it out")
    return str(address)


def _named(hosts: Sequence[str]) -> str:
    return hosts[0] if len(hosts) == 1 else f"{', '.join(hosts[:-1])} and {hosts[-1]}"


class DialServer:
    """Answers on `dial.sock`. `find` gives the member of a sandbox that runs and is awake, or raises the condition."""

    def __init__(self, listening: socket.socket, find: Callable[[str], Member]) -> None:
        self._listening = listening
        self._find = find
        self._dialer = Dialer()
        self._callers: set[_Caller] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: Counter[str] = Counter()

    def open(self) -> None:
        self._listening.setblocking(False)
        self._listening.listen()
        asyncio.get_running_loop().add_reader(self._listening, self._accept)

    async def close(self) -> None:
        """What is under way is given up; sockets that were handed over stay with who has them."""
        asyncio.get_running_loop().remove_reader(self._listening)
        self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for caller in list(self._callers):
            caller.close()
        self._dialer.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it has gone again, or there is no descriptor free
            connection, _ = self._listening.accept()
            connection.setblocking(False)
            self._callers.add(_Caller(connection, self._take, self._callers.discard))

    def _take(self, caller: "_Caller", asked: Dial) -> None:
        if self._under_way[asked.sandbox] >= UNDER_WAY:
            busy = Refused(f"{UNDER_WAY} connections into sandbox {asked.sandbox} are being made already")
            caller.answer(_failed(asked, busy), None)
            return
        self._under_way[asked.sandbox] += 1
        task = asyncio.create_task(self._dial(caller, asked))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, asked.sandbox))

    def _done(self, sandbox: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._under_way[sandbox] -= 1
        if not self._under_way[sandbox]:
            del self._under_way[sandbox]

    async def _dial(self, caller: "_Caller", asked: Dial) -> None:
        try:
            member = self._find(asked.sandbox)
            make = self._dialer.listen if asked.listen else self._dialer.connect
            made = await make(member, asked.port, asked.host)
        except RoostError as condition:
            caller.answer(_failed(asked, condition), None)
        except Exception as error:
            log.exception("dial.fault", sandbox=asked.sandbox, port=asked.port)
            caller.answer(_failed(asked, condition_of(error, "the connection was not made")), None)
        else:
            caller.answer(Dialled(number=asked.number), made)


def _failed(asked: Dial, condition: RoostError) -> Dialled:
    return Dialled(number=asked.number, fault=Fault(kind=type(condition).__name__, message=str(condition)))


class _Caller:
    """One connection to `dial.sock`. Who sends what is no Dial, or leaves, loses it."""

    def __init__(
        self,
        connection: socket.socket,
        take: Callable[["_Caller", Dial], None],
        gone: Callable[["_Caller"], None],
    ) -> None:
        self._connection = connection
        self._take = take
        self._gone = gone
        self._unread: deque[tuple[bytes, socket.socket | None]] = deque()
        self._closed = self._paused = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._readable)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        for _, made in self._unread:
            if made:
                made.close()
        self._unread.clear()
        self._gone(self)

    def _readable(self) -> None:
        for _ in range(BATCH):
            if self._closed or self._paused:
                return
            try:
                packet = self._connection.recv(MAX_DIAL)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self.close()
                return
            try:
                asked = _decode(packet)
            except msgspec.DecodeError as error:  # also of one that is longer, and so was cut off
                log.warning("dial.nonsense", error=str(error))
                self.close()
                return
            self._take(self, asked)

    def answer(self, value: Dialled, made: socket.socket | None) -> None:
        """The socket is handed over, and closed here."""
        if self._closed:
            if made:
                made.close()
            return
        self._unread.append((_encode(value), made))
        if len(self._unread) == 1:
            self._send()

    def _send(self) -> None:
        """As much as the other side takes; while it takes too little, nothing more is asked of it."""
        while self._unread:
            packet, made = self._unread[0]
            try:
                socket.send_fds(self._connection, [packet], [made.fileno()] if made else [])
            except BlockingIOError:
                self._paused = True
                self._loop.remove_reader(self._connection)
                self._loop.add_writer(self._connection, self._send)
                return
            except OSError:
                self.close()
                return
            self._unread.popleft()
            if made:
                made.close()
        if self._paused:
            self._paused = False
            self._loop.remove_writer(self._connection)
            self._loop.add_reader(self._connection, self._readable)
