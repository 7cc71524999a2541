"""Who takes too much of what all sandboxes share; that such a one is ended, tests/e2e/test_hostile_scripts.py shows."""

import os
import socket
from pathlib import Path

import pytest

from roost.node import excess
from roost.node.protocol import Limits


def test_the_machines_tcp_is_read_from_the_kernel() -> None:
    assert 0 <= excess.tcp_share() < 1


def test_its_share_is_of_the_most_that_it_may_take(tmp_path: Path) -> None:
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "net").mkdir()
    (tmp_path / "sys/net/ipv4/tcp_mem").write_text("100\t200\t400\n")
    told = "sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 7 mem 300\nUDP: inuse 2 mem 350\n"
    (tmp_path / "net/sockstat").write_text(told)
    assert excess.tcp_share(tmp_path) == 0.75


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_connections_that_nobody_accepted_are_counted(family: socket.AddressFamily) -> None:
    before = excess.sockets_of(os.getpid())
    with socket.create_server(("localhost", 0), family=family, backlog=20) as listening:
        clients = [socket.create_connection(listening.getsockname()[:2]) for _ in range(10)]
        assert excess.sockets_of(os.getpid()) >= before + 20  # others on this machine come and go, few at a time
        for client in clients:
            client.close()


def test_the_reason_names_the_limit() -> None:
    limits = Limits(vcpus=1, memory_mb=64, disk_gb=1, pids=512, timeout_seconds=0)
    assert "limit of 512 processes and threads" in excess.forks_reason(limits)
