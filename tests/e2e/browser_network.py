"""A network for a browser: loopback alone, and on it ports that lead to the same ports of this machine.

Chromium gives up what it has under way when the machine's addresses change (ERR_NETWORK_CHANGED), as they do here with
every sandbox that comes or goes. Bytes pass unchanged.
"""

import contextlib
import fcntl
import os
import shlex
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from roost import linux

T = TypeVar("T")

SIOCSIFFLAGS = 0x8914
IFF_UP = 1
CONNECT_SECONDS = 10


class BrowserNetwork:
    """Close it when the browser has ended."""

    def __init__(self) -> None:
        self._namespace = in_a_thread(_new_namespace)
        self._ways: dict[str, tuple[_Way, threading.Thread]] = {}

    def program(self, path: Path, command: str) -> Path:
        """Makes `path` a program that runs the command in this network; for as long as it is not closed."""
        inside = f"nsenter --net=/proc/{os.getpid()}/fd/{self._namespace} {shlex.quote(command)}"
        path.write_text(f'#!/bin/sh\nexec {inside} "$@"\n')
        path.chmod(0o755)
        return path

    def lead_to(self, address: str) -> None:
        """HOST:PORT is reached from inside under the same name."""
        if address not in self._ways:
            way = in_a_thread(lambda: _Way(address, self._namespace))
            thread = threading.Thread(target=way.serve_forever, args=(0.05,), name=f"way to {address}")
            thread.start()
            self._ways[address] = way, thread

    def close(self) -> None:
        for way, thread in self._ways.values():
            way.shutdown()
            thread.join()
            way.server_close()
        os.close(self._namespace)


def in_a_thread(work: Callable[[], T]) -> T:
    """In one of its own, which ends: a network namespace belongs to the thread that entered it."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()


def _new_namespace() -> int:
    linux.unshare(linux.CLONE_NEWNET)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class _Way(socketserver.ThreadingTCPServer):
    """Made in a thread that may enter the namespace: its sockets stay there, and lead out from any thread."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: str, namespace: int) -> None:
        linux.setns(namespace, linux.CLONE_NEWNET)
        host, _, port = address.rpartition(":")
        super().__init__((host, int(port)), _Connection)


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        here: socket.socket = self.request
        with contextlib.suppress(OSError), socket.create_connection(self.server.server_address, CONNECT_SECONDS) as out:
            out.settimeout(None)
            back = threading.Thread(target=_pump, args=(out, here))
            back.start()
            _pump(here, out)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Until the source has ended; an end by error is one of both sides."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
