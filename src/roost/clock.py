"""Time as Roost records it: whole UTC instants in nanoseconds since the epoch."""

import time
from datetime import UTC, datetime


def now_ns() -> int:
    return time.time_ns()


def rfc3339(instant_ns: int) -> str:
    """`2026-02-04T12:00:00.123456Z`; microseconds, because most clients' parsers stop there."""
    whole = datetime.fromtimestamp(instant_ns // 1_000_000_000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{instant_ns % 1_000_000_000 // 1000:06d}Z"
