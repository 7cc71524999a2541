"""Time as Roost records it: whole UTC instants in nanoseconds since the epoch; and a clock that can be waited by."""

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol


def now_ns() -> int:
    return time.time_ns()


def rfc3339(instant_ns: int) -> str:
    """`2026-02-04T12:00:00.123456Z`; microseconds, because most clients' parsers stop there."""
    whole = datetime.fromtimestamp(instant_ns // 1_000_000_000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{instant_ns % 1_000_000_000 // 1000:06d}Z"


class Clock(Protocol):
    """What tells the time to whoever acts at an hour; tests move theirs."""

    def now_ns(self) -> int: ...

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Returns when the event is set, or after that many seconds."""


class SystemClock:
    def now_ns(self) -> int:
        return now_ns()

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
