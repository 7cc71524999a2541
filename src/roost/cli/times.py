"""Points in time as people give and read them: `10m` ago, `3 hours ago`."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import click

from roost.cli.answers import on_terminal, short, word
from roost.cli.connection import Json

INSTANTS = ("at", "since", "last_used")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_STEPS = (("year", 31_536_000), ("month", 2_592_000), ("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


class Since(click.ParamType[datetime]):
    """`90s`, `10m`, `2h`, `1d` ago, or an instant; without a zone it is this machine's time."""

    name = "time"

    def convert(self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if ago := _AGO.fullmatch(value):
                return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: float(ago[1])})
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; give one like 10m, 2h, 1d or 2027-01-31T12:00:00Z", param, ctx)


SINCE = Since()


def told(instant: str | None) -> str:
    """An instant of the API: how long ago on a terminal, and as it is for programs."""
    if instant is None or not on_terminal():
        return word(instant)
    try:
        return relative(datetime.fromisoformat(instant), datetime.now(UTC))
    except ValueError:
        return word(instant)


def cells(record: Json, keys: Iterable[str]) -> list[str]:
    """A row of a list: instants as ages and ids short, where that is for people."""
    return [_cell(key, record.get(key)) for key in keys]


def _cell(key: str, value: Json) -> str:
    if isinstance(value, str) and (key.endswith("_at") or key in INSTANTS):
        return told(value)
    return short(value) if isinstance(value, str) and (key == "id" or key.endswith("_id")) else word(value)


def relative(instant: datetime, now: datetime) -> str:
    seconds = round((now - instant).total_seconds())
    for name, length in _STEPS:
        if abs(seconds) >= length:
            count = abs(seconds) // length
            words = f"{count} {name}{'' if count == 1 else 's'}"
            return f"{words} ago" if seconds > 0 else f"in {words}"
    return "just now"
