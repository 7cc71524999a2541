"""The commands that the guides show do what they say. Other guides have tests of their own: their file names say which.

A guide's blocks run in their order, in one shell that stops at the first failure. What stands for something of the
reader's (an id, a package index) is put in its place by `instead`; lines that want a terminal, another program or a
Roost that is not running yet are in `ELSEWHERE`, with the test that runs the same.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import PROGRAM, RunningRoost, clean_environment

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "make run": "tests/test_up.py",
    "make test-fast": "itself",
    "make test ": "itself",
    "make test-machines": "itself",
    "make bench": "bench",
    "sudo make run": "tests/test_up.py",
    "sudo .venv/bin/roost up": "tests/test_up.py",
    "roost exec -it dev bash": "tests/e2e/test_execs.py",
    "roost login --url": "tests/e2e/test_login.py",
    "roost user password": "tests/cli/test_login.py",
    "roost team": "tests/cli/test_login.py",
    "sudo roost up --oidc-issuer": "tests/e2e/test_login.py",
    "  --oidc-client-secret": "tests/e2e/test_login.py",
    ".venv/bin/roost service": "tests/machines",
    "roost service": "tests/machines",
    "journalctl": "tests/machines",
    "make wheel": "tests/test_wheel.py",
    "pipx install": "tests/test_wheel.py",
    "sudo adduser": "tests/test_wheel.py",
    'sudo "$(command -v roost)"': "tests/test_doctor.py, tests/node/test_image_build.py",
    ".venv/bin/roost image pull": "tests/e2e/test_image_default.py",
    "claude mcp add": "tests/e2e/test_mcp.py",
    "roost mcp --http": "tests/e2e/test_mcp.py",
    "pip install .": "tests/test_up.py",
}
MODULE = "mkdir -p /usr/lib/python3/dist-packages && echo > /usr/lib/python3/dist-packages/requests.py"
FLASK = "printf '#!/bin/sh\\\\necho Flask\\\\n' > /usr/local/bin/flask && chmod +x /usr/local/bin/flask"
CI = """revoke "$(roost token list --json | jq -r '.tokens[] | select(.name == "ci") | .id')\""""
REVISION = '"$(roost workspace revisions w --json | jq -r ".revisions[0].revision // .revisions[0].id")"'


@dataclass(frozen=True)
class Guide:
    before: str = ""
    after: str = ""
    instead: dict[str, str] = field(default_factory=dict[str, str])


GUIDES = {
    "README.md": Guide(
        "echo 'echo hello $NAME' > script.sh; TOKEN=$MAGS_API_TOKEN",
        instead={
            ".venv/bin/roost": "roost",
            "http://127.0.0.1:8484": "$MAGS_API_URL",
            "'pip install requests'": shlex.quote(MODULE),
        },
    ),
    "docs/accounts.md": Guide(instead={"sudo roost": "roost", "revoke ID": CI}),
    "docs/audit.md": Guide(),
    "docs/execs.md": Guide("roost new dev > /dev/null; mkdir src; echo x > src/file", "roost stop dev"),
    "docs/mcp.md": Guide(),
    "docs/operating.md": Guide(),
    "docs/python.md": Guide(),
    "docs/quotas.md": Guide(),
    "docs/scripts.md": Guide("echo 'echo $STAGE' > script.sh; generate() { echo 'echo generated'; }"),
    "docs/sleep.md": Guide(),
    "docs/templates.md": Guide("ID=$(roost template add 'echo hello' --name n)"),
    "docs/webhooks.md": Guide(
        instead={
            " ID ": ' "$(roost webhook list --json | jq -r ".webhooks[0].id")" ',
            " MESSAGE": ' "$(roost webhook test "$(roost webhook list --json | jq -r ".webhooks[0].id")")"',
        }
    ),
    "docs/workspaces.md": Guide(
        "echo 'print(1)' > run.py; roost run -w w 'echo 1 > file'",
        instead={
            "'apt-get update && apt-get install -y python3-flask'": f'"{FLASK}"',
            "w 0123456789abcdef": f"w {REVISION}",
            "w@0123456789abcdef": f"w@{REVISION}",
        },
    ),
}
OWN_TESTS = ("cli", "cron", "images", "jobs-api", "microvms", "node", "shell", "skill", "ssh", "tls", "urls", "usage")


@pytest.fixture(scope="module")
def guided() -> Iterator[RunningRoost]:
    """Running, for commands that leave things of fixed names behind."""
    with an_instance("--min-pool-size", "1") as instance:
        yield instance.start()


def commands(name: str) -> str:
    guide, text = GUIDES[name], (ROOT / name).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in "".join(blocks).splitlines() if not line.startswith(tuple(ELSEWHERE))]
    shown = "\n".join(lines)
    for what, other in guide.instead.items():
        assert what in shown, f"{name} does not show {what!r} any more"
        shown = shown.replace(what, other)
    return shown


@pytest.mark.parametrize("name", GUIDES)
def test_the_commands_of_a_guide_work_as_written(guided: RunningRoost, tmp_path: Path, name: str) -> None:
    program = tmp_path / "bin" / "roost"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    environment = clean_environment() | {"MAGS_API_URL": guided.api.url, "MAGS_API_TOKEN": guided.api.token}
    environment |= {"PATH": f"{program.parent}:{environment['PATH']}", "HOME": str(tmp_path)}
    (tmp_path / "place").mkdir()
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", f"{GUIDES[name].before}\n{commands(name)}\n{GUIDES[name].after}"],
        cwd=tmp_path / "place", env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])


def test_no_guide_with_commands_is_forgotten() -> None:
    shown = [path for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")] if "\n```sh\n" in path.read_text()]
    known = {ROOT / name for name in GUIDES} | {ROOT / "docs" / f"{name}.md" for name in OWN_TESTS}
    assert sorted(set(shown) - known) == []
