"""Sleeping sandboxes: what a wake adds to a request, races to wake one, and what frozen ones cost.

See README.md for the method.
"""

import argparse
import asyncio
import os
import time
from typing import Any

import uvloop
from density import several
from measure import memory, report
from measure.client import JOBS
from measure.installation import Installation, installation

# A listening queue of five, as `python3 -m http.server` has it, drops the connections of a hundred who come at once.
SERVER = """
import http.server, os, socketserver
os.chdir("/srv")
socketserver.TCPServer.request_queue_size = 1024
http.server.ThreadingHTTPServer(("", 8080), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
APP = f"exec python3 -u -c '{SERVER}' 2> /dev/null"
SCRIPT = f"mkdir -p /srv; echo ready > /srv/index.html; [ -e /srv/data ] || head -c %d /dev/urandom > /srv/data\n{APP}"
COLD_BYTES = 100_000_000
PACE = 0.1  # seconds between the wakes
RACERS = 100  # requests at once on one sleeper
REQUEST_SECONDS = 90
QUIET = {"script": "sleep 100000", "persistent": True, "memory_mb": 64, "idle_minutes": 600}


async def get(here: Installation, host: str) -> tuple[float, str | None]:
    """Milliseconds until the first byte of the answer on a new connection, and what went wrong if anything did."""
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            reader, writer = await asyncio.open_connection(*here.gateway)
            try:
                writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                first = await reader.read(1)
                taken = (time.perf_counter() - begun) * 1000
                whole = first + await reader.read()
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        return (time.perf_counter() - begun) * 1000, f"{type(error).__name__}: {error}"
    right = whole.startswith(b"HTTP/1.1 200") and whole.endswith(b"ready\n")
    return taken, None if right else whole[:80].decode(errors="replace")


async def app(here: Installation, size: int, **fields: object) -> tuple[str, str]:
    """A persistent job with a web server on 8080: its id, and the host name of it."""
    body = {
        "script": SCRIPT.replace("%d", str(size)),
        "persistent": True,
        "startup_command": APP,
        "idle_minutes": 600,
        **fields,
    }
    job = (await here.client.call("POST", JOBS, body))["request_id"]
    await here.client.call("POST", f"{JOBS}/{job}/wake")
    opened = await here.client.call("POST", f"{JOBS}/{job}/access", {"port": 8080})
    host = f"{opened['subdomain']}.apps.localhost"
    while (await get(here, host))[1] is not None:
        await asyncio.sleep(0.05)
    return job, host


async def sleep(here: Installation, job: str, depth: str) -> None:
    await here.client.call("POST", f"{JOBS}/{job}/sleep", {"depth": depth})


async def wakes(here: Installation, job: str, host: str, depth: str | None, count: int) -> dict[str, Any]:
    """Requests on a sleeper, one after another; without a depth, on one that is awake."""
    taken: list[float] = []
    failed: list[str] = []
    for _ in range(count):
        if depth is not None:
            await sleep(here, job, depth)
        await asyncio.sleep(PACE)
        milliseconds, error = await get(here, host)
        if error is None:
            taken.append(milliseconds)
        else:
            failed.append(error)
    return {"ok": len(taken), "failed": failed, **shares(taken), "taken": taken}


def shares(taken: list[float]) -> dict[str, float]:
    return {f"p{n}": round(report.percentile(taken, n / 100), 2) for n in (50, 95, 99)} if taken else {}


async def races(here: Installation, job: str, host: str, depth: str, count: int) -> dict[str, Any]:
    """Many at once on one sleeper, again and again: how many did not get the app's answer."""
    failed: list[str] = []
    slowest: list[float] = []
    for _ in range(count):
        await sleep(here, job, depth)
        results = await asyncio.gather(*(get(here, host) for _ in range(RACERS)))
        failed += [error for _, error in results if error is not None]
        slowest.append(max(milliseconds for milliseconds, _ in results))
    return {"races": count, "requests": count * RACERS, "failed": failed, "slowest_of_each": shares(slowest)}


async def density(here: Installation, count: int) -> dict[str, Any]:
    """The same number of sandboxes live, frozen, and after their memory was asked back."""
    before = await reading(here)
    accepted = await several(count, lambda _: here.client.call("POST", JOBS, QUIET))
    ids = [one["request_id"] for one in accepted]
    await several(count, lambda n: here.client.call("POST", f"{JOBS}/{ids[n]}/wake"))
    await asyncio.sleep(3)
    live = await reading(here)
    begun = time.perf_counter()
    await several(count, lambda n: sleep(here, ids[n], "frozen"))
    frozen_seconds = time.perf_counter() - begun
    frozen = await reading(here)
    reclaim(here)
    reclaimed = await reading(here)
    taken, begun = [], time.perf_counter()
    for id in ids[:100]:
        at = time.perf_counter()
        await here.client.call("POST", f"{JOBS}/{id}/wake")
        taken.append((time.perf_counter() - at) * 1000)
    await several(count, lambda n: here.client.call("POST", f"{JOBS}/{ids[n]}/stop"))
    each = {
        name: {kind: round((now[kind] - before[kind]) / count) for kind in ("charged", "used")}
        for name, now in (("live", live), ("frozen", frozen), ("reclaimed", reclaimed))
    }
    return {"count": count, "each_kb": each, "frozen_seconds": round(frozen_seconds, 2), "wake_call": shares(taken)}


async def reading(here: Installation) -> dict[str, int]:
    machine = await memory.machine_kb()
    charged = sum(memory.Groups(here.number).charged_kb())
    return {"charged": charged, "used": machine["MemTotal"] - machine["MemAvailable"]}


def reclaim(here: Installation) -> None:
    """What the node does when memory is short (`Freeze.reclaim`), for every group at once."""
    for group in memory.Groups(here.number).members():
        empty, ask = group / "memory.force_empty", group / "memory.reclaim"
        try:
            empty.write_text("0") if empty.exists() else ask.write_text("64M")
        except OSError:
            pass  # it has given what it can


async def measured(count: int, cold: int, sleepers: int) -> dict[str, Any]:
    found: dict[str, Any] = {"benchmark": "sleep", "machine": report.facts()}
    print(f"{found['machine']}", flush=True)
    async with installation() as here:
        job, host = await app(here, 0)
        found["awake"] = await wakes(here, job, host, None, count)
        found["frozen"] = await wakes(here, job, host, "frozen", count)
        found["frozen_races"] = await races(here, job, host, "frozen", 2 * count)
        await here.client.call("POST", f"{JOBS}/{job}/stop")
        job, host = await app(here, COLD_BYTES, workspace_id="bench")
        found["cold"] = await wakes(here, job, host, "cold", cold)
        found["cold_races"] = await races(here, job, host, "cold", max(1, cold // 5))
        await here.client.call("POST", f"{JOBS}/{job}/stop")
        await here.settled()
        found["density"] = await density(here, sleepers)
    found["machine"]["load_after"] = os.getloadavg()[0]
    return found


def print_results(results: dict[str, Any]) -> None:
    names = {"awake": "awake", "frozen": "frozen", "cold": f"cold, {COLD_BYTES // 10**6} MB of files"}
    rows = [
        [name, f"{results[key]['ok']}", *(f"{results[key].get(share, 0):.1f}" for share in ("p50", "p95", "p99"))]
        for key, name in names.items()
    ]
    print("\nA request on a new connection, milliseconds until the first byte of the app's answer\n")
    report.print_table(["the sandbox is", "ok", "p50", "p95", "p99"], rows)
    for depth in ("frozen", "cold"):
        race = results[f"{depth}_races"]
        print(
            f"{race['races']} races of {RACERS} on a {depth} one: {len(race['failed'])} of {race['requests']} failed; ",
            end="",
        )
        print(f"slowest of each race p50 {race['slowest_of_each'].get('p50')} ms")
    found = results["density"]
    print(f"\n{found['count']} sandboxes, KB each (of them frozen in {found['frozen_seconds']} s)\n")
    rows = [[name, str(kb["charged"]), str(kb["used"])] for name, kb in found["each_kb"].items()]
    report.print_table(["", "charged", "available memory taken"], rows)
    print(f"wake call of a frozen one: {found['wake_call']} ms")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=100, help="wakes, and half as many races (default 100)")
    arguments.add_argument("--cold", type=int, default=100, help="cold wakes, and a fifth as many races (default 100)")
    arguments.add_argument("--sleepers", type=int, default=300, help="frozen sandboxes (default 300)")
    chosen = arguments.parse_args()
    results = uvloop.run(measured(chosen.count, chosen.cold, chosen.sleepers))
    print_results(results)
    print(f"\nRaw values: {report.write('sleep', results)}")


if __name__ == "__main__":
    main()
