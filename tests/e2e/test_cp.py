"""`roost cp`: what goes in comes out."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.instance import RunningRoost
from tests.e2e.test_sleep import persistent


@pytest.fixture(scope="module")
def web(roost: RunningRoost) -> str:
    return persistent(roost.api, "sleep infinity", name="copied")


def test_a_directory_goes_there_and_back_whole(roost: RunningRoost, web: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "big").write_bytes(os.urandom(5_000_000))
    (tree / "tool").write_bytes(b"#!/bin/sh\necho tool\n")
    (tree / "tool").chmod(0o750)
    (tree / "na me'\u00e4").write_text("x")
    (tree / "link").symlink_to("tool")
    assert roost.command("cp", str(tree), f"{web}:/root/").returncode == 0  # into it
    assert roost.command("exec", web, "/root/tree/tool").stdout == b"tool\n"
    assert roost.command("cp", str(tree), f"{web}:copy").returncode == 0  # as that
    back = roost.command("cp", f"{web}:/root/copy", str(tmp_path / "back"))
    assert back.returncode == 0, back.stderr
    subprocess.run(["diff", "-r", "--no-dereference", tree, tmp_path / "back"], check=True)
    assert (tmp_path / "back" / "tool").stat().st_mode & 0o777 == 0o750
    assert roost.command("exec", web, "stat -c %u:%g /root/copy/tool").stdout == b"0:0\n"


def test_a_file_and_an_archive(roost: RunningRoost, web: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(range(256)))
    assert roost.command("cp", str(tmp_path / "data"), f"{web}:/tmp/named").returncode == 0
    assert roost.command("exec", web, "cat /tmp/named").stdout == bytes(range(256))
    assert roost.command("cp", f"{web}:/tmp/named", str(tmp_path)).returncode == 0
    assert (tmp_path / "named").read_bytes() == bytes(range(256))
    packed = roost.command("cp", f"{web}:/tmp/named", "-").stdout
    listed = subprocess.run(["tar", "t"], input=packed, capture_output=True, check=True).stdout
    assert listed == b"./named\n"
    assert roost.command("cp", "-", f"{web}:/opt", input=packed).returncode == 0
    assert roost.command("exec", web, "cat /opt/named").stdout == bytes(range(256))


def test_what_is_not_there_is_said_and_nothing_is_left(roost: RunningRoost, web: str, tmp_path: Path) -> None:
    for words, said in (
        ((f"{web}:/no/such", str(tmp_path / "x")), b"/no"),
        ((str(tmp_path / "no"), f"{web}:/tmp"), b"no file or directory"),
        ((__file__, f"{web}:/no/such/"), b"no such directory"),
        ((__file__, f"{web}:/no/such/dir"), b"/no/such"),
        (("a", "b"), b"NAME:PATH"),
        ((__file__, "nosuch:/tmp"), b"no job"),
    ):
        shown = roost.command("cp", *words)
        assert (shown.returncode, said in shown.stderr, b"Traceback" in shown.stderr) == (1, True, False), shown.stderr
    assert list(tmp_path.iterdir()) == []
    assert roost.api.call("GET", f"/mags-jobs/{web}/execs")["execs"] == []
