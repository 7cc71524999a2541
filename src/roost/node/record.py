"""What survives the node on its disk: one small file per sandbox, replaced whole at each step of its life.

A record is written before the step that it announces takes effect, and holds no secrets (no script, no environment).
"""

from functools import cache
from pathlib import Path

import msgspec

from roost.node.metering import Metered
from roost.node.protocol import Cause, Limits, SandboxState, SaveRequest, StopSandbox


class Stop(msgspec.Struct, frozen=True):
    request: StopSandbox
    cause: Cause


class Record(msgspec.Struct, frozen=True, kw_only=True):
    state: SandboxState
    boot: str  # the machine's boot id: after another boot nothing of a sandbox is left
    member: int | None  # None: not claimed yet, or gone already
    image_content: str
    limits: Limits
    account: int = 0
    linger: bool = False
    start_from: str | None = None
    save: SaveRequest | None = None
    sync_seconds: int = 0
    stop: Stop | None = None  # what it was asked to do before anything was signalled
    log: str | None = None  # id of the earlier sandbox whose log this one continues
    log_begins: int = 0  # the position in it behind which the records are this one's
    as_root: bool = False  # its processes are root's, whatever user its image says: a microVM
    metered: Metered | None = None  # at most a minute old, while it lives

    @property
    def log_id(self) -> str:
        return self.log or self.state.id


@cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_whole(path: Path, content: bytes) -> None:
    """Replaces the file, whole or not at all. Raises OSError."""
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


class Records:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for unfinished in directory.glob("*.new"):
            unfinished.unlink()

    def write(self, record: Record) -> None:
        """Whole or not at all. Raises OSError when the disk does not take it."""
        write_whole(self._path(record.state.id), msgspec.json.encode(record))

    def remove(self, id: str) -> None:
        self._path(id).unlink(missing_ok=True)

    def read_all(self) -> list[Record]:
        return [msgspec.json.decode(path.read_bytes(), type=Record) for path in self._directory.glob("*.json")]

    def _path(self, id: str) -> Path:
        return self._directory / f"{id}.json"
