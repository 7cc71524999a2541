"""What the machine itself has to have of the network before sandboxes can have theirs: name servers and IPv6."""

from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from roost.errors import SetupMissing


def require_ipv6() -> None:
    """Raises SetupMissing."""
    if not Path("/proc/sys/net/ipv6").is_dir():
        raise SetupMissing("IPv6 is switched off in the kernel; boot without ipv6.disable=1")


def read_resolvers(etc: Path = Path("/etc"), run: Path = Path("/run")) -> list[str]:
    """Addresses of the name servers that a guest can reach, three at most as in every libc.

    A local stub that listens on loopback only (systemd-resolved) is passed over for the servers behind it. Raises
    SetupMissing if none is left.
    """
    for path in (etc / "resolv.conf", run / "systemd/resolve/resolv.conf"):
        with suppress(FileNotFoundError):
            if servers := list(_nameservers(path.read_text(errors="replace"))):
                return servers[:3]
    raise SetupMissing(
        f"{etc}/resolv.conf names no name server that a sandbox can reach (loopback and link-local ones it cannot); "
        "add a line such as `nameserver 9.9.9.9`"
    )


def _nameservers(text: str) -> Iterable[str]:
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        with suppress(ValueError):
            address = ip_address(words[1])
            if not (address.is_loopback or address.is_link_local or address.is_unspecified):
                yield str(address)
