"""What the control plane's process sees and may do, tried in one: the interpreter itself lies in a closed place."""

import json
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from roost import linux, program, view

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a view of one's own takes root")

PROBE = """
import json, os, socket, sys, roost.view
from pathlib import Path
place = Path(sys.argv[1])
def attempt(action):
    try:
        return str(action())
    except OSError as error:
        return type(error).__name__
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
client = socket.socket(socket.AF_UNIX)
found = {
    "executable": sys.executable,
    "code": roost.view.__file__,
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "capabilities": [status[n].strip() for n in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "root": sorted(os.listdir("/")),
    "place": sorted(os.listdir(place)),
    "secret": attempt(lambda: (place / "secret").read_text()),
    "write_beside": attempt(lambda: (place / "new").touch()),
    "write_code": attempt(lambda: Path(roost.view.__file__).open("a")),
    "write_root": attempt(lambda: Path("/new").touch()),
    "write_tmp": attempt(lambda: Path("/tmp/new").touch()),
    "connect": attempt(lambda: client.connect(str(place / "sockets" / "node.sock"))),
    "resolve": socket.gethostbyname("localhost"),
}
(place / "serve" / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture
def closed_place(tmp_path: Path) -> Path:
    """A directory that only root may enter, with a virtual environment by link, a secret and a socket's place."""
    tmp_path.chmod(0o700)
    (tmp_path / "venv").symlink_to(sys.prefix)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o644)
    for name in ("serve", "sockets"):
        (tmp_path / name).mkdir()
    (tmp_path / "serve").chmod(0o700)
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path / "serve", nobody.pw_uid, nobody.pw_gid)
    return tmp_path


def probe(place: Path) -> dict[str, object]:
    """What a process finds in a view that was made for `place`."""
    code = f"""
import os, pwd, sys
from pathlib import Path
from roost import linux, program, view
place = Path({str(place)!r})
seen = view.view_of(view.interpreter_paths(), writable=[place / "serve"], shallow=[place / "sockets"])
def prepare():
    view.enter(seen)
    nobody = pwd.getpwnam("nobody")
    linux.become(nobody.pw_uid, nobody.pw_gid)
command = [sys.executable, "-P", "-c", {PROBE!r}, str(place)]
pid = program.launch(command, program.environment(), None, prepare)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([place / "venv/bin/python", "-P", "-c", code], check=True, timeout=30)
    return json.loads((place / "serve" / "found.json").read_text())


def mounts_of(place: Path) -> list[str]:
    """Those at `place` and those that no other test could have made: neither sandboxes' nor in a place of their own."""
    others = ("/run/roost/", "/tmp/")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if (at := line.split()[4]).startswith(str(place)) or not at.startswith(others)]


def test_the_program_runs_from_a_closed_place_without_any_privilege(
    closed_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(closed_place / "sockets")  # the whole path may be too long for a socket's address
        server.bind("node.sock")
        (closed_place / "sockets" / "node.sock").chmod(0o666)
        server.listen()
        mounts = mounts_of(closed_place)
        found = probe(closed_place)

    nobody = pwd.getpwnam("nobody")
    assert found["executable"] == str(closed_place / "venv/bin/python")
    assert found["code"] == view.__file__
    assert found["ids"] == [[nobody.pw_uid] * 3, [nobody.pw_gid] * 3, []]
    assert set(found["capabilities"]) == {"0" * 16}  # type: ignore[arg-type]
    assert found["no_new_privileges"] == "1"
    assert not {"home", "var", "sys", "boot"} & set(found["root"])  # type: ignore[arg-type]
    assert found["place"] == ["serve", "sockets", "venv"]
    assert found["secret"] == "FileNotFoundError"
    refused = {"OSError", "PermissionError"}  # a read-only mount, or the mode of what lies there
    assert {found[key] for key in ("write_beside", "write_code", "write_root")} <= refused
    assert found["write_tmp"] == "None"
    assert found["connect"] == "None"
    assert found["resolve"] == "127.0.0.1"
    assert mounts_of(closed_place) == mounts


def test_links_are_followed_to_what_they_mean(tmp_path: Path) -> None:
    (tmp_path / "real/bin").mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    links, real = view.trace(tmp_path / "two" / "bin" / ".." / "bin")
    assert links == [(tmp_path / "two", str(tmp_path / "one")), (tmp_path / "one", "real")]
    assert real == tmp_path / "real/bin"


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="too many links"):
        view.trace(tmp_path / "a")


def test_a_failed_call_is_named() -> None:
    with pytest.raises(OSError, match=r"^\[Errno 2\] mount /no/such/place: "):
        linux.mount(None, "/no/such/place", "tmpfs")
    with pytest.raises(OSError, match="open_tree /no/such/place"):
        linux.open_tree("/no/such/place")


def test_a_childs_environment_has_only_what_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "C")
    monkeypatch.setenv("AWS_SECRET", "x")
    assert set(program.environment("LANG", "TZ_OF_NOBODY")) == {"LANG", "PATH"}
