"""Builds what runs in guests: static binaries for this machine's architecture, with musl.

`make setup` runs this; the results lie beside their sources in `build/`. `init` is what every sandbox runs as process
1, `microvm` what a microVM is given besides.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal, TypeAlias

from roost.errors import SetupMissing

HERE = Path(__file__).parent
Program: TypeAlias = Literal["init", "microvm"]
SOURCES: dict[Program, list[str]] = {
    "init": ["init.c", "etc.c", "filter.c", "namespace.c", "network.c", "run.c", "session.c", "sight.c"],
    "microvm": ["microvm.c"],
}
FLAGS = ("-std=c11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror")


def compile_args(compiler: str, machine: str, program: Program, target: Path) -> list[str]:
    """musl ships no kernel headers: the system's come last, so that they never shadow musl's own."""
    return [
        *(compiler, *FLAGS),
        *("-idirafter", "/usr/include", "-idirafter", f"/usr/include/{machine}-linux-gnu"),
        *("-o", str(target), *(str(HERE / source) for source in SOURCES[program])),
    ]


def build(program: Program = "init") -> Path:
    """Compiles unless the binary was made of these sources; it appears whole or not at all.

    A wheel brings the binary, so that no compiler is needed where it is installed.
    """
    binary = HERE / "build" / program
    wanted = _made_of(program)
    if binary.exists() and _read(record(binary)) == wanted:
        return binary
    compiler = shutil.which("musl-gcc")
    if not compiler:
        raise SetupMissing("musl-gcc is missing: install the package musl-tools (make setup does)")
    binary.parent.mkdir(exist_ok=True)
    fresh = binary.with_name(f"{program}.{os.getpid()}.new")
    subprocess.run(compile_args(compiler, platform.machine(), program, fresh), check=True, timeout=120)
    fresh.rename(binary)
    record(binary).write_text(wanted)
    return binary


def record(binary: Path) -> Path:
    """The file that says what a binary was made of; times of files do not survive an installation."""
    return binary.with_name(f"{binary.name}.made-of")


def _made_of(program: Program) -> str:
    digest = hashlib.sha256(f"{FLAGS} {platform.machine()}".encode())
    for source in sorted((*HERE.glob("*.h"), *(HERE / name for name in SOURCES[program]))):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.stdout.write(f"guest init: {build()}\nmicroVMs' program: {build('microvm')}\n")
