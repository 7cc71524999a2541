"""The client as one file: `mags`, a zip archive that Python runs (PEP 441). It needs Python 3.11 and nothing else.

It holds what the commands that ask a server import: our own modules, click, and websockets for `exec -i` and `-t`. The
same file is for every machine, under the names at which the documents' downloads are. It is made of the installed
sources, the same bytes each time, in a tenth of a second; a Roost keeps it in memory from its first download on.

`python -m roost.handouts.client FILE` writes it.
"""

import functools
import hashlib
import importlib
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import roost

NAMES = ("mags-linux-amd64", "mags-linux-arm64", "mags-darwin-amd64", "mags-darwin-arm64")
OLDEST = (3, 11)  # as pyproject.toml says
OURS = ("__init__.py", "chromium.py", "credentials.py", "errors.py", "ids.py", "instance.py", "logins.py")
# commands that run a Roost, or take more than a client has
LEFT_OUT = ("machine", "mcp", "reference")
THEIRS = ("click", "websockets")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive can say
SHEBANG = b"#!/usr/bin/env python3\n"
# read by any Python, also one that is too old
MAIN = """\
import os
import sys

if sys.version_info < {oldest}:
    for minor in range(20, {oldest[1]} - 1, -1):
        for place in os.environ.get("PATH", "").split(os.pathsep):
            newer = os.path.join(place, "python3.%d" % minor)
            if os.access(newer, os.X_OK):
                os.execv(newer, [newer] + sys.argv)
    here = ".".join(str(part) for part in sys.version_info[:2])
    sys.exit("mags: this needs Python {oldest[0]}.{oldest[1]} or newer, and python3 is %s here; install one" % here)

from roost.cli.main import COMMANDS, ELSEWHERE, main

for name, (module, _, _) in list(COMMANDS.items()):
    if module in {left_out}:
        ELSEWHERE.add(name)
        del COMMANDS[name]

main(prog_name=os.path.basename(sys.argv[0]))
"""


@functools.cache
def client() -> bytes:
    """The whole file, executable where its mode says so."""
    content = io.BytesIO(SHEBANG)
    content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(_files()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return content.getvalue()


def checksum(name: str) -> str:
    """As `sha256sum -c` reads it."""
    return f"{hashlib.sha256(client()).hexdigest()}  {name}\n"


def _files() -> Iterator[tuple[str, bytes]]:
    package = Path(roost.__file__).parent
    yield "__main__.py", MAIN.format(oldest=OLDEST, left_out=LEFT_OUT).encode()
    for name in OURS:
        yield f"roost/{name}", (package / name).read_bytes()
    for path in (package / "cli").glob("*.py"):
        if path.stem not in LEFT_OUT:
            yield f"roost/cli/{path.name}", path.read_bytes()
    for path in (package / "handouts").glob("*"):
        if path.name in ("__init__.py", "mags.md"):
            yield f"roost/handouts/{path.name}", path.read_bytes()
    for name in THEIRS:
        place = Path(importlib.import_module(name).__file__ or "").parent
        for path in place.rglob("*.py"):
            yield f"{name}/{path.relative_to(place).as_posix()}", path.read_bytes()


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_bytes(client())
    target.chmod(0o755)
