"""One pool member: a sandbox that is ready but for its root file system.

The pool makes members and destroys them; a sandbox that claims one attaches its root. Everything of a member follows
from its number, and its directory exists from before its first part until after its last, so that a node that was
killed between any two steps finds and removes the rest by the number alone.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from roost import linux
from roost.errors import Conflict
from roost.node.cgroup import MIB, Cgroup, Hierarchies
from roost.node.cores import Cores, Share
from roost.node.devices import lay_devices
from roost.node.disk import OVERLAY, Disk, Disks, remove_disk, unmount
from roost.node.guest.channel import Guest, GuestLost, listening_socket
from roost.node.guest.frames import Sight
from roost.node.metering import Counters, read
from roost.node.namespaces import UserNamespace
from roost.node.network import HOST_MAC, Link, Network, host_end
from roost.node.protocol import PIDS, Limits
from roost.node.runtimes import Runtime
from roost.node.runtimes.oci import Container, Machine, container_config

MEMBERS = 1024  # numbers per instance
FIRST_ID = 2**30  # uids and gids from here on belong to Roost's guests
IDS = 65536  # per member
IDLE = Limits(vcpus=2, memory_mb=1024, disk_gb=2, pids=PIDS, timeout_seconds=300)  # what most jobs ask for


@dataclass(frozen=True)
class Ground:
    """What the members of one node stand on."""

    instance: int
    runtime_dir: Path  # /run/roost/N
    runtime: Runtime
    machine: Machine
    hierarchies: Hierarchies
    parent: str  # of the members' control groups
    network: Network
    disks: Disks
    cores: Cores = field(default_factory=Cores)

    def site(self, number: int) -> "Site":
        return Site(self.instance, number, self.runtime_dir / "members" / str(number))

    def cgroup(self, site: "Site") -> Cgroup:
        return Cgroup(self.hierarchies, self.parent, site.container_id)


@dataclass(frozen=True)
class Site:
    """Where member `number` is: names and paths."""

    instance: int
    number: int
    directory: Path

    @property
    def first_id(self) -> int:
        return FIRST_ID + (self.instance * MEMBERS + self.number) * IDS

    @property
    def container_id(self) -> str:
        return f"roost-{self.instance}-{self.number}"

    @property
    def mounts(self) -> Path:
        """A private mount of its own with all that is only needed until the guest has its root: one detach ends it."""
        return self.directory / "mounts"

    @property
    def slot(self) -> Path:
        """Shared with the guest, which sees what is mounted below it."""
        return self.mounts / "slot"

    @property
    def layers(self) -> Path:
        """Where the layers of its root are mounted, with ids mapped, one on top of the other."""
        return self.mounts / "layers"

    @property
    def devices(self) -> Path:
        return self.mounts / "dev"

    @property
    def root(self) -> Path:
        return self.slot / "root"

    @property
    def disk(self) -> Path:
        return self.directory / "disk"

    @property
    def interface(self) -> str:
        """The host's end of its link."""
        return host_end(self.instance, self.number)

    @property
    def socket(self) -> Path:
        return self.directory / "guest.sock"

    @property
    def mountpoints(self) -> Iterator[Path]:
        yield from (self.mounts, self.disk)


@dataclass(eq=False)
class Member:
    ground: Ground
    site: Site
    pid: int
    guest: Guest
    disk: Disk
    cgroup: Cgroup
    namespace: int | None  # its network's; opened while guest init was known to live, since pids are used again
    used: Counters = field(default_factory=Counters)  # when it was made
    sight: Sight = field(default_factory=lambda: Sight(IDLE.memory_mb * MIB, 1))  # what its programs are told
    share: Share | None = None  # of the processors, since it was claimed
    _rests: bool = False

    @property
    def number(self) -> int:
        return self.site.number

    @cached_property
    def addresses(self) -> tuple[str, str]:
        """IPv4 and IPv6."""
        link = self.ground.network.link(self.number)
        return link.ipv4, link.ipv6

    def network(self) -> int:
        """A descriptor of its network namespace, which the caller closes. Raises Conflict when it is being ended."""
        if self.namespace is None:
            raise Conflict("the sandbox is being ended")
        return fcntl.fcntl(self.namespace, fcntl.F_DUPFD_CLOEXEC, 0)

    def rest(self, rests: bool) -> None:
        """It stands still, and so needs no processor; or it goes on."""
        if self.share and rests != self._rests:
            (self.ground.cores.give if rests else self.ground.cores.count)(self.share)
        self._rests = rests

    def _leave(self) -> None:
        self.rest(True)
        self.guest.close()
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None

    async def mount(self, lowers: Sequence[Path], limits: Limits) -> None:
        """Give it its limits and, for guest init to attach, its root: `lowers`, read-only, below its own disk."""
        if self.share is None:
            self.share = self.ground.cores.take(limits.vcpus)
        self.sight = Sight(limits.memory_mb * MIB, self.share.cpus, self.share.on)
        if (limits.vcpus, limits.memory_mb, limits.pids) != (IDLE.vcpus, IDLE.memory_mb, IDLE.pids):
            self.cgroup.apply(limits)
        if limits.disk_gb != self.disk.gib:
            site = self.site
            await asyncio.to_thread(self.disk.remove)
            self.disk = await self.ground.disks.make(site.container_id, site.disk, limits.disk_gb, site.first_id)
        mount_root(lowers, self.disk, self.site, self.pid)  # a millisecond; a thread would add a third of one

    def forget_mounts(self) -> None:
        """Guest init has moved into its own copy of the mount; the host needs none."""
        unmount(self.site.mounts)

    async def quiet(self) -> None:
        """Ends every process in it, guest init too; its disk stays, and nobody changes it any more."""
        self._leave()
        await end(self.ground, self.site)

    def let_go(self) -> None:
        """The node goes; the member stays for the next one."""
        self._leave()

    async def destroy(self) -> None:
        self._leave()
        await destroy(self.ground, self.number)


async def make(ground: Ground, number: int, step: Callable[[str], None] = lambda _: None) -> Member:
    """Raises RuntimeFailed, GuestLost, OSError; the number must then be destroyed before it is used again.

    `step` is told what is made next: disk, container, network, guest init.
    """
    site = ground.site(number)
    step("disk")
    site.directory.mkdir(mode=0o700, parents=True)
    disk = await ground.disks.make(site.container_id, site.disk, IDLE.disk_gb, site.first_id)
    await asyncio.to_thread(_make_slot, site)
    cgroup = ground.cgroup(site)
    container = Container(
        root=ground.runtime_dir / "guest",
        devices=site.devices,
        slot=site.slot,
        first_id=site.first_id,
        cgroups_path=cgroup.path,
        hostname="roost",
        limits=IDLE,
    )
    step("container")
    pid = await _run(ground, site, container)
    cgroup.bound_sockets(IDLE)
    (site.directory / "pid").write_text(str(pid))
    step("network")
    link = await ground.network.connect(number, pid)
    step("guest init")
    guest, namespace = await _enter(site, pid)
    member = Member(ground, site, pid, guest, disk, cgroup, namespace)
    try:
        await guest.configure_network(network_plan(link))
        await _prepare(member)
        member.used, _ = read(cgroup, site.interface)
    except BaseException:
        member.let_go()
        raise
    return member


async def _prepare(member: Member) -> None:
    """Lets guest init open its control group's counters, which are mounted below its slot for that moment."""
    places = [(member.site.slot / "memory", "memory"), (member.site.slot / "cpu", "cpuacct")]
    try:
        for place, controller in places:
            place.mkdir()
            linux.mount(member.cgroup.directory(controller), place, flags=linux.MS_BIND)
        await member.guest.prepare()
    finally:
        for place, _ in places:
            unmount(place)


async def _run(ground: Ground, site: Site, container: Container) -> int:
    """Guest init's pid."""
    users = await asyncio.to_thread(UserNamespace.make, ground.runtime_dir / "guest/init", site.first_id)
    try:
        config = container_config(replace(container, user_namespace=users.path), ground.machine)
        (site.directory / "config.json").write_text(json.dumps(config))
        with listening_socket(site.socket) as listening:
            return await ground.runtime.run(site.container_id, site.directory, listening.fileno())
    finally:
        users.close()


async def _enter(site: Site, pid: int) -> tuple[Guest, int]:
    """Guest init that answers, and its network namespace, opened before it did: so the pid was its own."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return await Guest.connect(site.socket), namespace
    except BaseException:
        os.close(namespace)
        raise


async def adopt(ground: Ground, number: int, disk_gb: int) -> Member:
    """A member that an earlier node made and a sandbox claimed, thawed. Raises GuestLost when its guest init is gone.

    When it returns, guest init has told all the processes that it has, so it may be frozen (again).
    """
    site = ground.site(number)
    cgroup = ground.cgroup(site)
    with contextlib.suppress(OSError):  # there is none any more: then guest init does not answer either
        cgroup.thaw()
    try:
        pid = int((site.directory / "pid").read_text())
        guest, namespace = await _enter(site, pid)
    except (OSError, ValueError) as error:
        raise GuestLost(f"member {number} cannot be entered: {error}") from error
    disk = Disk(ground.disks.directory / f"{site.container_id}.img", site.disk, disk_gb)
    member = Member(ground, site, pid, guest, disk, cgroup, namespace)
    try:
        await guest.ping()
        with contextlib.suppress(ProcessLookupError):
            member.share = ground.cores.known(os.sched_getaffinity(pid))
    except BaseException:
        member.let_go()
        raise
    return member


async def end(ground: Ground, site: Site) -> None:
    """Its processes, guest init too."""
    with contextlib.suppress(OSError):  # on v1 what is frozen does not die before it is thawed
        ground.cgroup(site).thaw()
    await ground.runtime.destroy(site.container_id)


async def destroy(ground: Ground, number: int) -> None:
    """Whatever there is of the member, made, half-made or half-destroyed."""
    site = ground.site(number)
    await end(ground, site)
    await ground.network.disconnect(number)
    await asyncio.to_thread(_remove_files, ground, site)


def _remove_files(ground: Ground, site: Site) -> None:
    for mountpoint in site.mountpoints:
        unmount(mountpoint)
    remove_disk(ground.disks.directory / f"{site.container_id}.img", site.disk)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(site.directory)


def _make_slot(site: Site) -> None:
    """Mounts of its own, so that only this member's guest receives what is mounted below its slot, and nobody else."""
    site.root.mkdir(mode=0o755, parents=True)
    site.slot.chmod(0o755)
    site.layers.mkdir(mode=0o700)
    site.devices.mkdir()
    for place in (site.mounts, site.slot):
        linux.mount(place, place, flags=linux.MS_BIND)
        linux.mount_setattr(linux.AT_FDCWD, place, add=linux.MOUNT_ATTR_SEALED, propagation=linux.MS_PRIVATE)
    lay_devices(site.devices, site.first_id)
    linux.mount(None, site.slot, flags=linux.MS_SHARED)


def mount_root(lowers: Sequence[Path], disk: Disk, site: Site, pid: int) -> None:
    """The overlay that becomes the guest's root.

    Only the lower layers are id-mapped, by the guest's user namespace, so that one copy serves every range of ids; an
    id-mapped upper would make the overlay read-only, so the upper's files carry the member's own ids.
    """
    with contextlib.ExitStack() as opened:
        user_namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, user_namespace)
        mapped = [_map_layer(lower, user_namespace, site.layers, opened) for lower in lowers]
        named = ":".join(f"/proc/self/fd/{layer}" for layer in mapped)  # short: the options have to fit in a page
        own = os.open(disk.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # the guest sees the options
        opened.callback(os.close, own)
        upper, work = (f"/proc/self/fd/{own}/{part.name}" for part in (disk.upper, disk.work))
        options = f"lowerdir={named},upperdir={upper},workdir={work},{OVERLAY}"
        linux.mount("overlay", site.root, "overlay", linux.MS_NODEV | linux.MS_NOSUID, options)
        linux.mount_setattr(linux.AT_FDCWD, site.root, add=linux.MOUNT_ATTR_SEALED)  # not of the guest's copy


def _map_layer(lower: Path, user_namespace: int, place: Path, opened: contextlib.ExitStack) -> int:
    """A descriptor of the layer's mount with ids mapped, mounted at `place`, on top of what is there.

    Before Linux 6.15 overlayfs takes no mount that is in no mount namespace. Private, or what is put on top of it would
    appear on the layer itself, whose mount it is a copy of.
    """
    clone = linux.open_tree(lower)
    opened.callback(os.close, clone)
    linux.mount_setattr(clone, add=linux.MOUNT_ATTR_SEALED, propagation=linux.MS_PRIVATE, userns_fd=user_namespace)
    linux.move_mount(clone, place)
    return clone


def network_plan(link: Link) -> list[str]:
    return [
        *(link.interface, str(link.mtu), HOST_MAC),
        *(link.ipv4, str(link.prefix4), link.gateway4),
        *(link.ipv6, str(link.prefix6), link.gateway6),
    ]
