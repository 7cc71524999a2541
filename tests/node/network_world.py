"""A small internet for the network tests: namespaces, with echo servers in them, around the host's own one.

Runs as a program too, inside a namespace: `serve` answers on TCP and UDP, `probe` tries a list of destinations.
"""

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

PORTS = (53, 80)
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
NAMES = {errno.ECONNREFUSED: "refused", errno.EHOSTUNREACH: "refused", errno.EACCES: "refused"}


@dataclass
class Namespace:
    """A process that holds a network namespace, as a container's first process does, and servers inside."""

    holder: subprocess.Popen[bytes]
    user: bool
    servers: list[subprocess.Popen[bytes]]

    @classmethod
    def hold(cls, *, user: bool) -> "Namespace":
        holder = subprocess.Popen(["unshare", "-Urn" if user else "-n", "sleep", "600"])
        ours = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        while "sleep" not in name_of(holder.pid) or os.readlink(f"/proc/{holder.pid}/ns/net") == ours:
            assert time.monotonic() < deadline, "unshare does not come up"
            time.sleep(0.005)
        return cls(holder, user, [])

    @property
    def pid(self) -> int:
        return self.holder.pid

    def argv(self, *command: str) -> list[str]:
        user = ["-U", "--preserve-credentials"] if self.user else []
        return ["nsenter", "-t", str(self.pid), "-n", *user, "--", *command]

    def ip(self, *lines: str) -> None:
        batch = "\n".join(lines).encode()
        subprocess.run(self.argv("ip", "-batch", "-"), input=batch, check=True)

    def serve(self) -> None:
        """Start echo servers; they answer once this returns."""
        program = self.argv(sys.executable, "-IS", __file__, "serve")
        server = subprocess.Popen(program, stdout=subprocess.PIPE)
        self.servers.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"

    def probe(self, *probes: tuple[str, ...]) -> list[str]:
        return run_probes(self.argv(), probes)

    def end(self) -> None:
        for process in (*self.servers, self.holder):
            process.send_signal(signal.SIGKILL)
            process.communicate()


def name_of(pid: int) -> str:
    with open(f"/proc/{pid}/comm") as file:
        return file.read()


def from_host(*probes: tuple[str, ...]) -> list[str]:
    return run_probes([], probes)


def run_probes(prefix: list[str], probes: tuple[tuple[str, ...], ...]) -> list[str]:
    """Each probe is (tcp|udp, address, port[, text[, source address]]); answers what the server said, which is
    the address that it saw and the text, or "refused" or "timeout"."""
    command = [*prefix, sys.executable, "-IS", __file__, "probe"]
    done = subprocess.run(command, input=json.dumps(probes).encode(), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def serve() -> None:
    """Answer "<peer> <text>"; a UDP "list" is answered by how often each text came."""
    seen: dict[str, int] = {}
    streams = [socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) for port in PORTS]
    datagrams = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in PORTS]
    for channel, port in zip(datagrams, PORTS, strict=True):
        with suppress(PermissionError):  # of a guest's root; a flood must not be lost here
            channel.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)
        channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        channel.bind(("::", port))
    print("ready", flush=True)
    while True:
        for ready in select.select(streams + datagrams, [], [])[0]:
            with suppress(OSError):
                if ready in streams:
                    serve_stream(ready)
                else:
                    serve_datagram(ready, seen)


def serve_stream(listener: socket.socket) -> None:
    connection, peer = listener.accept()
    with connection:
        connection.settimeout(1)
        connection.sendall(f"{plain(peer[0])} {connection.recv(100).decode()}".encode())


def serve_datagram(channel: socket.socket, seen: dict[str, int]) -> None:
    data, ancillary, _, peer = channel.recvmsg(100, 100)
    text = data.decode()
    seen[text] = seen.get(text, 0) + 1
    answer = json.dumps(seen) if text == "list" else f"{plain(peer[0])} {text}"
    channel.sendmsg([answer.encode()], ancillary, 0, peer)  # from the address that was asked, as name servers do


def plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def probe() -> None:
    probes = json.load(sys.stdin)
    print(json.dumps([attempt(*one) for one in probes]))


def attempt(kind: str, address: str, port: str, text: str = "hello", source: str = "") -> str:
    how = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    family, _, _, _, destination = socket.getaddrinfo(address, port, type=how)[0]
    with socket.socket(family, how) as channel:
        channel.settimeout(0.7)
        try:
            if source:
                channel.bind((source, 0))
            channel.connect(destination)
            channel.sendall(text.encode())
            return channel.recv(4096).decode()
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return NAMES.get(error.errno or 0, str(error))


if __name__ == "__main__":
    {"serve": serve, "probe": probe}[sys.argv[1]]()
