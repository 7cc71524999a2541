"""The API under load, and whether it stays as fast with many rows: status, list and submit at 1, 16 and 64 clients.

Three Roosts run side by side, one with few jobs, one with 10,000, one with 100,000 and 1,000 schedules. Every round
asks each of them, so that what else the machine does meets all alike. See README.md.
"""

import argparse
import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from measure import report
from measure.client import JOBS, Client
from measure.installation import Installation, free_address, installation

LIMIT = 1800  # seconds for everything
CLIENTS = (1, 16, 64)
FEW, MANY, VERY_MANY, SCHEDULES = 100, 10_000, 100_000, 1_000
SCRIPT = ":"
FLOOR = Path(__file__).parent / "measure" / "bare_framework.py"

Ask = Callable[[Client], Awaitable[Any]]


@dataclass
class Subject:
    """Something that is asked; `job`: one that has ended."""

    name: str
    client: Client
    job: str = ""
    here: Installation | None = None
    found: dict[str, list[float]] = field(default_factory=dict)  # milliseconds of every request, by question
    seconds: dict[str, float] = field(default_factory=dict)

    def questions(self) -> dict[str, Ask]:
        if self.here is None:
            return {"status": lambda client: client.call("GET", "/status")}
        return {
            "status": lambda client: client.call("GET", f"{JOBS}/{self.job}/status"),
            "list, 20 of them": lambda client: client.call("GET", JOBS),
            "list, 100 of them": lambda client: client.call("GET", f"{JOBS}?page_size=100"),
            "submit": lambda client: client.call("POST", JOBS, {"script": SCRIPT, "type": "inline"}),
        }


async def load(subject: Subject, what: str, ask: Ask, clients: int, count: int) -> None:
    """`count` requests by that many clients, each of which sends its next when it has read an answer."""
    name = f"{what} @{clients}"
    times = subject.found.setdefault(name, [])
    remaining = count

    async def one() -> None:
        nonlocal remaining
        while remaining > 0:
            remaining -= 1
            begun = time.perf_counter()
            await ask(subject.client)
            times.append((time.perf_counter() - begun) * 1000)

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    subject.seconds[name] = subject.seconds.get(name, 0.0) + time.perf_counter() - begun


async def rounds(subjects: list[Subject], count: int, times: int) -> None:
    for number in range(times):
        for clients in CLIENTS:
            for what in ("status", "list, 20 of them", "list, 100 of them", "submit"):
                for subject in subjects[number % len(subjects) :] + subjects[: number % len(subjects)]:
                    if ask := subject.questions().get(what):
                        await load(subject, what, ask, clients, max(clients, count // times))
                        await emptied(subject)


async def emptied(subject: Subject) -> None:
    """What was submitted has run, so that it does not meet the next question."""
    if subject.here is not None:
        await subject.here.settled()


# ---- the rows ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def roost(name: str, jobs: int, schedules: int) -> AsyncGenerator[Subject]:
    async with installation(3) as here:
        accepted = await here.client.call("POST", JOBS, {"script": SCRIPT})
        await here.client.run(SCRIPT)
        await asyncio.to_thread(fill, here.state / "serve" / "roost.db", jobs)
        for number in range(schedules):
            cron = {"name": f"c{number}", "cron_expression": "0 0 1 1 *", "script": SCRIPT}
            await here.client.call("POST", "/api/v1/mags-cron", cron)
        yield Subject(name, here.client, accepted["request_id"], here)


def fill(database: Path, jobs: int) -> None:
    """Copies of a job that has ended, each with names of its own."""
    own = {
        "seq": "NULL",
        "request_id": "lower(hex(randomblob(16)))",
        "vm_id": "lower(hex(randomblob(8)))",
        "subdomain": "lower(hex(randomblob(8)))",
        "name": "'j' || lower(hex(randomblob(4)))",
        "created_ns": "created_ns - n * 1000000",
    }
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]
        values = ", ".join(own.get(column, column) for column in columns)
        counted = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
        model = "(SELECT * FROM jobs WHERE ended_ns IS NOT NULL LIMIT 1)"
        names = ", ".join(columns)
        connection.execute("UPDATE accounts SET jobs = jobs + ?", (jobs,))
        connection.execute(f"INSERT INTO jobs ({names}) {counted} SELECT {values} FROM numbers, {model}", (jobs,))


# ---- beside it ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def bare_framework() -> AsyncGenerator[Subject]:
    """The same server and framework with one route that answers a constant: what no API on them can beat."""
    host, port = free_address()
    process = subprocess.Popen([sys.executable, str(FLOOR), host, str(port)])
    try:
        async with Client(f"http://{host}:{port}", "none") as client:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError):
                    await client.call("GET", "/status")
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError("the bare framework did not start")
                await asyncio.sleep(0.1)
            yield Subject("bare framework", client)
    finally:
        process.terminate()
        process.wait()


# ---- the tables --------------------------------------------------------------------------------------------


def of_subject(subject: Subject) -> dict[str, Any]:
    shares = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
    return {
        name: {share: round(report.percentile(times, value), 2) for share, value in shares.items()}
        | {"requests_per_second": round(len(times) / subject.seconds[name]), "count": len(times), "values": times}
        for name, times in subject.found.items()
    }


def print_results(results: dict[str, Any]) -> None:
    few = results["few jobs"]
    rows = [
        [
            f"{question}, {name}",
            str(found["count"]),
            str(found["requests_per_second"]),
            *(f"{found[share]:.2f}" for share in ("p50", "p95", "p99")),
            f"{found['p50'] / few[question]['p50']:.2f}" if question in few else "-",
        ]
        for question in few
        for name, subject in results.items()
        if (found := subject.get(question))
    ]
    report.print_table(["", "n", "requests/s", "p50 ms", "p95", "p99", "p50 by that of few jobs"], rows)


async def measured(count: int, times: int) -> dict[str, Any]:
    async with asyncio.timeout(LIMIT), contextlib.AsyncExitStack() as stack:
        facts = report.facts()
        print(facts, flush=True)
        subjects = [
            await stack.enter_async_context(roost("few jobs", FEW, 0)),
            await stack.enter_async_context(roost("10,000 jobs", MANY, 0)),
            await stack.enter_async_context(roost("100,000 jobs, 1,000 schedules", VERY_MANY, SCHEDULES)),
            await stack.enter_async_context(bare_framework()),
        ]
        await rounds(subjects, count, times)
        facts["load_after"] = os.getloadavg()[0]
        return {"machine": facts, "found": {subject.name: of_subject(subject) for subject in subjects}}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=600, help="requests of each kind (default 600)")
    arguments.add_argument("--rounds", type=int, default=3)
    chosen = arguments.parse_args()
    results = uvloop.run(measured(chosen.count, chosen.rounds))
    print_results(results["found"])
    print(f"\nRaw values: {report.write('api', results)}")


if __name__ == "__main__":
    main()
