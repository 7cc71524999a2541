"""Where Roost itself connects for its users: to public addresses of others, and to what the operator has allowed.

What is checked is the address of the very socket that is about to connect, so that no name, redirect or second look-up
leads elsewhere.
"""

import errno
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeAlias

import yarl

from roost.errors import Invalid
from roost.way_out import way_to

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2048  # characters
HOW = "give one like https://example.com/file"
PUBLIC6 = ipaddress.IPv6Network("2000::/3")  # what IANA has given out to be global unicast
RELAY4 = ipaddress.IPv4Network("192.88.99.0/24")  # 6to4 relays, RFC 7526
ISATAP = (0x00005EFE, 0x02005EFE)  # bits 64 to 95; RFC 5214: an IPv4 address in the last 32
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits


class Refusal(OSError):
    """An address that users may not have Roost connect to; nothing was sent."""


@dataclass(frozen=True)
class Allowed:
    """What may be reached though it is not public."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def name(self, host: str) -> bool:
        return host.lower().rstrip(".") in self.hosts

    def objection(self, text: str) -> str:
        """What is said of an address; empty: a socket may connect there. `text` as the system writes it.

        Raises ValueError for what is no address.
        """
        address = ipaddress.ip_address(text.partition("%")[0])
        way = way_to(address)
        if way.guest:
            return "is a sandbox's address; use the sandbox's URL"
        if any(address in network for network in self.networks):
            return ""
        if not all(_is_public(one) for one in (address, *_within(address))):
            return "is not a public address; the operator can allow it with --allow-private"
        if way.here:
            return "is an address of this machine; the operator can allow it with --allow-private"
        return ""

    def socket(self, target: tuple[Any, ...]) -> socket.socket:
        """For one of the addresses that a name has (as getaddrinfo tells it). Raises Refusal."""
        family, kind, protocol, _, (host, *_) = target
        if objection := self.objection(str(host)):
            raise Refusal(errno.EACCES, f"{host} {objection}")
        return socket.socket(family, kind, protocol)


def _is_public(address: Address) -> bool:
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return address not in RELAY4
    return address in PUBLIC6 or address in NAT64


def _within(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64 or (int(address) >> 32) & 0xFFFFFFFF in ISATAP:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def allowed(names: Iterable[str]) -> Allowed:
    """Host names, addresses and networks (CIDR). Raises Invalid."""
    hosts, networks = set[str](), list[Network]()
    for name in names:
        try:
            networks.append(ipaddress.ip_network(name, strict=False))
        except ValueError:
            if "/" in name or ":" in name or not name.strip():
                raise Invalid(
                    f"--allow-private: {name!r} is no host name, address or network like 10.0.0.0/8"
                ) from None
            hosts.add(name.lower().rstrip("."))
    return Allowed(frozenset(hosts), tuple(networks))


def check_url(field: str, text: str, may: Allowed) -> yarl.URL:
    """Raises Invalid; where a name leads to is only known when it is connected to."""
    if len(text) > MAX_URL:
        raise Invalid(f"{field}: {len(text)} characters; a URL has at most {MAX_URL}")
    try:
        url = yarl.URL(text)
    except ValueError as error:
        raise Invalid(f"{field}: {text[:80]!r} is no URL ({error}); {HOW}") from None
    if url.scheme not in ("http", "https") or not url.host or not url.port:
        raise Invalid(f"{field}: {text[:80]!r} is no http or https URL with a host; {HOW}")
    if url.user is not None or url.password is not None:
        raise Invalid(f"{field}: a URL with a user or password would be shown where it does not belong; leave them out")
    _refuse_literal(field, url.host, may)
    return url.with_fragment(None)


def _refuse_literal(field: str, host: str, may: Allowed) -> None:
    try:
        objection = may.objection(host)
    except ValueError:
        return  # a name
    if objection:
        raise Invalid(f"{field}: {host} {objection}")
