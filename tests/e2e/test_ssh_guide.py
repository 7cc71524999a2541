"""docs/ssh.md does what it says: its commands are run as they stand, at home in a directory of their own."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e.instance import PROGRAM, RunningRoost, clean_environment

pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parents[2] / "docs" / "ssh.md"
AS_GIVEN = "127.0.0.1\n    Port 2222"


def program(place: Path, name: str, text: str) -> None:
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{text}\n")
    (place / name).chmod(0o755)


def at_home(home: Path, roost: RunningRoost) -> dict[str, str]:
    """An environment in which `roost` means this instance, and OpenSSH's programs read this home's configuration.

    They look for it in the home of /etc/passwd, whatever HOME says.
    """
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    key = home / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guide", "-f", str(key)], check=True)
    known = f"StrictHostKeyChecking no\nUserKnownHostsFile {home}/.ssh/known_hosts\n"
    (home / ".ssh" / "config").write_text(f"BatchMode yes\nIdentityFile {key}\n{known}")
    (home / "notes.txt").write_text("notes\n")
    (home / "project").mkdir()
    (home / "project" / "main.py").write_text("print(1)\n")
    for name in ("ssh", "scp", "sftp"):
        program(home / "bin", name, f'exec /usr/bin/{name} -F {home}/.ssh/config "$@"')
    program(home / "bin", "roost", f'exec {shlex.join(PROGRAM)} "$@"')
    access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    return clean_environment() | access | {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}


def test_the_guides_commands_work_as_they_stand(roost: RunningRoost, tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    host, _, port = roost.ssh.rpartition(":")
    script = "set -eux\n" + "\n".join(blocks)
    assert AS_GIVEN in script
    script = script.replace(AS_GIVEN, f"{host}\n    Port {port}")
    home = tmp_path / "home"
    environment = at_home(home, roost)
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=home, env=environment, timeout=120, capture_output=True, check=False,
        stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hello from" in done.stdout
    assert "some text" in done.stdout
    assert "main.py" in done.stdout
