"""The network of each pool member: a routed veth pair whose guest end is `eth0` in the member's namespace.

The pool connects a member when it makes one and disconnects it when it destroys one; guest init configures the inside
from the Link. There is no bridge: a guest reaches nothing but the host end, and from there what `firewall` allows.
Addresses are a function of instance and member: an IPv4 /31 of the instance's /14 in 100.64.0.0/10, one IPv6 address of
the installation's prefix. Netlink calls block, deleting for tens of milliseconds, so one thread makes them all.
"""

import asyncio
import errno
import os
import re
import secrets
import socket
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, TypeVar, cast

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from roost.errors import Invalid, SetupMissing, about
from roost.node import firewall, networkd
from roost.node.firewall import INSTANCES, MEMBERS, Guest, Policy
from roost.node.forwarding import Forwarding
from roost.node.outside import require_ipv6

T = TypeVar("T")

SHARED4 = int(IPv4Address("100.64.0.0"))
GATEWAY6 = "fe80::1"
HOST_MAC = "02:72:6f:6f:73:74"  # the same on every pair: nobody else is on the wire
LEAVING = 0x726F0000  # interface group of host ends about to be deleted, plus the instance
BLOCK = 64  # members that the rules get to know at once
IFF_UP = 1
IFA_F_NODAD = 2
MTU_RANGE = (1280, 65535)  # below, Linux switches IPv6 off; above, veth refuses
HOST_END = {
    "ipv4": {
        "forwarding": "1",
        "rp_filter": "1",  # else forged ARP requests fill the host's neighbour table
        "arp_ignore": "1",  # else the guest finds out the host's other addresses
        "accept_redirects": "0",
        "accept_source_route": "0",
    },
    "ipv6": {"disable_ipv6": "0", "accept_ra": "0", "accept_redirects": "0", "addr_gen_mode": "1"},
}


@dataclass(frozen=True)
class Link:
    """What guest init must configure inside: `ipv4/prefix4`, `ipv6/prefix6`, default routes by the gateways.

    gateway6 is the host end's link-local address, to be used with the interface.
    """

    interface: str
    mtu: int
    ipv4: str
    prefix4: int
    gateway4: str
    ipv6: str
    prefix6: int
    gateway6: str


def host_end(instance: int, member: int) -> str:
    """The name of the member's interface on the host."""
    return f"r{instance}v{member}"


def host_ipv4(instance: int, member: int) -> IPv4Address:
    """The host's half of the member's /31; the guest's is the next address."""
    return IPv4Address(SHARED4 + (instance << 18) + 2 * member)


def guest_ipv6(instance: int, member: int, prefix6: IPv6Network) -> IPv6Address:
    """One address each in a prefix of up to /112, from 1 on: the first is every router's."""
    return prefix6[instance * MEMBERS + member + 1]


def guest_mac(instance: int, member: int) -> str:
    return f"02:72:6f:{instance:02x}:{member >> 8:02x}:{member & 255:02x}"


def guest_link_local(instance: int, member: int) -> IPv6Address:
    """What the guest's kernel makes of guest_mac (RFC 4291, appendix A)."""
    return IPv6Address(f"fe80::72:6fff:fe{instance:02x}:{member:x}")


class Network:
    """One per node. `open` before all else; `close` leaves nothing behind.

    After a crash: `open` replaces the table, `sweep` removes the links whose member is lost.
    """

    def __init__(self, instance: int, prefix6: IPv6Network, resolvers: Sequence[str]) -> None:
        if not 0 <= instance < INSTANCES:
            raise ValueError(f"instance {instance} is not in 0..{INSTANCES - 1}")
        self.instance = instance
        self.prefix6 = prefix6
        self.resolvers = tuple(str(ip_address(text)) for text in resolvers)
        self.forwarding = Forwarding()
        self._mtu = default_mtu()
        self._admitted = 0  # members, from 0 on, that the rules know; they stay known, for their addresses stay theirs
        self._admitting = asyncio.Lock()
        self._leaving: set[int] = set()
        self._rtnl = Rtnl(instance)

    def link(self, member: int) -> Link:
        """The member's configuration, connected or not."""
        gateway4 = host_ipv4(self.instance, member)
        ipv6 = guest_ipv6(self.instance, member, self.prefix6)
        return Link("eth0", self._mtu, str(gateway4 + 1), 31, str(gateway4), str(ipv6), 128, GATEWAY6)

    def policy(self, gated: Sequence[firewall.Family], members: int) -> Policy:
        """The rules know the first `members`."""
        guests = tuple(map(self._guest, range(members)))
        return Policy(self.instance, guests, self.prefix6, self.resolvers, gated)

    def _guest(self, member: int) -> Guest:
        return Guest(
            host_end(self.instance, member),
            host_ipv4(self.instance, member) + 1,
            guest_ipv6(self.instance, member, self.prefix6),
            guest_link_local(self.instance, member),
            firewall.mark(self.instance, member),
        )

    async def open(self) -> None:
        """Load the rules, then let packets through. Raises SetupMissing."""
        require_ipv6()
        await asyncio.to_thread(firewall.check_conntrack)
        await asyncio.to_thread(networkd.leave_our_links_alone)
        self._mtu = default_mtu()
        gated = await asyncio.to_thread(self.forwarding.claim, self.instance)
        left = await self._rtnl.run(self._rtnl.members)  # by an earlier node: they go on meanwhile
        admitted = blocks_of(1 + max(left, default=0))
        await firewall.load(firewall.ruleset(self.policy(gated, admitted)))
        self._admitted = admitted
        await asyncio.to_thread(self.forwarding.turn_on)
        await self._rtnl.run(self._rtnl.open)

    async def connect(self, member: int, pid: int) -> Link:
        """Give the network namespace of `pid` its eth0, down and without address; replaces what the member had.

        Raises ProcessLookupError if the process has ended. After a failure nothing is left; after a cancellation
        `disconnect` has to be called.
        """
        if not 0 <= member < MEMBERS:
            raise ValueError(f"member {member} is not in 0..{MEMBERS - 1}")
        link = self.link(member)
        if member >= self._admitted:
            await self._admit(member)
        await self._rtnl.run(partial(self._rtnl.connect, member, pid, link))
        return link

    async def _admit(self, member: int) -> None:
        """Let the rules know more members, twice as many each time: the pool gives the lowest numbers out first."""
        async with self._admitting:
            if member < self._admitted:
                return
            admitted = blocks_of(max(1 + member, 2 * self._admitted))
            guests = [self._guest(number) for number in range(self._admitted, admitted)]
            try:
                await firewall.load(firewall.admission(self.instance, guests))
            except SetupMissing as error:  # the rules were loaded before, so this is of the moment
                raise OSError(errno.EIO, f"the rules for member {member} could not be loaded: {error}") from error
            self._admitted = admitted

    async def disconnect(self, member: int) -> None:
        """Delete the pair and forget its connections; calls that wait for each other are done as one."""
        self._leaving.add(member)
        await self._rtnl.run(partial(self._remove_leaving, member))

    def _remove_leaving(self, member: int) -> None:
        """In the netlink thread: everything asked for so far, since a deletion costs the same for one or fifty."""
        members = set(self._leaving)
        self._leaving -= members
        if index_of(host_end(self.instance, member)) is not None:
            members.add(member)  # an earlier call took it, before a connect that was still waiting
        if members:
            self._rtnl.remove(members)

    async def sweep(self, keep: Collection[int]) -> None:
        """Remove this instance's links except those of `keep`, and the connections of all that may have been."""
        await self._rtnl.run(lambda: self._rtnl.sweep(keep))

    async def close(self) -> None:
        """Links, connections and table gone; forwarding as before if no other instance needs it."""
        await self._rtnl.run(lambda: self._rtnl.unlink(self._rtnl.members()))
        await asyncio.to_thread(self.forwarding.release, self.instance)
        await firewall.load(firewall.removal(self.instance))
        self._admitted = 0
        await asyncio.to_thread(firewall.forget_connections, firewall.marks_but(self.instance, ()))
        await self._rtnl.close()


class Rtnl:
    """The netlink thread and what is done in it. Methods but `run` and `close` block and run only there.

    pyroute2 drives its socket by an event loop, and uvloop refuses netlink sockets: it gets a loop of its own.
    """

    def __init__(self, instance: int) -> None:
        self.instance = instance
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rtnl")
        self._loop: asyncio.SelectorEventLoop | None = None
        self._route: Any = None  # pyroute2 types its calls loosely

    async def run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def close(self) -> None:
        await self.run(self._close)
        self._thread.shutdown()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rtnl")

    def open(self) -> Any:
        """The netlink socket, opened at the first use."""
        if self._route is None:
            self._loop = asyncio.SelectorEventLoop()
            self._route = IPRoute(use_event_loop=self._loop)
        return self._route

    def _close(self) -> None:
        if self._loop is not None:
            self._route.close()
            self._loop.run_until_complete(asyncio.sleep(0))  # lets the transport close its socket
            self._loop.close()
            self._loop = self._route = None

    def connect(self, member: int, pid: int, link: Link) -> None:
        name = host_end(self.instance, member)
        if index_of(name) is not None:
            self.remove([member])
        try:
            self._create(name, guest_mac(self.instance, member), pid, link)
            self._configure(name, guest_mac(self.instance, member), link)
        except NetlinkError as error:
            self.remove([member])
            code = code_of(error)
            if code == errno.ESRCH:
                raise ProcessLookupError(code, f"process {pid} of member {member} has ended") from None
            raise OSError(code, f"{name}: {os.strerror(code)}") from error
        except BaseException:
            self.remove([member])
            raise

    def _create(self, name: str, mac: str, pid: int, link: Link) -> None:
        # one queue: the kernel's default is one per processor; given addresses: udev leaves those alone
        end = {"mtu": link.mtu, "num_tx_queues": 1, "num_rx_queues": 1}
        peer = {"ifname": link.interface, "net_ns_pid": pid, "address": mac, **end}
        self.open().link(
            "add", ifname=name, kind="veth", address=HOST_MAC, flags=IFF_UP, change=IFF_UP, peer=peer, **end
        )

    def _configure(self, name: str, mac: str, link: Link) -> None:
        for family, settings in HOST_END.items():  # in time: there is no carrier before the guest's end is up
            for setting, value in settings.items():
                file = Path(f"/proc/sys/net/{family}/conf/{name}/{setting}")
                with about(file):
                    file.write_text(value)
        route, index = self.open(), socket.if_nametoindex(name)
        route.addr("add", index=index, address=link.gateway4, prefixlen=link.prefix4)
        route.addr("add", index=index, address=link.gateway6, prefixlen=64, flags=IFA_F_NODAD)
        route.route("add", dst=f"{link.ipv6}/{link.prefix6}", oif=index)
        for address in (link.ipv4, link.ipv6):  # permanent: the guest has no say in the host's neighbour table
            route.neigh("add", dst=address, lladdr=mac, ifindex=index, state="permanent")

    def members(self) -> list[int]:
        """All members of this instance that have a host end."""
        pattern = re.compile(rf"r{self.instance}v(\d+)")
        found = (pattern.fullmatch(name) for _, name in socket.if_nameindex())
        return [int(match[1]) for match in found if match]

    def remove(self, members: Collection[int]) -> None:
        """Delete the pairs, then forget the connections."""
        self.unlink(members)
        firewall.forget_connections(firewall.mark_of(self.instance, member) for member in members)

    def sweep(self, keep: Collection[int]) -> None:
        """The same for all but `keep`, also for those whose pair went with its namespace."""
        self.unlink([member for member in self.members() if member not in keep])
        firewall.forget_connections(firewall.marks_but(self.instance, keep))

    def unlink(self, members: Collection[int]) -> None:
        """Delete the pairs at once, by way of an interface group."""
        group = LEAVING + self.instance
        if self._assign(group, members):
            with absent_is_fine():
                self.open().link("del", IFLA_GROUP=group)

    def _assign(self, group: int, members: Iterable[int]) -> bool:
        """Move the host ends into the group; whether there were any."""
        some = False
        for member in members:
            index = index_of(host_end(self.instance, member))
            if index is None:
                continue
            with absent_is_fine():
                self.open().link("set", index=index, IFLA_GROUP=group)
                some = True
        return some


@contextmanager
def absent_is_fine() -> Generator[None]:
    """Passes over the kernel's answer that the interface has gone, as it goes with its namespace."""
    try:
        yield
    except NetlinkError as error:
        if code_of(error) != errno.ENODEV:
            raise


def code_of(error: NetlinkError) -> int:
    return int(cast(Any, error).code)


def index_of(name: str) -> int | None:
    """Not by if_nametoindex(3): for a name that is not there the kernel runs modprobe, which may take a second."""
    try:
        return int(Path(f"/sys/class/net/{name}/ifindex").read_text())
    except OSError:
        return None


def blocks_of(members: int) -> int:
    """How many members the rules are to know, so that there is room for as many more as a few seconds bring."""
    return min(MEMBERS, -(-members // BLOCK) * BLOCK)


def default_mtu(proc: Path = Path("/proc/net"), sys: Path = Path("/sys/class/net")) -> int:
    """The MTU of the device of the IPv4 default route, else of the IPv6 one, else 1500."""
    for routes in (_default_devices4(proc / "route"), _default_devices6(proc / "ipv6_route")):
        for _, device in sorted(routes):
            with suppress(OSError):
                mtu = int((sys / device / "mtu").read_text())
                return min(max(mtu, MTU_RANGE[0]), MTU_RANGE[1])
    return 1500


def _default_devices4(table: Path) -> list[tuple[int, str]]:
    """Metric and device of each default route: Iface Destination Gateway Flags RefCnt Use Metric Mask ..."""
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return [(int(row[6]), row[0]) for row in rows if int(row[1], 16) == 0 and int(row[7], 16) == 0]


def _default_devices6(table: Path) -> list[tuple[int, str]]:
    """Metric and device of each: destination, its length, source, its length, next hop, metric, ..., device."""
    rows = [line.split() for line in table.read_text().splitlines()]
    return [(int(row[5], 16), row[9]) for row in rows if int(row[1], 16) == int(row[0], 16) == 0 and row[9] != "lo"]


def load_prefix6(path: Path) -> IPv6Network:
    """The installation's own prefix: a random /48 (RFC 4193), made at the first call and kept in `path`."""
    try:
        return IPv6Network(path.read_text().strip())
    except FileNotFoundError:
        pass
    except ValueError:
        raise Invalid(f"{path} does not hold an IPv6 prefix; delete it to have a new one made") from None
    prefix = IPv6Network((0xFD << 120 | secrets.randbits(40) << 80, 48))
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w") as file:
        file.write(f"{prefix}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return prefix


def parse_prefix6(text: str) -> IPv6Network:
    """A configured prefix that the network outside routes to this machine: /48 to /112. Raises Invalid."""
    try:
        prefix = IPv6Network(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is not an IPv6 prefix ({error}); write one such as 2001:db8:1::/64") from None
    if not 48 <= prefix.prefixlen <= 112:
        raise Invalid(f"the IPv6 prefix {prefix} has to be a /48 to /112")
    return prefix
