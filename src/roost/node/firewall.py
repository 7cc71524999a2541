"""What packets of guests may do: one nftables table per instance, and the conntrack entries of its guests.

The ruleset is text made by a pure function from a Policy and loaded with `nft -f -`, which replaces the table as a
whole or not at all. It lists members before they are there, so that connecting one needs an `nft` call (`admission`)
only where the node never had as many. Guests are hostile: a packet that no rule here lets through is refused, at once
where the guest may hear of it. Nothing new leaves the host for a guest either: who may reach what listens there is for
the gateways to say, and the node's own sockets are made inside the guest's network. A base chain of another table that
drops forwarded packets (Docker sets such a policy) drops those of guests as well.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Literal

from roost.errors import SetupMissing

Family = Literal["ipv4", "ipv6"]

INSTANCES = 16
MEMBERS = 1024
CONNECTIONS = 1024  # conntrack entries per guest; a table of the kernel's default 262,144 outlasts 200 hostile ones
NFT_TIMEOUT = 120.0  # seconds; tens of milliseconds are usual, an emulated machine takes a hundred times as long

INTERNAL4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared by carriers; also where all guests of all instances live
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local, and the metadata service of every cloud
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",  # multicast and reserved
)
INTERNAL6 = (
    "::/3",  # unspecified, loopback, mapped IPv4, 64:ff9b::/96 and 64:ff9b:1::/48
    "2001::/32",  # Teredo: embeds an IPv4 address
    "2002::/16",  # 6to4: embeds an IPv4 address
    "4000::/2",
    "8000::/1",  # unique local (fd00:ec2::254 too), link-local, site-local, multicast
)
ULA = IPv6Network("fc00::/7")

MARK = 0x52000000  # "R" in the top byte of the conntrack mark; instance and member below

Marks = tuple[int, int]  # a value and the mask under which it is compared


@dataclass(frozen=True)
class Guest:
    """One member's host end and the only addresses it may send from; `link_local` serves neighbour discovery."""

    interface: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    link_local: IPv6Address
    mark: int


@dataclass(frozen=True)
class Policy:
    """Everything the ruleset depends on. `gated`: families in which nobody but guests may be forwarded."""

    instance: int
    guests: Sequence[Guest]
    prefix6: IPv6Network
    resolvers: Sequence[str]
    gated: Sequence[Family]


def mark(instance: int, member: int) -> int:
    """The conntrack mark of every connection that this member begins."""
    return MARK | instance * MEMBERS + member


def table(instance: int) -> str:
    return f"inet roost{instance}"


def ruleset(policy: Policy) -> str:
    """The whole input of `nft -f -`: drops the instance's table, if there is one, and makes it anew."""
    ours = f'"r{policy.instance}v*"'
    return f"""\
{removal(policy.instance)}\
table {table(policy.instance)} {{
{_sets(policy)}\
	chain source {{
		type filter hook prerouting priority raw; policy accept;
		iifname != {ours} accept
		iifname . ip saddr @own4 accept
		iifname . ip6 saddr @own6 accept
		drop
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname != {ours} accept
		ct state established accept
		ct state related goto errors
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		meta pkttype {{ broadcast, multicast }} drop
		ip daddr @resolvers4 meta l4proto {{ tcp, udp }} th dport 53 goto admit
		ip6 daddr @resolvers6 meta l4proto {{ tcp, udp }} th dport 53 goto admit
		goto refuse
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname {ours} goto egress
		oifname {ours} goto ingress
{_gate(policy.gated)}\
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
		oifname != {ours} accept
		ct state established,related accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		meta l4proto tcp reject with tcp reset
		drop
	}}
	chain egress {{
		oifname @everyone goto refuse
		ip daddr @resolvers4 meta l4proto {{ tcp, udp }} th dport 53 goto admit
		ip6 daddr @resolvers6 meta l4proto {{ tcp, udp }} th dport 53 goto admit
		ip daddr @internal4 goto refuse
		ip6 daddr @internal6 goto refuse
		goto admit
	}}
	chain ingress {{
		iifname @everyone goto refuse
		ct state established accept
		ct state related goto errors
		drop
	}}
	chain admit {{
		ct state established,related accept
		ct state != new drop
		add @connections {{ iifname ct count over {CONNECTIONS} }} goto refuse
		ct mark set iifname map @marks
		accept
	}}
	chain errors {{
		icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept
		icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept
		drop
	}}
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}}
	chain nat {{
		type nat hook postrouting priority srcnat; policy accept;
		meta nfproto ipv4 iifname {ours} masquerade
{_nat66(policy)}\
	}}
}}
"""


def removal(instance: int) -> str:
    """Input of `nft -f -` after which the instance has no table, whether it had one or not."""
    return f"table {table(instance)}\ndelete table {table(instance)}\n"


def admission(instance: int, guests: Sequence[Guest]) -> str:
    """Input of `nft -f -` that makes more members known to the instance's table, or makes them known again."""
    elements = {"own4": _own4(guests), "own6": _own6(guests), "marks": _marks(guests)}
    lines = (f"add element {table(instance)} {name} {{ {', '.join(of)} }}\n" for name, of in elements.items())
    return "".join(lines)


def _own4(guests: Sequence[Guest]) -> list[str]:
    return [f'"{g.interface}" . {g.ipv4}' for g in guests]


def _own6(guests: Sequence[Guest]) -> list[str]:
    return [f'"{g.interface}" . {address}' for g in guests for address in (g.ipv6, g.link_local)]


def _marks(guests: Sequence[Guest]) -> list[str]:
    return [f'"{g.interface}" : {g.mark:#x}' for g in guests]


def _sets(policy: Policy) -> str:
    guests = policy.guests
    resolvers = [ip_address(text) for text in policy.resolvers]
    return "".join(
        (
            _set("everyone", "type ifname; flags interval", (f'"r{n}v*"' for n in range(INSTANCES))),
            _set("own4", "type ifname . ipv4_addr", _own4(guests)),
            _set("own6", "type ifname . ipv6_addr", _own6(guests)),
            _set("resolvers4", "type ipv4_addr", (str(a) for a in resolvers if a.version == 4)),
            _set("resolvers6", "type ipv6_addr", (str(a) for a in resolvers if a.version == 6)),
            _set("internal4", "type ipv4_addr; flags interval", INTERNAL4),
            # a routed prefix is global, but what lives in it are other guests
            _set("internal6", "type ipv6_addr; flags interval; auto-merge", (*INTERNAL6, str(policy.prefix6))),
            _set("connections", f"type ifname; size {MEMBERS}; flags dynamic", ()),
            _map("marks", "type ifname : mark", _marks(guests)),
        )
    )


def _set(name: str, kind: str, elements: Iterable[str]) -> str:
    listed = ", ".join(elements)
    return f"\tset {name} {{ {kind}; {f'elements = {{ {listed} }}; ' if listed else ''}}}\n"


def _map(name: str, kind: str, elements: Iterable[str]) -> str:
    return _set(name, kind, elements).replace("\tset", "\tmap", 1)


def _gate(gated: Sequence[Family]) -> str:
    if not gated:
        return ""
    drops = "".join(f"\t\tmeta nfproto {family} drop\n" for family in gated)
    return f"\t\tiifname @everyone accept\n\t\toifname @everyone accept\n{drops}"


def _nat66(policy: Policy) -> str:
    if not policy.prefix6.subnet_of(ULA):
        return ""
    return f'\t\tmeta nfproto ipv6 iifname "r{policy.instance}v*" masquerade\n'


async def load(text: str) -> None:
    """Run `nft -f -`: all of the text takes effect, or SetupMissing says what nft said."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            "-f",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise SetupMissing("the program nft is missing; install the package nftables") from None
    try:
        async with asyncio.timeout(NFT_TIMEOUT):
            _, errors = await process.communicate(text.encode())
    except TimeoutError:
        raise SetupMissing(f"nft has not loaded Roost's rules within {NFT_TIMEOUT:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = errors.decode(errors="replace").strip().partition("\n")[0]
        raise SetupMissing(f"nftables refuses Roost's rules ({said}); use nftables 1.0.6 and Linux 5.10 or later")


def mark_of(instance: int, member: int) -> Marks:
    return mark(instance, member), 0xFFFFFFFF


def marks_but(instance: int, keep: Collection[int]) -> list[Marks]:
    """As few as stand for all members of the instance but those of `keep`: one where nobody is kept."""

    def without(first: int, size: int) -> list[Marks]:
        if not any(first <= member < first + size for member in keep):
            return [(mark(instance, first), 0x100000000 - size)]
        half = size // 2
        return [*without(first, half), *without(first + half, half)] if half else []

    return without(0, MEMBERS)


def forget_connections(marks: Iterable[Marks]) -> None:
    """Delete the conntrack entries with these marks; the kernel looks at every connection once for each of them.

    A member's addresses are used again: what still arrives for the old guest's connections must not reach the next
    guest, nor count against its limit. Raises OSError.
    """
    requests = b"".join(_flush_request(value, mask) for value, mask in marks)
    if not requests:
        return
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as channel:
        channel.sendto(requests, (0, 0))  # the kernel has done it when this returns; it speaks only of errors
        channel.setblocking(False)
        try:
            answer = channel.recv(65536)
        except BlockingIOError:
            return
        code = -struct.unpack_from("=i", answer, 16)[0]
        raise OSError(code, f"conntrack entries could not be deleted: {os.strerror(code)}")


def check_conntrack() -> None:
    """Raise SetupMissing if this kernel could not forget connections."""
    try:
        forget_connections([(MARK | 0xFFFFFF, 0xFFFFFFFF)])  # nobody's
    except OSError as error:
        cure = "load the kernel modules nf_conntrack and nf_conntrack_netlink"
        raise SetupMissing(f"connections cannot be tracked ({error.strerror}); {cure}") from None


NETLINK_NETFILTER = 12  # linux/netlink.h
CT_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
NLM_F_REQUEST = 1
CTA_MARK, CTA_MARK_MASK = 8, 21  # linux/netfilter/nfnetlink_conntrack.h


def _flush_request(value: int, mask: int) -> bytes:
    """One netlink message: header, nfgenmsg for any family, two attributes with big-endian numbers."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    body += struct.pack("=HH", 8, CTA_MARK) + struct.pack(">I", value)
    body += struct.pack("=HH", 8, CTA_MARK_MASK) + struct.pack(">I", mask)
    return struct.pack("=IHHII", 16 + len(body), CT_DELETE, NLM_F_REQUEST, 0, 0) + body
