"""A start that fails says what could not be done and where, and leaves the node able to start the next one."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from roost.errors import MachineFault, NoCapacity, NotFound, condition_of, reason, said
from roost.node.cgroup import Cgroup, Hierarchies
from roost.node.disk import Disks
from roost.node.pool import Pool
from roost.node.protocol import File, Limits
from roost.node.runtimes.oci import OciRuntime
from roost.node.sandbox import EXHAUSTED, not_done

from .guest_world import LIMIT, World, own_number
from .node_world import START, RealNode, command_of

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(90),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[RealNode]:
    async with RealNode.running() as node:
        yield node


async def until_nobody_is_busy(node: RealNode) -> None:
    async with asyncio.timeout(LIMIT):
        while (await node.client.info()).pool.busy:
            await asyncio.sleep(0.02)


async def test_a_root_that_cannot_be_mounted_is_named_with_its_path(node: RealNode) -> None:
    rootfs = next((node.directory / "images/rootfs").iterdir())
    rootfs.rename(rootfs.with_name("elsewhere"))
    try:
        with pytest.raises(MachineFault) as told:
            await node.box()
    finally:
        rootfs.with_name("elsewhere").rename(rootfs)
    assert str(told.value) == (
        f"the sandbox could not be started: open_tree {rootfs}: No such file or directory; "
        "`sudo roost doctor` does what a sandbox needs and names the cure"
    )
    await until_nobody_is_busy(node)
    await (await node.box()).stop()


async def test_a_start_whose_uploads_are_gone_gives_its_member_back(node: RealNode) -> None:
    with pytest.raises(NotFound):
        await node.box(files=[File(id="0123456789abcdef", name="x", size=1)])
    await until_nobody_is_busy(node)


async def test_what_lasts_is_told_as_the_machines_fault_and_what_may_pass_is_waited_for() -> None:
    async with World.open() as world:
        broken = replace(world.ground, runtime=OciRuntime("/bin/false", world.directory / "run/oci"))
        for patience, condition in ((60.0, NoCapacity), (0.0, MachineFault)):
            pool = Pool(broken, 0, 0, patience=patience)
            pool.open()
            async with asyncio.timeout(LIMIT):
                with pytest.raises(condition, match=r"/bin/false .* failed with status 1.*roost doctor"):
                    await pool.take()
                await pool.close()
            await world.sweep()


async def test_a_start_for_which_the_machine_has_run_out_of_something_waits(node: RealNode) -> None:
    """Here of processes for what guest init itself starts; it may be the kernel's memory for filters, or mounts."""
    with pytest.raises(NoCapacity, match="Resource temporarily unavailable"):
        await node.box(limits=Limits(vcpus=1, memory_mb=64, disk_gb=1, pids=1, timeout_seconds=0))
    await until_nobody_is_busy(node)
    await (await node.box()).stop()


@pytest.mark.parametrize("number", sorted(EXHAUSTED - {524}))
async def test_what_has_run_out_is_waited_for(number: int) -> None:
    told = not_done("the sandbox could not be started", OSError(number, f"mount /root: {os.strerror(number)}"))
    assert isinstance(told, NoCapacity)
    assert str(told).startswith("the sandbox could not be started now: mount /root")


async def test_a_disk_that_could_not_be_formatted_is_formatted_the_next_time(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    in_the_way = tmp_path / "template-1g.new"
    in_the_way.mkdir()
    with pytest.raises(IsADirectoryError, match=r"template-1g\.new"):
        await disks.make("one", tmp_path / "one", 1, 0)
    in_the_way.rmdir()
    (await disks.make("one", tmp_path / "one", 1, 0)).remove()


async def test_a_limit_that_the_kernel_refuses_names_its_file(tmp_path: Path) -> None:
    group = Cgroup(Hierarchies("v2", {"": tmp_path}), "/roost-0", "m1")
    group.create()
    file = tmp_path / "roost-0/m1/memory.max"
    file.symlink_to("/dev/full")
    with pytest.raises(OSError) as refused:
        group.apply(Limits(vcpus=1, memory_mb=64, disk_gb=1, pids=8, timeout_seconds=0))
    assert reason(refused.value) == f"{file}: No space left on device"


async def test_a_node_that_cannot_start_says_on_which_path_and_leaves_nothing(tmp_path: Path) -> None:
    with own_number() as number:
        (tmp_path / "images").mkdir()
        (tmp_path / "images/names").write_text("in the way")
        process = await asyncio.create_subprocess_exec(
            *command_of(tmp_path, number), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(START):
            _, said = await process.communicate()
    assert process.returncode == os.EX_CONFIG
    assert said.decode().splitlines()[-1] == (
        f"Error: the node cannot start on this machine: {tmp_path}/images/names: File exists; "
        "`sudo roost doctor` names the cure"
    )
    assert list((tmp_path / "run").iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    tables = await asyncio.create_subprocess_exec("nft", "list", "tables", stdout=asyncio.subprocess.PIPE)
    assert f"roost{number}\n".encode() not in (await tables.communicate())[0]
    assert not [root for root in Hierarchies.here().roots() if (root / f"roost-{number}").exists()]


async def test_a_condition_never_consists_of_a_class_name_or_of_nothing() -> None:
    assert str(condition_of(TimeoutError(), "x")).startswith("x: it took too long; ")
    assert str(condition_of(PermissionError(13, "Permission denied", "/x"), "x")).startswith("x: /x: Permission denied")
    assert (said(ConnectionResetError(104, "Connection reset by peer")), said(EOFError())) == (
        "Connection reset by peer",
        "it broke off",
    )
    assert str(condition_of(KeyError("secret"), "x")) == "x: internal error of the node, whose log has the details"
