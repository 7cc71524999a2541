"""Where Roost connects for its users, and where not: also by addresses that no table of networks knows."""

import ipaddress
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from roost import linux
from roost.errors import Invalid
from roost.outward import Refusal, allowed, check_url
from roost.way_out import NOWHERE, way_to

PUBLIC = ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808"]
NOT_PUBLIC = [
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "100.64.0.1", "169.254.169.254", "192.88.99.1", "224.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b::7f00:1",
    "64:ff9b::a00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2600::5efe:127.0.0.1",
    "2600::200:5efe:10.0.0.1", "fe80::1", "fd00::1", "ff02::1", "4000::1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address: str) -> None:
    assert allowed([]).objection(address) == ""
    assert check_url("url", f"https://{bracketed(address)}/", allowed([]))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_others_are_refused_in_every_form_that_leads_to_them(address: str) -> None:
    with pytest.raises(Invalid, match=r"not a public address|a sandbox's address"):  # where this machine has sandboxes
        check_url("url", f"http://{bracketed(address)}/", allowed([]))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(Refusal):
        allowed([]).socket((family, socket.SOCK_STREAM, 0, "", (address, 80)))


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture
def link(request: pytest.FixtureRequest) -> Iterator[str]:
    """A link of this machine with public addresses behind it, in a network namespace of this thread's own."""
    name = str(request.param)
    if os.geteuid():
        pytest.skip("making a link needs root")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        linux.unshare(linux.CLONE_NEWNET)
        for words in (
            f"link add {name} type veth peer name peer", "link set peer up", f"link set {name} up",
            f"addr add 198.51.101.1/24 dev {name}", f"addr add 2620:0:1::1/64 dev {name} nodad",
        ):  # fmt: skip
            subprocess.run(["ip", *words.split()], check=True)
        yield name
    finally:
        linux.setns(home, linux.CLONE_NEWNET)
        os.close(home)


@pytest.mark.parametrize("link", ["r3v7"], indirect=True)
def test_a_routed_prefix_of_sandboxes_is_refused_whatever_is_allowed(link: str) -> None:
    for address in ("198.51.101.9", "2620:0:1::9"):
        for may in (allowed([]), allowed([f"{address}"])):
            assert "a sandbox's address" in may.objection(address)
            with pytest.raises(Invalid, match="use the sandbox's URL"):
                check_url("url", f"http://{bracketed(address)}/", may)


@pytest.mark.parametrize("link", ["eth9"], indirect=True)
def test_this_machines_own_public_addresses_are_refused_unless_allowed(link: str) -> None:
    for own, neighbour in (("198.51.101.1", "198.51.101.9"), ("2620:0:1::1", "2620:0:1::9")):
        assert "this machine" in allowed([]).objection(own)
        assert allowed([own]).objection(own) == ""
        assert allowed([]).objection(neighbour) == ""
        assert way_to(ipaddress.ip_address(own)).here
        assert way_to(ipaddress.ip_address(neighbour)) == NOWHERE
