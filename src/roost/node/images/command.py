"""External programs: how they are confined, run, followed and stopped.

Every one runs in its own PID namespace behind a parent-death signal, so a killed node leaves none behind. The argv
builders are pure; `run` is the one place that starts a process.
"""

import asyncio
import os
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roost.errors import RoostError, SetupMissing

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL_LINES = 12
LINE_CHARS = 400  # longer lines are cut in messages

# What no package build needs from the host's kernel; a maintainer script keeps the rest of root.
DENIED_TO_BUILDS = ("sys_module", "sys_rawio", "sys_boot", "sys_time", "sys_ptrace", "net_admin", "syslog")

# Enough to write files of any owner below a new root, and to start a decompressor as nobody.
NEEDED_TO_UNPACK = ("chown", "dac_override", "fowner", "fsetid", "setfcap", "setuid", "setgid", "sys_chroot")

PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "skopeo": "skopeo",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "zstd": "zstd",
    "xz": "xz-utils",
    "bzip2": "bzip2",
    "gzip": "gzip",
}

Namespace = Literal["mount", "net", "ipc"]


# How a machine says where its proxies and its registry credentials are.
PASSED_ON = (
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("HOME", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG"),
)


class CommandFailed(RoostError):
    """The program ended with an error or ran out of time; the text ends with the tail of its output."""


@dataclass(frozen=True)
class Follower:
    """Whom to tell while a program runs: each output line, and a moment every few seconds."""

    line: Callable[[str], None] = lambda _: None
    tick: Callable[[], None] = lambda: None
    every: float = 3.0  # seconds between ticks


def build_argv(command: Sequence[str]) -> list[str]:
    """Root with a private mount table: what a killed build had mounted is gone with its namespace."""
    denied = ",".join(f"-{capability}" for capability in DENIED_TO_BUILDS)
    return [*_namespaces("mount", "ipc"), "setpriv", f"--bounding-set={denied}", "--", *command]


def unpack_argv(command: Sequence[str]) -> list[str]:
    """Root over files only, and no network."""
    kept = ",".join(f"+{capability}" for capability in NEEDED_TO_UNPACK)
    return [
        *_namespaces("net", "ipc"),
        *("setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--no-new-privs", "--"),
        *command,
    ]


def network_argv(command: Sequence[str]) -> list[str]:
    """Root's files, none of root's capabilities: for a program that parses what the internet sends."""
    return [
        *_namespaces("ipc"),
        *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"),
        *command,
    ]


def _namespaces(*names: Namespace) -> list[str]:
    return [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--pid", "--fork", "--kill-child=KILL"),
        *(f"--{name}" for name in names),
        "--",
    ]


def environment(temporary: Path, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a program gets of the node's environment; what it leaves in `temporary` goes with the work directory."""
    passed = {name: own[name] for name in PASSED_ON if name in own}
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "TMPDIR": str(temporary), **passed}


async def run(
    argv: Sequence[str],
    *,
    what: str,
    timeout: float,
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
    follower: Follower | None = None,
) -> str:
    """Run to the end and return the last lines of output; `what` names the work in errors.

    Raises CommandFailed (status, time), SetupMissing (no such program). Cancelled or failed, no process remains.
    """
    for name in (argv[0], program(argv)):
        if shutil.which(name) is None:
            raise SetupMissing(f"{what} needs `{name}`: install the package {PACKAGES.get(name, name)}")
    follower = follower or Follower()
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        async with asyncio.timeout(timeout):
            status = await _follow(process, stdin, tail, follower)
    except TimeoutError:
        text = "\n".join(tail)
        raise CommandFailed(f"{what} took longer than {timeout:.0f} s and was stopped:\n{text}") from None
    finally:
        await _end(process)
    output = "\n".join(tail)
    if status:
        raise CommandFailed(f"{what} failed ({program(argv)}: {status}):\n{output}")
    return output


def program(argv: Sequence[str]) -> str:
    """The program behind the confinement."""
    while argv[0] in ("setpriv", "unshare"):
        argv = argv[argv.index("--") + 1 :]
    return argv[0]


async def _follow(process: asyncio.subprocess.Process, stdin: bytes, tail: deque[str], follower: Follower) -> int:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_feed(process, stdin))
        ticking = tasks.create_task(_tick(follower))
        await _read_lines(process, tail, follower)
        status = await process.wait()
        ticking.cancel()
    return status


async def _feed(process: asyncio.subprocess.Process, stdin: bytes) -> None:
    if process.stdin is None:
        return
    try:
        process.stdin.write(stdin)
        await process.stdin.drain()
    except (ConnectionError, RuntimeError):  # the second is how uvloop says that the pipe is closed already
        pass  # it ended before reading; its status says why
    process.stdin.close()


async def _tick(follower: Follower) -> None:
    while True:
        await asyncio.sleep(follower.every)
        follower.tick()


async def _read_lines(process: asyncio.subprocess.Process, tail: deque[str], follower: Follower) -> None:
    """Lines end with \\n or \\r; one that never ends is cut into pieces."""
    assert process.stdout is not None
    rest = b""
    while chunk := await process.stdout.read(65536):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(rest) > 65536:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _tell(line, tail, follower)
    _tell(rest, tail, follower)


def _tell(line: bytes, tail: deque[str], follower: Follower) -> None:
    text = line.decode("utf-8", "replace").strip()
    if text:
        tail.append(text[:LINE_CHARS])
        follower.line(text)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what still runs and wait until all of it let go of its output pipe."""
    if process.returncode is None:
        process.kill()
    await asyncio.shield(process.wait())
    if process.stdout is not None:
        try:
            async with asyncio.timeout(5):
                while await process.stdout.read(65536):
                    pass
        except (TimeoutError, RuntimeError):
            pass  # a grandchild in an uninterruptible wait; its namespace dies with it
