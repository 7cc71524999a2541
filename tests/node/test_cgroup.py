import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from roost.errors import SetupMissing
from roost.node.cgroup import Cgroup, Hierarchies, Usage, settings, sweep, version
from roost.node.protocol import Limits

SMALL = Limits(vcpus=0.5, memory_mb=64, disk_gb=1, pids=8, timeout_seconds=0)
LARGE = Limits(vcpus=2, memory_mb=256, disk_gb=1, pids=64, timeout_seconds=0)
HYBRID = """\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
33 30 0:29 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
34 30 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
35 30 0:31 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
36 30 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
UNIFIED = Path("/sys/fs/cgroup/unified")

on_v1 = pytest.mark.skipif(version() != "v1", reason="this machine has cgroup v2 only")
on_unified = pytest.mark.skipif(version() == "v1" and not UNIFIED.is_dir(), reason="this machine has no cgroup v2 tree")

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
async def group() -> AsyncIterator[Cgroup]:
    group = Cgroup(Hierarchies.here(), f"/roost-test-{token_hex(4)}", "m0")
    group.create()
    yield group
    await sweep(group.hierarchies, group.parent, keep=set())


@pytest.fixture
async def unified_group() -> AsyncIterator[Cgroup]:
    root = UNIFIED if version() == "v1" else Path("/sys/fs/cgroup")
    group = Cgroup(Hierarchies("v2", {"": root}), f"/roost-test-{token_hex(4)}", "m0")
    group.create()
    yield group
    await sweep(group.hierarchies, group.parent, keep=set())


@pytest.fixture
def start() -> Iterator[Start]:
    """Runs Python code inside a group, from its first instruction on."""
    started: list[subprocess.Popen[bytes]] = []

    def start(group: Cgroup, code: str) -> "subprocess.Popen[bytes]":
        program = [sys.executable, "-IS", "-c", f"import sys; sys.stdin.readline()\n{code}"]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        group.enter(process.pid)
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe
            pipe.close()


# ---- which trees there are


def test_a_hybrid_machine_counts_as_v1() -> None:
    found = Hierarchies.parse(HYBRID)
    assert found.version == "v1"
    assert found.mounts["cpuacct"] == found.mounts["cpu"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert [root.name for root in found.roots()] == ["cpu,cpuacct", "devices", "freezer", "memory", "pids", "unified"]


def test_a_single_unified_tree_is_v2() -> None:
    assert Hierarchies.parse(V2) == Hierarchies("v2", {"": Path("/sys/fs/cgroup")})


def test_missing_controllers_are_named() -> None:
    without_pids = "".join(line for line in HYBRID.splitlines(True) if "pids" not in line)
    with pytest.raises(SetupMissing, match="no cgroup controller pids is mounted"):
        Hierarchies.parse(without_pids)
    with pytest.raises(SetupMissing, match="memory"):
        Hierarchies.parse("")


def test_a_mount_point_with_a_space_is_understood() -> None:
    spaced = V2.replace("/sys/fs/cgroup", r"/my\040groups")
    assert Hierarchies.parse(spaced).mounts == {"": Path("/my groups")}


# ---- what is written


def test_limits_become_these_files_on_v1() -> None:
    assert settings(SMALL, "v1") == {
        "memory/memory.limit_in_bytes": "67108864",
        "memory/memory.memsw.limit_in_bytes": "67108864",
        "memory/memory.kmem.tcp.limit_in_bytes": "8388608",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "50000",
        "cpu/cpu.shares": "512",
        "pids/pids.max": "8",
    }


def test_limits_become_these_files_on_v2(tmp_path: Path) -> None:
    group = Cgroup(Hierarchies("v2", {"": tmp_path}), "/roost-0", "m1")
    group.create()
    (tmp_path / "roost-0/m1/memory.swap.max").touch()
    group.apply(SMALL)
    written = {path.name: path.read_text() for path in (tmp_path / "roost-0/m1").iterdir()}
    assert written == {
        "memory.max": "67108864",
        "memory.swap.max": "0",
        "cpu.max": "50000 100000",
        "cpu.weight": "50",
        "pids.max": "8",
    }


def test_v2_use_and_oom_kills_are_read_from_their_files(tmp_path: Path) -> None:
    group = Cgroup(Hierarchies("v2", {"": tmp_path}), "/roost-0", "m1")
    group.create()
    directory = tmp_path / "roost-0/m1"
    (directory / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    (directory / "memory.current").write_text("1048576\n")
    (directory / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n")
    assert group.oom_kills() == 2
    assert group.usage() == Usage(memory_bytes=1048576, cpu_ns=1_234_000)


async def test_memory_is_reclaimed_by_these_files(tmp_path: Path) -> None:
    """In steps on v2, until the kernel has no more to give; by one request on v1."""
    second = Cgroup(Hierarchies("v2", {"": tmp_path}), "/roost-0", "m1")
    second.create()
    await second.reclaim(timeout=0.05)
    async with asyncio.timeout(10):  # its thread may still be at the last step
        while (tmp_path / "roost-0/m1/memory.reclaim").read_text() != f"{16 * 1024 * 1024}":
            await asyncio.sleep(0.01)
    first = Cgroup(Hierarchies("v1", {"memory": tmp_path}), "/roost-1", "m1")
    first.create()
    await first.reclaim(timeout=10)
    assert (tmp_path / "roost-1/m1/memory.force_empty").read_text() == "0"


async def test_reclaiming_waits_for_nothing_longer_than_its_limit(tmp_path: Path) -> None:
    group = Cgroup(Hierarchies("v2", {"": tmp_path}), "/roost-0", "m1")
    group.create()
    pipe = tmp_path / "roost-0/m1/memory.reclaim"
    os.mkfifo(pipe)  # opening it blocks, as a kernel may that waits for a slow disk
    async with asyncio.timeout(10):
        await group.reclaim(timeout=0.05)
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))


async def test_a_group_that_is_gone_has_nothing_to_give_back(tmp_path: Path) -> None:
    await Cgroup(Hierarchies("v2", {"": tmp_path}), "/roost-0", "m1").reclaim(timeout=10)


@on_v1
async def test_a_frozen_group_gives_back_its_page_cache_and_stays_frozen(
    group: Cgroup, start: Start, tmp_path: Path
) -> None:
    code = f"""
with open({str(tmp_path / "big")!r}, "wb") as file:
    file.write(bytes(32 << 20))
    file.flush()
    import os; os.fsync(file.fileno())
print(1, flush=True)
while True: pass
"""
    process = start(group, code)
    assert process.stdout and process.stdout.readline()
    await group.freeze()
    before = group.usage().memory_bytes
    await group.reclaim()
    assert group.usage().memory_bytes < before - (24 << 20)
    assert read(group, "freezer/freezer.state") == "FROZEN"
    group.thaw()


def test_a_sliver_of_a_cpu_stays_above_what_the_kernel_refuses() -> None:
    sliver = Limits(vcpus=0.001, memory_mb=64, disk_gb=1, pids=8, timeout_seconds=0)
    assert settings(sliver, "v1")["cpu/cpu.cfs_quota_us"] == "1000"
    assert settings(sliver, "v1")["cpu/cpu.shares"] == "2"
    assert settings(sliver, "v2")["cpu.weight"] == "1"


# ---- cgroup v1, for real


@on_v1
def test_limits_are_raised_and_lowered(group: Cgroup) -> None:
    for limits in (LARGE, SMALL, LARGE):
        group.apply(limits)
        written = {file: read(group, file) for file in settings(limits, "v1")}
        assert written == settings(limits, "v1")


@on_v1
def test_an_oom_kill_is_counted(group: Cgroup, start: Start) -> None:
    group.apply(SMALL)
    process = start(group, "x = bytearray(200 << 20)")
    assert process.wait(20) == -9
    assert group.oom_kills() == 1


@on_v1
def test_pids_are_limited(group: Cgroup, start: Start) -> None:
    group.apply(SMALL)
    code = """
import os, time
born = 0
try:
    while True:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        born += 1
except BlockingIOError:
    print(born, flush=True)
time.sleep(60)
"""
    process = start(group, code)
    assert process.stdout
    assert process.stdout.readline() == b"7\n"


@on_v1
def test_use_is_told_in_bytes_and_nanoseconds(group: Cgroup, start: Start) -> None:
    process = start(group, "x = bytearray(20 << 20); print(1, flush=True); sys.stdin.readline()")
    assert process.stdout and process.stdout.readline()
    usage = group.usage()
    assert 20 << 20 < usage.memory_bytes < 60 << 20
    assert 0 < usage.cpu_ns < 20e9


@on_v1
async def test_frozen_processes_stand_still_until_thawed(group: Cgroup, start: Start) -> None:
    await stands_still_until_thawed(group, start)


@on_v1
async def test_processes_that_fork_away_are_killed_whole(group: Cgroup, start: Start) -> None:
    await is_killed_whole(group, start)


@on_v1
async def test_a_frozen_group_is_killed_too(group: Cgroup, start: Start) -> None:
    process = start(group, "while True: pass")
    await group.freeze()
    await group.kill_all()
    assert process.wait(10) == -9


@on_v1
async def test_a_group_in_use_is_not_removed(group: Cgroup, start: Start) -> None:
    start(group, "sys.stdin.readline()")
    with pytest.raises(TimeoutError, match="still in use"):
        await group.remove(timeout=0.05)
    assert group.hierarchies.mounts["memory"].joinpath(group.path[1:]).is_dir()


@on_v1
async def test_sweep_ends_what_is_not_kept_and_nothing_else(group: Cgroup, start: Start) -> None:
    leftover = Cgroup(group.hierarchies, group.parent, "leftover")
    leftover.create()
    stray, kept = start(leftover, "sys.stdin.readline()"), start(group, "sys.stdin.readline()")
    assert await sweep(group.hierarchies, group.parent, keep={"m0"}) == set()
    assert stray.wait(10) == -9
    assert kept.poll() is None
    assert not exists(leftover)
    assert exists(group)


@on_v1
async def test_half_made_groups_are_swept(group: Cgroup) -> None:
    half = group.hierarchies.mounts["pids"] / group.parent[1:] / "half" / "nested"
    half.mkdir(parents=True)
    assert await sweep(group.hierarchies, group.parent, keep=set()) == set()
    assert not half.parent.exists()
    assert not any((root / group.parent[1:]).exists() for root in group.hierarchies.roots())


@on_v1
async def test_a_sweep_goes_on_past_what_does_not_die(group: Cgroup, start: Start) -> None:
    held = Cgroup(group.hierarchies, group.parent, "held")
    held.create()
    stuck = group.hierarchies.mounts["freezer"] / held.path[1:] / "stuck"
    stuck.mkdir()
    undying = start(held, "sys.stdin.readline()")
    (stuck / "cgroup.procs").write_text(str(undying.pid))
    (stuck / "freezer.state").write_text("FROZEN")
    assert await sweep(group.hierarchies, group.parent, keep=set(), timeout=0.5) == {"held"}
    assert not exists(group)
    (stuck / "freezer.state").write_text("THAWED")
    assert undying.wait(10) == -9
    assert await sweep(group.hierarchies, group.parent, keep=set()) == set()


async def test_what_does_not_exist_is_empty_and_removed() -> None:
    absent = Cgroup(Hierarchies.here(), f"/roost-test-{token_hex(4)}", "m0")
    await absent.kill_all()
    await absent.remove()
    assert await sweep(absent.hierarchies, absent.parent, keep=set()) == set()


# ---- cgroup v2, for real as far as a tree without controllers goes


@on_unified
async def test_on_v2_frozen_processes_stand_still_until_thawed(unified_group: Cgroup, start: Start) -> None:
    await stands_still_until_thawed(unified_group, start)


@on_unified
async def test_on_v2_processes_that_fork_away_are_killed_whole(unified_group: Cgroup, start: Start) -> None:
    await is_killed_whole(unified_group, start)


async def stands_still_until_thawed(group: Cgroup, start: Start) -> None:
    process = start(group, "while True: pass")
    await group.freeze()
    before = cpu_ticks(process.pid)
    await asyncio.sleep(0.1)  # ten ticks, if it ran
    assert cpu_ticks(process.pid) == before
    group.thaw()
    deadline = time.monotonic() + 10
    while cpu_ticks(process.pid) == before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def is_killed_whole(group: Cgroup, start: Start) -> None:
    """Twenty chains of processes, each of which forks its successor and exits: no list of pids stays true for long."""
    code = """
import os
for _ in range(20):
    if not os.fork():
        while not os.fork():
            pass
        os._exit(0)
print(1, flush=True)
sys.stdin.readline()
"""
    process = start(group, code)
    assert process.stdout and process.stdout.readline()
    await group.kill_all()
    assert group.pids() == set()
    await group.remove()
    assert not exists(group)


def read(group: Cgroup, file: str) -> str:
    controller, _, name = file.rpartition("/")
    return (group.hierarchies.mounts[controller] / group.path[1:] / name).read_text().strip()


def exists(group: Cgroup) -> bool:
    return any((root / group.path[1:]).exists() for root in group.hierarchies.roots())


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
