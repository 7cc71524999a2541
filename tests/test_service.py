"""The systemd unit as text, and what becomes of the options; `make test-machines` starts a real one."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from roost.cli.service import read_up, up_words
from roost.errors import Conflict, SetupMissing
from roost.node import delegation
from roost.service import DROPPED, Service, Systemd, install, remove, unit_text

SERVICE = Service(("/opt/roost/bin/python", "-m", "roost.cli", "up"), Path("/var/lib/roost"), 1000)


def fields(service: Service = SERVICE) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit_text(service).splitlines() if "=" in line)


def words(*options: str) -> list[str]:
    return up_words(read_up(options))


def test_a_unit_starts_the_program_stops_it_in_order_and_starts_it_again_after_a_crash() -> None:
    told = fields()
    assert told["ExecStart"] == "/opt/roost/bin/python -m roost.cli up"
    assert (told["Type"], told["Restart"], told["KillMode"]) == ("notify", "on-failure", "process")
    assert int(told["TimeoutStopSec"]) > 40 + 30
    assert told["WantedBy"] == "multi-user.target"


def test_control_groups_are_delegated_where_systemd_can_start_again_beside_living_sandboxes() -> None:
    told = fields()
    assert (told["Delegate"], told["DelegateSubgroup"]) == ("yes", delegation.LEAF)
    old = fields(replace(SERVICE, delegates=False))
    assert "Delegate" not in old
    assert "DelegateSubgroup" not in old


def test_a_unit_hides_no_mount_and_filters_no_system_call() -> None:
    """Either would reach the sandboxes: the one loses their mounts with the process, the other is inherited."""
    told = fields().keys()
    assert not [
        name for name in told if name.startswith(("Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible"))
    ]
    assert not told & {"SystemCallFilter", "RestrictNamespaces", "RuntimeDirectory", "StateDirectory", "MountFlags"}


def test_capabilities_that_sandboxes_are_made_with_are_kept() -> None:
    needed = {
        "CAP_SYS_ADMIN",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_MKNOD",
        "CAP_SETUID",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_TIME",
        "CAP_KILL",
    }
    assert not needed & set(DROPPED)


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("/srv/my state", '"/srv/my state"'),
        ("50%", '"50%%"'),
        ("$HOME", '"$$HOME"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("", '""'),
        ("0.0.0.0:8484", "0.0.0.0:8484"),
    ],
)
def test_an_argument_reaches_the_program_as_it_is(argument: str, quoted: str) -> None:
    assert fields(Service(("/bin/roost", argument), Path("/s"), 0))["ExecStart"] == f"/bin/roost {quoted}"


def test_the_options_given_are_kept_with_whole_paths_and_no_others() -> None:
    told = words("--state", "here", "--domain", "a.test", "--domain", "b.test", "--ssh-ports", "2000-2010")
    assert told[:2] == ["--state", str(Path("here").absolute())]
    assert " ".join(told[2:]) == "--ssh-ports 2000-2010 --domain a.test --domain b.test --log-format text" or (
        " ".join(told[2:]) == "--domain a.test --domain b.test --ssh-ports 2000-2010 --log-format text"
    )
    assert words("--log-format", "json") == ["--log-format", "json"]


def test_a_machine_without_systemd_is_told_what_to_start_instead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("roost.service.SYSTEMD", tmp_path / "nothing")
    with pytest.raises(SetupMissing, match=r"/opt/roost/bin/python -m roost\.cli up"):
        install(SERVICE)


@pytest.fixture
def bare_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that looks as if it had systemd, with a `systemctl` that nothing may call."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr("roost.service.SYSTEMD", tmp_path)
    monkeypatch.setattr("roost.service.UNITS", tmp_path)
    return tmp_path


def test_a_unit_that_somebody_else_wrote_is_left_alone(bare_systemd: Path) -> None:
    SERVICE.unit.write_text("[Service]\nExecStart=/opt/mine\n")
    for change in (install, remove):
        with pytest.raises(Conflict, match="--name"):
            change(SERVICE)
    assert SERVICE.unit.read_text() == "[Service]\nExecStart=/opt/mine\n"
    assert not (bare_systemd / "called").exists()


def test_whoever_waits_is_told_and_the_programs_below_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        systemd = Systemd()
        systemd.tell("READY=1")
        assert door.recv(100) == b"READY=1"
        Systemd().tell("READY=1")  # the variable is gone: nobody is told
        door.setblocking(False)
        with pytest.raises(BlockingIOError):
            door.recv(100)
