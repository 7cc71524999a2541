"""Starts and follows the confined process (`unpack`) that extracts one tarball."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from roost.errors import Invalid
from roost.node.images import command
from roost.node.images.unpack import MAX_ID, Job, Report, Summary

TIMEOUT = 3600  # seconds for one archive; 20 GiB at 6 MB/s
TOLD_EVERY = 3.0  # seconds
RESERVE = 512 * 1024**2  # bytes that stay free on the disk, whatever an archive holds


@dataclass(frozen=True)
class Unpacked:
    """What came out of one archive."""

    bytes: int
    unmappable: str | None

    def require_mappable(self) -> None:
        """Raises Invalid where a file has an owner that no sandbox has."""
        if self.unmappable:
            raise Invalid(
                f"{self.unmappable}, but a sandbox has the ids 0 to {MAX_ID} only; "
                "pack it again with smaller owner ids (tar --owner, --group)"
            )


def argv(job: Job) -> list[str]:
    """-I and utf8: nothing of the caller's environment decides what is imported or how names are spelled."""
    python = [sys.executable, "-I", "-X", "utf8", "-m", "roost.node.images.unpack"]
    return command.unpack_argv([*python, msgspec.json.encode(job).decode()])


async def unpack(
    archive: Path, root: Path, max_bytes: int, progress: Callable[[str], None], *, layer: bool = False
) -> Unpacked:
    """Extract `archive` (tar; plain, gzip, bzip2, xz or zstd) into `root`, which is made if need be.

    layer: an OCI layer, which may remove what is there already. Raises Invalid; `root` is then of no use.
    """
    root.mkdir(mode=0o755, exist_ok=True)
    reader = _Reader(progress)
    job = Job(str(archive), str(root), max_bytes, RESERVE, layer)
    output = await command.run(
        argv(job),
        what="unpacking",
        timeout=TIMEOUT,
        environment={"PATH": command.PATH},
        follower=command.Follower(line=reader.line),
    )
    if reader.error:
        raise Invalid(f"this archive cannot be used: {reader.error}")
    if reader.done is None:
        raise command.CommandFailed(f"unpacking ended without a result:\n{output}")
    if reader.done.devices:
        progress(f"left out {reader.done.devices} device nodes: a sandbox gets its own /dev")
    return Unpacked(reader.done.bytes, reader.done.unmappable)


class _Reader:
    """Turns the process's reports into progress, at most one every TOLD_EVERY seconds."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._told = time.monotonic()
        self.error: str | None = None
        self.done: Summary | None = None

    def line(self, text: str) -> None:
        try:
            report = msgspec.json.decode(text, type=Report)
        except msgspec.DecodeError:
            return  # a traceback; it is in the error's tail
        self.error = report.error or self.error
        self.done = report.done or self.done
        if report.bytes and time.monotonic() - self._told >= TOLD_EVERY:
            self._told = time.monotonic()
            self._progress(f"unpacked {report.bytes / 1e6:.0f} MB, {report.entries} entries")
