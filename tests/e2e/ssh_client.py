"""OpenSSH's own programs against a running gateway, each with a key and configuration of its own in a directory."""

import contextlib
import os
import random
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.e2e.instance import RunningRoost

SECONDS = 60


@dataclass
class SshClient:
    """Somebody who may log in. `known_hosts` holds the gateway's key, so that another one is refused."""

    place: Path
    host: str
    port: int
    key: Path
    user: str = "root"

    def options(self, *more: str) -> list[str]:
        fixed = (
            *("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=yes", "LogLevel=ERROR"),
            *(f"UserKnownHostsFile={self.place / 'known_hosts'}", f"IdentityFile={self.key}", "ConnectTimeout=20"),
        )
        return ["-F", "none", *(word for option in (*more, *fixed) for word in ("-o", option))]

    def ssh_words(self, *command: str, options: tuple[str, ...] = (), flags: tuple[str, ...] = ()) -> list[str]:
        there = [f"{self.user}@{self.host}"]
        return ["ssh", *self.options(*options), "-p", str(self.port), *flags, *there, *command]

    def ssh(self, *command: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        words = self.ssh_words(*command, options=more.pop("options", ()), flags=more.pop("flags", ()))
        return run(words, **more)

    def launch(self, *command: str, **more: Any) -> "subprocess.Popen[bytes]":
        words = self.ssh_words(*command, options=more.pop("options", ()), flags=more.pop("flags", ()))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(words, **(pipes | more))

    def scp(self, *words: str, legacy: bool = False) -> subprocess.CompletedProcess[bytes]:
        """`:PATH` is in the sandbox."""
        there = f"{self.user}@{self.host}"
        named = [there + word if word.startswith(":") else word for word in words]
        return run(["scp", *(["-O"] if legacy else []), *self.options(), "-P", str(self.port), *named])

    def sftp(self, *commands: str) -> subprocess.CompletedProcess[bytes]:
        batch = "\n".join(commands).encode() + b"\n"
        words = ["sftp", *self.options(), "-P", str(self.port), "-b", "-", f"{self.user}@{self.host}"]
        return run(words, input=batch)

    def rsync(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        shell = shlex.join(["ssh", *self.options(), "-p", str(self.port)])
        named = [f"{self.user}@{self.host}{word}" if word.startswith(":") else word for word in words]
        return run(["rsync", "-e", shell, *named])

    @contextlib.contextmanager
    def forwarding(self, *flags: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A connection without a command, for as long as the block."""
        options = ("ExitOnForwardFailure=yes", "LogLevel=INFO")
        process = self.launch(flags=("-N", *flags), options=options, stdin=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=10)


def run(words: list[str], **more: Any) -> subprocess.CompletedProcess[bytes]:
    given = {"stdin": subprocess.DEVNULL} if "input" not in more else {}
    return subprocess.run(words, capture_output=True, timeout=SECONDS, check=False, **given, **more)


def with_access(roost: RunningRoost, job: str, place: Path, **asked: object) -> SshClient:
    """By a key that was made for the job."""
    place.mkdir(exist_ok=True)
    access = roost.api.call("POST", f"/mags-jobs/{job}/access", {"port": 22, **asked}, timeout=100)
    key = place / "key"
    with contextlib.suppress(FileNotFoundError):
        key.unlink()
    key.touch(0o600)
    key.write_text(access["ssh_private_key"])
    return _known(SshClient(place, access["ssh_host"], int(access["ssh_port"]), key), access["host_key"])


def with_own_key(roost: RunningRoost, place: Path, user: str, kind: str = "ed25519") -> SshClient:
    """By a key of the account's own, made here."""
    place.mkdir(exist_ok=True)
    key = place / f"id_{kind}"
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"a test's {kind}", "-f", str(key)]).check_returncode()
        public = key.with_suffix(".pub").read_text()
        roost.api.call("POST", "/ssh-keys", {"name": f"test {time.monotonic_ns()}", "public_key": public})
    host, _, port = roost.ssh.rpartition(":")
    found = run(["ssh-keyscan", "-p", port, "-t", "ed25519", host]).stdout.decode().split()
    client = _known(SshClient(place, host, int(port), key, "roost+default"), " ".join(found[1:3]))
    client.ssh("list").check_returncode()  # other tests make other accounts: from here on the name alone will do
    return replace(client, user=user)


def _known(client: SshClient, host_key: str) -> SshClient:
    (client.place / "known_hosts").write_text(f"[{client.host}]:{client.port} {host_key}\n")
    return client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_pair() -> int:
    """The lower of two ports, below those that the kernel gives to others meanwhile."""
    for low in random.sample(range(20_000, 32_000, 2), 1000):
        try:
            for port in (low, low + 1):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return low
    raise AssertionError("no two ports in a row are free")


def uid() -> str:
    """A name that no other test has."""
    return f"ssh-{os.getpid()}-{time.monotonic_ns()}"
