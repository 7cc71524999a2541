"""A sandbox's disk: an ext4 file system of its own in a sparse file, mounted through a loop device.

So the limit is the file system's own (ENOSPC inside, on any kernel), one guest's inodes, fsyncs and full disk are not
another's, and giving space back is unlinking a file. Made when a pool member is made, off the hot path. The layer that
a guest writes is `upper`, beside overlayfs's `work`. What the layers below it hold counts against it as `ballast`, so
that the limit is one of all that the sandbox sees above its image, and `df` in it says so.
"""

import asyncio
import errno
import fcntl
import os
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from roost import linux
from roost.errors import Damaged, SetupMissing, about

GIB = 1024**3
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO_BYTES = 232  # struct loop_info64, which begins with the device and inode of the file
_E2FSCK_MENDED = 1
REPAIR_SECONDS = 600
_LOOP_CONFIGURE = 0x4C0A
_MS_NOATIME = 1024
_LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 4, 16
_LOOP_CONFIG = struct.Struct("<II 5Q4I64s64s32s2Q 8Q")  # struct loop_config with its loop_info64
BLOCK = 4096
BYTES_PER_INODE = 8192
FLOOR = 32 * 1024 * 1024  # bytes that can be written to any disk, so that what is below can be deleted
COPYING = 1800.0  # seconds that the copy of a disk may take
SEAL_SECONDS = 5.0  # that a killed process may take to let go of its files
MOUNT_OPTIONS = "noinit_itable,discard,errors=remount-ro"  # discard: what the guest deletes, the node gets back
# Of writable overlays, whatever the kernel's own defaults are. A renamed directory is a note (redirect_dir) only until
# the disk becomes a layer (moved.py): then each layer can be read, merged and moved by itself.
OVERLAY = "xino=on,redirect_dir=on,metacopy=off,index=off"


def mkfs_args(image: Path) -> list[str]:
    """No journal: after a crash of the machine the disk is not used again. An inode per 8 KiB, for many small files."""
    return [
        *("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-i", str(BYTES_PER_INODE), "-m", "0"),
        *("-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", str(image)),
    ]


def _loop_device(image: Path) -> int:
    """A descriptor of a loop device on `image` that ends itself with its last user. Several nodes may race for one."""
    with open("/dev/loop-control", "rb") as control, image.open("rb+") as file:
        for _ in range(64):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            try:
                device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise SetupMissing(f"/dev/loop{number} is missing: mount devtmpfs on /dev") from None
            name = image.name.encode()[-63:]
            flags = _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO
            config = _LOOP_CONFIG.pack(file.fileno(), BLOCK, *[0] * 5, 0, 0, 0, flags, name, b"", b"", 0, 0, *[0] * 8)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                return device
            except OSError as e:
                os.close(device)
                if e.errno != errno.EBUSY:
                    raise
    raise OSError(errno.EBUSY, "every free loop device was taken by someone else")


def _copy_sparse(source: Path, target: Path) -> None:
    with source.open("rb") as a, target.open("xb") as b:
        size = os.fstat(a.fileno()).st_size
        os.ftruncate(b.fileno(), size)
        end = 0
        while (start := _next_data(a.fileno(), end)) is not None:
            end = os.lseek(a.fileno(), start, os.SEEK_HOLE)
            os.lseek(b.fileno(), start, os.SEEK_SET)
            while start < end:
                start += os.sendfile(b.fileno(), a.fileno(), start, end - start)


def _next_data(fd: int, at: int) -> int | None:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole is left
            return None
        raise


@dataclass
class Disk:
    """A mounted disk. `upper` and `work` belong to the ids of the member that has it."""

    image: Path
    mountpoint: Path
    gib: int

    @property
    def upper(self) -> Path:
        return self.mountpoint / "upper"

    @property
    def work(self) -> Path:
        return self.mountpoint / "work"

    @property
    def ballast(self) -> Path:
        """Takes its size from what can be written, and no room on the node: its blocks are never written to."""
        return self.mountpoint / "ballast"

    @property
    def free(self) -> int:
        """Bytes that can be written."""
        status = os.statvfs(self.mountpoint)
        return status.f_bavail * status.f_frsize

    def hold(self, held: int) -> int:
        """Let it seem to hold so many bytes already, less where FLOOR would not be left free; how many it does."""
        possible = min(held, self.free - FLOOR)
        if possible <= 0 or not self.mountpoint.is_mount():
            return 0
        fd = os.open(self.ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, possible)
        finally:
            os.close(fd)
        return possible

    def remove(self) -> None:
        """Safe to repeat, and after a crash between any of its steps."""
        remove_disk(self.image, self.mountpoint)


def mount_image(image: Path, mountpoint: Path, flags: int = 0) -> None:
    """Sealed: a set-uid file of a guest is root's here once its ids are made plain, and nobody runs it from here."""
    device = _loop_device(image)
    try:
        linux.mount(_name_of(device), mountpoint, "ext4", flags | linux.MS_SEALED | _MS_NOATIME, MOUNT_OPTIONS)
    finally:
        os.close(device)


def enlarge(disk: Disk) -> None:
    """Its files on a disk of twice the size, in its place. Nothing runs on it. Blocks; if it raises, nothing changed.

    By a copy: to resize one that is mounted takes a capability that root may lack (CAP_SYS_RESOURCE, in containers).
    """
    larger = Disk(
        disk.image.with_suffix(".larger"), disk.mountpoint.with_name(f"{disk.mountpoint.name}.larger"), 2 * disk.gib
    )
    remove_disk(larger.image, larger.mountpoint)
    larger.mountpoint.mkdir(exist_ok=True)
    try:
        with larger.image.open("wb") as file:
            file.truncate(2 * disk.image.stat().st_size)
        _do(mkfs_args(larger.image))
        mount_image(larger.image, larger.mountpoint)
        (larger.mountpoint / "lost+found").rmdir()
        for part in (disk.upper, disk.work):
            _do(["cp", "-a", str(part), str(larger.mountpoint)])
        linux.mount(larger.mountpoint, disk.mountpoint, flags=linux.MS_BIND)  # on top: at no moment is there none
        larger.image.rename(disk.image)
    finally:
        remove_disk(larger.image, larger.mountpoint)
        larger.mountpoint.rmdir()


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COPYING, check=False)
    if done.returncode:
        raise OSError(errno.EIO, f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def seal(disk: Disk) -> None:
    """Everything on the disk is in its image, for good; it stays mounted, read-only. Blocks, and may be repeated.

    An unmount alone would not do: a container that is being started has a copy of every mount for some milliseconds,
    and while one is left, the file system goes on writing to the image behind the back of whoever mounts it next.
    """
    deadline = time.monotonic() + SEAL_SECONDS
    while True:
        try:
            flags = linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_SEALED | _MS_NOATIME
            linux.mount(None, disk.mountpoint, flags=flags)
            break
        except OSError as error:  # a process that was killed still has a file open for writing
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    with disk.image.open("rb") as image:
        os.fsync(image.fileno())


def is_attached(image: Path) -> bool:
    """Whether any loop device has this file: what is mounted twice at once is soon two different file systems."""
    status = image.stat()
    return any(_backing_file(device) == (status.st_dev, status.st_ino) for device in Path("/sys/block").glob("loop*"))


def _backing_file(device: Path) -> tuple[int, int] | None:
    if not (device / "loop/backing_file").exists():
        return None
    info = bytearray(_LOOP_INFO_BYTES)
    try:
        with open(f"/dev/{device.name}", "rb") as file:
            fcntl.ioctl(file, _LOOP_GET_STATUS64, info)
    except OSError:  # it has just been let go
        return None
    return struct.unpack_from("=QQ", info)


def repair(image: Path) -> None:
    """After a crash: what e2fsck mends without asking. Raises Damaged."""
    argv = ["e2fsck", "-p", str(image)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=REPAIR_SECONDS)
    if done.returncode > _E2FSCK_MENDED:
        raise Damaged(f"its disk is damaged: {(done.stdout + done.stderr).strip()[-500:]}")


def remove_disk(image: Path, mountpoint: Path) -> None:
    unmount(mountpoint)
    image.unlink(missing_ok=True)


def unmount(path: Path) -> None:
    """Every mount at `path`, if there is one."""
    while True:
        try:
            linux.umount(path, linux.MNT_DETACH)
        except OSError as e:
            if e.errno in (errno.EINVAL, errno.ENOENT):
                return
            raise


class Disks:
    """Makes disks below one directory from a template per size, made once: mkfs takes 10 ms, a sparse copy 2."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._templates: dict[int, asyncio.Task[Path]] = {}

    async def make(self, name: str, mountpoint: Path, gib: int, owner: int) -> Disk:
        template = await self._template(gib)
        disk = Disk(self.directory / f"{name}.img", mountpoint, gib)
        await asyncio.to_thread(self._mount, template, disk, owner)
        return disk

    def _mount(self, template: Path, disk: Disk, owner: int) -> None:
        disk.remove()
        with about(disk.image):
            _copy_sparse(template, disk.image)
        disk.mountpoint.mkdir(exist_ok=True)
        mount_image(disk.image, disk.mountpoint)
        (disk.mountpoint / "lost+found").rmdir()
        for directory in (disk.upper, disk.work):
            directory.mkdir(mode=0o755)
            os.chown(directory, owner, owner)

    async def _template(self, gib: int) -> Path:
        known = self._templates.get(gib)
        if known is None or (known.done() and (known.cancelled() or known.exception())):  # it is tried again
            known = self._templates[gib] = asyncio.create_task(self._format(gib))
        return await asyncio.shield(known)

    async def _format(self, gib: int) -> Path:
        template, fresh = self.directory / f"template-{gib}g", self.directory / f"template-{gib}g.new"
        with about(fresh), fresh.open("wb") as file:
            file.truncate(gib * GIB)
        process = await asyncio.create_subprocess_exec(*mkfs_args(fresh), stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            _, error = await process.communicate()
        if process.returncode:
            raise OSError(errno.EIO, f"mkfs.ext4 failed: {error.decode(errors='replace').strip()}", f"{fresh}")
        fresh.rename(template)
        return template


def _name_of(device: int) -> str:
    return str(Path(f"/proc/self/fd/{device}").readlink())
