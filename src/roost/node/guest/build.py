"""Builds the guest init: one static binary for this machine's architecture, with musl.

`make setup` runs this; the result lies beside the source in `build/init` and is what every sandbox runs as process 1.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from roost.errors import SetupMissing

HERE = Path(__file__).parent
BINARY = HERE / "build" / "init"


def compile_args(compiler: str, machine: str, target: Path) -> list[str]:
    """musl ships no kernel headers: the system's come last, so that they never shadow musl's own."""
    return [
        *(compiler, "-std=c11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"),
        *("-idirafter", "/usr/include", "-idirafter", f"/usr/include/{machine}-linux-gnu"),
        *("-o", str(target), str(HERE / "init.c")),
    ]


def build() -> Path:
    """Compiles if the source is newer than the binary; the binary appears whole or not at all."""
    if BINARY.exists() and BINARY.stat().st_mtime >= (HERE / "init.c").stat().st_mtime:
        return BINARY
    compiler = shutil.which("musl-gcc")
    if not compiler:
        raise SetupMissing("musl-gcc is missing: install the package musl-tools (make setup does)")
    BINARY.parent.mkdir(exist_ok=True)
    fresh = BINARY.with_suffix(".new")
    subprocess.run(compile_args(compiler, platform.machine(), fresh), check=True, timeout=120)
    fresh.rename(BINARY)
    return BINARY


if __name__ == "__main__":
    sys.stdout.write(f"guest init: {build()}\n")
