"""The same command in other sandboxes: `/bin/sh -c 'echo hello'` in a copy of the image's root file system.

Each peer runs on its own defaults, with namespaces of all kinds where it can; none makes a network, a disk limit or a
log, so they do less than Roost does. A peer that cannot start here is left out, and its own words say why.
"""

import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from measure.client import Timing
from roost import linux

T = TypeVar("T")
SCRIPT = "echo hello"
FIRST_ID = 2**30 + 2**29  # ids of the peers' user namespaces: beyond those of Roost's own members
IDS = 65536
RUN_SECONDS = 60
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18
UNIFIED = "/sys/fs/cgroup/unified"


@dataclass(frozen=True)
class Peer:
    """`command(n)` is the n-th run's; `hide_unified`: it refuses machines that have both versions of cgroups."""

    name: str
    command: Callable[[int], list[str]]
    what: str  # for the report
    hide_unified: bool = False


@dataclass(frozen=True)
class Place:
    """A root file system owned by the ids of a user namespace, and OCI bundles on it with and without one."""

    root: Path
    bundle: Path
    bundle_without_userns: Path


@contextmanager
def place(images: Path, image: str = "standard") -> Generator[Place]:
    """Gone at the end."""
    content = json.loads((images / "names" / f"{image}.json").read_bytes())["content"]
    top = Path(tempfile.mkdtemp(prefix="roost-peers-"))
    try:
        root = top / "rootfs"
        subprocess.run(["cp", "-a", str(images / "rootfs" / content), str(root)], check=True, timeout=120)
        subprocess.run(["chown", "-hR", f"{FIRST_ID}:{FIRST_ID}", str(root)], check=True, timeout=120)
        top.chmod(0o711)
        bundles = [_bundle(top / name, root, userns) for name, userns in (("with", True), ("without", False))]
        yield Place(root, *bundles)
    finally:
        shutil.rmtree(top)


def _bundle(directory: Path, root: Path, userns: bool) -> Path:
    """`runc spec`'s own example, with the command, and a user namespace added."""
    directory.mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(directory)], check=True, timeout=20)
    config = json.loads((directory / "config.json").read_bytes())
    config["root"] = {"path": str(root), "readonly": True}
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", SCRIPT]}
    if userns:
        mapping = [{"containerID": 0, "hostID": FIRST_ID, "size": IDS}]
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def peers(here: Place) -> Iterator[Peer]:
    """All that there are; whether one starts on this machine is for `refusal` to find out."""
    every, bundle = "user, pid, net, mount, ipc, uts namespaces", str(here.bundle)
    pid = os.getpid()
    hybrid = os.path.ismount(UNIFIED)
    yield Peer("runc run", lambda n: ["runc", "run", "-b", bundle, f"bench-{pid}-{n}"], every)
    yield Peer("crun run", lambda n: ["crun", "run", "-b", bundle, f"bench-{pid}-{n}"], every, hybrid)
    plain = str(here.bundle_without_userns)
    yield Peer("runc run, no userns", lambda n: ["runc", "run", "-b", plain, f"bench-{pid}-{n}"], "no user namespace")
    yield Peer("bwrap", lambda n: bwrap_args(here.root), every)
    yield Peer("podman run", lambda n: podman_args(here.root), "--network none, --rootfs")
    yield Peer("docker run", lambda n: docker_args(here.root), "debian:12, --network none")


def bwrap_args(root: Path) -> list[str]:
    namespaces = ["--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0"]
    mounts = ["--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    return ["bwrap", *namespaces, *mounts, "/bin/sh", "-c", SCRIPT]


def podman_args(root: Path) -> list[str]:
    return ["podman", "run", "--rm", "--network", "none", "--rootfs", str(root), "/bin/sh", "-c", SCRIPT]


def docker_args(root: Path) -> list[str]:
    """Docker runs no directories, so it is the one peer on another root: Debian's image of the same release."""
    return ["docker", "run", "--rm", "--network", "none", "debian:12", "/bin/sh", "-c", SCRIPT]


def refusal(peer: Peer) -> str | None:
    """Why it does not run here; None when it does."""
    argv = peer.command(0)
    if shutil.which(argv[0]) is None:
        return "not installed"
    try:
        tried = _in_view(peer, lambda: _try(argv))
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if tried.returncode or tried.stdout != "hello\n":
        return " ".join((tried.stderr or tried.stdout or f"status {tried.returncode}").split())[-200:]
    return None


def _try(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    # An empty pipe: crun gives its streams to the container's root, and /dev/null is the machine's own.
    return subprocess.run(argv, input="", capture_output=True, text=True, timeout=RUN_SECONDS)


def sequential(peer: Peer, count: int, pace: float) -> list[Timing]:
    """Each starts `pace` seconds after the last did, or when that has ended, whichever is later."""

    def one(number: int) -> Timing:
        due = time.perf_counter() + pace
        timing = _all_at_once(peer, range(number, number + 1))[0]
        time.sleep(max(0.0, due - time.perf_counter()))
        return timing

    return _in_view(peer, lambda: [one(number) for number in range(count)])


def burst(peer: Peer, count: int) -> list[Timing]:
    """All started as fast as one process can; every time counts from the start of the first."""
    return _in_view(peer, lambda: _all_at_once(peer, range(count)))


def _all_at_once(peer: Peer, numbers: range) -> list[Timing]:
    path = shutil.which(peer.command(0)[0]) or ""
    began = time.perf_counter()
    running: dict[int, _Running] = {}
    with selectors.DefaultSelector() as selector:
        for number in numbers:
            one = _start(path, peer.command(number))
            running[one.output] = one
            selector.register(one.output, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(RUN_SECONDS)
            if not ready:
                raise TimeoutError(f"{peer.name} has not ended within {RUN_SECONDS} s")
            for key, _ in ready:
                one = running[key.fd]
                data = os.read(key.fd, 4096)
                if data:
                    one.first_ms = one.first_ms or _since(began)
                    one.said += data
                else:
                    selector.unregister(key.fd)
                    one.end(began)
    return [one.timing() for one in running.values()]


class _Running:
    def __init__(self, pid: int, output: int) -> None:
        self.pid, self.output = pid, output
        self.said = b""
        self.first_ms: float | None = None
        self.end_ms: float | None = None
        self.status = -1

    def end(self, began: float) -> None:
        os.close(self.output)
        _, status = os.waitpid(self.pid, 0)
        self.end_ms, self.status = _since(began), os.waitstatus_to_exitcode(status)

    def timing(self) -> Timing:
        fine = self.status == 0 and self.said == b"hello\n"
        return Timing(None, self.first_ms, self.end_ms, None if fine else f"status {self.status}, {self.said!r}")


def _start(path: str, argv: list[str]) -> _Running:
    """All its streams are pipes: crun gives them to the container's root, and ours may be the machine's /dev/null."""
    reading, writing = os.pipe()
    nothing, closed = os.pipe()
    os.close(closed)
    actions: list[Any] = [
        (os.POSIX_SPAWN_DUP2, nothing, 0),
        (os.POSIX_SPAWN_DUP2, writing, 1),
        (os.POSIX_SPAWN_DUP2, writing, 2),
    ]
    pid = os.posix_spawn(path, argv, os.environ, file_actions=actions)
    os.close(writing)
    os.close(nothing)
    return _Running(pid, reading)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _in_view(peer: Peer, work: Callable[[], T]) -> T:
    """In a thread of its own, since a view of the mounts belongs to a thread and is inherited by what it starts."""

    def look() -> T:
        if peer.hide_unified:
            linux.unshare(CLONE_NEWNS)
            linux.mount(None, "/", flags=MS_REC | MS_PRIVATE)
            linux.umount(UNIFIED, linux.MNT_DETACH)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(look).result()
