"""When a schedule is due: five-field expressions in a time zone, and which of several missed runs are made up for.

Daylight saving as Debian's cron has it (cronsim): a schedule at fixed hours and minutes fires once on the day the
clock goes back, and on the day it goes forward at the first minute that exists; one whose minute or hour begins with
`*` follows elapsed time. Instants are nanoseconds since the epoch.
"""

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal, TypeAlias
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from roost.errors import Invalid

Missed: TypeAlias = Literal["none", "latest", "all"]

SECOND = 1_000_000_000
CATCH_UP = 24  # missed runs that are made up for at most: the newest
LATE = 10 * SECOND  # from when on a run counts as missed
MAX_EXPRESSION = 256  # characters
MAX_ZONE = 64
LOOK_BACK = 3600 * SECOND  # first attempt at the newest instants; longer where it holds too few

HOW = (
    "five fields: minute, hour, day of month, month, day of week, like '30 2 * * MON-FRI' or '*/5 * * * *'; "
    "or @hourly, @daily, @weekly, @monthly, @yearly"
)
NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def check(expression: str, timezone: str, now_ns: int) -> None:
    """Raises Invalid, also for a schedule that never comes."""
    if len(expression) > MAX_EXPRESSION:
        raise Invalid(f"cron_expression: {len(expression)} characters; at most {MAX_EXPRESSION}")
    _zone(timezone)
    if len(_fields(expression).split()) != 5:
        raise Invalid(f"cron_expression: {expression!r} has {len(expression.split())} field(s); give {HOW}")
    if next_after(expression, timezone, now_ns) is None:
        raise Invalid(f"cron_expression: {expression!r} never comes; there is no such day in the next 50 years")


def next_after(expression: str, timezone: str, after_ns: int) -> int | None:
    """None if it never comes. Raises Invalid."""
    return next(_instants(expression, timezone, after_ns), None)


def owed(expression: str, timezone: str, first_ns: int, now_ns: int) -> list[int]:
    """The newest 24 instants from `first_ns` to `now_ns`, oldest first, without going through years of them."""
    span = LOOK_BACK
    while True:
        begin = max(first_ns - 1, now_ns - span)
        found = deque[int](maxlen=CATCH_UP)
        for instant in _instants(expression, timezone, begin):
            if instant > now_ns:
                break
            found.append(instant)
        if len(found) == CATCH_UP or begin == first_ns - 1:
            return list(found)
        span *= 8


def made_up_for(instants: list[int], missed: Missed, now_ns: int) -> list[int]:
    """Those of the owed instants that are run."""
    if missed == "all":
        return instants
    newest = instants[-1:]
    return newest if missed == "latest" else [one for one in newest if now_ns - one <= LATE]


def _instants(expression: str, timezone: str, after_ns: int) -> Iterator[int]:
    begin = datetime.fromtimestamp(after_ns // SECOND, UTC).astimezone(_zone(timezone))
    try:
        for when in CronSim(_fields(expression), begin):
            instant = int(when.timestamp()) * SECOND
            if instant > after_ns:  # asked within the hour that comes twice, cronsim names its first coming
                yield instant
    except CronSimError as error:
        raise Invalid(f"cron_expression: {expression!r}: {str(error).lower()}; give {HOW}") from None
    except OverflowError:
        return  # beyond the year 9999


def _fields(expression: str) -> str:
    """crontab(5) has names for the commonest."""
    return NAMED.get(expression.strip().lower(), expression)


def _zone(name: str) -> ZoneInfo:
    try:
        if not name or len(name) > MAX_ZONE:
            raise ValueError
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError; folders are OSErrors
        raise Invalid(
            f"timezone: {name[:MAX_ZONE]!r} is not known; give an IANA name like 'Europe/Berlin', or 'UTC'"
        ) from None
