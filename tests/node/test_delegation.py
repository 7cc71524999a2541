"""Where the control groups of an instance are made on cgroup v2, and what is handed on to them."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from secrets import token_hex

import pytest

from roost.errors import SetupMissing
from roost.node.cgroup import Hierarchies, version
from roost.node.delegation import LEAF, delegated, own_group, parent, settle

UNIFIED = Path("/sys/fs/cgroup" if version() == "v2" else "/sys/fs/cgroup/unified")
HERE = Hierarchies("v2", {"": UNIFIED})

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (UNIFIED / "cgroup.controllers").exists(), reason="makes control groups in a v2 tree"
)


@pytest.fixture
def service() -> Iterator[Path]:
    """A group as systemd makes it for a service with Delegate=yes."""
    group = UNIFIED / f"roost-test-{token_hex(4)}.service"
    group.mkdir()
    os.setxattr(group, "trusted.delegate", b"1")
    yield group
    deadline = time.monotonic() + 10
    while group.exists():  # a killed process leaves its group a moment later
        assert time.monotonic() < deadline
        for below in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                below.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()


@pytest.fixture
def program(service: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """One of the service's own."""
    with subprocess.Popen(["sleep", "60"]) as process:
        (service / "cgroup.procs").write_text(str(process.pid))
        yield process
        process.kill()


def a_controller() -> str:
    """That this machine's v2 tree has to give, and that a group with processes may not hand on."""
    for name in (UNIFIED / "cgroup.controllers").read_text().split():
        if name in ("memory", "io", "hugetlb", "rdma", "misc"):
            return name
    pytest.skip("this machine's v2 tree has no such controller")


def group_of(process: "subprocess.Popen[bytes]") -> PurePosixPath:
    return own_group(Path(f"/proc/{process.pid}/cgroup").read_text())


def test_a_process_knows_its_group_of_v2_on_every_kind_of_machine() -> None:
    assert own_group("0::/system.slice/roost.service\n") == PurePosixPath("/system.slice/roost.service")
    assert own_group("12:pids:/a\n1:name=systemd:/b\n0::/with:colon\n") == PurePosixPath("/with:colon")
    assert own_group("1:cpu:/a\n") == PurePosixPath("/")


def test_a_service_is_found_from_its_own_group_and_from_a_subgroup_of_it(service: Path) -> None:
    name = PurePosixPath(f"/{service.name}")
    (service / "sub/sub").mkdir(parents=True)
    assert delegated(UNIFIED, name) == delegated(UNIFIED, name / "sub") == f"/{service.name}"
    assert delegated(UNIFIED, name / "sub/sub") == ""
    assert delegated(UNIFIED, PurePosixPath("/")) == ""


def test_what_was_delegated_to_somebody_else_is_not_ours(service: Path) -> None:
    os.chown(service, 1000, 1000)
    assert delegated(UNIFIED, PurePosixPath(f"/{service.name}/app.scope")) == ""


def test_programs_make_room_for_the_controllers_that_members_need(
    service: Path, program: "subprocess.Popen[bytes]"
) -> None:
    controller = a_controller()
    settle(HERE, f"/{service.name}-above", [controller], [])  # the root hands it on
    (UNIFIED / f"{service.name}-above").rmdir()
    for _ in range(2):
        settle(HERE, f"/{service.name}/roost-9", [controller], [controller])
        (service / "roost-9/member").mkdir(exist_ok=True)
        assert controller in (service / "roost-9/member/cgroup.controllers").read_text().split()
        assert group_of(program) == PurePosixPath(f"/{service.name}/{LEAF}")
    assert program.poll() is None


def test_programs_have_moved_before_anything_is_enabled(service: Path, program: "subprocess.Popen[bytes]") -> None:
    """With cpu on beside processes, a group counts as one of threads, which cannot have memory on any more."""
    settle(HERE, f"/{service.name}/roost-9", [], [])
    assert group_of(program) == PurePosixPath(f"/{service.name}/{LEAF}")


def test_a_controller_that_cannot_be_had_is_named_with_its_cure(service: Path) -> None:
    with pytest.raises(SetupMissing, match=rf"{service.name}/roost-9 has no cgroup controller nosuch; .*Delegate=yes"):
        settle(HERE, f"/{service.name}/roost-9", ["nosuch"], ["nosuch"])


def test_an_instance_stays_where_its_sandboxes_are(service: Path, tmp_path: Path) -> None:
    """A node that is started elsewhere after a crash finds what an earlier one left."""
    (tmp_path / "cgroup").write_text(f"/{service.name}\n")
    assert not parent(HERE, 9, tmp_path).startswith(f"/{service.name}")  # nothing is left there
    (tmp_path / "cgroup").write_text(f"/{service.name}\n")
    (service / "roost-9").mkdir()
    assert parent(HERE, 9, tmp_path) == f"/{service.name}/roost-9"


def test_the_versions_before_have_a_group_at_the_root_of_each_hierarchy(tmp_path: Path) -> None:
    assert parent(Hierarchies("v1", {}), 3, tmp_path) == "/roost-3"
    settle(Hierarchies("v1", {}), "/roost-3")
    assert not list(tmp_path.iterdir())
