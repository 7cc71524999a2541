"""Documents say what is there: links lead somewhere, named tests exist, every command is described."""

import re
from pathlib import Path

import pytest
from click import Group

from roost.cli.main import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("name", ["SPECIFICATION.md", "ARCHITECTURE.md"])
def test_tests_that_a_promise_names_exist(name: str) -> None:
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", (ROOT / name).read_text()))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_folders_and_files_that_the_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    folders = re.findall(r"^\| `([\w/.]+)`", text, flags=re.MULTILINE)
    assert len(folders) > 8
    assert not [folder for folder in folders if not (ROOT / "src/roost" / folder).exists()]


def test_every_command_is_described_in_the_guides() -> None:
    guides = "\n".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    assert isinstance(main, Group)
    context = main.make_context("roost", ["doctor"], resilient_parsing=True)
    commands = [
        name for name in main.list_commands(context) if not getattr(main.get_command(context, name), "hidden", False)
    ]
    assert "run" in commands
    assert not [name for name in commands if not re.search(rf"roost {name}\b|`{name}\b", guides)]
