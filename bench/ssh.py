"""`ssh true` through the gateway beside OpenSSH's own sshd on the same machine, and 1 GB by sftp both ways.

See README.md for the method.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from measure import report
from measure.client import JOBS
from measure.installation import Installation, installation

SSHD = "/usr/sbin/sshd"
SEPARATION = Path("/run/sshd")  # sshd wants it
WARM = 5  # logins that are not counted
SECONDS = 30
COPY_SECONDS = 300
AT_ONCE = 50


@dataclass(frozen=True)
class Target:
    """Where to log in, and how that is called in the report."""

    name: str
    port: int
    key: Path
    known_hosts: Path
    options: tuple[str, ...] = ()
    directory: str = "."

    @property
    def words(self) -> list[str]:
        fixed = (
            *("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=yes", "LogLevel=ERROR"),
            *(f"UserKnownHostsFile={self.known_hosts}", f"IdentityFile={self.key}", *self.options),
        )
        return ["-F", "none", *(word for option in fixed for word in ("-o", option))]

    def true(self) -> float:
        """Milliseconds of one `ssh … true`."""
        begun = time.perf_counter()
        command = ["ssh", *self.words, "-p", str(self.port), "root@127.0.0.1", "true"]
        subprocess.run(command, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
        return (time.perf_counter() - begun) * 1000

    def copy(self, *batch: str) -> float:
        """Seconds of one sftp with these commands."""
        begun = time.perf_counter()
        command = ["sftp", "-q", *self.words, "-P", str(self.port), "-b", "-", "root@127.0.0.1"]
        lines = "\n".join(batch).encode()
        subprocess.run(command, check=True, timeout=COPY_SECONDS, input=lines, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun

    def at_once(self, count: int) -> float:
        """Milliseconds until the last of `count` logins, begun together, is over."""
        command = ["ssh", *self.words, "-p", str(self.port), "root@127.0.0.1", "true"]
        begun = time.perf_counter()
        processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(count)]
        statuses = [process.wait(SECONDS) for process in processes]
        if any(statuses):
            raise RuntimeError(f"{self.name}: {sum(map(bool, statuses))} of {count} logins failed")
        return (time.perf_counter() - begun) * 1000


@contextlib.contextmanager
def sshd(place: Path) -> Generator[Target]:
    """OpenSSH's server with a key and configuration of its own, without PAM, on a free port."""
    host_key, key, config = place / "host_key", place / "key", place / "sshd_config"
    for path in (host_key, key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile none\nAuthorizedKeysFile {key}.pub\n"
        "PermitRootLogin yes\nStrictModes no\nUsePAM no\nMaxStartups 200\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
    )
    known = place / "known_sshd"
    known.write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    made = not SEPARATION.exists()
    if made:
        SEPARATION.mkdir(mode=0o755)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield Target("sshd", port, key, known, directory=str(place))
    finally:
        process.terminate()
        process.wait(10)
        if made:
            SEPARATION.rmdir()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"sshd does not listen on port {port}")


async def sandbox(here: Installation, place: Path) -> Target:
    """A running sandbox, by a key that exists."""
    body = {"script": "sleep infinity", "persistent": True, "name": "bench", "disk_gb": 4}
    accepted = await here.client.call("POST", JOBS, body)
    path = f"{JOBS}/{accepted['request_id']}"
    while (await here.client.call("GET", f"{path}/status"))["status"] != "running":
        await asyncio.sleep(0.05)
    access = await here.client.call("POST", f"{path}/access", {"port": 22})
    key, known = place / "job_key", place / "known_roost"
    key.touch(0o600)
    key.write_text(access["ssh_private_key"])
    known.write_text(f"[127.0.0.1]:{access['ssh_port']} {access['host_key']}\n")
    return Target("roost", access["ssh_port"], key, known, directory="/root")


def logins(targets: list[Target], count: int) -> dict[str, list[float]]:
    """In turns, so that each meets the same machine."""
    found: dict[str, list[float]] = {target.name: [] for target in targets}
    for turn in range(count + WARM):
        for target in targets:
            took = target.true()
            if turn >= WARM:
                found[target.name].append(took)
    return found


def copies(targets: list[Target], place: Path, megabytes: int) -> dict[str, dict[str, float]]:
    """MB/s to the server's disk and back to this one's."""
    content = place / "content"
    with content.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1024 * 1024))
    found: dict[str, dict[str, float]] = {}
    for target in targets:
        there, back = f"{target.directory}/there", place / "back"
        put = target.copy(f"put {content} {there}")
        get = target.copy(f"get {there} {back}")
        if back.stat().st_size != content.stat().st_size:
            raise RuntimeError(f"{target.name}: the copy is not complete")
        target.copy(f"rm {there}")
        back.unlink()
        found[target.name] = {"put_mb_s": round(megabytes / put, 1), "get_mb_s": round(megabytes / get, 1)}
    content.unlink()
    return found


def in_words(values: list[float]) -> dict[str, float]:
    return {name: round(report.percentile(values, share), 1) for name, share in _shares()}


def _shares() -> Iterator[tuple[str, float]]:
    yield from (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


async def measured(count: int, megabytes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"benchmark": "ssh", "machine": report.facts(), "count": count}
    print(f"{found['machine']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="roost-bench-ssh-") as name, sshd(Path(name)) as theirs:
        place = Path(name)
        async with installation() as here:
            before = {name: report.cpu_ms([pid]) for name, pid in here.programs.items()}
            ours = await sandbox(here, place)
            same = ("KexAlgorithms=curve25519-sha256",)
            plain = Target("sshd, curve25519", theirs.port, theirs.key, theirs.known_hosts, same, theirs.directory)
            times = await asyncio.to_thread(logins, [ours, theirs, plain], count)
            used = {name: report.cpu_ms([pid]) - before[name] for name, pid in here.programs.items()}
            found["logins_ms"] = times
            found["logins"] = {name: in_words(values) for name, values in times.items()}
            found["cpu_ms_per_login"] = {name: round(ms / (count + WARM), 2) for name, ms in used.items()}
            found["fifty_at_once_ms"] = {
                target.name: round(await asyncio.to_thread(target.at_once, AT_ONCE), 1) for target in (ours, theirs)
            }
            if megabytes:
                found["copies"] = await asyncio.to_thread(copies, [ours, theirs], place, megabytes)
            await here.client.call("POST", f"{JOBS}/bench/stop")
            await here.settled()
    return found


def shown(found: dict[str, Any]) -> None:
    rows = [[name, *(f"{value:.1f}" for value in values.values())] for name, values in found["logins"].items()]
    report.print_table(["ssh true, ms", "p50", "p95", "p99"], rows)
    ours = found["logins"]["roost"]["p50"]
    for name in ("sshd", "sshd, curve25519"):
        print(f"p50 is {ours / found['logins'][name]['p50']:.2f} times that of {name}")
    print(f"50 at once, ms: {found['fifty_at_once_ms']}; CPU ms of each login: {found['cpu_ms_per_login']}")
    for name, rates in found.get("copies", {}).items():
        print(f"sftp of {name}: {rates['put_mb_s']} MB/s there, {rates['get_mb_s']} MB/s back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="logins each")
    parser.add_argument("--megabytes", type=int, default=1024, help="to copy each way; 0: none")
    asked = parser.parse_args()
    found = uvloop.run(measured(asked.count, asked.megabytes))
    shown(found)
    print(report.write("ssh", found))


if __name__ == "__main__":
    main()
