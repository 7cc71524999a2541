"""How commands show what the API answered: as JSON, as columns, as words of one line; and how they fail.

Every command that asks the API takes `--json` (`as_json`, the argument `raw`). Standard output then holds JSON alone,
in the API's own shapes: one document, or a line for each step where a command follows something. A command that fails
prints `{"error": text}` there, and its status is what it would be without: 1 for conditions, 2 for bad usage; or 125
for both, where a command ends with the status of something else (`Carrying`).
"""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

import click

from roost.cli.connection import Json
from roost.cli.wording import own_words

JSON = "roost.json"  # in a context's meta: whether `--json` was given
CARRIES = "roost.carries"  # … whether the command ends with somebody else's status
SHORT = 8  # characters
COLOURS = {
    "running": "green", "completed": "green", "ok": "green", "sleeping": "cyan", "stopped": "cyan", "pending": "yellow",
    "creating": "yellow", "starting": "yellow", "error": "red", "failed": "red", "missing": "red",
}  # fmt: skip
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OUR_FAILURE = 125  # as docker's: of such a command, what went wrong before or beside that status


def _remember(ctx: click.Context, _: click.Parameter, wanted: bool) -> bool:
    ctx.meta[JSON] = wanted
    return wanted


as_json = click.option(
    "--json", "raw", is_flag=True, is_eager=True, callback=_remember, help="Print the API's answer as JSON."
)


class Carrying(click.Command):
    """A command that ends with the status of what it ran; its own failures are told from that by OUR_FAILURE."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is not None:
            parent.meta[CARRIES] = True
        return super().make_context(info_name, args, parent, **extra)


class Failure(click.ClickException):
    """A condition's text on standard error, or as JSON on standard output; status 1."""

    def __init__(self, text: str, as_json: bool, carries: bool = False) -> None:
        super().__init__(own_words(text))
        self._as_json = as_json
        if carries:
            self.exit_code = OUR_FAILURE  # pyright: ignore[reportAttributeAccessIssue]

    def show(self, file: object = None) -> None:
        if self._as_json:
            print_json({"error": self.message})
        else:
            click.echo(f"Error: {self.message}", err=True)


class BadUsage(Failure):
    """The command line itself is wrong; status 2."""

    exit_code = 2


def print_json(answer: Json) -> None:
    click.echo(json.dumps(answer, indent=2))


def print_line(step: Json) -> None:
    """One of several JSON documents, each on a line of its own."""
    click.echo(json.dumps(step))


def word(value: object) -> str:
    """A value on one line of a terminal: nothing in it can move the cursor."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(c if c.isprintable() else "?" for c in str(value))


def on_terminal() -> bool:
    return sys.stdout.isatty()


def coloured() -> bool:
    """https://no-color.org: any value but none says no."""
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def short(id: str) -> str:
    """On a terminal as much of an id as people type; every command takes that."""
    return word(id)[:SHORT] if on_terminal() and _UUID.fullmatch(id) else word(id)


def width(text: str) -> int:
    """Columns that it takes on a terminal."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    widths = [max(width(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    paints = coloured()
    for row in [titles, *rows]:
        cells = [cell + " " * (most - width(cell)) for cell, most in zip(row, widths, strict=True)]
        line = "  ".join(_painted(cell) if paints else cell for cell in cells).rstrip()
        click.echo(click.style(line, bold=True) if paints and row is titles else line)


def _painted(cell: str) -> str:
    colour = COLOURS.get(cell.rstrip())
    return click.style(cell, fg=colour) if colour else cell


def print_fields(answer: Json, names: Iterable[str] | None = None) -> None:
    """A line for each field, or for each of `names` that is there."""
    for name in answer if names is None else [one for one in names if one in answer]:
        click.echo(f"{name + ':':<20}{word(answer[name])}")
