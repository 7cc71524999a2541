"""Whether a connection on a sandbox's loopback is one for its listener, too.

A listener whose queue is full drops the last packet of a handshake: the caller's socket is connected, the listener has
nothing (`tcp(7)`, `tcp_abort_on_overflow`). What is sent then comes back to life only by the kernel's retries, which
wait twice as long each time. The kernel tells what it has of a connection by `sock_diag(7)`.
"""

import socket
import struct
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
SYN_RECV, LISTEN, NEW_SYN_RECV = 3, 10, 12  # enum of net/tcp_states.h
ALL_STATES = 0xFFFFFFFF
NO_COOKIE = 0xFFFFFFFF
MOST = 8192  # bytes of an answer

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ASKED = struct.Struct("=BBBBI2s2s16s16sIII")  # inet_diag_req_v2
_QUEUE_AT, _QUEUE = 56, struct.Struct("=II")  # of inet_diag_msg, behind family, state, ids and expiry


def asking() -> socket.socket | None:
    """Answers for the network namespace in which it is made; None where the kernel has none. The caller closes it."""
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG)
    except OSError:
        return None


def is_half_open(asked: socket.socket, connected: socket.socket) -> bool:
    """`connected` to an address of `asked`'s own namespace. Where the kernel cannot tell, it is taken for whole.

    A listener may want to hear of a connection only when its first data have come (TCP_DEFER_ACCEPT, as Apache does):
    its queue is not what keeps a connection half open, so only a queue that is more than half full counts.
    """
    (here, our_port, *_), (there, its_port, *_) = connected.getsockname(), connected.getpeername()
    try:
        found = _ask(asked, connected.family, (there, its_port), (here, our_port))
        if found is not None and found.state in (SYN_RECV, NEW_SYN_RECV):
            found = _ask(asked, connected.family, (there, its_port), (here, 0))
    except OSError:
        return False
    return found is not None and found.state == LISTEN and 2 * found.waiting > found.most


class _Found(NamedTuple):
    state: int
    waiting: int  # of a listener: in its queue
    most: int  # of a listener: that its queue takes


def _ask(asked: socket.socket, family: int, there: tuple[str, int], here: tuple[str, int]) -> _Found | None:
    """The listener's end; without an exact match, the listener itself. None: neither is there. Raises OSError."""
    ports = [struct.pack("!H", port) for _, port in (there, here)]
    addresses = [socket.inet_pton(family, address).ljust(16, b"\0") for address, _ in (there, here)]
    end = (0, NO_COOKIE, NO_COOKIE)
    question = _ASKED.pack(family, socket.IPPROTO_TCP, 0, 0, ALL_STATES, *ports, *addresses, *end)
    asked.send(_HEADER.pack(_HEADER.size + len(question), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0) + question)
    answer = asked.recv(MOST)
    if _HEADER.unpack_from(answer)[1] == NLMSG_ERROR:
        return None
    return _Found(answer[_HEADER.size + 1], *_QUEUE.unpack_from(answer, _HEADER.size + _QUEUE_AT))
