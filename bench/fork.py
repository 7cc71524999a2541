"""A job on a base against one without: how much later its first line comes, and whether that grows with the base.

Paced like `hello.py`, the variants one after the other in every round, so that whatever else the machine does meets all
of them alike. See README.md.
"""

import argparse
import asyncio
import secrets
import time
from typing import Any

import uvloop
from measure import report
from measure.client import MARKS, Timing
from measure.installation import Installation, installation
from measure.report import summary

PACE = 0.250  # seconds from the beginning of a job to that of the next
WARM_UP = 3  # rounds that do not count
POOL = 3
SIZES = {"1 MB": 1, "300 MB": 300}
DEPTH = 30  # saves, one on the other
LIMIT = 1800  # seconds for everything


async def bases(here: Installation) -> dict[str, dict[str, Any]]:
    """What each variant adds to a submission."""
    variants: dict[str, dict[str, Any]] = {"no base": {}}
    for name, megabytes in SIZES.items():
        workspace = f"base-{megabytes}"
        fill = f"mkdir /srv/d; cd /srv/d; for i in $(seq {megabytes}); do head -c 1M /dev/urandom > $i; done"
        await here.client.run(fill, workspace_id=workspace)
        variants[f"base of {name}"] = {"base_workspace_id": workspace}
    for number in range(DEPTH):
        await here.client.run(f"echo {number} > /srv/{number}", workspace_id="deep")
    variants[f"base of {DEPTH} layers"] = {"base_workspace_id": "deep"}
    variants["fork of 300 MB, saved"] = {"base_workspace_id": "base-300", "workspace_id": None}
    return variants


async def rounds(here: Installation, variants: dict[str, dict[str, Any]], count: int) -> dict[str, list[Timing]]:
    timings: dict[str, list[Timing]] = {name: [] for name in variants}
    for number in range(WARM_UP + count):
        for name, fields in variants.items():
            due = time.perf_counter() + PACE
            asked = {key: value or f"fork-{secrets.token_hex(6)}" for key, value in fields.items()}
            timing = await here.client.hello(**asked)
            if number >= WARM_UP:
                timings[name].append(timing)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
    return timings


async def measured(count: int) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT):
        found: dict[str, Any] = {"benchmark": "fork", "machine": report.facts(), "count": count}
        print(f"{found['machine']}", flush=True)
        async with installation(POOL) as here:
            variants = await bases(here)
            await here.settled()
            timings = await rounds(here, variants, count)
        found["variants"] = {
            name: {
                "success": report.success(its),
                **{mark: summary(its, mark) for mark in MARKS},
                "timings": [timing.as_json() for timing in its],
            }
            for name, its in timings.items()
        }
        return found


def print_results(found: dict[str, Any]) -> None:
    plain = found["variants"]["no base"]
    print("\nMilliseconds from the submission until …; added: to the first line without a base\n")
    rows = []
    for name, run in found["variants"].items():
        first, over = run["first_ms"], run["end_ms"]
        points = ("p50", "p95", "p99")
        added = [f"{first[point] - plain['first_ms'][point]:+.1f}" for point in points]
        values = [f"{kind[point]:.1f}" for kind in (first, over) for point in points]
        rows.append([name, run["success"], *values[:3], *added, *values[3:]])
    heads = ["", "ok", "1st line p50", "p95", "p99", "added p50", "p95", "p99", "completed p50", "p95", "p99"]
    report.print_table(heads, rows)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=100, help="jobs of each variant (default 100)")
    found = uvloop.run(measured(arguments.parse_args().count))
    print_results(found)
    print(f"\nRaw values: {report.write('fork', found)}")


if __name__ == "__main__":
    main()
