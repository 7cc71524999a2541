"""Disks in loop-mounted files: their limit, the space that comes back, and what a crash leaves."""

import asyncio
import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import linux
from roost.node.disk import Disk, Disks, remove_disk, unmount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
OWNER = 2**30 + 5
MIB = 1024 * 1024


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where disks are made; nothing of it is mounted or looped any more when the test is over."""
    (tmp_path / "disks").mkdir()
    (tmp_path / "small").mkdir()
    yield tmp_path
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(f"{tmp_path}/"):
            unmount(Path(line.split()[4]))
    assert not lasting_loops(tmp_path)
    shutil.rmtree(tmp_path / "disks")


@pytest.fixture
async def disk(place: Path) -> Disk:
    return await Disks(place / "disks").make("one", place / "one", 1, OWNER)


def loops(place: Path) -> list[str]:
    """Backing files below `place` of this machine's loop devices."""
    found: list[str] = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (image := backing.read_text()).startswith(f"{place}/"):
                found.append(image)
    return found


def lasting_loops(place: Path) -> list[str]:
    """Those that are still there after the moment that the kernel takes to end a detached one."""
    deadline = time.monotonic() + 5
    while (found := loops(place)) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


async def test_a_disk_is_empty_and_belongs_to_its_member(disk: Disk) -> None:
    assert sorted(path.name for path in disk.mountpoint.iterdir()) == ["upper", "work"]
    assert {disk.upper.stat().st_uid, disk.work.stat().st_gid} == {OWNER}
    assert disk.image.stat().st_blocks * 512 < 4 * MIB


async def test_a_disk_takes_what_it_promises_and_no_more(disk: Disk) -> None:
    room = os.statvfs(disk.upper)
    assert room.f_bavail * room.f_frsize > 0.95 * 1024 * MIB
    with (disk.upper / "big").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 8 * MIB)
    with pytest.raises(OSError) as full, (disk.upper / "more").open("wb", buffering=0) as file:
        for _ in range(20):
            file.write(bytes(MIB))
    assert full.value.errno == errno.ENOSPC


async def test_what_is_deleted_inside_is_given_back_outside(disk: Disk) -> None:
    before = disk.image.stat().st_blocks
    file = disk.upper / "file"
    file.write_bytes(os.urandom(32 * MIB))
    os.sync()
    assert disk.image.stat().st_blocks - before >= 32 * MIB // 512
    file.unlink()
    deadline = time.monotonic() + 5
    while disk.image.stat().st_blocks - before > 4 * MIB // 512 and time.monotonic() < deadline:
        os.sync()
    assert disk.image.stat().st_blocks - before <= 4 * MIB // 512


async def test_a_removed_disk_leaves_nothing_even_in_use(disk: Disk, place: Path) -> None:
    with (disk.upper / "open").open("wb") as file:
        disk.remove()
        assert not disk.image.exists()
        assert not mounted(disk.mountpoint)
        file.write(b"still its own")
    assert not lasting_loops(place)
    disk.remove()


async def test_a_disk_half_removed_or_half_made_is_removed_and_made_again(place: Path) -> None:
    disks = Disks(place / "disks")

    async def crash_unmounted() -> None:
        unmount((await disks.make("one", place / "one", 1, OWNER)).mountpoint)

    async def crash_without_mountpoint() -> None:
        await crash_unmounted()
        (place / "one").rmdir()

    async def crash_with_no_file() -> None:
        (await disks.make("one", place / "one", 1, OWNER)).image.unlink()

    async def crash_in_the_copy() -> None:
        (place / "disks/one.img").write_bytes(b"half")

    for crash in (crash_unmounted, crash_without_mountpoint, crash_with_no_file, crash_in_the_copy):
        await crash()
        disk = await disks.make("one", place / "one", 1, OWNER)
        assert list(disk.upper.iterdir()) == []
        (disk.upper / "file").write_bytes(b"works")
        await crash()
        remove_disk(place / "disks/one.img", place / "one")
        assert not mounted(place / "one")
        assert not disk.image.exists()
        assert not lasting_loops(place)


async def test_makers_that_race_for_loop_devices_all_get_one(place: Path) -> None:
    one, other = Disks(place / "disks"), Disks(place / "small")
    pairs = [(disks, number) for number in range(8) for disks in (one, other)]
    disks = await asyncio.gather(*(d.make(f"d{n}", place / f"{d.directory.name}{n}", 1, OWNER) for d, n in pairs))
    for number, disk in enumerate(disks):
        (disk.upper / "mine").write_text(str(number))
    assert [(disk.upper / "mine").read_text() for disk in disks] == [str(number) for number in range(16)]
    assert len(loops(place)) == 16
    for disk in disks:
        disk.remove()


async def test_two_sizes_are_two_sizes(place: Path) -> None:
    disks = Disks(place / "disks")
    small, large = await asyncio.gather(disks.make("a", place / "a", 1, OWNER), disks.make("b", place / "b", 3, OWNER))
    sizes = [os.statvfs(disk.upper).f_blocks * 4096 for disk in (small, large)]
    assert sizes[1] > 2.5 * sizes[0]


async def test_a_machine_without_room_for_a_disk_says_so(place: Path) -> None:
    linux.mount("roost-test", place / "small", "tmpfs", 0, "size=64m")
    disks = Disks(place / "small")
    (await disks.make("first", place / "first", 1, OWNER)).remove()
    lasting_loops(place)
    room = os.statvfs(place / "small")
    with (place / "small/other").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 16384)
    with pytest.raises(OSError) as full:
        await disks.make("second", place / "second", 1, OWNER)
    assert full.value.errno == errno.ENOSPC
    assert not mounted(place / "second")
    remove_disk(place / "small/second.img", place / "second")
    (place / "small/other").unlink()
    (await disks.make("second", place / "second", 1, OWNER)).remove()
