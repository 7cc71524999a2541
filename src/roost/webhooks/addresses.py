"""Where webhooks may be sent: to public addresses, and to what the operator has allowed by name or network.

What is checked is the address of the very socket that is about to connect, so that no name, redirect or second look-up
leads elsewhere.
"""

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeAlias

import yarl

from roost.errors import Invalid

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2048  # characters
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last 32 bits
HOW = "give one like https://example.com/roost"


class Refusal(OSError):
    """An address that webhooks may not reach; nothing was sent."""


@dataclass(frozen=True)
class Allowed:
    """What may be reached though it is not public."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def name(self, host: str) -> bool:
        return host.lower().rstrip(".") in self.hosts

    def address(self, text: str) -> bool:
        """Whether a socket may connect there; `text` is as the system writes it, with or without a scope."""
        address = ipaddress.ip_address(text.partition("%")[0])
        if any(address in network for network in self.networks):
            return True
        return all(one.is_global and not one.is_multicast for one in (address, *_within(address)))

    def socket(self, target: tuple[Any, ...]) -> socket.socket:
        """For one of the addresses that a name has (as getaddrinfo tells it). Raises Refusal."""
        family, kind, protocol, _, (host, *_) = target
        if not self.address(str(host)):
            raise Refusal(f"{host} is not a public address; the operator can allow it with --webhook-allow")
        return socket.socket(family, kind, protocol)


def _within(address: Address) -> list[Address]:
    """IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
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
                    f"--webhook-allow: {name!r} is no host name, address or network like 10.0.0.0/8"
                ) from None
            hosts.add(name.lower().rstrip("."))
    return Allowed(frozenset(hosts), tuple(networks))


def check_url(text: str, may: Allowed) -> str:
    """The URL as it will be used. Raises Invalid; where a name leads to is only known when it is sent."""
    if len(text) > MAX_URL:
        raise Invalid(f"url: {len(text)} characters; at most {MAX_URL}")
    try:
        url = yarl.URL(text)
    except ValueError as error:
        raise Invalid(f"url: {text[:80]!r} is no URL ({error}); {HOW}") from None
    if url.scheme not in ("http", "https") or not url.host or not url.port:
        raise Invalid(f"url: {text[:80]!r} is no http or https URL with a host; {HOW}")
    if url.user is not None or url.password is not None:
        raise Invalid("url: may not hold a user or password; check the signature instead, which nobody else can make")
    _refuse_literal(url.host, may)
    return str(url.with_fragment(None))


def _refuse_literal(host: str, may: Allowed) -> None:
    try:
        public = may.address(host)
    except ValueError:
        return  # a name
    if not public:
        raise Invalid(f"url: {host} is not a public address; the operator can allow it with --webhook-allow")
