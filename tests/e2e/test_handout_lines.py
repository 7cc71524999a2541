"""Every command that llms.txt and the skill teach runs as it stands, with what is the reader's filled in."""

import json
import os
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import handouts
from tests.e2e.conftest import an_instance
from tests.e2e.instance import PROGRAM, RunningRoost, clean_environment, eventually
from tests.e2e.test_clients import interpreter

# what stands for something in the skill's table -> what is put there
FILLED = {
    "'SCRIPT'": "'echo said'", "python3 FILE": "python3 program.py", "FILE": "program.py",
    "'START'": "'python3 -m http.server 8080'",
    "'SETUP && START'": "'true && python3 -m http.server 8080'", "SUBDOMAIN WORKSPACE": "shown P",
    "install -y X": "install -y bc",
    "COMMAND": "uname -a", "--name N ": "--name nightly ",
    "NAME 8080": "machine 8080", "workspace delete NAME": "workspace delete P",
    "NAME": "machine",
}  # fmt: skip


class User:
    """At home in a directory of their own, with `roost` and `mags`."""

    def __init__(self, roost: RunningRoost, home: Path) -> None:
        self.roost, self.home = roost, home
        (home / "bin").mkdir()
        for name in ("roost", "mags"):
            (home / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
            (home / "bin" / name).chmod(0o755)

    def runs(self, text: str) -> str:
        access = {"MAGS_API_URL": self.roost.api.url, "MAGS_API_TOKEN": self.roost.api.token, "HOME": str(self.home)}
        path = {"PATH": f"{self.home / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text], cwd=self.home, env=clean_environment() | access | path,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (text, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout


@pytest.fixture(scope="module")
def taught() -> Iterator[RunningRoost]:
    """Of these tests alone, for the names are those of the handouts."""
    with an_instance("--min-pool-size", "1") as instance:
        yield instance.start()


@pytest.fixture
def user(taught: RunningRoost, tmp_path: Path) -> User:
    return User(taught, tmp_path)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(300)
def test_the_lines_of_llms_txt(user: User) -> None:
    commands, curl = blocks(handouts.LLMS.read_text(), "sh")
    printed = user.runs(commands)
    assert "hello" in printed and "Linux" in printed and "http" in printed
    assert "request_id" in json.loads(user.runs(curl))


@pytest.mark.timeout(300)
def test_the_program_that_readme_shows_for_the_official_client(user: User) -> None:
    (program,) = blocks((Path(__file__).parents[2] / "README.md").read_text(), "python")
    program = program.replace("http://127.0.0.1:8484", user.roost.api.url)
    printed = user.runs(shlex.join([str(interpreter("1.3.8")), "-c", f"TOKEN = {user.roost.api.token!r}\n{program}"]))
    assert "Hello, world!" in printed


@pytest.mark.timeout(300)
def test_the_table_of_the_skill(user: User) -> None:
    (user.home / "program.py").write_text("print('from a file')\n")
    rows = re.findall(r"^\| [^|]+ \| (`.+`) \|$", handouts.SKILL.read_text(), re.MULTILINE)
    shown = [command for row in rows for command in re.findall(r"`(mags [^`]+)`", row)]
    assert len(shown) >= 16
    done = ""
    for command in shown:
        for what, other in FILLED.items():
            command = command.replace(what, other)
        if command == "mags set machine --no-sleep":
            eventually(lambda: user.roost.api.status("machine")["status"] == "running")
        done += user.runs(command)
        if " -p " in command:
            user.runs("mags stop P")  # it has the workspace, which the next lines use
    for words in ("said", "from a file", "http://", "Linux"):
        assert words in done


@pytest.mark.timeout(300)
def test_the_examples_of_the_skill(user: User) -> None:
    text = handouts.SKILL.read_text()
    (server,) = blocks(text, "js")
    (user.home / "server.js").write_text(server)
    fibonacci, express, node = blocks(text, "sh")
    assert "0 1 1 2 3 5 8" in user.runs(fibonacci)
    (url,) = [word for word in user.runs(express).split() if word.startswith("http")]
    host = url.partition("//")[2].partition("/")[0]
    request = urllib.request.Request(f"http://{user.roost.gateway}/health", headers={"Host": host})

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer) == {"status": "ok"}
        except OSError:
            return False

    eventually(healthy, 120)
    listens = re.findall(r"`(mags exec NAME -- ss [^`]+)`", text)
    assert listens
    assert ":8080" in "".join(user.runs(line.replace("NAME", "express-app")) for line in listens)
    assert re.search(r"v\d+\.", user.runs(node))
    user.runs("mags stop express-app")
