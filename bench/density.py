"""Many live, idle sandboxes at once: how long they take to make, what each costs, and how Roost answers beside them.

See README.md for the method.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from measure import memory, report
from measure.client import JOBS, MARKS, Timing
from measure.installation import Installation, installation
from measure.report import summary

SCRIPT = {"script": "sleep 600", "memory_mb": 64, "timeout": 1200}
AT_ONCE = 8  # requests under way
PACE = 0.250  # seconds between the jobs beside
PAGE = 100
IDLE_SECONDS = 4
CREATE_SECONDS = 240
LIMIT = 600  # seconds for everything


async def create(here: Installation, count: int) -> dict[str, Any]:
    """All sandboxes, until each of their scripts runs."""
    begun = time.perf_counter()
    accepted = await several(count, lambda _: here.client.call("POST", JOBS, SCRIPT))
    submitted = time.perf_counter() - begun
    async with asyncio.timeout(CREATE_SECONDS):
        while (running := await count_running(here)) < count:
            await asyncio.sleep(0.1)
    return {
        "ids": [one["request_id"] for one in accepted],
        "submitted_seconds": round(submitted, 2),
        "running_seconds": round(time.perf_counter() - begun, 2),
        "running": running,
    }


async def count_running(here: Installation) -> int:
    """Raises RuntimeError when one has ended."""
    page, seen, running, total = 1, 0, 0, 1
    while seen < total:
        answer = await here.client.call("GET", f"{JOBS}?page={page}&page_size={PAGE}")
        statuses = [job["status"] for job in answer["jobs"]]
        if set(statuses) - {"pending", "running"}:
            raise RuntimeError(f"a sandbox ended early: {[j for j in answer['jobs'] if j.get('completed_at')][:1]}")
        running += statuses.count("running")
        page, seen, total = page + 1, seen + len(statuses), answer["total"] if statuses else 0
    return running


async def several(count: int, call: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """`call(0)` to `call(count - 1)`, a few at a time."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Any:
        async with free:
            return await call(number)

    return await asyncio.gather(*(one(number) for number in range(count)))


async def stop(here: Installation, ids: list[str]) -> dict[str, Any]:
    begun = time.perf_counter()
    answers = await several(len(ids), lambda number: here.client.call("POST", f"{JOBS}/{ids[number]}/stop"))
    stopped = time.perf_counter() - begun
    await here.settled()
    return {
        "stopped": sum(answer["success"] for answer in answers),
        "stopped_seconds": round(stopped, 2),
        "gone_seconds": round(time.perf_counter() - begun, 2),
    }


async def beside(here: Installation, count: int) -> list[Timing]:
    timings: list[Timing] = []
    for _ in range(count):
        due = time.perf_counter() + PACE
        timings.append(await here.client.hello())
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    return timings


async def reading(here: Installation) -> dict[str, Any]:
    """Of the machine, of Roost's programs, and of everything in the members' groups."""
    groups = memory.Groups(here.number)
    return {
        "machine_kb": await memory.machine_kb(),
        "programs_kb": {name: memory.process_kb(pid) for name, pid in here.programs.items()},
        "guests_kb": {
            name: {"processes": len(readings), **memory.together(readings)}
            for name, readings in groups.by_program().items()
        },
        "members": len(groups.members()),
        "charged_kb": sum(groups.charged_kb()),
        "charged_kernel_kb": sum(groups.kernel_kb()),
        "programs_cpu_share": await programs_cpu_share(list(here.programs.values())),
    }


async def programs_cpu_share(pids: list[int]) -> float:
    """Of one CPU, how much Roost's programs use while nobody asks anything of them."""
    used = report.cpu_ms(pids)
    await asyncio.sleep(IDLE_SECONDS)
    return round((report.cpu_ms(pids) - used) / IDLE_SECONDS / 1000, 4)


def each(before: dict[str, Any], after: dict[str, Any], count: int) -> dict[str, int]:
    """KB for one sandbox, from the readings before and with all of them."""

    def grown(name: str) -> int:
        return round((after["machine_kb"][name] - before["machine_kb"][name]) / count)

    def programs(of: dict[str, Any]) -> int:
        return sum(kb["pss"] for kb in of["programs_kb"].values())

    def guests(of: dict[str, Any]) -> int:
        return sum(kb["pss"] for kb in of["guests_kb"].values())

    found = {
        "guests_pss": round((guests(after) - guests(before)) / count),
        "programs_pss": round((programs(after) - programs(before)) / count),
        **{name: grown(name) for name in memory.KERNEL_SIDE},
        "charged": round((after["charged_kb"] - before["charged_kb"]) / count),
        "charged_kernel": round((after["charged_kernel_kb"] - before["charged_kernel_kb"]) / count),
    }
    accounted = sum(found[name] for name in ("guests_pss", "programs_pss", *memory.ACCOUNTED))
    return {"available": -grown("MemAvailable"), "accounted": accounted, **found}


async def measured(count: int, jobs: int) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT):
        found: dict[str, Any] = {"benchmark": "density", "machine": report.facts(), "count": count}
        print(f"{found['machine']}", flush=True)
        async with installation() as here:
            await asyncio.sleep(2)
            found["before"] = await reading(here)
            created = await create(here, count)
            ids = created.pop("ids")
            print(f"{count} sandboxes run after {created['running_seconds']} s", flush=True)
            await asyncio.sleep(5)
            found |= {"created": created, "with": await reading(here)}
            found["each_kb"] = each(found["before"], found["with"], count)
            timings = await beside(here, jobs)
            found["beside"] = {
                "success": report.success(timings),
                **{field: summary(timings, field) for field in MARKS},
                "timings": [timing.as_json() for timing in timings],
            }
            found["stopped"] = await stop(here, ids)
            found["after"] = await reading(here)
        found["machine"]["load_after"] = os.getloadavg()[0]
        return found


def print_results(results: dict[str, Any]) -> None:
    count, created, stopped = results["count"], results["created"], results["stopped"]
    rate = count / created["running_seconds"]
    print(f"\n{count} sandboxes: all run after {created['running_seconds']} s ({rate:.0f} a second), ", end="")
    print(f"submitted in {created['submitted_seconds']} s")
    print(
        f"all stopped in {stopped['stopped_seconds']} s, gone and the pool full again in {stopped['gone_seconds']} s;"
    )
    print("after Roost: no mount, interface, cgroup, loop device, nft table or directory of it left")
    print(f"CPU of Roost's programs while they idle: {results['with']['programs_cpu_share']:.1%} of one\n")
    names = {
        "available": "the machine's available memory, all in all",
        "accounted": "accounted for: PSS, slab, kernel stacks, page tables, per-CPU",
        "guests_pss": "PSS of the guest's processes",
        "programs_pss": "PSS in Roost's programs",
        "charged": "charged to its cgroup",
        "charged_kernel": "of it kernel memory",
    }
    rows = [[names.get(name, f"kernel: {name}"), str(kb)] for name, kb in results["each_kb"].items()]
    report.print_table(["KB for each sandbox", ""], rows)
    print()
    guests = results["with"]["guests_kb"].items()
    rows = [[name, str(kb["processes"]), f"{kb['pss'] / kb['processes']:.0f}", str(kb["rss"])] for name, kb in guests]
    report.print_table(["processes of the guests", "", "PSS KB each", "RSS KB together"], rows)
    beside = results["beside"]
    print(f"\n`echo hello` beside them, {beside['success']}, milliseconds from the submission until\n")
    rows = [
        [name, *(f"{beside[field][share]:.1f}" for share in ("p50", "p95", "p99"))]
        for name, field in zip(("answer", "first line", "completed"), MARKS, strict=True)
        if beside[field]
    ]
    report.print_table(["", "p50", "p95", "p99"], rows)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=300, help="sandboxes (default 300)")
    arguments.add_argument("--jobs", type=int, default=100, help="jobs beside them (default 100)")
    chosen = arguments.parse_args()
    results = uvloop.run(measured(chosen.count, chosen.jobs))
    print_results(results)
    print(f"\nRaw values: {report.write('density', results)}")


if __name__ == "__main__":
    main()
