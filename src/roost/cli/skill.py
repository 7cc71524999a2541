"""`roost skill`: the file that teaches a coding agent to use Roost."""

import importlib.resources
from pathlib import Path

import click

from roost.cli.wording import note
from roost.errors import Conflict, StateUnwritable

PLACE = Path(".claude") / "commands" / "mags.md"


@click.group()
def skill() -> None:
    """Teach AI coding agents to use Roost."""


@skill.command()
@click.option("--project", is_flag=True, help="For this directory's project alone.")
@click.option("--force", is_flag=True, help="Replace a file that somebody changed.")
def install(project: bool, force: bool) -> None:
    """Install the command /mags for Claude Code: in all projects, or in this one.

    \b
    roost skill install              # ~/.claude/commands/mags.md
    roost skill install --project    # ./.claude/commands/mags.md
    """
    place = (Path.cwd() if project else Path.home()) / PLACE
    text = _text()
    try:
        if place.exists() and place.read_text() != text and not force:
            raise Conflict(f"{place} is there and is not as we would write it; --force replaces it")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    except OSError as error:
        raise StateUnwritable(f"cannot write {place}: {error.strerror or error}") from error
    click.echo(place)
    note("in Claude Code, say: /mags run a python script that calculates fibonacci numbers")


def _text() -> str:
    """Also from within an archive."""
    return importlib.resources.files("roost.handouts").joinpath("mags.md").read_text()


@skill.command()
def show() -> None:
    """Print it, for other agents."""
    click.echo(_text(), nl=False)
