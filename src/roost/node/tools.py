"""Programs of this machine that work in any guest: sftp-server, scp and rsync with all that they are linked to.

An image need hold neither them nor a C library. When a session first asks for one, its files are written to a
directory of guest init's own file system, which is in no workspace and counts as the sandbox's memory, and it is
started through its own dynamic loader. A small script of the program's name stands beside it, for shells to find.
What makes a microVM of a sandbox (guest/microvm.c, guest/microvm.sh) is static and there before its script starts.
"""

import asyncio
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from roost.errors import Conflict, SetupMissing
from roost.node.guest import build
from roost.node.guest.channel import Guest, GuestLost, GuestRefused

PLACE = "/run/roost/tools"
SOURCES = {
    "sftp-server": (("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"), "openssh-sftp-server"),
    "scp": (("/usr/bin/scp",), "openssh-client"),
    "rsync": (("/usr/bin/rsync",), "rsync"),
}  # tool -> where it may be, the Debian package that holds it
LDD_WITHIN = 10.0  # seconds
_LIBRARY = re.compile(r"^\s*(?P<name>\S+) => (?P<path>/\S+) \(", re.MULTILINE)
_LOADER = re.compile(r"^\s*(?P<path>/\S*/ld-\S+) \(", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A file as it is called in a guest."""

    name: str
    content: bytes
    mode: int = 0o755


class Tools:
    """What each guest has been given. The files are read anew each time, since few guests ask."""

    def __init__(self) -> None:
        self._given: WeakKeyDictionary[Guest, Given] = WeakKeyDictionary()

    async def give(self, guest: Guest, tools: Sequence[str]) -> None:
        """Raises SetupMissing where this machine has no such program, Conflict where the guest has no room for it."""
        given = self._given.setdefault(guest, Given())
        async with given.writing:
            for tool in tools:
                if tool not in given.names:
                    await _give(guest, tool, given.names)


class Given:
    """What one guest has; only one task writes, because tools share files."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.writing = asyncio.Lock()


async def _give(guest: Guest, tool: str, names: set[str]) -> None:
    try:
        for part in await asyncio.to_thread(parts_of, tool):
            if part.name not in names:
                await guest.write_file(f"{PLACE}/{part.name}", part.mode, part.content)
                names.add(part.name)
    except (GuestRefused, GuestLost) as refusal:
        raise Conflict(f"{tool} could not be put into the sandbox: {refusal}") from refusal


def microvm() -> list[Part]:
    """Raises SetupMissing where it is not built and cannot be."""
    start = build.HERE / "microvm.sh"
    return [Part("microvm", build.build("microvm").read_bytes()), Part("microvm-start", start.read_bytes())]


def parts_of(tool: str) -> list[Part]:
    """The program, its loader and its libraries, and the script that starts it, last. Raises SetupMissing."""
    places, package = SOURCES[tool]
    program = next((Path(place) for place in places if Path(place).exists()), None)
    if program is None:
        raise SetupMissing(f"this machine has no {tool}; install it with `apt-get install {package}`")
    found = [Part(f"{tool}.bin", program.read_bytes())]
    for name, path in linked(program).items():
        found.append(Part(name, path.read_bytes()))
    script = f'#!/bin/sh\nexec {PLACE}/ld.so --library-path {PLACE} {PLACE}/{tool}.bin "$@"\n'
    return [*found, Part(tool, script.encode())]


def linked(program: Path) -> dict[str, Path]:
    """What the dynamic loader would load, by the names it looks for; the loader itself as `ld.so`."""
    try:
        done = subprocess.run(
            ["/usr/bin/ldd", str(program)], capture_output=True, text=True, check=True, timeout=LDD_WITHIN
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupMissing(f"`ldd {program}` failed ({error}); install libc-bin") from error
    loader = _LOADER.search(done.stdout)
    if loader is None:
        raise SetupMissing(f"{program} is not dynamically linked as expected: {done.stdout[:200]}")
    libraries = {found["name"]: Path(found["path"]) for found in _LIBRARY.finditer(done.stdout)}
    return {"ld.so": Path(loader["path"]), **libraries}
