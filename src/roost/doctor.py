"""`roost doctor`: what this machine can do for sandboxes, and what to install for more.

Each finding comes from trying the thing where that leaves nothing behind, else from reading what the kernel says; at
the end a whole sandbox is made and removed (`node/trial.py`). `roost up` asks for the quick part and does not start
without it. Only root can try everything; others are told so.
"""

import fcntl
import json
import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Literal

from roost import linux
from roost.errors import SetupMissing
from roost.node import kernel_limits as limits
from roost.node.cgroup import UNIFIED, Hierarchies, Version
from roost.node.disk import OVERLAY
from roost.node.firewall import Guest, Policy, mark, ruleset
from roost.node.outside import read_resolvers, require_ipv6
from roost.node.runtimes.oci import choose

OLDEST_THAT_CAN, OLDEST_TESTED = (5, 19), (6, 1)  # kernels
OVERLAY_CURE = "boot Linux 6.1 or newer; keep --images and --state on ext4, xfs or btrfs"
LITTLE_ROOM = 5 * 10**9  # bytes; an image is a third of one GB
SANDBOX_SECONDS = 600  # an emulated machine takes a minute
LOCAL_NAME = "sandbox.apps.localhost"
RUNTIMES = ("crun", "runc", "runsc", "kata-runtime", "youki")
LOOP_CTL_GET_FREE = 0x4C82
KVM_GET_API_VERSION = 0xAE00
TRIAL_SECONDS = 60  # tens of milliseconds are usual

Verdict = Literal["ok", "missing", "absent", "unknown"]


@dataclass(frozen=True)
class Finding:
    """`missing` is needed; `absent` would be good to have; `unknown` needs root to be known."""

    name: str
    verdict: Verdict
    detail: str
    cure: str = ""


def examine(images: Path, state: Path, runtime: str | None = None) -> list[Finding]:
    """All that is known: what `quick` looks at, what is good to have, and a sandbox that is made for the purpose."""
    return [
        *quick(images, runtime),
        *_runtimes(),
        _tried("veth", _veth, "modprobe veth"),
        _forwarding(),
        _kvm(),
        _local_names(),
        _image(images),
        _user("roost"),
        _room(state),
        *kernel_limits(),
        *_sandbox(images, state, runtime),
    ]


def quick(images: Path, runtime: str | None = None) -> list[Finding]:
    """What takes a tenth of a second to know, and without which no sandbox can start: `roost up` asks it first."""
    return [
        kernel(platform.release()),
        _cgroup(),
        _runtime_to_use(runtime),
        _tried("user namespaces", _user_namespace, "sysctl user.max_user_namespaces=65536"),
        _tried("overlay, idmapped", lambda: _idmapped_overlay(images), OVERLAY_CURE),
        _tried("loop devices", _loop, "modprobe loop"),
        _tried("nftables", _nftables, "apt-get install nftables; modprobe -a nf_tables nf_conntrack nf_nat"),
        _outside(),
    ]


def require(images: Path, runtime: str | None) -> None:
    """Raises SetupMissing with all that this machine lacks, and the cure for each."""
    lacking = [finding for finding in quick(images, runtime) if finding.verdict == "missing"]
    if lacking:
        lines = (f"  {one.name}: {one.detail}" + (f"\n    -> {one.cure}" if one.cure else "") for one in lacking)
        raise SetupMissing(
            "\n".join(("sandboxes cannot run on this machine:", *lines, "`sudo roost doctor` says more"))
        )


def kernel_limits() -> list[Finding]:
    """Limits of the whole machine that a full house of sandboxes would meet."""
    return [_limit(limit) for limit in limits.limits() if limit.now() is not None]


def _limit(limit: limits.Limit) -> Finding:
    now = " ".join(map(str, limit.now() or ()))
    if limit.suffices():
        return Finding(limit.sysctl, "ok", f"{now} {limit.what}")
    text = f"{now} {limit.what}; all sandboxes together may need {' '.join(map(str, limit.wanted))}"
    return Finding(
        limit.sysctl, "absent", text, f"a node raises it when it starts; to keep it: sysctl -w '{limit.setting}'"
    )


def kernel(release: str) -> Finding:
    """Overlays over id-mapped layers came with 5.19 (ext4 can be id-mapped since 5.12, groups be killed since 5.14)."""
    text = f"Linux {release} on {platform.machine()}"
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    cure = "boot a newer kernel; Debian 12, Ubuntu 24.04 and later have one"
    if version < OLDEST_THAT_CAN:
        return Finding(
            "kernel", "missing", f"{text}; id-mapped overlays need 5.19, and Roost is tested from 6.1 on", cure
        )
    if version < OLDEST_TESTED:
        return Finding("kernel", "absent", f"{text}; Roost is tested from 6.1 on", cure)
    return Finding("kernel", "ok", text)


def cgroup_version(root: Path = Path("/sys/fs/cgroup")) -> Version:
    """v2 where the whole tree is unified; v1 also for the hybrid layout, whose controllers are in v1."""
    return "v2" if (root / "cgroup.controllers").exists() else "v1"


def _cgroup() -> Finding:
    version, cure = cgroup_version(), "boot with cgroup_enable=memory systemd.unified_cgroup_hierarchy=1"
    try:
        trees = Hierarchies.here()
    except SetupMissing as error:
        return Finding("cgroup", "missing", str(error), cure)
    have = set((trees.mounts[UNIFIED] / "cgroup.controllers").read_text().split() if version == "v2" else trees.mounts)
    lacking = ", ".join(sorted({"cpu", "memory", "pids"} - have))
    text = f"{version} without {lacking}" if lacking else version
    return Finding("cgroup", "missing" if lacking else "ok", text, cure if lacking else "")


def _runtime_to_use(runtime: str | None) -> Finding:
    try:
        return Finding("runtime", "ok", choose(runtime, cgroup_version()))
    except SetupMissing as error:
        return Finding("runtime", "missing", str(error), "" if runtime else "apt-get install crun runc")


def _runtimes() -> list[Finding]:
    return [_runtime(name) for name in RUNTIMES if shutil.which(name)]


def _runtime(name: str) -> Finding:
    status, text = _output([name, "--version"])
    version = text.splitlines()[0] if status == 0 and text else "does not start"
    return Finding(f"runtime {name}", "ok" if status == 0 else "absent", version)


def _kvm() -> Finding:
    try:
        with open("/dev/kvm", "rb+", buffering=0) as device:
            version = fcntl.ioctl(device, KVM_GET_API_VERSION)
        return Finding("KVM", "ok", f"API version {version}")
    except OSError as error:
        return Finding("KVM", "absent", f"{error.strerror}; microVMs would be emulated, and slow")


def _local_names() -> Finding:
    """Browsers and curl know by themselves that names below localhost are this machine's; others ask the system."""
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(LOCAL_NAME, None)}
    except OSError:
        found = set[str]()
    if found and found <= {"127.0.0.1", "::1"}:
        return Finding("names of URLs", "ok", "*.apps.localhost is this machine, for every program")
    detail = "*.apps.localhost is not known to Python, Node or wget, only to curl and browsers"
    return Finding("names of URLs", "absent", detail, "apt-get install libnss-myhostname")


def _forwarding() -> Finding:
    def on(path: str) -> bool:
        file = Path("/proc/sys/net") / path
        return file.exists() and file.read_text().strip() == "1"

    state = {"IPv4": on("ipv4/ip_forward"), "IPv6": on("ipv6/conf/all/forwarding")}
    words = ", ".join(f"{name} {'on' if enabled else 'off'}" for name, enabled in state.items())
    note = "" if all(state.values()) else " (`roost up` turns it on)"
    return Finding("forwarding", "ok", words + note)


def _outside() -> Finding:
    try:
        require_ipv6()
        return Finding("name servers", "ok", ", ".join(read_resolvers()))
    except SetupMissing as error:
        return Finding("name servers", "missing", str(error))


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


def _room(state: Path) -> Finding:
    """A node ends sandboxes, largest first, when the disk below it is nearly full."""
    place = _existing(state)
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    text = f"{free / 1e9:.0f} GB free on the file system of {place}"
    if free < LITTLE_ROOM:
        return Finding("disk", "absent", text, "make room, or choose another place with --state")
    return Finding("disk", "ok", text)


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.is_dir())


def _sandbox(images: Path, state: Path, runtime: str | None) -> list[Finding]:
    """What `node/trial.py` finds, in a program of its own: it cleans up after itself when this one is ended."""
    if os.geteuid() != 0:
        return [
            Finding("sandbox", "unknown", "only root can make one, and try what is unknown above", "sudo roost doctor")
        ]
    module = [sys.executable, "-P", "-m", "roost.node.trial"]
    command = [*module, str(os.getpid()), str(_existing(state)), str(images), runtime or ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as trial:
        try:
            told, failure = trial.communicate(timeout=SANDBOX_SECONDS)
        except BaseException:  # a timeout, or Ctrl-C, which the trial has had from the terminal as well
            trial.terminate()
            trial.communicate()
            raise
    found = [Finding(**json.loads(line)) for line in told.splitlines()]
    if trial.returncode:
        said = failure.strip().splitlines()[-1:] or [f"status {trial.returncode}"]
        found.append(Finding("sandbox", "missing", f"the trial ended unexpectedly: {said[0]}", "run it once more"))
    return found


# ---- trials ------------------------------------------------------------------------------------------------


def _tried(name: str, trial: Callable[[], str], cure: str) -> Finding:
    """A trial returns what it found, or raises OSError."""
    if os.geteuid() != 0:
        return Finding(name, "unknown", "only root can try it")
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
    place = _existing(images)
    with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-") as directory:
        _in_child(lambda: _mount_overlay(Path(directory)))
    return f"on the file system of {place}"


def _mount_overlay(place: Path) -> None:
    """As a claim does it (`node/member.py`), in a mount namespace that ends with this process."""
    for name in ("lower", "layers", "upper", "work", "merged"):
        (place / name).mkdir()
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    layer = linux.open_tree(place / "lower")
    linux.mount_setattr(layer, propagation=linux.MS_PRIVATE, userns_fd=_shifted_user_namespace())
    linux.move_mount(layer, place / "layers")
    options = f"lowerdir=/proc/self/fd/{layer},upperdir={place}/upper,workdir={place}/work,{OVERLAY}"
    linux.mount("overlay", place / "merged", "overlay", linux.MS_NODEV, options)
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
    """Whether it would take the rules that a node loads; nothing is loaded."""
    status, text = _output(["nft", "--check", "-f", "-"], _rules())
    if status != 0:
        raise OSError(text.strip().partition("\n")[0] or "nft: not found")
    return "takes Roost's rules"


def _rules() -> str:
    guest = Guest("r0v0", IPv4Address("100.64.0.1"), IPv6Address("fd00::1"), IPv6Address("fe80::1"), mark(0, 0))
    return ruleset(Policy(0, [guest], IPv6Network("fd00::/48"), ["192.0.2.53"], ("ipv4", "ipv6")))


def _veth() -> str:
    _in_child(_make_veth)
    return "works"


def _make_veth() -> None:
    from pyroute2 import IPRoute  # pyright: ignore[reportMissingTypeStubs]

    linux.unshare(linux.CLONE_NEWNET)
    with IPRoute() as netlink:
        netlink.link("add", ifname="trial0", kind="veth", peer="trial1")  # pyright: ignore


def _output(command: list[str], given: str = "") -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False, input=given)
        return done.returncode, done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
