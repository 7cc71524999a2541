"""Where each chunk of an account is: pack, block, and place in the block.

The store holds this as index objects, each for some packs. Here it is a SQLite file: a cache that is brought up to date
by one listing, or a temporary one. It never holds anything that the store cannot tell again.
"""

import fcntl
import os
import random
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import msgspec

from roost.errors import Conflict, NotFound
from roost.node.sync.seal import ID_BYTES, Damaged
from roost.node.sync.vault import CONDEMNED, INDEX, Vault

MAX_BLOCK = 1024 * 1024  # bytes before compression; no chunk is larger
MAX_PACK = 64 * 1024 * 1024
MAX_INDEX = 64 * 1024 * 1024
CHUNK_ROW = ID_BYTES + 4
PATIENCE = 60.0  # seconds, for a collection that replaces index objects while they are read
QUESTIONS = 400  # names in one query; SQLite allows 999

PackName = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_PACK)]
RawSize = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK)]


class Block(msgspec.Struct, frozen=True, array_like=True):
    """One sealed value in a pack. chunks: name and length (4 bytes) of each chunk in it, in order."""

    offset: Size
    stored: Size
    raw: RawSize
    chunks: bytes

    def rows(self) -> Iterator[tuple[bytes, int, int]]:
        """Name, offset in the block and length of each chunk."""
        if len(self.chunks) % CHUNK_ROW:
            raise Damaged("an index object holds half a chunk's name")
        offset = 0
        for at in range(0, len(self.chunks), CHUNK_ROW):
            length = int.from_bytes(self.chunks[at + ID_BYTES : at + CHUNK_ROW], "big")
            yield self.chunks[at : at + ID_BYTES], offset, length
            offset += length
        if offset != self.raw:
            raise Damaged("an index object names more or less than a block holds")


class Pack(msgspec.Struct, frozen=True, array_like=True):
    name: PackName
    size: Size
    blocks: list[Block]


class Condemned(msgspec.Struct, frozen=True):
    """Packs that nothing live needed when this was written; new saves must not build on them."""

    packs: list[PackName]


@dataclass(frozen=True)
class Place:
    """Where one chunk is. offset and stored: of the block in the pack; at and length: of the chunk in the block."""

    pack: str
    offset: int
    stored: int
    raw: int
    at: int
    length: int


def encode_index(packs: Sequence[Pack]) -> bytes:
    return msgspec.msgpack.encode(packs)


def read_index(vault: Vault, name: str) -> list[Pack]:
    try:
        packs = msgspec.msgpack.decode(vault.read(INDEX, name, MAX_INDEX), type=list[Pack])
    except msgspec.MsgspecError as error:
        raise Damaged(f"index object {name} is not readable: {error}") from error
    for pack in packs:
        if any(block.offset + block.stored > pack.size for block in pack.blocks):
            raise Damaged(f"index object {name} names blocks beyond the end of pack {pack.name}")
    return packs


def read_condemned(vault: Vault, name: str) -> list[str]:
    try:
        return msgspec.msgpack.decode(vault.read(CONDEMNED, name, MAX_INDEX), type=Condemned).packs
    except msgspec.MsgspecError as error:
        raise Damaged(f"the list of condemned packs {name} is not readable: {error}") from error


_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, size INTEGER);
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY, pack INTEGER, offset INTEGER, stored INTEGER, raw INTEGER, UNIQUE (pack, offset));
CREATE TABLE IF NOT EXISTS chunks (
    name BLOB, block INTEGER, at INTEGER, length INTEGER, PRIMARY KEY (name, block)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS condemned (list TEXT, pack TEXT, PRIMARY KEY (pack, list)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lists (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_VERSION = 1


class Index:
    """Safe to use from several threads and, with a cache file, beside other processes."""

    def __init__(self, vault: Vault, file: Path | None = None) -> None:
        self._vault = vault
        self.lock = threading.RLock()
        self._file = file
        self._open()

    def _open(self) -> None:
        try:
            self.database = self._connected()
        except sqlite3.DatabaseError:  # a machine that lost power left it torn; it is only a cache
            assert self._file is not None
            self._file.unlink(missing_ok=True)
            self.database = self._connected()

    def _connected(self) -> sqlite3.Connection:
        # An empty name is a temporary database that SQLite spills to disk.
        database = sqlite3.connect(self._file or "", timeout=120, check_same_thread=False, isolation_level=None)
        database.execute("PRAGMA cache_size = -16384")
        database.execute("PRAGMA temp_store = FILE")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA temp.journal_mode = MEMORY")
        database.execute("PRAGMA journal_mode = WAL" if self._file else "PRAGMA journal_mode = MEMORY")
        if database.execute("PRAGMA user_version").fetchone()[0] not in (0, _VERSION):
            raise sqlite3.DatabaseError("written by another version")
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {_VERSION}")
        return database

    def close(self) -> None:
        with self.lock:
            self.database.close()

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        """One transaction, and one process at a time."""
        with self.lock, self._exclusive():
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield self.database
            except BaseException:
                self.database.execute("ROLLBACK")
                raise
            self.database.execute("COMMIT")

    @contextmanager
    def _exclusive(self) -> Generator[None]:
        if self._file is None:
            yield
            return
        fd = os.open(f"{self._file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def refresh(self) -> None:
        """Know what the store knows now. Index objects may vanish while we read: then they were replaced by others."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                with self._writing() as database:
                    self._refresh(database)
                return
            except NotFound:
                time.sleep(random.uniform(0, 0.2))  # noqa: S311 jitter, not a secret
        raise Conflict("the index of the object store keeps changing; run one collection at a time")

    def _refresh(self, database: sqlite3.Connection) -> None:
        listed = set(self._vault.names(INDEX))
        loaded: set[str] = {row[0] for row in database.execute("SELECT name FROM objects")}
        if loaded - listed:
            for table in ("objects", "packs", "blocks", "chunks"):
                database.execute(f"DELETE FROM {table}")  # noqa: S608 names of ours
            loaded.clear()
        for name in sorted(listed - loaded):
            self._insert(database, name, read_index(self._vault, name))
        self._refresh_condemned(database)

    def _refresh_condemned(self, database: sqlite3.Connection) -> None:
        listed = set(self._vault.names(CONDEMNED))
        loaded = {row[0] for row in database.execute("SELECT name FROM lists")}
        for name in loaded - listed:
            database.execute("DELETE FROM condemned WHERE list = ?", (name,))
            database.execute("DELETE FROM lists WHERE name = ?", (name,))
        for name in listed - loaded:
            packs = read_condemned(self._vault, name)
            database.executemany("INSERT OR IGNORE INTO condemned VALUES (?, ?)", [(name, pack) for pack in packs])
            database.execute("INSERT INTO lists VALUES (?)", (name,))

    def learn(self, name: str, packs: Sequence[Pack]) -> None:
        """What an index object says that we have written ourselves."""
        with self._writing() as database:
            self._insert(database, name, packs)

    def _insert(self, database: sqlite3.Connection, name: str, packs: Iterable[Pack]) -> None:
        if not database.execute("INSERT OR IGNORE INTO objects VALUES (?)", (name,)).rowcount:
            return
        for pack in packs:
            added = database.execute("INSERT OR IGNORE INTO packs (name, size) VALUES (?, ?)", (pack.name, pack.size))
            if added.rowcount:
                self._insert_blocks(database, cast(int, added.lastrowid), pack)

    def _insert_blocks(self, database: sqlite3.Connection, pack_id: int, pack: Pack) -> None:
        rows: list[tuple[bytes, int, int, int]] = []
        for block in pack.blocks:
            added = database.execute(
                "INSERT INTO blocks (pack, offset, stored, raw) VALUES (?, ?, ?, ?)",
                (pack_id, block.offset, block.stored, block.raw),
            )
            block_id = cast(int, added.lastrowid)
            rows += [(chunk, block_id, at, length) for chunk, at, length in block.rows()]
        rows.sort()  # neighbours in the tree; a million rows come in half the time
        database.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?)", rows)

    @property
    def empty(self) -> bool:
        with self.lock:
            return self.database.execute("SELECT 1 FROM objects LIMIT 1").fetchone() is None

    def pack_to_build_on(self, chunk: bytes) -> str | None:
        """A pack that holds this chunk and is not condemned."""
        with self.lock:
            row = self.database.execute(
                "SELECT p.name FROM chunks c JOIN blocks b ON b.id = c.block JOIN packs p ON p.id = b.pack "
                "WHERE c.name = ? AND NOT EXISTS (SELECT 1 FROM condemned x WHERE x.pack = p.name) LIMIT 1",
                (chunk,),
            ).fetchone()
        return None if row is None else row[0]

    def places(self, chunks: Iterable[bytes]) -> dict[bytes, Place]:
        """Of each that is known; packs that are not condemned are preferred."""
        wanted = list(chunks)
        found: dict[bytes, Place] = {}
        with self.lock:
            for at in range(0, len(wanted), QUESTIONS):
                some = wanted[at : at + QUESTIONS]
                marks = ",".join("?" * len(some))
                query = (
                    "SELECT c.name, p.name, b.offset, b.stored, b.raw, c.at, c.length, x.pack IS NULL "  # noqa: S608
                    "FROM chunks c JOIN blocks b ON b.id = c.block JOIN packs p ON p.id = b.pack "
                    "LEFT JOIN condemned x ON x.pack = p.name "
                    f"WHERE c.name IN ({marks}) ORDER BY x.pack IS NULL"  # nothing but question marks
                )
                for name, *place, _ in self.database.execute(query, some):
                    found[name] = Place(*place)
        return found

    def still_usable(self, packs: set[str]) -> set[str]:
        """Those of `packs` that are named by an index object and not condemned, by what was last refreshed."""
        with self.lock, closing(self.database.cursor()) as cursor:
            query = (
                "SELECT 1 FROM packs p WHERE p.name = ? "
                "AND NOT EXISTS (SELECT 1 FROM condemned x WHERE x.pack = p.name)"
            )
            return {pack for pack in packs if cursor.execute(query, (pack,)).fetchone()}
