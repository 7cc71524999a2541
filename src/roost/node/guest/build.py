"""Builds what runs in guests: static binaries for this machine's architecture, with musl.

`make setup` runs this; the results lie beside their sources in `build/`. `init` is what every sandbox runs as process
1, `microvm` what a microVM is given besides.
"""

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
    "init": ["init.c", "filter.c", "network.c", "run.c", "session.c", "sight.c"],
    "microvm": ["microvm.c"],
}


def compile_args(compiler: str, machine: str, program: Program, target: Path) -> list[str]:
    """musl ships no kernel headers: the system's come last, so that they never shadow musl's own."""
    return [
        *(compiler, "-std=c11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"),
        *("-idirafter", "/usr/include", "-idirafter", f"/usr/include/{machine}-linux-gnu"),
        *("-o", str(target), *(str(HERE / source) for source in SOURCES[program])),
    ]


def build(program: Program = "init") -> Path:
    """Compiles if a source is newer than the binary; the binary appears whole or not at all."""
    binary = HERE / "build" / program
    newest = max(source.stat().st_mtime for source in (*HERE.glob("*.h"), *(HERE / name for name in SOURCES[program])))
    if binary.exists() and binary.stat().st_mtime >= newest:
        return binary
    compiler = shutil.which("musl-gcc")
    if not compiler:
        raise SetupMissing("musl-gcc is missing: install the package musl-tools (make setup does)")
    binary.parent.mkdir(exist_ok=True)
    fresh = binary.with_suffix(".new")
    subprocess.run(compile_args(compiler, platform.machine(), program, fresh), check=True, timeout=120)
    fresh.rename(binary)
    return binary


if __name__ == "__main__":
    sys.stdout.write(f"guest init: {build()}\nmicroVMs' program: {build('microvm')}\n")
