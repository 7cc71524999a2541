"""`roost doctor`: what this machine can do for sandboxes, and what to install for more.

Each finding comes from trying the thing where that leaves nothing behind (a forked child with namespaces of its
own), else from reading what the kernel says. Only root can try everything; others are told so.
"""

import fcntl
import os
import platform
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roost import linux

RUNTIMES = ("crun", "runc", "runsc", "kata-runtime", "youki")
LOOP_CTL_GET_FREE = 0x4C82
KVM_GET_API_VERSION = 0xAE00
TRIAL_SECONDS = 10

Verdict = Literal["ok", "missing", "absent", "unknown"]


@dataclass(frozen=True)
class Finding:
    """`missing` is needed; `absent` would be good to have; `unknown` needs root to be known."""

    name: str
    verdict: Verdict
    detail: str
    cure: str = ""


def examine(images: Path) -> list[Finding]:
    return [
        _kernel(),
        _cgroup(),
        *_runtimes(),
        _tried("user namespaces", _user_namespace, "sysctl user.max_user_namespaces=65536"),
        _tried("overlay, idmapped", lambda: _idmapped_overlay(images), "Linux 5.19 or newer; ext4, xfs or btrfs"),
        _tried("loop devices", _loop, "modprobe loop"),
        _tried("nftables", _nftables, "apt-get install nftables"),
        _tried("veth", _veth, "modprobe veth"),
        _forwarding(),
        _resolver(),
        _kvm(),
        _image(images),
        _user("roost"),
    ]


def _kernel() -> Finding:
    return Finding("kernel", "ok", f"Linux {platform.release()} on {platform.machine()}")


def cgroup_version(root: Path = Path("/sys/fs/cgroup")) -> str:
    """v2 where the whole tree is unified; v1 also for the hybrid layout, whose controllers are in v1."""
    return "v2" if (root / "cgroup.controllers").exists() else "v1"


def _cgroup() -> Finding:
    version = cgroup_version()
    needed = {"cpu", "memory", "pids"}
    if version == "v2":
        have = set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
    else:
        have = {place.name for place in Path("/sys/fs/cgroup").glob("*") if (place / "tasks").exists()}
    lacking = ", ".join(sorted(needed - have))
    cure = f"enable the controllers {lacking} (kernel command line)"
    return Finding("cgroup", "missing" if lacking else "ok", version, cure if lacking else "")


def _runtimes() -> list[Finding]:
    chosen = "crun" if cgroup_version() == "v2" else "runc"
    found = [_runtime(name, chosen) for name in RUNTIMES if shutil.which(name)]
    if not any(finding.name == f"runtime {chosen}" for finding in found):
        text = f"not found; it is the one for cgroup {cgroup_version()}"
        found.append(Finding(f"runtime {chosen}", "missing", text, f"apt-get install {chosen}"))
    return found


def _runtime(name: str, chosen: str) -> Finding:
    status, text = _output([name, "--version"])
    version = text.splitlines()[0] if status == 0 and text else "does not start"
    used = ", used by default" if name == chosen else ""
    return Finding(f"runtime {name}", "ok" if status == 0 else "absent", version + used)


def _kvm() -> Finding:
    try:
        with open("/dev/kvm", "rb+", buffering=0) as device:
            version = fcntl.ioctl(device, KVM_GET_API_VERSION)
        return Finding("KVM", "ok", f"API version {version}")
    except OSError as error:
        return Finding("KVM", "absent", f"{error.strerror}; microVMs would be emulated, and slow")


def _forwarding() -> Finding:
    def on(path: str) -> bool:
        file = Path("/proc/sys/net") / path
        return file.exists() and file.read_text().strip() == "1"

    state = {"IPv4": on("ipv4/ip_forward"), "IPv6": on("ipv6/conf/all/forwarding")}
    words = ", ".join(f"{name} {'on' if enabled else 'off'}" for name, enabled in state.items())
    note = "" if all(state.values()) else " (`roost up` turns it on)"
    return Finding("forwarding", "ok", words + note)


def _resolver() -> Finding:
    try:
        lines = Path("/etc/resolv.conf").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    if not servers:
        return Finding("resolver", "absent", "/etc/resolv.conf names none", "name a resolver there")
    return Finding("resolver", "ok", ", ".join(servers))


def _image(images: Path) -> Finding:
    cure = "`make setup` builds it, as does `sudo roost node-image ensure standard`"
    if os.geteuid() != 0:
        return Finding("image standard", "unknown", f"only root may look into {images}")
    from roost.node.images import ImageStore

    found = {image.name: image for image in ImageStore(images).list()} if images.is_dir() else {}
    if "standard" not in found:
        return Finding("image standard", "missing", f"not in {images}", cure)
    return Finding("image standard", "ok", f"{found['standard'].size / 1e6:.0f} MB, {found['standard'].source}")


def _user(name: str) -> Finding:
    try:
        return Finding(f"user {name}", "ok", f"uid {pwd.getpwnam(name).pw_uid}")
    except KeyError:
        return Finding(f"user {name}", "missing", "not there", f"adduser --system --group --no-create-home {name}")


# ---- trials ------------------------------------------------------------------------------------------------


def _tried(name: str, trial: Callable[[], str], cure: str) -> Finding:
    """A trial returns what it found, or raises OSError."""
    if os.geteuid() != 0:
        return Finding(name, "unknown", "only root can try it", "sudo roost doctor")
    try:
        return Finding(name, "ok", trial())
    except OSError as error:
        return Finding(name, "missing", str(error), cure)


def _in_child(trial: Callable[[], None]) -> None:
    """Run `trial` in a forked child, whose namespaces end with it; its OSError is raised here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            trial()
        except Exception as error:
            os.write(writing, str(error).encode()[:4096])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    if text:
        raise OSError(text)


def _user_namespace() -> str:
    _in_child(lambda: linux.unshare(linux.CLONE_NEWUSER))
    return f"up to {Path('/proc/sys/user/max_user_namespaces').read_text().strip()}"


def _idmapped_overlay(images: Path) -> str:
    place = next(path for path in (images, *images.parents) if path.is_dir())
    with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as directory:
        _in_child(lambda: _mount_overlay(Path(directory)))
    return f"on the file system of {place}"


def _mount_overlay(place: Path) -> None:
    """An overlay over an idmapped lower, in a mount namespace that ends with this process."""
    for name in ("lower", "mapped", "upper", "work", "merged"):
        (place / name).mkdir()
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    tree = linux.open_tree(place / "lower")
    linux.mount_setattr(tree, userns_fd=_shifted_user_namespace())
    linux.move_mount(tree, place / "mapped")
    options = f"lowerdir={place}/mapped,upperdir={place}/upper,workdir={place}/work"
    linux.mount("overlay", place / "merged", "overlay", options=options)
    linux.umount(place / "merged")


def _shifted_user_namespace() -> int:
    """A descriptor of a user namespace whose ids begin at 2**30."""
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(ready[1], b".")
        os.close(done[1])
        os.read(done[0], 1)
        os._exit(0)
    os.close(ready[1])
    os.read(ready[0], 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"0 {1 << 30} 65536\n")
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    os.close(done[1])
    os.waitpid(pid, 0)
    return namespace


def _loop() -> str:
    with open("/dev/loop-control", "rb+", buffering=0) as control:
        return f"next free is /dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"


def _nftables() -> str:
    status, text = _output(["nft", "list", "tables"])
    if status != 0:
        raise OSError(text.strip() or "nft: not found")
    return _output(["nft", "--version"])[1].strip()


def _veth() -> str:
    _in_child(_make_veth)
    return "works"


def _make_veth() -> None:
    from pyroute2 import IPRoute  # pyright: ignore[reportMissingTypeStubs]

    linux.unshare(linux.CLONE_NEWNET)
    with IPRoute() as netlink:
        netlink.link("add", ifname="trial0", kind="veth", peer="trial1")  # pyright: ignore


def _output(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
        return done.returncode, done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
