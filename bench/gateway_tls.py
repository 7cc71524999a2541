"""HTTPS through the gateway beside nginx with the same certificate and backend: handshakes, requests, bytes.

Both are one process and one worker. See README.md for the method.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from measure import report

from roost.errors import NotFound
from roost.gateways.http.request import Request
from roost.gateways.http.routing import Passed
from roost.gateways.http.server import Gateway
from roost.gateways.tls.gateway import https
from roost.settings import ServeSettings

HOST = "bench.apps.localhost"
START_SECONDS = 10
MEGABYTES = 500
HELLO_BYTES = 128
NGINX = """daemon off; worker_processes 1; pid {place}/{name}.pid; error_log {place}/{name}.log;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000; {body} }}
"""
BACKEND = """server {{ listen 127.0.0.1:{port}; root {place}; sendfile on; location / {{ }} }}"""
FRONT = """upstream backend {{ server 127.0.0.1:{backend}; keepalive 64; }}
server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {place}/chain.pem; ssl_certificate_key {place}/key.pem;
ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on; proxy_max_temp_file_size 0;
location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}"""


class Sandbox:
    """One that is always awake; its application is the backend."""

    vm_id = "bench"
    startup_command = None
    wakes = 0
    started_ns = 0
    awake = True
    uses = 0
    used = 0.0

    @property
    def job(self) -> "Sandbox":
        return self

    @property
    def state(self) -> "Sandbox":
        return self

    def use(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def begin_use(self) -> None:
        self.uses += 1

    def end_use(self) -> None:
        self.uses -= 1
        self.used = time.monotonic()


SANDBOX = Sandbox()


@dataclass(frozen=True)
class OneRoute:
    port: int
    key: str = HOST
    account_id: int = 1
    run: Sandbox = SANDBOX

    def admit(self, request: Request) -> Passed:
        return Passed(request.target, request.headers)

    def known(self, host: str) -> "OneRoute | None":
        return self if host == HOST else None

    async def find(self, host: str) -> "OneRoute":
        if host != HOST:
            raise NotFound(host)
        return self

    async def awake(self, route: object, within: float) -> Sandbox:
        return self.run

    async def dial(self, sandbox: str, port: int, host: str | None = None) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        return connection


async def serve(place: Path, port: int, backend: int) -> None:
    settings = ServeSettings(place, place, certificate=place / "chain.pem", certificate_key=place / "key.pem")
    route = OneRoute(backend)
    async with Gateway(route, route, settings) as gateway:
        with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
            listener.setblocking(False)
            async with https(gateway, listener, settings):
                await asyncio.Event().wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(port: int, *command: str) -> Generator[int]:
    """The process id; it listens on `port`."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[0]} does not listen")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()
            process.wait(10)


def nginx(place: Path, name: str, body: str) -> tuple[str, ...]:
    configuration = place / f"{name}.conf"
    configuration.write_text(NGINX.format(place=place, name=name, body=body))
    return ("nginx", "-p", str(place), "-c", str(configuration), "-e", f"{place}/{name}.log")


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def handshakes(port: int, seconds: int, *kind: str) -> float:
    """A second, one after the other by openssl's client."""
    words = ("openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-time", str(seconds), *kind)
    told = said(*words)
    return number(r"(\d+) connections in \d+ real seconds", told) / seconds


def requests(port: int, seconds: int, connections: int) -> tuple[float, float]:
    """HTTP/1.1 over connections that last: a second, and the median in milliseconds."""
    words = ("wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-H", f"Host: {HOST}")
    told = said(*words, f"https://127.0.0.1:{port}/hello")
    found = re.search(r"50%\s+([\d.]+)(us|ms|s)", told)
    scale = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    return number(r"Requests/sec:\s+([\d.]+)", told), float(found[1]) * scale[found[2]] if found else 0.0


def requests_2(port: int, seconds: int, connections: int) -> float:
    """HTTP/2, ten at once on each connection: a second. 0 without h2load."""
    if not shutil.which("h2load"):
        return 0.0
    words = ("h2load", "-D", str(seconds), "-c", str(connections), "-m", "10", "-H", f":authority: {HOST}")
    return number(r"([\d.]+) req/s", said(*words, f"https://127.0.0.1:{port}/hello"))


def download(port: int, version: str) -> float:
    """MB/s of one file."""
    words = (
        "curl",
        "-sk",
        version,
        "--resolve",
        f"{HOST}:{port}:127.0.0.1",
        "-o",
        os.devnull,
        "-w",
        "%{speed_download}",
    )
    return float(said(*words, f"https://{HOST}:{port}/big") or 0) / 1e6


def measure(name: str, port: int, pid: int, seconds: int) -> dict[str, Any]:
    before = report.cpu_ms([pid])
    rate, _ = requests(port, seconds, 32)
    return {
        "name": name,
        "handshakes": round(handshakes(port, seconds, "-new")),
        "resumed": round(handshakes(port, seconds, "-reuse", "-tls1_2")),
        "requests": round(rate),
        "median_ms": round(requests(port, seconds, 1)[1], 3),
        "requests_http2": round(requests_2(port, seconds, 8)),
        "mb_per_second": round(max(download(port, "--http1.1") for _ in range(2))),
        "mb_per_second_http2": round(max(download(port, "--http2") for _ in range(2))),
        "cpu_ms": round(report.cpu_ms([pid]) - before),
    }


def main(seconds: int) -> None:
    facts = report.facts()
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as directory, contextlib.ExitStack() as stack:
        place = Path(directory)
        place.chmod(0o755)  # nginx's worker is another user
        subject = ("-subj", "/CN=bench", "-addext", f"subjectAltName=DNS:{HOST}", "-days", "1", "-nodes")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", str(place / "key.pem"))
        command = ("openssl", "req", "-x509", *key, "-out", str(place / "chain.pem"), *subject)
        subprocess.run(command, check=True, capture_output=True)
        (place / "hello").write_bytes(b"h" * HELLO_BYTES)
        with (place / "big").open("wb") as big:
            big.truncate(MEGABYTES * 1_000_000)
        backend, peer, ours = free_port(), free_port(), free_port()
        stack.enter_context(running(backend, *nginx(place, "backend", BACKEND.format(port=backend, place=place))))
        front = FRONT.format(port=peer, backend=backend, place=place)
        nginx_pid = stack.enter_context(running(peer, *nginx(place, "front", front)))
        words = (sys.executable, __file__, "--serve", str(place), str(ours), str(backend))
        roost_pid = stack.enter_context(running(ours, *words))
        found = [measure("nginx", peer, nginx_pid, seconds), measure("roost", ours, roost_pid, seconds)]
    show(facts, found)


def show(facts: dict[str, Any], found: list[dict[str, Any]]) -> None:
    print(f"{facts['cpus']} CPUs, busy before: {facts['busy_before']:.0%}")
    rows = [
        ("full handshakes/s, one client", "handshakes"),
        ("resumed handshakes/s, one client", "resumed"),
        ("requests/s, HTTP/1.1, 32 connections", "requests"),
        ("median ms, HTTP/1.1, 1 connection", "median_ms"),
        ("requests/s, HTTP/2, 8 connections of 10", "requests_http2"),
        (f"MB/s of {MEGABYTES} MB, HTTP/1.1", "mb_per_second"),
        (f"MB/s of {MEGABYTES} MB, HTTP/2", "mb_per_second_http2"),
    ]
    peer, ours = found
    table = [
        [text, str(peer[name]), str(ours[name]), f"{ours[name] / peer[name]:.2f}" if peer[name] else "-"]
        for text, name in rows
    ]
    report.print_table(["", "nginx", "roost", "roost/nginx"], table)
    print(report.write("gateway-tls", {"facts": facts, "measured": found}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        directory, port, backend = arguments.serve
        uvloop.run(serve(Path(directory), int(port), int(backend)))
    else:
        main(arguments.seconds)
