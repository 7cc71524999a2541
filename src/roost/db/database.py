"""The database file: one writer that commits in batches, a few readers beside it.

SQLite in WAL mode with synchronous=FULL: when `write` returns, the change survives a power cut. Writes that arrive
while a commit is under way share the next one, so a burst of a hundred submissions costs a few syncs, not a hundred.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

import structlog
from sqlalchemy import Connection, Engine, Executable, Row, create_engine, event
from sqlalchemy.exc import OperationalError
from structlog.typing import FilteringBoundLogger

from roost.errors import StateUnwritable

READERS = 2
BATCH = 256  # writes in one transaction

log: FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class Outcome:
    """What one statement did."""

    rows: int  # changed
    row_id: int  # of the last insert; 0 for other statements


@dataclass(frozen=True)
class Bound:
    """A statement that was made once, with its values for this time: to build one takes longer than to run it."""

    statement: Executable
    values: dict[str, Any]


Statement: TypeAlias = Executable | Bound


@dataclass(frozen=True)
class Write:
    """Statements that take effect together or not at all, and who waits for them."""

    statements: tuple[Statement, ...]
    outcomes: asyncio.Future[list[Outcome]] = field(compare=False)


class Database:
    """Open with `async with Database(file) as database`; the file is at the current schema (see migrate.py).

    SQLAlchemy's own asyncio would cross to a thread and back for each call of the driver; here a whole read, or a whole
    batch of writes, crosses once, in a third of the time.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._engine = _engine(file)
        self._write_thread = ThreadPoolExecutor(1, "database writer")
        self._read_threads = ThreadPoolExecutor(READERS, "database reader")
        self._local = threading.local()  # each thread's own connection
        self._queue: asyncio.Queue[Write | None] = asyncio.Queue()
        self._writing: asyncio.Task[None] | None = None
        self.after_commit: list[Callable[[], None]] = []  # each is called then, and must be short

    async def __aenter__(self) -> Self:
        self._writing = asyncio.create_task(self._write_all(), name="database writer")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.put_nowait(None)  # everything asked before is still written
        if self._writing is not None:
            await self._writing
        for threads in (self._read_threads, self._write_thread):
            threads.shutdown()
        self._engine.dispose()

    async def read(self, statement: Executable, **values: Any) -> list[Row[Any]]:
        """All rows, as of the last commit; `values` are those of its parameters (see `Bound`)."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._read_threads, self._read, statement, values)

    def _read(self, statement: Executable, values: dict[str, Any]) -> list[Row[Any]]:
        with self._connection().begin():
            return list(self._connection().execute(statement, values))

    def _connection(self) -> Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = self._engine.connect()
        return self._local.connection

    async def write(self, *statements: Statement) -> list[Outcome]:
        """Durable on return. Raises StateUnwritable when the disk is full or read-only; nothing has changed then."""
        return await self._ask(statements)

    def write_soon(self, *statements: Statement) -> None:
        """For what may be lost: written with the next commit, a failure is only logged."""
        self._ask(statements).add_done_callback(_log_failure)

    def _ask(self, statements: tuple[Statement, ...]) -> asyncio.Future[list[Outcome]]:
        write = Write(statements, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(write)
        return write.outcomes

    async def _write_all(self) -> None:
        while (first := await self._queue.get()) is not None:
            batch = [first]
            closing = False
            while len(batch) < BATCH and not self._queue.empty():
                following = self._queue.get_nowait()
                if following is None:
                    closing = True
                    break
                batch.append(following)
            await self._commit(batch)
            if closing:
                return

    async def _commit(self, batch: list[Write]) -> None:
        """One transaction for all; if it fails, one for each, so that a bad write harms nobody else's."""
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._write_thread, self._execute, batch)
        except Exception as error:  # whatever it is belongs to who asked; the writer lives on for the others
            if len(batch) > 1:
                for write in batch:
                    await self._commit([write])
            elif not batch[0].outcomes.done():
                batch[0].outcomes.set_exception(_condition(error))
            return
        for write, results in zip(batch, outcomes, strict=True):
            if not write.outcomes.done():
                write.outcomes.set_result(results)
        for tell in self.after_commit:
            tell()

    def _execute(self, batch: list[Write]) -> list[list[Outcome]]:
        connection = self._connection()
        with connection.begin():
            return [[_outcome(connection, one) for one in write.statements] for write in batch]


def _outcome(connection: Connection, one: Statement) -> Outcome:
    result: Any = connection.execute(one.statement, one.values) if isinstance(one, Bound) else connection.execute(one)
    return Outcome(result.rowcount, result.lastrowid if result.context.isinsert else 0)


def _condition(error: Exception) -> Exception:
    if isinstance(error, OperationalError):
        return StateUnwritable(f"the state directory cannot be written ({error.orig}); free space or repair it")
    if isinstance(error, OSError):
        return StateUnwritable(f"the state directory cannot be written ({error}); free space or repair it")
    return error


def _log_failure(outcomes: asyncio.Future[list[Outcome]]) -> None:
    if not outcomes.cancelled() and (error := outcomes.exception()) is not None:
        log.warning("write.failed", error=str(error))


def _engine(file: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{file}", pool_size=READERS + 1, max_overflow=0, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
