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
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from weakref import WeakValueDictionary

import msgspec
import structlog

from roost import linux
from roost.errors import Busy, Conflict, Invalid, Refused, RoostError, condition_of
from roost.node import half_open
from roost.node.member import Member
from roost.node.protocol import MAX_DIAL, Dial, Dialled, Fault

INSIDE = 2.0  # seconds that the sandbox itself may take to accept; only a full queue takes any
DECIDED = 0.02  # seconds within which the loopback connects; later, the listener's queue is full and dropped it
AGAIN, LATEST_AGAIN = 0.002, 0.05  # seconds between two tries of our own; the kernel's are 1, 2, 4 … apart
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

FORGOTTEN = struct.pack("ii", 1, 0)  # SO_LINGER: closed by a reset, so that the listener keeps nothing of it

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Dial).decode


class Dialer:
    """Makes sockets in members' network namespaces. Close it when no more are asked for."""

    def __init__(self) -> None:
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dial")
        self._lines: WeakValueDictionary[tuple[int, int], asyncio.Lock] = (
            WeakValueDictionary()
        )  # by member and port, while any waits

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self._home)

    async def connect(self, member: Member, port: int, host: str | None) -> socket.socket:
        """Connected, non-blocking; the caller closes it. `host` None: the sandbox itself.

        Raises Refused, Invalid; Busy when something listens in the sandbox, and takes no more just now.
        """
        if not 0 < port < 65536:
            raise Invalid(f"{port} is not a TCP port: 1 to 65535")
        own = ("127.0.0.1", "::1", *member.addresses)
        hosts = own if host is None else (_address(host),)
        inside = host is None or ip_address(hosts[0]).is_loopback or hosts[0] in own
        try:
            if inside:
                connected = await self._enter(member, hosts, port)
            else:
                async with asyncio.timeout(OUTSIDE):
                    connected = await self._reach(member, hosts[0], port)
        except TimeoutError:
            raise Refused(f"port {port} of {_named(hosts)} did not accept within {OUTSIDE:g} s") from None
        except OSError as error:
            raise Refused(f"port {port} of {_named(hosts)} cannot be reached: {error.strerror}") from error
        if connected is None:
            raise Refused(f"nothing listens on port {port} of {_named(hosts)}")
        return connected

    async def _enter(self, member: Member, hosts: Sequence[str], port: int) -> socket.socket | None:
        """One after the other, so that a queue with one place left is not filled by two. Raises OSError, Busy."""
        line = self._lines.setdefault((member.site.number, port), asyncio.Lock())
        try:
            async with asyncio.timeout(INSIDE), line:
                return await self._until_taken(member, hosts, port)
        except TimeoutError:
            raise Busy(
                f"port {port} of {_named(hosts)} did not accept within {INSIDE:g} s: its queue is full"
            ) from None

    async def _until_taken(self, member: Member, hosts: Sequence[str], port: int) -> socket.socket | None:
        pause = AGAIN
        while True:
            try:
                for address in hosts:
                    if connected := await self._reach(member, address, port, inside=True):
                        return connected
                return None
            except _QueueFull:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LATEST_AGAIN)

    async def _reach(self, member: Member, address: str, port: int, inside: bool = False) -> socket.socket | None:
        """None where another address should be tried. Raises OSError; _QueueFull, only `inside`."""
        made, asked = await self._make(member, address, inside)
        if made is None:
            return None
        try:
            code = await _connected(made, (address, port), DECIDED if inside else None)
            if asked is not None and code == 0 and half_open.is_half_open(asked, made):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, FORGOTTEN)
                raise _QueueFull
            if code == 0:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return made
        except BaseException:
            made.close()
            raise
        finally:
            if asked is not None:
                asked.close()
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
        made, _ = await self._make(member, host)
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

    async def _make(self, member: Member, address: str, asking: bool = False) -> "_Made":
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        call = partial(self._make_inside, member.network(), family, asking)
        making = asyncio.get_running_loop().run_in_executor(self._thread, call)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_close_made)
            raise

    def _make_inside(self, namespace: int, family: socket.AddressFamily, asking: bool) -> "_Made":
        """In the thread. Wherever it was left by a failure before, it enters the right namespace first."""
        try:
            linux.setns(namespace, linux.CLONE_NEWNET)
        finally:
            os.close(namespace)
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            return _Made(made, half_open.asking() if asking else None)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return _Made(None, None)
            raise
        finally:
            linux.setns(self._home, linux.CLONE_NEWNET)


class _QueueFull(Exception):
    """Something listens, and has no room for one more connection."""


class _Made(NamedTuple):
    tcp: socket.socket | None  # None: the sandbox has no addresses of that family
    asked: socket.socket | None  # for `half_open`


def _close_made(making: asyncio.Future[_Made]) -> None:
    """Nobody waits for it any more."""
    if not making.cancelled() and making.exception() is None:
        for made in making.result():
            if made is not None:
                made.close()


async def _connected(made: socket.socket, address: tuple[str, int], within: float | None) -> int:
    """0, or the errno. Raises _QueueFull when it is not decided `within` seconds."""
    code = made.connect_ex(address)
    if code != errno.EINPROGRESS:
        return code
    look = select.poll()
    look.register(made, select.POLLOUT)
    if not look.poll(0):  # on the loopback it is decided by now, as a rule
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[bool] = loop.create_future()
        late = None if within is None else loop.call_later(within, _decide, decided, False)
        loop.add_writer(made, _decide, decided, True)
        try:
            if not await decided:
                raise _QueueFull
        finally:
            loop.remove_writer(made)
            if late is not None:
                late.cancel()
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _decide(decided: asyncio.Future[bool], how: bool) -> None:
    if not decided.done():
        decided.set_result(how)


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
            busy = Busy(f"{UNDER_WAY} connections into sandbox {asked.sandbox} are being made already")
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
