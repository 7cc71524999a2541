"""Limits of the whole machine: raised where they are too low for all sandboxes together, and nothing else."""

from pathlib import Path

import pytest

from roost import doctor
from roost.node import kernel_limits
from roost.node.kernel_limits import Limit, lacking, limits, raise_limits


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A /proc/sys in which every limit is what a small machine has."""
    for limit in limits():
        place = tmp_path / limit.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\t".join("64" for _ in limit.wanted) + "\n")
    return tmp_path


def test_what_is_too_low_is_raised(machine: Path) -> None:
    assert len(lacking(machine)) == len(list(limits()))
    raise_limits(machine)
    assert lacking(machine) == []
    assert (machine / "kernel/pid_max").read_text() == "4194304"


def test_nothing_is_lowered(machine: Path) -> None:
    (machine / "kernel/pty/max").write_text("1000000\n")
    most = 10**12
    (machine / "net/ipv4/tcp_mem").write_text(f"1\t2\t{most}\n")
    raise_limits(machine)
    assert (machine / "kernel/pty/max").read_text() == "1000000\n"
    assert (machine / "net/ipv4/tcp_mem").read_text().split()[2] == str(most)


def test_a_limit_that_the_kernel_does_not_have_is_passed_over(machine: Path) -> None:
    (machine / "net/netfilter/nf_conntrack_max").unlink()
    raise_limits(machine)
    assert lacking(machine) == []
    assert not (machine / "net/netfilter/nf_conntrack_max").exists()


def test_a_limit_that_cannot_be_raised_does_not_keep_a_node_from_starting(machine: Path) -> None:
    (machine / "fs/file-max").unlink()
    (machine / "fs/file-max").symlink_to("/proc/sys/kernel/ngroups_max")  # which nobody can write
    raise_limits(machine)
    assert [limit.sysctl for limit in lacking(machine)] == ["fs.file-max"]


def test_a_running_node_has_raised_them() -> None:
    """Of this machine: whoever ran the suite before has started a node, or this test does what a node does."""
    raise_limits()
    for limit in lacking():
        pytest.fail(f"{limit.sysctl} is {limit.now()}, wanted {limit.wanted}")


def test_the_doctor_lists_each_with_its_cure(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limit.now, "__defaults__", (machine,))
    monkeypatch.setattr(Limit.suffices, "__defaults__", (machine,))
    found = {one.name: one for one in doctor.kernel_limits()}
    assert set(found) == {limit.sysctl for limit in kernel_limits.limits()}
    assert found["kernel.pid_max"].verdict == "absent"
    assert "sysctl -w 'kernel.pid_max=4194304'" in found["kernel.pid_max"].cure
    raise_limits(machine)
    assert {one.verdict for one in doctor.kernel_limits()} == {"ok"}
