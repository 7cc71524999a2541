"""The disks of a machine: a bare system of a distribution, kept between runs, and what one run hands in.

A system is what mmdebstrap makes of a list of packages and this file: the hash of both names it, so a change of either
makes another. It knows nothing of Roost but the packages that `scripts/system-packages` would install, which are there
already (but for a few, so that its installing is seen to work): downloading them again each time would take longer
than everything else.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from roost.errors import Invalid, SetupMissing
from roost.node.images.sources import Host, Origin, choose

PROJECT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 900
DISK_GB = 12
KEPT_SYSTEMS = 4  # of all suites; older ones are removed
USER = "ada"

KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
# A small server as somebody gets it: systemd, a network, SSH, sudo; git and make, with which README begins
SYSTEM = (
    *("ca-certificates", "curl", "dbus", "git", "iproute2", "kmod", "libpam-systemd", "make", "netbase"),
    *("openssh-server", "procps", "python3", "sudo", "systemd", "systemd-sysv", "udev"),
)
LEFT_OUT = {"nftables", "rsync"}  # `make run` installs these

NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n[DHCPv4]\nClientIdentifier=mac\n"
# What a run hands in is on a disk of its own, whose `setup` runs at each start before anybody can log in
HANDED_IN = """[Unit]
After=local-fs.target
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mkdir -p /handed-in; mount -o ro LABEL=handed-in /handed-in && sh /handed-in/setup'
[Install]
WantedBy=multi-user.target
"""
FILES = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n::1 localhost\n",
    "etc/fstab": "LABEL=system / ext4 errors=remount-ro 0 1\n",
    "etc/systemd/network/10-dhcp.network": NETWORK,
    "etc/systemd/system/handed-in.service": HANDED_IN,
    f"etc/sudoers.d/{USER}": f"{USER} ALL=(ALL) NOPASSWD: ALL\n",
}
COMMANDS = (
    ("useradd", "--create-home", "--shell", "/bin/bash", "--groups", "sudo", USER),
    ("systemctl", "enable", "systemd-networkd", "handed-in"),
    ("systemctl", "mask", "apt-daily.timer", "apt-daily-upgrade.timer", "systemd-networkd-wait-online"),
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class System:
    """A disk image with an ext4 file system, and the kernel that boots it."""

    disk: Path
    kernel: Path
    initrd: Path


def system(suite: str, cache: Path, say: Say) -> System:
    """The bare system of `suite`, made unless it is in `cache`.

    SetupMissing: its archive is out of reach or its keys are not here.
    """
    origin = _origin(suite)
    packages = [KERNELS[origin.distribution], *SYSTEM, *(p for p in run_packages() if p not in LEFT_OUT)]
    packages += ["initramfs-tools", "tzdata"] if origin.distribution == "ubuntu" else []
    place = cache / f"{suite}-{_digest(origin, packages)}"
    if not place.exists():
        say(f"building a bare {suite} of {len(packages)} packages; it is kept in {place}")
        _build(origin, packages, place)
        _prune(cache, place)
    place.touch()
    return System(place / "disk", place / "vmlinuz", place / "initrd")


def run_packages() -> list[str]:
    listed = subprocess.run(
        [PROJECT / "scripts/system-packages", "--list"], check=True, capture_output=True, text=True, timeout=20
    )
    return listed.stdout.split()


def _origin(suite: str) -> Origin:
    try:
        return choose(suite, Host.read())
    except Invalid as error:
        raise SetupMissing(str(error)) from None


def _digest(origin: Origin, packages: list[str]) -> str:
    text = "\n".join([*packages, origin.suite, Path(__file__).read_text()])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _build(origin: Origin, packages: list[str], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=place.parent))
    try:
        root = draft / "root"
        _bootstrap(origin, packages, root)
        _configure(root)
        boot = root / "boot"
        shutil.copy(max(boot.glob("vmlinuz-*")), draft / "vmlinuz")
        shutil.copy(max(boot.glob("initrd.img-*")), draft / "initrd")
        file_system(root, draft / "disk", "system", f"{DISK_GB}G")
        shutil.rmtree(root)
        draft.rename(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _bootstrap(origin: Origin, packages: list[str], root: Path) -> None:
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", f"--include={','.join(packages)}"]
    command += [f"--aptopt={line}" for line in apt_options()]
    command += ["--skip=cleanup/apt/lists"]  # as on a machine that was updated this week
    command += [origin.suite, f"{root}", "-"]
    # a private mount table: what maintainer scripts leave mounted ends with them
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *command]
    done = subprocess.run(
        command,
        input=origin.deb822(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_SECONDS,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-12:])
        raise SetupMissing(f"a bare {origin.suite} cannot be built here; mmdebstrap says\n{tail}")


def apt_options() -> list[str]:
    """What this machine's apt is told about its archives: proxies, dates that it is not to check."""
    dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, timeout=20).stdout
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Check-")
    return [line.rstrip(";") for line in dump.splitlines() if line.startswith(wanted) and line.rstrip(";")[-2:] != '""']


def _configure(root: Path) -> None:
    for name, text in FILES.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.write_text(text)
    (root / f"etc/sudoers.d/{USER}").chmod(0o440)
    for command in COMMANDS:
        subprocess.run(["chroot", root, *command], check=True, capture_output=True, timeout=60)


def file_system(root: Path, disk: Path, label: str, size: str) -> None:
    """A sparse image with an ext4 file system that holds what `root` holds."""
    subprocess.run(["truncate", "-s", size, disk], check=True, timeout=20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", label, "-d", root, disk], check=True, timeout=300)


def _prune(cache: Path, newest: Path) -> None:
    systems = sorted((p for p in cache.iterdir() if (p / "disk").exists() and p != newest), key=os.path.getmtime)
    for old in systems[: -(KEPT_SYSTEMS - 1)]:
        shutil.rmtree(old)
