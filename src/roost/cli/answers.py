"""How commands show what the API answered: as JSON, as columns, as words of one line."""

import json

import click

from roost.cli.connection import Json

as_json = click.option("--json", "raw", is_flag=True, help="Print the API's answer as JSON.")


def print_json(answer: Json) -> None:
    click.echo(json.dumps(answer, indent=2))


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
