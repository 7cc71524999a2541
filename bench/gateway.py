"""The HTTP gateway's data path, beside going direct and beside nginx as a plain proxy: same backend, same run.

Requests per second (wrk), what one request is slowed down, 5,000 idle WebSockets, and a 1 GB download. See README.md.
"""

import argparse
import asyncio
import contextlib
import re
import signal
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
import websockets
from measure import memory, report
from measure.gateway_front import HOST

HERE = Path(__file__).parent
CONNECTIONS = 50
PACED, PACE = 400, 0.005  # requests, seconds between them
IDLE_WEBSOCKETS = 5000
START_SECONDS = 20
SETTLE = 5
OPENING = 100  # WebSockets at a time
BODY = 612  # bytes; nginx's own first page
DOWNLOAD = 1 << 30
NGINX = """
daemon off; worker_processes 1; pid {place}/{name}.pid; error_log {place}/{name}.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; keepalive_requests 100000000; keepalive_timeout 300s;
  client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  {inside}
}}
"""
STATIC = "server {{ listen 127.0.0.1:{port}; root {place}/www; }}"
PROXY = """
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
    proxy_max_temp_file_size 0;
  }} }}
"""
ECHO = """
import asyncio, sys, uvloop, websockets
async def echo(channel):
    async for message in channel:
        await channel.send(message)
async def main():
    plain = {"compression": None, "ping_interval": None, "backlog": 4096}
    async with websockets.serve(echo, "127.0.0.1", int(sys.argv[1]), **plain):
        await asyncio.Event().wait()
uvloop.run(main())
"""

DIFFER = """
local number = 0
request = function()
  number = number + 1
  return wrk.format("GET", "/index.html?" .. number)
end
"""
APPLICATION = """
import sys, uvloop
from aiohttp import web
async def page(request):
    return web.json_response({"path": request.path, "items": list(range(100))})
app = web.Application()
app.router.add_get("/index.html", page)
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""


@dataclass(frozen=True)
class Ports:
    """Of the three ways to the same backend."""

    direct: int
    nginx: int
    roost: int

    def ways(self) -> dict[str, int]:
        return {"direct": self.direct, "nginx": self.nginx, "roost": self.roost}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def program(*command: str, port: int) -> Generator[int]:
    """Its pid; it listens when this begins, and is gone when it ends."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.PIPE)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {said.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.02)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def nginx(place: Path, name: str, inside: str, port: int, **values: Any) -> Generator[int]:
    config = place / f"{name}.conf"
    inside = inside.format(place=place, port=port, **values)
    config.write_text(NGINX.format(place=place, name=name, inside=inside))
    with program("nginx", "-e", f"{place}/{name}.log", "-c", str(config), port=port) as pid:
        yield pid


@contextlib.contextmanager
def front(backend: int) -> Generator[tuple[int, int]]:
    """Pid and port of the gateway."""
    port = free_port()
    with program(sys.executable, str(HERE / "measure/gateway_front.py"), str(port), str(backend), port=port) as pid:
        yield pid, port


def wrk(port: int, seconds: int, script: str | None = None) -> dict[str, float]:
    command = ["wrk", "-c", str(CONNECTIONS), "-t", "1", "-d", str(seconds), "--latency", "-H", f"Host: {HOST}"]
    command += ["-s", script] if script else []
    done = subprocess.run([*command, f"http://127.0.0.1:{port}/index.html"], capture_output=True, text=True, check=True)
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(done.stdout)
    found = {"rate": float(re.findall(r"Requests/sec:\s+([\d.]+)", done.stdout)[0])}
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    for percent, number, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", done.stdout):
        found[f"p{percent}_ms"] = float(number) * units[unit]
    return found


def paced(ports: Ports) -> dict[str, list[float]]:
    """Milliseconds of single requests on one kept connection each, the ways in turn: what one user feels."""
    connections = {name: socket.create_connection(("127.0.0.1", port)) for name, port in ports.ways().items()}
    found: dict[str, list[float]] = {name: [] for name in connections}
    request = f"GET /index.html HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    for connection in connections.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(PACED):
        for name, connection in connections.items():
            time.sleep(PACE)
            begun = time.perf_counter()
            connection.sendall(request)
            got = b""
            while len(got.partition(b"\r\n\r\n")[2]) < BODY:
                got += connection.recv(65536)
            found[name].append((time.perf_counter() - begun) * 1000)
    for connection in connections.values():
        connection.close()
    return found


def family(pid: int) -> list[int]:
    """A process and its children: nginx and its worker."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(int(child) for task in tasks for child in task.read_text().split())]


def throughput(
    ports: Ports, pids: dict[str, int], seconds: int, rounds: int, script: str | None = None
) -> dict[str, Any]:
    """The ways in turn, several times; the median round of each."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ports.ways()}
    for _ in range(rounds):
        for name, port in ports.ways().items():
            pids_of = family(pids[name])
            before = report.cpu_ms(pids_of)
            result = wrk(port, seconds, script)
            result["cpu_us"] = (report.cpu_ms(pids_of) - before) * 1000 / (result["rate"] * seconds)
            found[name].append(result)
    return {
        name: {"median": sorted(rounds, key=lambda one: one["rate"])[len(rounds) // 2], "rounds": rounds}
        for name, rounds in found.items()
    }


def downloads(ports: Ports, rounds: int) -> dict[str, list[float]]:
    """MB/s of one 1 GB file, the ways in turn."""
    found: dict[str, list[float]] = {name: [] for name in ports.ways()}
    for _ in range(rounds):
        for name, port in ports.ways().items():
            found[name].append(_download(f"http://127.0.0.1:{port}/large"))
    return found


def _download(url: str) -> float:
    """Read from curl's standard output, and dropped."""
    begun, size = time.perf_counter(), 0
    with subprocess.Popen(["curl", "-sS", "-H", f"Host: {HOST}", url], stdout=subprocess.PIPE) as process:
        assert process.stdout
        while count := len(process.stdout.read(1 << 20)):
            size += count
    if size != DOWNLOAD:
        raise RuntimeError(f"{size} bytes of {DOWNLOAD} came")
    return size / 1e6 / (time.perf_counter() - begun)


async def idle_websockets(port: int, pid: int, count: int) -> dict[str, Any]:
    """All open, idle, then all echo. Memory is of the gateway alone."""
    before = memory.process_kb(pid)
    gate = asyncio.Semaphore(OPENING)

    async def opened() -> websockets.ClientConnection:
        url = f"ws://{HOST}:{port}/"
        async with gate:
            return await websockets.connect(
                url, host="127.0.0.1", port=port, compression=None, ping_interval=None, proxy=None, open_timeout=60
            )

    begun = time.perf_counter()
    channels = await asyncio.gather(*(opened() for _ in range(count)))
    took = time.perf_counter() - begun
    await asyncio.sleep(SETTLE)
    during = memory.process_kb(pid)
    cpu = report.cpu_ms([pid])
    await asyncio.sleep(SETTLE)
    cpu = report.cpu_ms([pid]) - cpu

    async def echo(number: int, channel: websockets.ClientConnection) -> bool:
        await channel.send(f"message {number}")
        return await asyncio.wait_for(channel.recv(), 60) == f"message {number}"

    echoed = await asyncio.gather(*(echo(number, channel) for number, channel in enumerate(channels)))
    await asyncio.gather(*(channel.close() for channel in channels))
    return {
        "open": count,
        "echoed": sum(echoed),
        "opened_in_s": round(took, 2),
        "kb_each": round((during["pss"] - before["pss"]) / count, 2),
        "idle_cpu_ms_per_s": round(cpu / SETTLE, 2),
    }


def before_an_application(place: Path, seconds: int, rounds: int) -> dict[str, Any]:
    """The throughput again, where the backend is no file but a program in Python."""
    with contextlib.ExitStack() as stack:
        backend, proxy = free_port(), free_port()
        pids = {"direct": stack.enter_context(program(sys.executable, "-c", APPLICATION, str(backend), port=backend))}
        pids["nginx"] = stack.enter_context(nginx(place, "second", PROXY, proxy, backend=backend))
        pids["roost"], port = stack.enter_context(front(backend))
        return throughput(Ports(backend, proxy, port), pids, seconds, rounds)


def measure(seconds: int, rounds: int, sockets: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as text, contextlib.ExitStack() as stack:
        place = Path(text)
        place.chmod(0o755)
        (place / "www").mkdir()
        (place / "www/index.html").write_bytes(b"x" * BODY)
        with (place / "www/large").open("wb") as file:
            file.truncate(DOWNLOAD)
        backend, proxy = free_port(), free_port()
        pids = {"direct": stack.enter_context(nginx(place, "static", STATIC, backend))}
        pids["nginx"] = stack.enter_context(nginx(place, "proxy", PROXY, proxy, backend=backend))
        pids["roost"], port = stack.enter_context(front(backend))
        ports = Ports(backend, proxy, port)
        results["paced"] = paced(ports)
        results["throughput"] = throughput(ports, pids, seconds, rounds)
        (place / "differ.lua").write_text(DIFFER)
        results["differing"] = throughput(ports, pids, seconds, rounds, str(place / "differ.lua"))
        results["download"] = downloads(ports, rounds)
        results["application"] = before_an_application(place, seconds, rounds)
        echo = free_port()
        stack.enter_context(program(sys.executable, "-c", ECHO, str(echo), port=echo))
        pid, port = stack.enter_context(front(echo))
        results["websockets"] = uvloop.run(idle_websockets(port, pid, sockets))
    return results


def print_results(results: dict[str, Any]) -> None:
    through, loads, single = results["throughput"], results["download"], results["paced"]

    def middle(values: list[float]) -> float:
        return report.percentile(values, 0.5)

    rows: list[list[str]] = []
    for name in ("direct", "nginx", "roost"):
        many, alone, least = through[name]["median"], single[name], single["direct"]
        late, least_late = report.percentile(alone, 0.99), report.percentile(least, 0.99)
        rows.append(
            [
                name,
                f"{many['rate']:.0f}",
                f"{many['rate'] / through['nginx']['median']['rate']:.2f}",
                f"{many['cpu_us']:.1f}",
                f"{many['p50_ms']:.2f}",
                f"{many['p99_ms']:.2f}",
                f"{middle(alone):.3f}",
                f"{middle(alone) - middle(least):+.3f}",
                f"{late:.3f}",
                f"{late - least_late:+.3f}",
                f"{middle(loads[name]):.0f}",
                f"{middle(loads[name]) / middle(loads['nginx']):.2f}",
            ]
        )
    heads = [
        "",
        "req/s",
        "of nginx",
        "CPU us",
        "p50 ms",
        "p99",
        "alone p50",
        "added",
        "p99",
        "added",
        "MB/s",
        "of nginx",
    ]
    report.print_table(heads, rows)
    print("\nNo two requests alike\n")
    print_throughput(results["differing"])
    print("\nBefore an application in Python (aiohttp)\n")
    print_throughput(results["application"])
    print("\nWebSockets:", results["websockets"])


def print_throughput(found: dict[str, Any]) -> None:
    rows: list[list[str]] = []
    for name, run in found.items():
        one = run["median"]
        share = one["rate"] / found["nginx"]["median"]["rate"]
        numbers = (one["cpu_us"], one["p50_ms"], one["p99_ms"])
        rows.append([name, f"{one['rate']:.0f}", f"{share:.2f}", *(f"{number:.2f}" for number in numbers)])
    report.print_table(["", "req/s", "of nginx", "CPU us", "p50 ms", "p99"], rows)


def parsed() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=int, default=5, help="of each run of wrk (default 5)")
    arguments.add_argument("--rounds", type=int, default=3, help="of everything, the ways in turn (default 3)")
    arguments.add_argument("--websockets", type=int, default=IDLE_WEBSOCKETS)
    return arguments.parse_args()


def main() -> None:
    chosen = parsed()
    results: dict[str, Any] = {"benchmark": "gateway", "machine": report.facts()}
    print(f"{results['machine']}", flush=True)
    results |= measure(chosen.seconds, chosen.rounds, chosen.websockets)
    print_results(results)
    print(f"\nRaw values: {report.write('gateway', results)}")


if __name__ == "__main__":
    main()
