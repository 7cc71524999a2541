"""Listening sockets: those that `roost up` made and keeps while the control plane is started again, or new ones.

A socket that `up` made is handed down as a descriptor (`roost serve --inherited NAME=N`). While no control plane
accepts, the kernel keeps who comes, so that they see a delay and no refusal; ports below 1024 need no privilege below
`up`.
"""

import contextlib
import resource
import socket
import sys

from roost.errors import Conflict, Invalid

BACKLOG = 1024  # connections that wait to be accepted: a burst, or all who come during a restart


def address_of(text: str, option: str) -> tuple[str, int]:
    """`127.0.0.1:8484`, `[::1]:8484`, `localhost:0`. Raises Invalid."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise Invalid(f"{option} {text!r} is not HOST:PORT, for example 127.0.0.1:8484")
    return host, int(port)


def bound(host: str, port: int, option: str) -> socket.socket:
    """Listens, and does not block. Raises Conflict where that cannot be."""
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        why = error.strerror
        if isinstance(error, PermissionError):
            why = f"{why}: ports below {_first_unprivileged()} are root's; `roost up` opens them"
        cure = f"stop what uses it, or choose another address with {option} HOST:PORT"
        raise Conflict(f"cannot listen on {host}:{port}: {why}; {cure}") from error
    listener.setblocking(False)
    return listener


def _first_unprivileged() -> int:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024


def listener(option: str, where: str, inherited: dict[str, int]) -> socket.socket:
    """The one that was handed down for this option, else a new one. Raises Conflict, Invalid."""
    name = option.removeprefix("--")
    if name not in inherited:
        return bound(*address_of(where, option), option)
    try:
        handed = socket.socket(fileno=inherited[name])
        if not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as error:
        raise Invalid(f"--inherited {name}={inherited[name]} is no listening socket: {error}") from error
    handed.setblocking(False)
    return handed


def open_files() -> int:
    """How many this process may have open, after it has asked for as many as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
