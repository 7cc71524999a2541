"""`echo hello`: how long from the submission until its output is seen, and until it is over; and the same elsewhere.

The method of the ComputeSDK benchmark of time to interactive (each sandbox fresh, one after the other, 200 ms apart,
100 at once), with local sandboxes beside it in the same run. See README.md.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from measure import memory, peers, report
from measure.client import MARKS, Timing
from measure.installation import Installation, installation
from measure.report import summary

PACE, STAGGER = 0.250, 0.200  # seconds

WARM_UP = 3  # jobs, no more than the pool's minimum, so that it does not grow by them
SMALL_POOL, LARGE_POOL = 3, 43
LIMIT = 900  # seconds for everything


async def one_after_another(here: Installation, count: int, pace: float) -> list[Timing]:
    """Each begins `pace` seconds after the last began, or when that has ended, whichever is later."""
    timings: list[Timing] = []
    for _ in range(count):
        due = time.perf_counter() + pace
        timings.append(await here.client.hello())
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    return timings


async def staggered(here: Installation, count: int) -> list[Timing]:
    tasks: list[asyncio.Task[Timing]] = []
    for _ in range(count):
        tasks.append(asyncio.create_task(here.client.hello()))
        await asyncio.sleep(STAGGER)
    return await asyncio.gather(*tasks)


async def burst(here: Installation, count: int) -> list[Timing]:
    """All at once; the times of each count from the moment before the first."""
    begun = time.perf_counter()
    return await asyncio.gather(*(here.client.hello(begun) for _ in range(count)))


async def phase(here: Installation, run: Callable[[], Awaitable[list[Timing]]]) -> dict[str, Any]:
    pool = await here.settled()
    programs = here.programs
    pids = list(programs.values())
    own, theirs, begun = report.own_cpu_ms(), report.cpu_ms(pids), time.perf_counter()
    timings = await run()
    took = time.perf_counter() - begun
    jobs = max(1, len(timings))
    return {
        "idle_before": pool["idle_vms"],
        "took_seconds": round(took, 3),
        "client_cpu_ms_per_job": round((report.own_cpu_ms() - own) / jobs, 3),
        "programs_cpu_ms_per_job": round((report.cpu_ms(pids) - theirs) / jobs, 3),
        "success": report.success(timings),
        **{field: summary(timings, field) for field in MARKS},
        "timings": [timing.as_json() for timing in timings],
    }


async def phases(count: int) -> dict[str, Any]:
    """On one Roost that stays, but for the first: its pool holds no more than its minimum when the burst comes."""
    found: dict[str, Any] = {}
    async with installation(SMALL_POOL) as here:
        await one_after_another(here, WARM_UP, 0.5)
        found["burst, small pool"] = await phase(here, lambda: burst(here, count))
    async with installation(SMALL_POOL) as here:
        await one_after_another(here, WARM_UP, 0.5)
        found["paced"] = await phase(here, lambda: one_after_another(here, count, PACE))
        found["back to back"] = await phase(here, lambda: one_after_another(here, count, 0.0))
        found["staggered"] = await phase(here, lambda: staggered(here, count))
        found["burst"] = await phase(here, lambda: burst(here, count))
    return found


async def idle_memory() -> dict[str, Any]:
    """Of Roost's programs, and of a member of the pool: the difference between a small and a large pool."""
    small = await _idle(SMALL_POOL)
    large = await _idle(LARGE_POOL)
    members = LARGE_POOL - SMALL_POOL
    taken = large["taken_kb"] - small["taken_kb"]
    each = {
        "guests_pss": round((large["guests"]["pss"] - small["guests"]["pss"]) / members),
        "programs_pss": round((large["together"]["pss"] - small["together"]["pss"]) / members),
        **{name: round((large["grown_kb"][name] - small["grown_kb"][name]) / members) for name in memory.KERNEL_SIDE},
    }
    accounted = sum(each[name] for name in ("guests_pss", "programs_pss", *memory.ACCOUNTED))
    charged = round((large["charged_kb"] - small["charged_kb"]) / members)
    return {
        "pools": {str(SMALL_POOL): small, str(LARGE_POOL): large},
        "per_member_kb": {"available": round(taken / members), "accounted": accounted, "charged": charged, **each},
    }


async def _idle(pool: int) -> dict[str, Any]:
    before = await memory.machine_kb()
    async with installation(pool) as here:
        await here.settled(pool)
        await asyncio.sleep(2)
        groups = memory.Groups(here.number)
        programs = {name: memory.process_kb(pid) for name, pid in here.programs.items()}
        guests = memory.together(memory.process_kb(pid) for pid in groups.pids())
        after = await memory.machine_kb()
        return {
            "start_seconds": round(here.start_seconds, 2),
            "taken_kb": before["MemAvailable"] - after["MemAvailable"],
            "grown_kb": {name: after[name] - before[name] for name in after},
            "charged_kb": sum(groups.charged_kb()),
            "programs": programs,
            "together": memory.together(programs.values()),
            "guests": guests,
        }


def beside(count: int, images: Path) -> dict[str, Any]:
    """The peers, in the phases that Roost ran through."""
    found: dict[str, Any] = {}
    with peers.place(images) as place:
        for peer in peers.peers(place):
            why = peers.refusal(peer)
            found[peer.name] = {"refused": why} if why else {"what": peer.what} | peer_phases(peer, count)
    return found


def peer_phases(peer: peers.Peer, count: int) -> dict[str, Any]:
    phases = {
        "paced": lambda: peers.sequential(peer, count, PACE),
        "back to back": lambda: peers.sequential(peer, count, 0.0),
        "burst": lambda: peers.burst(peer, count),
    }
    return {name: of_peer(run()) for name, run in phases.items()}


def of_peer(timings: list[Timing]) -> dict[str, Any]:
    return {
        "success": report.success(timings),
        "first_ms": summary(timings, "first_ms"),
        "end_ms": summary(timings, "end_ms"),
        "timings": [timing.as_json() for timing in timings],
    }


# ---- the tables -------------------------------------------------------------------------------------------


def cells(values: dict[str, float]) -> list[str]:
    return [f"{values[name]:.1f}" if values else "-" for name in ("p50", "p95", "p99")]


def ratio(peer: dict[str, float], roost: dict[str, float]) -> str:
    return f"{peer['p50'] / roost['p50']:.1f}" if peer and roost else "-"


def print_results(results: dict[str, Any]) -> None:
    roost, others = results["roost"], results["peers"]
    print("\nRoost, milliseconds from the submission until …\n")
    heads = [
        "",
        "ok",
        "answer p50",
        "p95",
        "p99",
        "1st line p50",
        "p95",
        "p99",
        "completed p50",
        "p95",
        "p99",
        "all in s",
    ]
    rows = [
        [name, run["success"], *(cell for field in MARKS for cell in cells(run[field])), f"{run['took_seconds']:.2f}"]
        for name, run in roost.items()
    ]
    report.print_table(heads, rows)
    print(
        "\nThe same command elsewhere, milliseconds from the start; ratio: its p50 until over by Roost's, completed\n"
    )
    heads = ["", "ok", "1st line p50", "p95", "p99", "over p50", "p95", "p99", "ratio"]
    rows = [
        [
            *(f"{name}, {phase}", run["success"], *cells(run["first_ms"]), *cells(run["end_ms"])),
            ratio(run["end_ms"], roost[phase]["end_ms"]),
        ]
        for name, peer in others.items()
        for phase, run in peer.items()
        if phase in roost
    ]
    report.print_table(heads, rows)
    for name, peer in others.items():
        if "refused" in peer:
            print(f"{name}: not measured: {peer['refused']}")
    print_memory(results["memory"])


def print_memory(found: dict[str, Any]) -> None:
    small = found["pools"][str(SMALL_POOL)]
    print("\nIdle, MB\n")
    rows = [
        [name, f"{kb['pss'] / 1024:.1f}", f"{kb['rss'] / 1024:.1f}"]
        for name, kb in [*small["programs"].items(), ("together", small["together"])]
    ]
    report.print_table(["", "PSS", "RSS"], rows)
    each = found["per_member_kb"]
    parts = {
        "PSS of guest init": "guests_pss",
        "PSS in Roost's programs": "programs_pss",
        "slab": "Slab",
        "kernel stacks": "KernelStack",
        "page tables": "PageTables",
        "per-CPU": "Percpu",
        "together": "accounted",
        "of the machine's available memory, which others change too": "available",
        "charged to its cgroup": "charged",
    }
    print("\nEach idle member of the pool, KB\n")
    report.print_table(["", ""], [[name, str(each[key])] for name, key in parts.items()])


def parsed() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=100, help="jobs of each phase (default 100)")
    arguments.add_argument("--images", type=Path, default=Path("/var/lib/roost/images"))
    return arguments.parse_args()


async def measured(count: int, images: Path) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT):
        found: dict[str, Any] = {"benchmark": "hello", "machine": report.facts(), "count": count}
        print(f"{found['machine']}", flush=True)
        found["memory"] = await idle_memory()
        found["roost"] = await phases(count)
        found["peers"] = await asyncio.to_thread(beside, count, images)
        found["machine"]["load_after"] = os.getloadavg()[0]
        return found


def main() -> None:
    chosen = parsed()
    results = uvloop.run(measured(chosen.count, chosen.images))
    print_results(results)
    print(f"\nRaw values: {report.write('hello', results)}")


if __name__ == "__main__":
    main()
