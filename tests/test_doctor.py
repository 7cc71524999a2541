"""`roost doctor`: what it finds, the cure that it names, and that it leaves nothing, however it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from roost import doctor
from roost.doctor import Finding
from roost.errors import SetupMissing
from roost.node.trial import PREFIX

IMAGES = Path("/var/lib/roost/images")
SECONDS = 120.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a sandbox")
pytestmark = pytest.mark.timeout(300)


@dataclass
class Machine:
    """Where doctors of this test make their sandboxes."""

    state: Path
    started: "list[subprocess.Popen[str]]" = field(default_factory=list["subprocess.Popen[str]"])

    def begin(self, *options: str, **variables: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-m", "roost.cli", "doctor", "--json", "--state", str(self.state), *options]
        # the interpreter's own; what the test takes away is the machine's
        environment: Mapping[str, str] = {**os.environ, **variables}
        pipe = subprocess.PIPE
        self.started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
        return self.started[-1]

    def found(self, *options: str, **variables: str) -> dict[str, Finding]:
        told, failure = self.begin(*options, **variables).communicate(timeout=SECONDS)
        assert told, failure
        return {one["name"]: Finding(**one) for one in json.loads(told)}

    def left(self) -> list[str]:
        """Whatever there is of a doctor's sandbox."""
        instances = [place for place in Path("/run/roost").glob("*/state") if str(self.state) in place.read_text()]
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.state) in line]
        return [*map(str, instances), *map(str, self.state.glob(f"{PREFIX}*")), *mounts]

    def members(self) -> list[Path]:
        places = [place.parent for place in Path("/run/roost").glob("*/state") if str(self.state) in place.read_text()]
        return [member for place in places for member in place.glob("members/*/pid")]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for process in machine.started:
        process.kill()
        process.communicate()
    eventually(lambda: not machine.left(), machine.left)


def eventually(holds: Callable[[], object], otherwise: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.01)


# ---- what is needed


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ("5.15.0-130-generic", "missing"),
        ("5.19.17", "absent"),
        ("6.1.0-28-amd64", "ok"),
        ("6.12.57+deb13-cloud-amd64", "ok"),
        ("10.0", "ok"),
    ],
)
def test_the_kernel_is_one_that_can_and_that_was_tested(release: str, verdict: str) -> None:
    finding = doctor.kernel(release)
    assert finding.verdict == verdict
    assert bool(finding.cure) == (verdict != "ok")
    assert release in finding.detail


@needs_root
def test_what_a_start_needs_is_here_and_its_lack_is_refused_with_every_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor.require(IMAGES, None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SetupMissing) as refused:
        doctor.require(IMAGES, None)
    told = str(refused.value)
    assert "runtime: no OCI runtime was found" in told
    assert "-> apt-get install crun runc" in told
    assert re.search(r"nftables: .*nft.*\n    -> apt-get install nftables", told)


@needs_root
@pytest.mark.skipif(Path("/run/systemd/resolve/resolv.conf").exists(), reason="its servers would be taken")
def test_up_refuses_a_machine_whose_name_servers_no_sandbox_could_reach(tmp_path: Path) -> None:
    """It said "ok" to these, and the node could not start."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    up = [sys.executable, "-m", "roost.cli", "up", "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0"]
    script = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *up], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "sandboxes cannot run on this machine:\n  name servers: /etc/resolv.conf names no name server" in done.stderr
    assert "starting Roost" not in done.stderr
    assert not (tmp_path / "state").exists()


# ---- a sandbox


@needs_root
def test_a_sandbox_is_made_entered_limited_frozen_and_removed(machine: Machine) -> None:
    found = machine.found()
    steps = {name.partition(": ")[2]: finding for name, finding in found.items() if name.startswith("sandbox: ")}
    assert [*steps] == [
        *("runtime and groups", "firewall", "image", "disk", "container", "network", "guest init"),
        *("root file system", "command", "limits", "freezing", "removal"),
    ]
    assert {finding.verdict for finding in steps.values()} == {"ok"}
    assert machine.left() == []


@needs_root
def test_doctors_work_side_by_side(machine: Machine) -> None:
    several = [machine.begin() for _ in range(3)]
    for one in several:
        told, _ = one.communicate(timeout=SECONDS)
        assert "nothing is left" in told


@needs_root
def test_a_runtime_that_does_not_work_is_found_where_a_claim_would_meet_it(machine: Machine) -> None:
    found = machine.found("--runtime", "/bin/false")
    assert found["runtime"].verdict == "ok"  # it is there
    assert found["sandbox: disk"].verdict == "ok"
    failed = found["sandbox: container"]
    assert (failed.verdict, failed.detail.partition(" failed with status 1")[0].split()[0]) == ("missing", "/bin/false")
    assert "--runtime" in failed.cure
    assert "sandbox: command" not in found


@needs_root
def test_a_missing_program_is_named_with_its_package(machine: Machine, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("runc", "crun", "nft"):
        if there := shutil.which(name):
            (programs / name).symlink_to(there)
    found = machine.found(PATH=str(programs))
    assert "mkfs.ext4" in found["sandbox: disk"].detail
    assert found["sandbox: disk"].cure == "apt-get install e2fsprogs"


@needs_root
@pytest.mark.parametrize(
    ("number", "delay"), [(signal.SIGINT, 0), (signal.SIGTERM, 0.05), (signal.SIGKILL, 0.1), (signal.SIGTERM, 0.2)]
)
def test_a_doctor_that_is_interrupted_leaves_nothing(machine: Machine, number: int, delay: float) -> None:
    process = machine.begin()
    eventually(machine.members)
    time.sleep(delay)  # another step each time, the removal too
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    eventually(lambda: not machine.left(), machine.left)


@needs_root
def test_what_a_killed_trial_left_is_removed_by_the_next_doctor(machine: Machine) -> None:
    process = machine.begin()
    eventually(machine.members)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert machine.left()
    machine.found()
    assert machine.left() == []
