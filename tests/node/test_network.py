import asyncio
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from roost.errors import Invalid, SetupMissing
from roost.node import firewall
from roost.node import network as network_module
from roost.node.firewall import Guest, Policy, ruleset
from roost.node.forwarding import Forwarding
from roost.node.network import (
    Link,
    Network,
    default_mtu,
    guest_link_local,
    guest_mac,
    host_end,
    index_of,
    load_prefix6,
    parse_prefix6,
)
from roost.node.outside import read_resolvers

from .network_world import Namespace, from_host

PREFIX = IPv6Network("fd12:3456:789a::/48")
RECORD = Path("/run/roost/forwarding")
INTERNET4, INTERNET6 = "198.51.100.10", "2001:db8:99::10"
RESOLVER4, RESOLVER6 = "10.213.7.53", "fd00:213:7::53"
HIDDEN4 = ("10.213.7.2", "172.20.213.2", "192.168.213.2", "169.254.169.254", "198.18.213.2", "100.127.213.2")
HIDDEN6 = ("fd00:213:7::2", "fd00:ec2::254", "64:ff9b::a0d:d502", "2002:a0d:d502::1")
SERVERS = [RESOLVER4, RESOLVER6]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces and nftables rules")


# -- addresses and files


def test_a_link_is_a_function_of_instance_and_member() -> None:
    link = Network(3, PREFIX, []).link(17)
    assert link == Link("eth0", default_mtu(), "100.76.0.35", 31, "100.76.0.34", "fd12:3456:789a::c12", 128, "fe80::1")


def test_no_two_members_share_an_address() -> None:
    links = [Network(n, PREFIX, []).link(m) for n in (0, 1, 15) for m in range(1024)]
    addresses = {address for link in links for address in (link.ipv4, link.gateway4, link.ipv6)}
    assert len(addresses) == 3 * len(links)


def test_the_largest_member_fits_in_the_longest_prefix() -> None:
    prefix = IPv6Network("2001:db8::/112")
    assert IPv6Address(Network(15, prefix, []).link(1023).ipv6) in prefix


def test_the_link_local_address_follows_from_the_mac() -> None:
    assert guest_mac(15, 1023) == "02:72:6f:0f:03:ff"
    assert guest_link_local(15, 1023) == IPv6Address("fe80::72:6fff:fe0f:3ff")


def test_the_prefix_is_made_once_and_kept(tmp_path: Path) -> None:
    first = load_prefix6(tmp_path / "prefix6")
    assert first.prefixlen == 48
    assert first.subnet_of(IPv6Network("fd00::/8"))
    assert load_prefix6(tmp_path / "prefix6") == first
    assert load_prefix6(tmp_path / "other") != first


def test_a_damaged_prefix_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "prefix6").write_text("rubbish")
    with pytest.raises(Invalid, match="prefix6 does not hold"):
        load_prefix6(tmp_path / "prefix6")


@pytest.mark.parametrize("text", ["2001:db8::/32", "2001:db8::/120", "10.0.0.0/8", "2001:db8::1/64", "x"])
def test_a_configured_prefix_is_a_48_to_112(text: str) -> None:
    assert parse_prefix6("2001:db8:1::/64") == IPv6Network("2001:db8:1::/64")
    with pytest.raises(Invalid):
        parse_prefix6(text)


def test_resolvers_come_from_resolv_conf(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(
        "# nameserver 1.1.1.1\nsearch example\nnameserver\nnameserver 10.0.0.53 # office\nnameserver fe80::1%eth0\n"
        "nameserver 127.0.0.1\nnameserver 2001:db8::53\nnameserver x\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n"
    )
    assert read_resolvers(tmp_path, tmp_path) == ["10.0.0.53", "2001:db8::53", "9.9.9.9"]


def test_a_local_stub_is_passed_over_for_the_servers_behind_it(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "systemd/resolve").mkdir(parents=True)
    (tmp_path / "systemd/resolve/resolv.conf").write_text("nameserver 192.168.1.1\n")
    assert read_resolvers(tmp_path, tmp_path) == ["192.168.1.1"]


def test_a_machine_without_a_reachable_resolver_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SetupMissing, match="add a line such as `nameserver"):
        read_resolvers(tmp_path, tmp_path)


ROUTE4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
ROUTE6 = (
    "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001"
    " 00000400 00000001 00000000 00000003     {}\n"
)


def test_the_mtu_is_that_of_the_preferred_default_route(tmp_path: Path) -> None:
    for device, mtu in (("slow", 1400), ("fast", 9000), ("six", 1000)):
        (tmp_path / device).mkdir()
        (tmp_path / device / "mtu").write_text(f"{mtu}\n")
    rows = "fast\t00000000\t0\t3\t0\t0\t600\t00000000\nslow\t00000000\t0\t3\t0\t0\t100\t00000000\n"
    (tmp_path / "ipv6_route").write_text(ROUTE6.format("lo") + ROUTE6.format("six"))
    (tmp_path / "route").write_text(ROUTE4 + "fast\t0A000000\t0\t1\t0\t0\t0\t000000FF\n" + rows)
    assert default_mtu(tmp_path, tmp_path) == 1400
    (tmp_path / "route").write_text(ROUTE4)
    assert default_mtu(tmp_path, tmp_path) == 1280  # the least that IPv6 works with
    (tmp_path / "ipv6_route").write_text("")
    assert default_mtu(tmp_path, tmp_path) == 1500


# -- the rules as text


def test_the_ruleset_whole() -> None:
    guest = Guest("r3v0", IPv4Address("100.76.0.1"), PREFIX[3073], guest_link_local(3, 0), firewall.mark(3, 0))
    policy = Policy(3, [guest], PREFIX, ["10.0.0.53", "2001:db8::53"], ("ipv4", "ipv6"))
    assert ruleset(policy).expandtabs(4) == (Path(__file__).parent / "ruleset.nft").read_text()


def test_more_members_are_made_known_by_these_lines() -> None:
    guest = Guest("r3v64", IPv4Address("100.76.0.129"), PREFIX[3137], guest_link_local(3, 64), firewall.mark(3, 64))
    assert firewall.admission(3, [guest]) == (
        'add element inet roost3 own4 { "r3v64" . 100.76.0.129 }\n'
        'add element inet roost3 own6 { "r3v64" . fd12:3456:789a::c41, "r3v64" . fe80::72:6fff:fe03:40 }\n'
        'add element inet roost3 marks { "r3v64" : 0x52000c40 }\n'
    )


@pytest.mark.parametrize("keep", [set[int](), {0}, {1023}, {5, 6, 7, 700}, set(range(1024)), set(range(0, 1024, 2))])
def test_marks_stand_for_every_member_but_those_that_are_kept(keep: set[int]) -> None:
    marks = firewall.marks_but(3, keep)
    matched = [m for m in range(1024) for value, mask in marks if firewall.mark(3, m) & mask == value]
    assert matched == [member for member in range(1024) if member not in keep]
    assert not [value for value, mask in marks if firewall.mark(2, 1023) & mask == value]
    assert len(marks) == 1 if not keep else len(marks) <= 10 * len(keep)


def test_a_routed_prefix_is_not_translated() -> None:
    routed = IPv6Network("2001:db8:1::/64")
    text = ruleset(Policy(3, [], routed, [], ()))
    assert "meta nfproto ipv6 iifname" not in text
    assert ", 2001:db8:1::/64 };" in text  # other guests in it stay out of reach


def test_a_machine_that_forwarded_already_keeps_its_own_rules_for_others() -> None:
    forward = ruleset(Policy(3, [], PREFIX, [], ())).partition("chain forward {")[2].partition("}")[0]
    assert forward.split("\n")[2:] == ['\t\tiifname "r3v*" goto egress', '\t\toifname "r3v*" goto ingress', "\t"]


# -- forwarding


@pytest.fixture
def forwarding(tmp_path: Path) -> Forwarding:
    """On a machine with an eth0 that listens to router advertisements, forwarding neither family."""
    for family in ("ipv4", "ipv6"):
        for name in ("all", "default", "eth0"):
            conf = tmp_path / f"sys/net/{family}/conf/{name}"
            conf.mkdir(parents=True)
            (conf / "forwarding").write_text("0\n")
            (conf / "accept_redirects").write_text("0\n")
            if family == "ipv6":
                (conf / "accept_ra").write_text("1\n")
    return Forwarding(tmp_path / "run", tmp_path / "sys")


def setting(forwarding: Forwarding, path: str) -> str:
    return (forwarding.sysctl / "net" / path).read_text().strip()


def test_forwarding_stays_on_until_the_last_instance_has_gone(forwarding: Forwarding) -> None:
    assert forwarding.claim(1) == ("ipv4", "ipv6")
    forwarding.turn_on()
    assert forwarding.claim(2) == ("ipv4", "ipv6")
    forwarding.turn_on()
    forwarding.release(1)
    assert setting(forwarding, "ipv4/conf/all/forwarding") == "1"
    assert setting(forwarding, "ipv6/conf/eth0/accept_ra") == "2"
    forwarding.release(2)
    assert setting(forwarding, "ipv4/conf/all/forwarding") == "0"
    assert setting(forwarding, "ipv6/conf/eth0/accept_ra") == "1"
    assert [path.name for path in forwarding.run.iterdir()] == ["forwarding.lock"]


def test_a_restart_after_a_crash_does_not_forget_what_was_before(forwarding: Forwarding) -> None:
    for _ in range(2):
        assert forwarding.claim(1) == ("ipv4", "ipv6")
        forwarding.turn_on()
    forwarding.release(1)
    forwarding.release(1)
    assert setting(forwarding, "ipv6/conf/all/forwarding") == "0"


def test_a_machine_that_forwards_is_left_as_it_is(forwarding: Forwarding) -> None:
    for family in ("ipv4", "ipv6"):
        (forwarding.sysctl / f"net/{family}/conf/all/forwarding").write_text("1\n")
    assert forwarding.claim(1) == ()
    forwarding.turn_on()
    assert setting(forwarding, "ipv6/conf/eth0/accept_ra") == "1"
    forwarding.release(1)
    assert setting(forwarding, "ipv4/conf/all/forwarding") == "1"


def test_what_somebody_else_changed_meanwhile_is_left(forwarding: Forwarding) -> None:
    forwarding.claim(1)
    forwarding.turn_on()
    (forwarding.sysctl / "net/ipv6/conf/eth0/accept_ra").write_text("0\n")
    forwarding.release(1)
    assert setting(forwarding, "ipv6/conf/eth0/accept_ra") == "0"


# -- real packets


@dataclass
class World:
    """Beyond the host: `internet` with public addresses, `office` with private ones and the resolver."""

    internet: Namespace
    office: Namespace


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The host's network namespace, for one test at a time."""
    with open("/tmp/roost-test-network.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def world(machine: None) -> Iterator[World]:
    for name in ("rtinternet", "rtoffice"):
        subprocess.run(["ip", "link", "del", name], stderr=subprocess.DEVNULL)
    internet, office = Namespace.hold(user=False), Namespace.hold(user=False)
    try:
        attach(internet, "rtinternet", ["198.51.100.1/24", "2001:db8:99::1/64"], [INTERNET4, INTERNET6])
        attach(office, "rtoffice", ["10.213.7.1/24", "fd00:213:7::1/64"], [*SERVERS, *HIDDEN4, *HIDDEN6])
        yield World(internet, office)
    finally:
        for name in ("rtinternet", "rtoffice"):
            subprocess.run(["ip", "link", "del", name], stderr=subprocess.DEVNULL)
        internet.end()
        office.end()


def attach(there: Namespace, name: str, here: list[str], addresses: list[str]) -> None:
    """A veth to the namespace, which has the addresses and sends everything else to the host."""
    peer = f"ip link add {name} type veth peer name eth0 netns {there.pid}"
    subprocess.run(peer.split(), check=True)
    Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")  # it would take a second
    wide = {4: 32, 6: 128}
    lines = [f"addr add {address} dev {name} {nodad(address)}" for address in here]
    routes = [f"route add {a}/{wide[version(a)]} dev {name}" for a in addresses]
    batch = "\n".join([*lines, f"link set {name} up", *routes]).encode()
    there.ip(
        "link set lo up",
        "link set eth0 up",
        *(f"addr add {a}/{wide[version(a)]} dev eth0 {nodad(a)}" for a in addresses),
        *(f"route add {net(a)} dev eth0" for a in here),
        *(f"route add default via {a.partition('/')[0]}" for a in here),
    )
    subprocess.run(["ip", "-batch", "-"], input=batch, check=True)
    there.serve()


def version(address: str) -> int:
    return 6 if ":" in address else 4


def nodad(address: str) -> str:
    return "nodad" if ":" in address else ""


def net(interface: str) -> str:
    address, _, length = interface.partition("/")
    return f"{address.rpartition(':')[0]}:/{length}" if ":" in address else f"{address.rpartition('.')[0]}.0/{length}"


@pytest.fixture
async def network(world: World) -> AsyncIterator[Network]:
    network = Network(12, PREFIX, SERVERS)
    await network.open()
    yield network
    await network.close()


@pytest.fixture
async def neighbour(world: World) -> AsyncIterator[Network]:
    """Another instance on the same machine, with a routed prefix."""
    network = Network(13, IPv6Network("2001:db8:13::/64"), SERVERS)
    await network.open()
    yield network
    await network.close()


@pytest.fixture
def holders() -> Iterator[list[Namespace]]:
    """Stand-ins for containers; ended with the test."""
    held: list[Namespace] = []
    yield held
    for namespace in held:
        namespace.end()


async def join(network: Network, member: int, holders: list[Namespace]) -> tuple[Namespace, Link]:
    """A connected guest, configured from inside as guest init does it."""
    guest = Namespace.hold(user=True)
    holders.append(guest)
    link = await network.connect(member, guest.pid)
    guest.ip(
        "link set lo up",
        f"link set {link.interface} up",
        f"addr add {link.ipv4}/{link.prefix4} dev {link.interface}",
        f"addr add {link.ipv6}/{link.prefix6} dev {link.interface} nodad",
        f"route add default via {link.gateway4}",
        f"route add default via {link.gateway6} dev {link.interface}",
    )
    return guest, link


@needs_root
async def test_a_guest_reaches_the_internet_by_the_host_s_address(network: Network, holders: list[Namespace]) -> None:
    guest, _ = await join(network, 0, holders)
    assert guest.probe(
        ("tcp", INTERNET4, "80"), ("udp", INTERNET4, "53"), ("tcp", INTERNET6, "80"), ("udp", INTERNET6, "80")
    ) == ["198.51.100.1 hello", "198.51.100.1 hello", "2001:db8:99::1 hello", "2001:db8:99::1 hello"]


@needs_root
async def test_a_routed_prefix_is_seen_as_it_is(neighbour: Network, holders: list[Namespace], world: World) -> None:
    guest, link = await join(neighbour, 5, holders)
    assert guest.probe(("tcp", INTERNET6, "80")) == [f"{link.ipv6} hello"]
    guest.serve()
    assert guest.probe(("tcp", link.ipv6, "80"))[0].endswith(" hello")
    assert world.internet.probe(("tcp", link.ipv6, "80")) == ["timeout"]


@needs_root
async def test_private_and_metadata_addresses_are_refused_at_once(network: Network, holders: list[Namespace]) -> None:
    guest, _ = await join(network, 0, holders)
    hidden = [("tcp", address, "80") for address in (*HIDDEN4, *HIDDEN6)]
    assert all(answer.endswith(" hello") for answer in from_host(*hidden))
    assert guest.probe(*hidden) == ["refused"] * len(hidden)
    datagrams = [("udp", address, "53") for address in (HIDDEN4[0], HIDDEN6[0])]
    assert guest.probe(*datagrams) == ["refused"] * 2


@needs_root
async def test_of_the_resolver_only_port_53_is_open(network: Network, holders: list[Namespace]) -> None:
    guest, _ = await join(network, 0, holders)
    assert (
        guest.probe(
            ("udp", RESOLVER4, "53"), ("tcp", RESOLVER4, "53"), ("udp", RESOLVER6, "53"), ("tcp", RESOLVER6, "53")
        )
        == ["10.213.7.1 hello"] * 2 + ["fd00:213:7::1 hello"] * 2
    )
    others = [(kind, address, "80") for kind in ("udp", "tcp") for address in SERVERS]
    assert guest.probe(*others) == ["refused"] * 4


@pytest.fixture
def host_servers() -> Iterator[None]:
    """Servers that listen on every address of the host."""
    program = Path(__file__).parent / "network_world.py"
    with subprocess.Popen([sys.executable, "-IS", str(program), "serve"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield
        server.kill()


@needs_root
async def test_the_host_is_refused_on_all_its_addresses(
    network: Network, holders: list[Namespace], host_servers: None
) -> None:
    guest, link = await join(network, 0, holders)
    addresses = (link.gateway4, "198.51.100.1", "10.213.7.1", "2001:db8:99::1", "fd00:213:7::1")
    hosts = [("tcp", address, port) for address in addresses for port in ("80", "53")]
    assert all(answer.endswith(" hello") for answer in from_host(*hosts))
    assert guest.probe(*hosts) == ["refused"] * len(hosts)
    assert guest.probe(("tcp", f"{link.gateway6}%eth0", "80")) == ["refused"]


@needs_root
async def test_a_resolver_of_the_host_itself_answers_on_port_53(
    world: World, holders: list[Namespace], host_servers: None
) -> None:
    network = Network(14, PREFIX, ["10.213.7.1"])
    try:
        await network.open()
        guest, link = await join(network, 0, holders)
        probes = [("udp", "10.213.7.1", "53"), ("tcp", "10.213.7.1", "53"), ("tcp", "10.213.7.1", "80")]
        assert guest.probe(*probes) == [f"{link.ipv4} hello", f"{link.ipv4} hello", "refused"]
    finally:
        await network.close()


@needs_root
async def test_guests_do_not_reach_each_other(network: Network, neighbour: Network, holders: list[Namespace]) -> None:
    first, _ = await join(network, 0, holders)
    second, beside = await join(network, 1, holders)
    third, elsewhere = await join(neighbour, 0, holders)
    second.serve()
    third.serve()
    others = [("tcp", a, "80") for a in (beside.ipv4, beside.ipv6, elsewhere.ipv4, elsewhere.ipv6)]
    assert all(answer.endswith(" hello") for answer in (*second.probe(*others[:2]), *third.probe(*others[2:])))
    assert first.probe(*others) == ["refused"] * 4


@needs_root
async def test_nobody_may_begin_a_connection_to_a_guest(
    network: Network, holders: list[Namespace], world: World
) -> None:
    guest, link = await join(network, 0, holders)
    guest.serve()
    ports = [("tcp", link.ipv4, "80"), ("tcp", link.ipv6, "80")]
    assert all(answer.endswith(" hello") for answer in guest.probe(*ports))
    assert from_host(*ports) == ["refused"] * 2
    assert from_host(("udp", link.ipv4, "80"), ("udp", link.ipv6, "80")) != [" hello"] * 2
    assert world.internet.probe(*ports) == ["timeout"] * 2
    assert world.office.probe(*ports) == ["timeout"] * 2


@needs_root
async def test_packets_with_a_forged_source_go_nowhere(network: Network, holders: list[Namespace]) -> None:
    guest, link = await join(network, 0, holders)
    beside = network.link(1)
    forged = [beside.ipv4, "203.0.113.7", beside.ipv6, "2001:db8:7::7"]
    guest.ip(*(f"addr add {a}/{128 if ':' in a else 32} dev eth0 {nodad(a)}" for a in forged))
    lies = [("udp", INTERNET6 if ":" in a else INTERNET4, "80", "forged", a) for a in forged]
    truths = [("udp", INTERNET4, "80", "true", link.ipv4), ("udp", INTERNET6, "80", "true", link.ipv6)]
    seen = ["198.51.100.1 true", "2001:db8:99::1 true"]
    assert guest.probe(*truths, *lies, *truths) == [*seen, *["timeout"] * 4, *seen]
    assert json.loads(from_host(("udp", INTERNET4, "80", "list"))[0]) == {"true": 4, "list": 1}


@needs_root
async def test_the_machine_becomes_no_router_for_others(network: Network, world: World) -> None:
    if json.loads(RECORD.read_text())["families"] != ["ipv4", "ipv6"]:
        pytest.skip("this machine forwarded packets before")
    probes = [("tcp", INTERNET4, "80"), ("tcp", INTERNET6, "80")]
    assert world.office.probe(*probes) == ["timeout"] * 2


@needs_root
async def test_a_flood_of_connections_costs_only_the_guest_that_makes_it(
    network: Network, holders: list[Namespace]
) -> None:
    guest, _ = await join(network, 0, holders)
    other, _ = await join(network, 1, holders)
    flood = (
        "import socket\n"
        f"for port in range(20000, 20000 + {firewall.CONNECTIONS} + 200):\n"
        "    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"    s.bind(('', port)); s.sendto(b'flood', ('{INTERNET4}', 80)); s.close()\n"
    )
    subprocess.run(guest.argv(sys.executable, "-IS", "-c", flood), check=True)
    assert json.loads(from_host(("udp", INTERNET4, "80", "list"))[0])["flood"] <= firewall.CONNECTIONS
    assert guest.probe(("tcp", INTERNET4, "80"), ("tcp", INTERNET6, "80")) == ["refused"] * 2
    assert other.probe(("tcp", INTERNET4, "80")) == ["198.51.100.1 hello"]

    await network.disconnect(0)
    heir, _ = await join(network, 0, holders)
    assert heir.probe(("tcp", INTERNET4, "80")) == ["198.51.100.1 hello"]


@needs_root
async def test_a_link_has_the_mtu_of_the_way_out_and_trusts_nothing_from_the_guest(
    network: Network, holders: list[Namespace]
) -> None:
    guest, link = await join(network, 7, holders)
    inside = subprocess.run(guest.argv("ip", "-j", "link", "show", "eth0"), stdout=subprocess.PIPE, check=True)
    assert json.loads(inside.stdout)[0]["mtu"] == link.mtu == default_mtu()
    conf = [Path(f"/proc/sys/net/{family}/conf/r12v7") for family in ("ipv4", "ipv6")]
    assert [(conf[0] / name).read_text() for name in ("rp_filter", "arp_ignore")] == ["1\n", "1\n"]
    assert [(conf[1] / name).read_text() for name in ("accept_ra", "accept_redirects")] == ["0\n", "0\n"]


@needs_root
async def test_connecting_again_replaces_and_disconnecting_again_is_fine(
    network: Network, holders: list[Namespace]
) -> None:
    await join(network, 0, holders)
    guest, _ = await join(network, 0, holders)
    assert guest.probe(("tcp", INTERNET4, "80")) == ["198.51.100.1 hello"]
    await asyncio.gather(network.disconnect(0), network.disconnect(0), network.disconnect(900))
    await network.disconnect(0)
    assert index_of(host_end(12, 0)) is None


@needs_root
async def test_a_link_goes_with_the_process_whose_namespace_it_is_in(
    network: Network, holders: list[Namespace]
) -> None:
    guest, _ = await join(network, 0, holders)
    guest.end()
    holders.remove(guest)
    await network.disconnect(0)
    assert index_of(host_end(12, 0)) is None


@needs_root
async def test_a_process_that_has_ended_is_said_so_and_leaves_no_link(network: Network) -> None:
    with pytest.raises(ProcessLookupError, match="of member 3 has ended"):
        await network.connect(3, 2**22 - 1)
    assert index_of(host_end(12, 3)) is None


@needs_root
async def test_disconnect_undoes_a_cancelled_connect(network: Network, holders: list[Namespace]) -> None:
    holders.append(Namespace.hold(user=True))
    connecting = asyncio.create_task(network.connect(0, holders[0].pid))
    leaving = asyncio.create_task(network.disconnect(1))
    await asyncio.sleep(0)
    connecting.cancel()
    await asyncio.gather(network.disconnect(0), leaving)
    assert index_of(host_end(12, 0)) is None


@needs_root
async def test_after_a_crash_a_sweep_keeps_the_living_and_removes_the_rest(
    network: Network, neighbour: Network, holders: list[Namespace]
) -> None:
    living, _ = await join(network, 0, holders)
    await join(network, 1, holders)
    await join(network, 10, holders)
    await join(neighbour, 1, holders)
    successor = Network(12, PREFIX, SERVERS)
    try:
        await successor.open()
        await successor.sweep(keep={0})
        assert [bool(index_of(name)) for name in ("r12v0", "r12v1", "r12v10", "r13v1")] == [True, False, False, True]
        assert living.probe(("tcp", INTERNET4, "80")) == ["198.51.100.1 hello"]
    finally:
        await successor.close()


@needs_root
async def test_a_start_does_what_the_members_that_are_there_ask_for(
    network: Network, holders: list[Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither rules for a thousand members nor a look for each of them: on an emulated machine that took minutes."""
    await join(network, 3, holders)
    asked: list[str] = []

    def look(name: str) -> int | None:
        asked.append(name)
        return index_of(name)

    monkeypatch.setattr(network_module, "index_of", look)
    successor = Network(12, PREFIX, SERVERS)
    try:
        await successor.open()
        await successor.sweep(keep=set())
        assert asked == ["r12v3"]
        assert len(known(12)) == 64
    finally:
        await successor.close()


@needs_root
async def test_a_member_that_the_rules_did_not_know_at_first_is_admitted_and_held_to_its_addresses(
    network: Network, holders: list[Namespace]
) -> None:
    assert "r12v200" not in known(12)
    (guest, link), (other, _) = await asyncio.gather(join(network, 200, holders), join(network, 201, holders))
    assert {"r12v0", "r12v200", "r12v201"} <= known(12)
    forged = network.link(199).ipv4
    guest.ip(f"addr add {forged}/32 dev eth0")
    truth, lie = ("udp", INTERNET4, "80", "true", link.ipv4), ("udp", INTERNET4, "80", "forged", forged)
    assert guest.probe(truth, lie) == ["198.51.100.1 true", "timeout"]
    assert other.probe(("tcp", INTERNET6, "80")) == ["2001:db8:99::1 hello"]
    successor = Network(12, PREFIX, SERVERS)  # after a crash, those who are there go on
    try:
        await successor.open()
        assert guest.probe(truth) == ["198.51.100.1 true"]
    finally:
        await successor.close()


def known(instance: int) -> set[str]:
    """Host ends that the instance's rules let send anything."""
    command = ["nft", "-j", "list", "set", "inet", f"roost{instance}", "own4"]
    listed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    found = next(entry["set"] for entry in listed["nftables"] if "set" in entry)
    return {element["concat"][0] for element in found["elem"]}


@needs_root
async def test_nothing_is_left_after_close(world: World, holders: list[Namespace]) -> None:
    alone = not RECORD.exists()
    before = sysctls()
    network = Network(15, PREFIX, SERVERS)
    try:
        await network.open()
        await join(network, 0, holders)
        await join(network, 1023, holders)
        await network.open()
        if alone:
            assert sysctls()["ipv6/conf/rtoffice/accept_ra"] == "2"
    finally:
        await network.close()
    await network.close()
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("r15v")]
    assert "roost15" not in subprocess.run(["nft", "list", "tables"], stdout=subprocess.PIPE, text=True).stdout
    if alone and not RECORD.exists():  # else the settings are another instance's as well
        assert sysctls() == before


def sysctls() -> dict[str, str]:
    """All settings that turning forwarding on could touch."""
    root = Path("/proc/sys/net")
    names = ("forwarding", "accept_ra", "accept_redirects", "rp_filter", "send_redirects")
    paths = [path for name in names for path in root.glob(f"ipv[46]/conf/*/{name}")]
    ours = [path for path in paths if path.parent.name in ("all", "default", "lo", "rtoffice", "rtinternet")]
    return {str(path.relative_to(root)): path.read_text().strip() for path in ours}
