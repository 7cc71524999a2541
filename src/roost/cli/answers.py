"""How commands show what the API answered: as JSON, as columns, as words of one line; and how they fail.

Every command that asks the API takes `--json` (`as_json`, the argument `raw`). Standard output then holds JSON alone,
in the API's own shapes: one document, or a line for each step where a command follows something. A command that fails
prints `{"error": text}` there, and its status is what it would be without: 1 for conditions, 2 for bad usage.
"""

import json
from collections.abc import Iterable

import click

from roost.cli.connection import Json

JSON = "roost.json"  # in a context's meta: whether `--json` was given


def _remember(ctx: click.Context, _: click.Parameter, wanted: bool) -> bool:
    ctx.meta[JSON] = wanted
    return wanted


as_json = click.option(
    "--json", "raw", is_flag=True, is_eager=True, callback=_remember, help="Print the API's answer as JSON."
)


class Failure(click.ClickException):
    """A condition's text on standard error, or as JSON on standard output; status 1."""

    def __init__(self, text: str, as_json: bool) -> None:
        super().__init__(text)
        self._as_json = as_json

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


def print_table(titles: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    for row in [titles, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(answer: Json, names: Iterable[str] | None = None) -> None:
    """A line for each field, or for each of `names` that is there."""
    for name in answer if names is None else [one for one in names if one in answer]:
        click.echo(f"{name + ':':<20}{word(answer[name])}")
