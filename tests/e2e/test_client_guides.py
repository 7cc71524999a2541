"""What docs/node.md and docs/skill.md show, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.instance import RunningRoost, clean_environment
from tests.sdk.node import NODE, SDK

DOCS = Path(__file__).parents[2] / "docs"


def blocks(guide: str, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", (DOCS / guide).read_text(), re.MULTILINE | re.DOTALL))


def runs(roost: RunningRoost, home: Path, *command: str | Path) -> str:
    access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token, "HOME": str(home)}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command,
        cwd=home,
        env=clean_environment() | access | path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def test_the_node_guides_program(roost: RunningRoost, tmp_path: Path) -> None:
    (tmp_path / "node_modules" / "@magpiecloud").mkdir(parents=True)
    (tmp_path / "node_modules" / "@magpiecloud" / "mags").symlink_to(SDK)
    (tmp_path / "program.js").write_text(f"(async () => {{\n{blocks('node.md', 'js')}\n}})();\n")
    printed = runs(roost, tmp_path, NODE, "program.js").splitlines()
    assert printed[0] == "completed 0 hello"
    assert printed[1] == "Linux"
    assert printed[3].startswith("http")


def test_the_skill_guides_commands(roost: RunningRoost, tmp_path: Path) -> None:
    runs(roost, tmp_path, "sh", "-euc", blocks("skill.md", "sh"))
    assert (tmp_path / ".claude" / "commands" / "mags.md").read_text().startswith("---\n")
