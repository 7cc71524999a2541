"""Whether a listener has a connection that its caller takes for one; on this machine's loopback."""

import contextlib
import socket

import pytest

from roost.node import half_open

ADDRESSES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


def is_half_open(connected: socket.socket) -> bool:
    asked = half_open.asking()
    assert asked is not None
    with asked:
        return half_open.is_half_open(asked, connected)


def connect(listener: socket.socket) -> socket.socket:
    connected = socket.socket(listener.family)
    connected.connect(listener.getsockname())
    return connected


@pytest.mark.parametrize(("family", "address"), ADDRESSES)
def test_one_that_waits_to_be_accepted_and_one_that_was_are_whole(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family, backlog=1) as listener, connect(listener) as connected:
        assert not is_half_open(connected)
        with listener.accept()[0]:
            assert not is_half_open(connected)
    with left_alone(family, address) as connected:
        assert not is_half_open(connected)


def left_alone(family: socket.AddressFamily, address: str) -> socket.socket:
    """The other side has closed it, and listens no more."""
    with socket.create_server((address, 0), family=family) as listener:
        connected = connect(listener)
        listener.accept()[0].close()
    return connected


@pytest.mark.parametrize(("family", "address"), ADDRESSES)
def test_one_that_the_kernel_keeps_from_a_full_queue_is_half_open(family: socket.AddressFamily, address: str) -> None:
    """TCP_DEFER_ACCEPT keeps it from the queue at a time that a test can choose; a full queue does so by chance."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.create_server((address, 0), family=family, backlog=0))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        first = opened.enter_context(connect(listener))
        assert not is_half_open(first), "its queue is empty: it wants data first"
        second = opened.enter_context(connect(listener))
        second.sendall(b"data")
        assert is_half_open(first)
        assert not is_half_open(second)
        listener.accept()[0].close()
        assert not is_half_open(first)
