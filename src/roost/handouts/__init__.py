"""What Roost hands out to people and to programs that read: guides, `llms.txt`, a skill for coding agents, `mags.sh`.

The API serves them to everybody (`api/handouts.py`), and the program installs the skill (`cli/skill.py`).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import roost

_PACKAGE = Path(roost.__file__).parent
# beside the package once that is installed, in the repository until then
GUIDES = next((path for path in (_PACKAGE / "docs", _PACKAGE.parents[1] / "docs") if path.is_dir()), _PACKAGE / "docs")
SKILL = Path(__file__).with_name("mags.md")
SHELL = Path(__file__).with_name("mags.sh")
LLMS = Path(__file__).with_name("llms.txt")
LIST_OF_GUIDES = "<!-- guides -->\n"  # the line of llms.txt in whose place they are listed


@dataclass(frozen=True)
class Guide:
    """A file of docs/: its headings."""

    name: str
    title: str
    sections: list[str]


def guides() -> list[Guide]:
    """In order of their names."""
    return [_guide(path) for path in sorted(GUIDES.glob("*.md"))]


def guide(name: str) -> str | None:
    """The text of one, by the name of its file; None: there is none."""
    return next((path.read_text() for path in GUIDES.glob("*.md") if path.name == name), None)


def llms() -> str:
    """llms.txt (llmstxt.org), whose list of guides is made from their headings."""
    listed = "".join(f"- [{one.title}](/docs/{one.name}){_contents(one)}\n" for one in guides())
    return LLMS.read_text().replace(LIST_OF_GUIDES, listed)


def _contents(one: Guide) -> str:
    return f": {'; '.join(one.sections)}" if one.sections else ""


def _guide(path: Path) -> Guide:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^(##?) +(.+?)\s*$", text, flags=re.MULTILINE)
    title = next((words for marks, words in headings if marks == "#"), path.stem)
    return Guide(path.name, title, [words for marks, words in headings if marks == "##"])
