"""Where systemd-networkd runs, it leaves our links alone. (The machines of `make test-machines` let it take all.)"""

import fnmatch
from pathlib import Path

import pytest

from roost.node.network import INSTANCES, MEMBERS, host_end
from roost.node.networkd import TEXT, leave_our_links_alone


def matches(name: str) -> bool:
    patterns = next(line for line in TEXT.splitlines() if line.startswith("Name=")).removeprefix("Name=").split()
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def test_every_link_of_ours_is_named_and_no_other() -> None:
    assert all(matches(host_end(instance, member)) for instance in range(INSTANCES) for member in (0, MEMBERS - 1))
    assert not any(matches(name) for name in ("eth0", "ens3", "rvi0", "r16v0", "veth12", "wlan0", "br0"))


def test_it_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, calls = tmp_path / "networkctl", tmp_path / "calls"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    runs, file = tmp_path / "netif", tmp_path / "network" / "00-roost.network"
    leave_our_links_alone(runs, file)
    assert not file.exists()
    runs.mkdir()
    for _ in range(2):
        leave_our_links_alone(runs, file)
    assert file.read_text() == TEXT
    assert calls.read_text() == "reload\n"
