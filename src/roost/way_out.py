"""Where the kernel of this machine would send packets for an address: what no table of public networks knows.

One question by rtnetlink(7), which needs no privilege.
"""

import re
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

RTM_GETROUTE = 26
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
RTN_UNICAST = 1
RTA_DST, RTA_OIF = 1, 4
MOST = 8192  # bytes of an answer

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, lengths of both ends, …, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_GUEST = re.compile(r"r\d+v\d+\Z")  # as `node/network.py:host_end` names a sandbox's link


@dataclass(frozen=True)
class Way:
    """`here`: the address is one of this machine's own, or of all machines; `guest`: it is a sandbox's."""

    here: bool
    guest: bool


NOWHERE = Way(here=False, guest=False)


def way_to(address: IPv4Address | IPv6Address) -> Way:
    """NOWHERE also for what has no route."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    asked = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    asked += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), RTA_DST) + packed
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as kernel:
            kernel.sendto(_HEADER.pack(_HEADER.size + len(asked), RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + asked, (0, 0))
            return _read(kernel.recv(MOST))
    except OSError:
        return NOWHERE


def _read(answer: bytes) -> Way:
    if _HEADER.unpack_from(answer)[1] == NLMSG_ERROR:
        return NOWHERE
    kind = _ROUTE.unpack_from(answer, _HEADER.size)[7]
    return Way(here=kind != RTN_UNICAST, guest=bool(_GUEST.match(_interface(answer))))


def _interface(answer: bytes) -> str:
    at = _HEADER.size + _ROUTE.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == RTA_OIF:
            return socket.if_indextoname(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max(_ATTRIBUTE.size, -(-length // 4) * 4)
    return ""
