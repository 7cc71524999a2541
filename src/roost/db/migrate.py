"""Brings the database file to this release's schema when the control plane starts.

Alembic runs in a process of its own, and only when there is something to do: in the control plane it would stay in
memory (10 MB) for good. Run as a program: `python -m roost.db.migrate FILE`.
"""

import asyncio
import contextlib
import sqlite3
import sys
from pathlib import Path

from roost.errors import Conflict, StateUnwritable

VERSIONS = Path(__file__).parent / "migrations" / "versions"
TIMEOUT = 600  # seconds; a migration may rewrite a large table


def head() -> str:
    """The newest revision; revisions are numbered, and each file is named after its own."""
    return max(path.name.split("_")[0] for path in VERSIONS.glob("[0-9]*.py"))


def revision(database: Path) -> str | None:
    """The revision that a file is at; None for one that is not there or empty."""
    if not database.exists():
        return None
    with contextlib.closing(sqlite3.connect(database, timeout=5)) as connection:
        table = "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
        if connection.execute(table).fetchone() is None:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])


def upgrade_args(database: Path) -> list[str]:
    return [sys.executable, "-m", "roost.db.migrate", str(database)]


async def migrate(database: Path) -> None:
    """Raises Conflict for a database of a newer Roost, StateUnwritable when the file cannot be read or brought up."""
    try:
        present = revision(database)
    except sqlite3.Error as error:
        raise StateUnwritable(f"{database} cannot be opened as a database: {error}") from error
    if present is not None and present > head():
        raise Conflict(f"{database} was written by a newer Roost (schema {present}); start that release again")
    if present == head():
        return
    process = await asyncio.create_subprocess_exec(
        *upgrade_args(database), stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        _, errors = await asyncio.wait_for(process.communicate(), TIMEOUT)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        last_line = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise StateUnwritable(f"{database} could not be brought to schema {head()}: {last_line}")


def upgrade(database: Path, to: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(VERSIONS.parent).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", f"sqlite:///{database}".replace("%", "%%"))
    command.upgrade(config, to)


if __name__ == "__main__":
    upgrade(Path(sys.argv[1]))
