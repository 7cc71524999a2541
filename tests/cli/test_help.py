"""What the program says of itself: every command's help fits a screen, and the reference is what the commands say."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from roost.cli import reference
from roost.cli.main import COMMANDS, GROUPS, main

LINES, COLUMNS = 24, 80
ROOT = Path(__file__).parent.parent.parent


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command for people, of groups' commands too."""
    context = click.Context(main, info_name="roost")
    for name, (_, _, line) in COMMANDS.items():
        command = main.get_command(context, name)  # type: ignore[attr-defined]
        if line:
            yield from below(command, (name,))


def below(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from below(inner, (*words, name))


def shown(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, words, prog_name="roost", terminal_width=COLUMNS)
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help_fits_a_screen(words: tuple[str, ...]) -> None:
    lines = shown(*words, "--help").splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_a_line_of_its_own(words: tuple[str, ...]) -> None:
    lines = [line.strip() for line in shown(*words, "--help").splitlines()]
    assert lines[1] == "" and len(lines[2]) > 5


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_that_asks_a_server_can_answer_in_json(words: tuple[str, ...]) -> None:
    text = shown(*words, "--help")
    assert ("--api-url" in text) <= ("--json" in text) or words == ("mcp",)  # which speaks JSON-RPC


def test_the_programs_help_has_a_line_for_every_command() -> None:
    lines = [line.split(maxsplit=1) for line in shown("--help").splitlines() if line.startswith("  ")]
    said = {words[0]: words[1] for words in lines if len(words) == 2}
    for command, (_, _, line) in COMMANDS.items():
        assert said.get(command) == line, command
    assert max(map(len, shown("--help").splitlines())) <= COLUMNS


def test_help_and_failures_speak_of_the_program_by_the_name_it_was_called_by() -> None:
    texts = [
        CliRunner().invoke(main, words, prog_name="/usr/local/bin/mags", terminal_width=COLUMNS).output
        for words in (["--help"], ["run", "--help"], ["resize", "--help"], ["logout"], ["run", "nofile.sh"], ["skill"])
    ]
    for text in texts:
        assert "roost " not in text and "roost:" not in text, text
    assert "mags run -w app" in texts[1] and "`mags --help`" in texts[1]


def test_a_command_that_is_in_no_group_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "novelty", ("jobs", "pool", "Something new."))
    assert "novelty" not in [name for names in GROUPS.values() for name in names]
    assert "More:\n  novelty  Something new." in shown("--help")


def test_rare_options_are_named_and_explained_on_demand() -> None:
    assert "--on-interrupt" in shown("run", "--help") and "What going away does" not in shown("run", "--help")
    assert "What going away does" in shown("run", "--help-all")
    assert "--acme-email" not in shown("up", "--help") and "--acme-email" in shown("up", "--help-all")


def test_a_command_that_is_misspelt_is_guessed() -> None:
    assert "Did you mean 'status'?" in shown("statsu", status=2)
    assert "Did you mean 'revisions'?" in shown("workspace", "revision", status=2)
    assert "Did you mean '--follow'?" in shown("logs", "--folow", "x", status=2)


def test_the_program_is_installed_under_both_names() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert {scripts["roost"].value, scripts["mags"].value} == {"roost.cli.main:main"}


def test_the_reference_is_current() -> None:
    cure = "run: python -m roost.cli.reference > docs/cli.md"
    assert (ROOT / "docs" / "cli.md").read_text() == reference.text(), cure
