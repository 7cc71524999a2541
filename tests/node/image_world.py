"""Material for the image tests: tarballs of every shape, OCI layouts by umoci, and a registry that really serves."""

import contextlib
import hashlib
import io
import os
import signal
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

SHELL = """
#include <unistd.h>
int main(void) { return write(1, "the shell of the image\\n", 23) != 23; }
"""


def build_shell(directory: Path) -> bytes:
    """A static program that stands for /bin/sh and says so when it runs."""
    source, program = directory / "sh.c", directory / "sh"
    source.write_text(SHELL)
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", program, source], check=True)
    return program.read_bytes()


@dataclass
class Tarball:
    """A tar archive in the making; each method adds an entry exactly as named."""

    def __post_init__(self) -> None:
        self._buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by bytes()

    def file(self, name: str, content: bytes = b"", mode: int = 0o644, **fields: object) -> "Tarball":
        return self._add(name, tarfile.REGTYPE, content, mode=mode, **fields)

    def directory(self, name: str, mode: int = 0o755, **fields: object) -> "Tarball":
        return self._add(name, tarfile.DIRTYPE, mode=mode, **fields)

    def symlink(self, name: str, target: str) -> "Tarball":
        return self._add(name, tarfile.SYMTYPE, linkname=target)

    def hardlink(self, name: str, target: str) -> "Tarball":
        return self._add(name, tarfile.LNKTYPE, linkname=target)

    def fifo(self, name: str) -> "Tarball":
        return self._add(name, tarfile.FIFOTYPE)

    def device(self, name: str, major: int, minor: int, kind: bytes = tarfile.CHRTYPE) -> "Tarball":
        return self._add(name, kind, devmajor=major, devminor=minor)

    def _add(self, name: str, kind: bytes, content: bytes = b"", **fields: object) -> "Tarball":
        entry = tarfile.TarInfo(name)
        entry.type, entry.size = kind, len(content)
        for field, value in fields.items():
            setattr(entry, field, value)
        self.tar.addfile(entry, io.BytesIO(content))
        return self

    def bytes(self) -> bytes:
        self.tar.close()
        return self._buffer.getvalue()

    def save(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def root_with(shell: bytes) -> Tarball:
    """The smallest root file system that is an image: more may be added."""
    return Tarball().directory("./").directory("./bin").file("./bin/sh", shell, mode=0o755)


def packed_with(argv: list[str], data: bytes) -> bytes:
    return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True).stdout


async def in_chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# In a mount table of its own, read-only: an image is shared, and a program's stray write would stay in it.
READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount --rbind /dev "$1/dev" &&
mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/tmp" && exec chroot "$@"
"""


def run_inside(root: Path, *argv: str) -> str:
    """What a program of this root prints when it runs there. Raises CalledProcessError when it fails."""
    unshared = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", READ_ONLY, "sh", root, *argv]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(unshared, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def run_shell(root: Path) -> str:
    return run_inside(root, "/bin/sh", "-c", "echo the shell of the image")


@dataclass
class Layout:
    """An OCI layout, made by umoci."""

    path: Path

    def create(self) -> "Layout":
        self._umoci("init", "--layout", str(self.path))
        return self

    def image(self, tag: str, *layers: Tarball) -> "Layout":
        self._umoci("new", "--image", f"{self.path}:{tag}")
        for number, layer in enumerate(layers):
            packed = layer.save(self.path.with_name(f"{self.path.name}-{tag}-{number}.tar"))
            self._umoci("raw", "add-layer", "--image", f"{self.path}:{tag}", str(packed))
        return self

    def configure(self, tag: str, *options: str) -> "Layout":
        self._umoci("config", "--image", f"{self.path}:{tag}", *options)
        return self

    def blob(self, digest: str) -> bytes:
        return (self.path / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()

    def add(self, data: bytes) -> str:
        """Its digest."""
        name = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / name).write_bytes(data)
        return f"sha256:{name}"

    def archive(self) -> bytes:
        return packed_with(["tar", "-C", str(self.path), "-cf", "-", "."], b"")

    def _umoci(self, *arguments: str) -> None:
        subprocess.run(["umoci", *arguments], check=True, stdout=subprocess.DEVNULL)


def skopeo_copy(source: str, target: str) -> None:
    argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source, target]
    subprocess.run(argv, check=True)


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port; yields HOST:PORT."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = directory / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_served(f"http://{address}/v2/")
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_served(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
