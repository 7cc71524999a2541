"""The root of a member: how its layers are mounted on the machines that there are."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from roost import linux
from roost.node import member as members
from roost.node.layers import DEEPEST
from roost.node.member import IDLE, Member

from .guest_world import LIMIT, SIGHT, Inside, World

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes containers"),
    pytest.mark.timeout(60),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with World.open() as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def shared_world(world: World) -> AsyncIterator[World]:
    """As on a machine with systemd: every mount of the machine is shared, unless somebody says otherwise."""
    linux.mount(world.directory, world.directory, flags=linux.MS_BIND | linux.MS_REC)
    linux.mount(None, world.directory, flags=linux.MS_SHARED | linux.MS_REC)
    try:
        yield world
        await world.sweep()
    finally:
        linux.umount(world.directory, linux.MNT_DETACH)


@pytest_asyncio.fixture(loop_scope="module")
async def member(world: World) -> AsyncIterator[Member]:
    member = await world.member()
    yield member
    await member.destroy()
    assert not await world.emptied()


def mounts(world: World) -> list[str]:
    """Where something of the world is mounted in this process's mount namespace, with the mount's number."""
    words = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [f"{word[0]} {word[4]}" for word in words if Path(word[4]).is_relative_to(world.directory)]


def mount_number(descriptor: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("mnt_id:"))


def layers(world: World, count: int) -> list[Path]:
    """That many, and the image; each has a file of its own."""
    made = [world.directory / "layers" / str(number) for number in range(count)]
    for layer in made:
        layer.mkdir(parents=True, exist_ok=True)
        (layer / f"of-{layer.name}").write_text(layer.name)
    return [*made, world.image]


async def test_overlayfs_is_given_no_layer_from_outside_the_mount_namespace(
    member: Member, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 6.15 the kernel answers EINVAL to one; newer kernels, which may run this test, take it."""
    named: list[str] = []
    real = linux.mount

    def mount(source: str, target: Path, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
        if kind == "overlay" and options:
            lowers = options.split(",")[0].removeprefix("lowerdir=").split(":")
            named.extend(mount_number(int(lower.rpartition("/")[2])) for lower in lowers)
            assert {*named} <= {line.split()[0] for line in mounts(world)}
        real(source, target, kind, flags, options)

    monkeypatch.setattr(linux, "mount", mount)
    members.mount_root(layers(world, 2), member.disk, member.site, member.pid)
    assert len({*named}) == 3


async def test_a_root_of_many_layers_is_whole_and_their_mounts_are_gone(member: Member, world: World) -> None:
    before = mounts(world)
    await member.mount(layers(world, DEEPEST), IDLE)
    await member.guest.attach("nest", SIGHT)
    member.forget_mounts()
    assert [line for line in mounts(world) if line not in before] == []
    inside = Inside(member.guest, member)
    assert len((await inside.shell("cat of-*; stat -c %u:%g of-*")).split()) == DEEPEST
    assert {*(await inside.shell("stat -c %u:%g of-*")).split()} == {"0:0"}


async def test_on_a_machine_whose_mounts_are_shared_nothing_else_sees_the_members_mounts(shared_world: World) -> None:
    stack = layers(shared_world, 3)
    before = {line.split()[1] for line in mounts(shared_world)}
    member = await shared_world.member(1)
    members.mount_root(stack, member.disk, member.site, member.pid)
    seen = {line.split()[1] for line in mounts(shared_world)} - before
    assert all(Path(point).is_relative_to(member.site.directory) for point in seen), seen
    async with asyncio.timeout(LIMIT):
        await member.guest.attach("nest", SIGHT)
    member.forget_mounts()
    assert (await Inside(member.guest, member).shell("cat of-1")) == "1"
    await member.destroy()
    assert {line.split()[1] for line in mounts(shared_world)} == before


async def test_a_claim_that_was_cut_short_leaves_no_mounts(world: World) -> None:
    """As a node that was killed while it mounted: nothing but the number is known to the next one."""
    member = await world.member(2)
    members.mount_root(layers(world, 3), member.disk, member.site, member.pid)
    with contextlib.suppress(OSError):
        members.mount_root([world.directory / "nowhere"], member.disk, member.site, member.pid)
    member.let_go()
    await members.destroy(world.ground, 2)
    assert not await world.emptied()
