"""A database at the current schema, made once for a worker and copied: the migrations take a fifth of a second."""

import tempfile
from functools import cache
from pathlib import Path

from roost.db import migrate


def fresh_database(file: Path) -> None:
    """One that is there stays."""
    if not file.exists():
        file.write_bytes(_made())


@cache
def _made() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "roost.db"
        migrate.upgrade(file)
        return file.read_bytes()
