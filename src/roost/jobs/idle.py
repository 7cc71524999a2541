"""Which persistent jobs fall asleep, and which sleepers go cold: by time, and sooner where memory is short.

Activity is what holds `Run.use`: a request or connection on one of its routes, an SSH login, a command, a reader that
follows its log. A lease (`keepalive`) is the same without a connection. What a script does by itself is not activity.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog
from structlog.typing import FilteringBoundLogger

from roost.clock import now_ns
from roost.errors import RoostError
from roost.jobs.run import Means, Run
from roost.node.protocol import Freeze, NodeInfo

LOOK = 1.0  # seconds between looks
LOOK_AT_MEMORY = 5.0
SHORT_OF_MEMORY = 0.15  # of the machine's memory that is available, below which sleepers make room
AT_ONCE = 4  # sleepers that go cold in one look

log: FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class Patience:
    """Seconds."""

    idle: float = 600.0  # unused, until a job falls asleep that does not say itself
    frozen: float = 3600.0  # until it goes cold


async def watch(runs: Callable[[], Collection[Run]], means: Means, patience: Patience) -> None:
    """For ever."""
    looked_at_memory = 0.0
    reclaimed: set[str] = set()
    while True:
        await asyncio.sleep(LOOK)
        everyone = runs()
        fall_asleep(everyone)
        go_cold(everyone, patience.frozen)
        sleepers = [run for run in everyone if run.rests.is_set()]
        reclaimed &= {run.job.vm_id for run in sleepers}
        if sleepers and time.monotonic() - looked_at_memory > LOOK_AT_MEMORY:
            looked_at_memory = time.monotonic()
            try:
                await make_room(sleepers, reclaimed, means, await means.node.info())
            except RoostError as error:
                log.warning("sleepers.unreclaimed", error=str(error))


def fall_asleep(runs: Collection[Run]) -> None:
    now, clock = time.monotonic(), now_ns()
    for run in runs:
        job = run.job
        if not job.persistent or job.no_sleep or not run.awake or run.uses or run.sleep_wanted:
            continue
        if now - run.used >= job.idle_seconds and (job.keepalive_ns or 0) <= clock:
            run.sleep("frozen", automatic=True)


def go_cold(runs: Collection[Run], after: float) -> None:
    clock = now_ns()
    for run in runs:
        if run.rests.is_set() and clock - (run.job.asleep_ns or clock) >= after * 1e9:
            run.sleep("cold", automatic=True)


async def make_room(sleepers: list[Run], reclaimed: set[str], means: Means, info: NodeInfo) -> None:
    """First what memory sleepers can do without; then the longest asleep go cold."""
    if info.memory_available_mb >= SHORT_OF_MEMORY * info.memory_mb:
        return
    sleepers.sort(key=lambda run: run.job.asleep_ns or 0)
    fresh = [run for run in sleepers if run.job.vm_id not in reclaimed]
    for run in fresh:
        await means.node.freeze(run.job.vm_id, Freeze(reclaim=True))
        reclaimed.add(run.job.vm_id)
    if not fresh:
        for run in sleepers[:AT_ONCE]:
            run.sleep("cold", automatic=True)
