"""Programs that the node puts into guests: complete, and independent of where they lie."""

import subprocess
from pathlib import Path

import pytest

from roost.errors import SetupMissing
from roost.node import tools


def laid(tool: str, place: Path) -> list[str]:
    """The command that starts it from `place`, as the script beside it would in a guest."""
    for part in tools.parts_of(tool):
        (place / part.name).write_bytes(part.content)
        (place / part.name).chmod(part.mode)
    return [str(place / "ld.so"), "--library-path", str(place), str(place / f"{tool}.bin")]


@pytest.mark.parametrize(
    ("tool", "words", "says"), [("rsync", ["--version"], b"rsync  version"), ("scp", [], b"usage:")]
)
def test_a_tool_runs_from_its_parts_alone(tmp_path: Path, tool: str, words: list[str], says: bytes) -> None:
    command = laid(tool, tmp_path)
    done = subprocess.run([*command, *words], capture_output=True, env={}, check=False)
    assert says in done.stdout + done.stderr
    libraries = subprocess.run([*command[:3], "--list", command[3]], capture_output=True, env={}, check=True).stdout
    loaded = [line.split(b" => ")[1].split()[0] for line in libraries.splitlines() if b" => " in line]
    assert loaded
    assert not [path for path in loaded if not path.startswith(str(tmp_path).encode())]


def test_sftp_server_answers_from_its_parts_alone(tmp_path: Path) -> None:
    hello = b"\0\0\0\5\1\0\0\0\3"  # SSH_FXP_INIT, version 3
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(laid("sftp-server", tmp_path), env={}, **pipes) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(hello)
        process.stdin.flush()
        assert process.stdout.read(9)[4:] == b"\2\0\0\0\3"  # SSH_FXP_VERSION 3


def test_the_script_stands_last_so_that_it_is_found_when_all_else_is_there() -> None:
    *_, last = tools.parts_of("rsync")
    assert last.name == "rsync"
    assert last.content.startswith(b"#!/bin/sh\n")


def test_a_program_that_this_machine_lacks_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools.SOURCES, "rsync", (("/nonexistent/rsync",), "rsync"))
    with pytest.raises(SetupMissing, match="apt-get install rsync"):
        tools.parts_of("rsync")
