import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.errors import SetupMissing
from roost.node.protocol import Limits
from roost.node.runtimes import RuntimeFailed, oci

from .container_world import Member, World, build_probe

CONTAINER = oci.Container(
    root=Path("/run/roost/0/members/17/root"),
    devices=Path("/run/roost/0/members/17/mounts/dev"),
    slot=Path("/run/roost/0/members/17/slot"),
    first_id=2**30 + 17 * 65536,
    cgroups_path="/roost-0/m17",
    hostname="roost",
    limits=Limits(vcpus=2, memory_mb=512, disk_gb=2, pids=256, timeout_seconds=0),
)
MACHINE = oci.Machine(cgroup="v1", architecture="x86_64", ipv6=True)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build_probe(target := tmp_path_factory.mktemp("probe") / "init")
    return target


@pytest.fixture
async def world(probe: Path) -> AsyncIterator[World]:
    world = World.make(probe)
    yield world
    await world.close()


@pytest.fixture
async def running(world: World) -> Member:
    return await world.running()


# ---- the config, as data


def test_a_member_is_described_to_the_oci_program_in_full() -> None:
    config = oci.container_config(CONTAINER, MACHINE)
    linux = config["linux"]
    assert config["root"] == {"path": "/run/roost/0/members/17/root", "readonly": True}
    assert {namespace["type"] for namespace in linux["namespaces"]} == {
        *("user", "pid", "mount", "ipc", "uts", "cgroup", "network"),
    }
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 1074855936, "size": 65536}]
    assert linux["cgroupsPath"] == "/roost-0/m17"
    assert linux["rootfsPropagation"] == "slave"
    assert linux["resources"] == {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "access": "rw", "minor": 3},
            {"allow": True, "type": "c", "major": 1, "access": "rw", "minor": 5},
            {"allow": True, "type": "c", "major": 1, "access": "rw", "minor": 7},
            {"allow": True, "type": "c", "major": 1, "access": "rw", "minor": 8},
            {"allow": True, "type": "c", "major": 1, "access": "rw", "minor": 9},
            {"allow": True, "type": "c", "major": 5, "access": "rw", "minor": 0},
            {"allow": True, "type": "c", "major": 5, "access": "rw", "minor": 2},
            {"allow": True, "type": "c", "major": 136, "access": "rw"},
        ],
        "memory": {"limit": 536870912, "swap": 536870912},
        "cpu": {"shares": 2048, "quota": 200000, "period": 100000},
        "pids": {"limit": 256},
    }


def test_the_cgroup_tree_is_shown_read_only_and_only_on_v2() -> None:
    def destinations(machine: oci.Machine) -> list[str]:
        return [mount["destination"] for mount in oci.container_config(CONTAINER, machine)["mounts"]]

    assert "/sys/fs/cgroup" not in destinations(MACHINE)
    config = oci.container_config(CONTAINER, replace(MACHINE, cgroup="v2"))
    assert config["mounts"][-1]["destination"] == "/sys/fs/cgroup"
    assert "ro" in config["mounts"][-1]["options"]


def test_a_machine_without_ipv6_gets_no_ipv6_settings() -> None:
    config = oci.container_config(CONTAINER, replace(MACHINE, ipv6=False))
    assert config["linux"]["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 65535",
        "net.ipv4.tcp_rmem": "4096 65536 4194304",
        "net.ipv4.tcp_wmem": "4096 16384 4194304",
    }


def test_the_heat_of_each_processor_is_masked() -> None:
    directory = "/sys/devices/system/cpu/cpu0/thermal_throttle"
    config = oci.container_config(CONTAINER, replace(MACHINE, thermal_throttle=(directory,)))
    assert directory in config["linux"]["maskedPaths"]


def test_the_commands_are_built_whole() -> None:
    assert oci.run_args("/usr/sbin/runc", Path("/run/roost/0/oci"), "roost-0-17", Path("/bundle")) == [
        *("/usr/sbin/runc", "--root", "/run/roost/0/oci/containers"),
        *("--log", "/run/roost/0/oci/logs/roost-0-17", "--log-format", "json"),
        *("run", "--detach", "--preserve-fds", "1", "--pid-file", "/bundle/pid", "--bundle", "/bundle", "roost-0-17"),
    ]
    assert oci.delete_args("/usr/sbin/runc", Path("/r"), "roost-0-17")[-3:] == ["delete", "--force", "roost-0-17"]


# ---- which program


def test_runc_is_chosen_on_cgroup_v1_and_crun_on_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("runc", "crun"):
        (tmp_path / program).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert oci.choose(None, "v1") == str(tmp_path / "runc")
    assert oci.choose(None, "v2") == str(tmp_path / "crun")
    (tmp_path / "crun").unlink()
    assert oci.choose(None, "v2") == str(tmp_path / "runc")


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupMissing, match="install the package 'runc'"):
        oci.choose(None, "v1")
    with pytest.raises(SetupMissing, match="'runsc' was not found"):
        oci.choose("runsc", "v1")


# ---- real containers


async def test_root_inside_is_nobody_outside(running: Member) -> None:
    assert running.ask("ids").split() == ["1", "0", "0"]
    assert running.ask("read /proc/self/uid_map").split() == ["0", str(running.first_id), "65536"]
    assert Path(f"/proc/{running.pid}").stat().st_uid == running.first_id


async def test_every_namespace_is_its_own(running: Member) -> None:
    for kind in ("user", "pid", "mnt", "ipc", "uts", "cgroup", "net"):
        assert os.readlink(f"/proc/{running.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert running.ask("read /proc/sys/kernel/hostname") == "host-m0\n"
    assert {line.split(":")[0].strip() for line in running.ask("read /proc/net/dev").splitlines()[2:]} == {"lo"}


async def test_init_holds_the_listening_socket_and_no_other_descriptor_of_ours(running: Member) -> None:
    running.ask("ids")  # it is past its start, which may hold descriptors for a moment
    descriptors = {fd: os.readlink(f"/proc/{running.pid}/fd/{fd}") for fd in ("0", "1", "2", "3")}
    assert descriptors["3"].startswith("socket:")
    assert all(descriptors[fd].startswith("pipe:") for fd in "012")
    accepted: list[str] = []
    for fd in Path(f"/proc/{running.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of a connection that has just been closed
            if fd.name not in descriptors:
                accepted.append(os.readlink(fd))
    assert all(target.startswith("socket:") for target in accepted)


async def test_it_gains_no_privileges_and_is_killed_before_the_machines_own_processes(running: Member) -> None:
    status = dict(line.split(":", 1) for line in running.ask("read /proc/self/status").splitlines())
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert status["CapInh"].strip() == status["CapAmb"].strip() == "0" * 16
    # NET_ADMIN, SYS_ADMIN and SYS_TIME for init, and Docker's fourteen without NET_RAW
    assert int(status["CapBnd"], 16) == 0xA80425FB & ~(1 << 13) | 1 << 12 | 1 << 21 | 1 << 25
    assert running.ask("read /proc/self/oom_score_adj") == "500\n"


async def test_its_own_root_cannot_be_written(running: Member) -> None:
    assert running.ask("write /x") == "write 30\n"  # EROFS
    assert running.ask("write /sys/kernel/mm/x") in ("write 30\n", "write 13\n", "write 2\n")
    assert running.ask("write /proc/sys/net/ipv4/ip_forward") == "write 30\n"
    assert running.ask("write /dev/shm/x") == "write 0\n"


async def test_the_hosts_secrets_in_proc_and_sys_are_masked(running: Member) -> None:
    for path in ("/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/kcore"):
        assert running.ask(f"read {path}") in ("", "open 2\n"), path
    for path in ("/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"):
        assert running.ask(f"list {path}") in (".\n..\n", "..\n.\n", "opendir 2\n"), path


async def test_dev_has_the_standard_nodes_only(running: Member) -> None:
    names = set(running.ask("list /dev").split()) - {".", ".."}
    assert names - {"core"} == {  # a link to the masked /proc/kcore, where the kernel has one
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"),
        *("fd", "stdin", "stdout", "stderr"),
    }


async def test_network_settings_let_its_users_ping_and_bind_low_ports(running: Member) -> None:
    assert running.ask("read /proc/sys/net/ipv4/ip_unprivileged_port_start") == "0\n"
    assert running.ask("read /proc/sys/net/ipv4/ping_group_range").split() == ["0", "65535"]
    assert running.ask("read /proc/sys/net/ipv6/conf/default/accept_dad") == "0\n"


async def test_what_is_mounted_in_the_slot_later_appears_inside(running: Member) -> None:
    place = running.slot / "root"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    (place / "hello").write_text("from outside")
    assert running.ask("read /slot/root/hello") == "from outside"


@pytest.mark.skipif(not shutil.which("crun"), reason="crun is not installed")
async def test_it_appears_inside_also_where_crun_made_the_container(probe: Path) -> None:
    """In a view of this machine in which cgroup v2 is all there is, for crun refuses a mix of both versions."""
    world = World.make(probe)
    view = world.path / "crun"
    view.write_text(
        "#!/bin/sh\n"
        "exec unshare --mount --propagation slave sh -c "
        """'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec crun "$@"' crun "$@"\n"""
    )
    view.chmod(0o755)
    try:
        world.runtime = oci.OciRuntime(str(view), world.path / "runtime")
        member = world.member()
        config = member.config
        del config["linux"]["resources"]  # a mix has its controllers elsewhere
        (member.bundle / "config.json").write_text(json.dumps(config))
        member.pid = await world.runtime.run(member.id, member.bundle, member.listener.fileno())
        place = member.slot / "root"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
        (place / "hello").write_text("from outside")
        assert member.ask("read /slot/root/hello") == "from outside"
    finally:
        await world.close()


async def test_its_limits_hold_from_the_first_moment(running: Member) -> None:
    assert int(running.ask("fork 100")) == 15  # of 16, one is init
    assert running.cgroup.oom_kills() == 0


async def test_memory_beyond_the_limit_ends_the_process_and_is_counted(running: Member) -> None:
    assert running.ask("eat 16") == "0\n"
    assert running.ask("eat 200") == "-9\n"
    assert running.cgroup.oom_kills() == 1


def test_what_an_oci_program_keeps_beside_its_containers_is_none_of_them(tmp_path: Path) -> None:
    runtime = oci.OciRuntime("crun", tmp_path)
    for name in ("roost-0-1", ".cache"):  # the second is made by crun 1.20 and later, for compiled filters
        (tmp_path / "containers" / name).mkdir(parents=True)
    assert runtime.list() == {"roost-0-1"}


async def test_destroy_leaves_nothing_and_may_be_repeated(world: World) -> None:
    member = await world.running()
    member.ask("fork 10")
    assert world.runtime.list() == {member.id}
    await world.runtime.destroy(member.id)
    await world.runtime.destroy(member.id)
    assert world.runtime.list() == set()
    assert member.cgroup.pids() == set()
    assert remains(world, member) == []


async def test_members_are_made_and_destroyed_side_by_side(world: World) -> None:
    members = await asyncio.gather(*(world.running(f"m{n}") for n in range(4)))
    assert [member.ask("ids").split()[0] for member in members] == ["1"] * 4
    await asyncio.gather(*(world.runtime.destroy(member.id) for member in members))
    assert world.runtime.list() == set()


async def test_a_container_that_does_not_come_up_says_why_and_is_cleaned(world: World) -> None:
    member = world.member()
    config = member.config
    config["process"]["args"] = ["/no-such-init"]
    (member.bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFailed, match="no-such-init"):
        await world.runtime.run(member.id, member.bundle, member.listener.fileno())
    await world.runtime.destroy(member.id)
    assert world.runtime.list() == set()
    assert remains(world, member) == []


async def test_a_cancelled_start_is_cleaned(world: World) -> None:
    for n, delay in enumerate((0.0, 0.005, 0.012, 0.02)):
        member = world.member(f"m{n}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(delay):
                await world.runtime.run(member.id, member.bundle, member.listener.fileno())
                await asyncio.sleep(1)
        await world.runtime.destroy(member.id)
        assert member.cgroup.pids() == set()
        assert remains(world, member) == []
    assert world.runtime.list() == set()


async def test_after_a_kill_at_any_moment_destroy_finds_and_cleans_it(world: World) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from roost.node.runtimes.oci import OciRuntime
program, root, container_id, bundle, fd = sys.argv[1:]
runtime = OciRuntime(program, Path(root))
print("begin", flush=True)
asyncio.run(runtime.run(container_id, Path(bundle), int(fd)))
print("up", flush=True)
sys.stdin.read()
"""
    for n, delay in enumerate((0.0, 0.004, 0.008, 0.012, 0.016, 0.02, 0.024, 0.03, None)):
        member = world.member(f"m{n}")
        runtime_program = oci.choose(None, world.hierarchies.version)
        args = [runtime_program, world.path / "runtime", member.id, member.bundle, str(member.listener.fileno())]
        node = subprocess.Popen(
            [sys.executable, "-c", program, *args],
            pass_fds=[member.listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert node.stdin and node.stdout
        assert node.stdout.readline() == b"begin\n"
        if delay is None:
            assert node.stdout.readline() == b"up\n"
        else:
            await asyncio.sleep(delay)
        node.kill()
        node.wait()
        node.stdin.close()
        node.stdout.close()
        await world.runtime.destroy(member.id)
        assert world.runtime.list() == set()
        assert member.cgroup.pids() == set()
        assert remains(world, member) == []


async def test_a_pid_that_has_become_another_process_is_left_alone(world: World) -> None:
    member = await world.running()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (world.path / "runtime" / "records" / member.id).write_text(f"{member.cgroup.path}\n{bystander.pid} 1")
        await world.runtime.destroy(member.id)
        assert bystander.poll() is None
        assert member.cgroup.pids() == set()
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()


def remains(world: World, member: Member) -> list[str]:
    """What is still there of a destroyed member, apart from the parent cgroups, which all members share."""
    name = member.cgroup.path.lstrip("/")
    cgroups = [str(root / name) for root in world.hierarchies.roots() if (root / name).exists()]
    files = [str(path) for path in (world.path / "runtime").rglob(f"*{member.id}*")]
    return cgroups + files
