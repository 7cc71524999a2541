"""What the server hands out to everybody: guides, llms.txt, the skill and mags.sh; what they name is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click import Command, Context, Group

from roost import handouts
from roost.cli.main import main
from roost.cli.urls import Worded

ROOT = Path(__file__).parents[2]
TEXTS = {"llms.txt": handouts.LLMS, "mags.md": handouts.SKILL}


@pytest.fixture
def stranger(shared: httpx.Client) -> httpx.Client:
    """Without a token."""
    return httpx.Client(base_url=str(shared.base_url), timeout=10)


def test_every_link_of_llms_txt_leads_somewhere(stranger: httpx.Client) -> None:
    text = stranger.get("/llms.txt").text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {"/openapi.json", "/mags.sh", "/mags.md", "/docs/scripts.md", "/docs"} <= set(links)
    assert [link for link in links if stranger.get(link).status_code != 200] == []


def test_llms_txt_has_the_form_that_its_readers_expect() -> None:
    lines = handouts.llms().splitlines()
    assert lines[0] == "# Roost"
    assert lines[2].startswith("> ")
    assert handouts.LIST_OF_GUIDES.strip() not in lines
    named = [line for line in lines if line.startswith("- [Running scripts")]
    assert "What a script finds" in named[0]


def test_every_guide_is_listed_and_served_as_it_is(stranger: httpx.Client) -> None:
    guides = sorted((ROOT / "docs").glob("*.md"))
    listed = re.findall(r"\(/docs/([^)]+)\)", handouts.llms())
    assert listed == [path.name for path in guides]
    assert stranger.get(f"/docs/{guides[0].name}").text == guides[0].read_text()


@pytest.mark.parametrize("name", ["nothing.md", "..%2fREADME.md", "%2e%2e", "design"])
def test_nothing_but_guides_is_served(stranger: httpx.Client, name: str) -> None:
    assert stranger.get(f"/docs/{name}").status_code == 404


@pytest.mark.parametrize(("path", "file"), [("/mags.sh", "sdk/sh/mags.sh"), ("/mags.md", "sdk/skill/mags.md")])
def test_what_is_served_is_what_the_repository_has(stranger: httpx.Client, path: str, file: str) -> None:
    assert stranger.get(path).text == (ROOT / file).read_text()


def _options(text: str) -> list[list[str]]:
    """The words behind each `mags` or `roost` in code, up to the first quote."""
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)])
    return [line.split() for line in re.findall(r"\b(?:mags|roost) ([^'\n]+)", code.replace("\\\n", " "))]


def _command(words: list[str]) -> tuple[Command, list[str]]:
    """The command that these words name, and what follows it."""
    group, context = main, Context(main, info_name="roost")
    for at, word in enumerate(words):
        found = group.commands.get(word) if isinstance(group, Group) and group is not main else None
        found = main.get_command(context, word) if group is main else found
        if found is None:
            return group, words[at:]
        group = found
    return group, []


@pytest.mark.parametrize("name", list(TEXTS))
def test_every_command_and_option_in_it_exists(name: str) -> None:
    for words in _options(TEXTS[name].read_text()):
        command, rest = _command(words)
        assert command is not main, f"there is no command {' '.join(words)}"
        if isinstance(command, Worded):  # its argument stands in place of a command
            command = command.commands[command.meant]
        assert not isinstance(command, Group), f"{' '.join(words)}: a command is missing"
        known = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
        before = rest[: rest.index("--")] if "--" in rest else rest
        given = [word for word in before if re.fullmatch(r"--?[a-z][a-z-]*", word)]
        assert [flag for flag in given if flag not in known] == [], words


def roost(*arguments: str, home: Path, cwd: Path, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "roost.cli", *arguments], cwd=cwd, env=os.environ | {"HOME": str(home)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_the_skill_is_installed_for_all_projects_or_one_and_changes_are_kept(tmp_path: Path) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    everywhere, here = home / ".claude/commands/mags.md", project / ".claude/commands/mags.md"
    assert str(everywhere) in roost("skill", "install", home=home, cwd=project)
    assert not here.exists()
    roost("skill", "install", "--project", home=home, cwd=project)
    assert everywhere.read_text() == here.read_text() == handouts.SKILL.read_text()
    here.write_text("mine")
    assert "--force" in roost("skill", "install", "--project", home=home, cwd=project, status=1)
    roost("skill", "install", "--project", "--force", home=home, cwd=project)
    assert here.read_text() == roost("skill", "show", home=home, cwd=project)


def test_the_skill_has_what_agents_read_first() -> None:
    text = handouts.SKILL.read_text()
    assert re.match(r"---\n(?:[a-z-]+: .+\n)+---\n", text)
    for intent in ("fibonacci numbers", "/health endpoint", "nodejs and npm in my-project"):
        assert intent in text
