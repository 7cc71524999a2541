"""Space back from the store, counted from the revisions that must stay.

Nothing that was ever readable is deleted in one step. A collection condemns packs that nothing live needs; new saves do
not build on condemned packs; a later collection, at least `grace` seconds on, counts again and deletes what is still
not needed. A save that built on a pack before it was condemned sees that at its commit, or has committed by then and
is counted. Revisions and packs younger than `grace` are left alone: somebody may be about to use them. Index objects
go before the packs they name, so no index ever promises what is gone. Killed anywhere, the next collection goes on.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from roost.errors import Invalid
from roost.node.sync import revision
from roost.node.sync.entry import FILE, HOLE, records
from roost.node.sync.fetch import Chunks
from roost.node.sync.index import CHUNK_ROW, Condemned, Index, Pack, encode_index, read_condemned, read_index
from roost.node.sync.manifest import decoded_group, decoded_page
from roost.node.sync.pack import INDEX_CHUNKS, Packer
from roost.node.sync.save import Told, nobody_told
from roost.node.sync.seal import Damaged
from roost.node.sync.vault import CONDEMNED, INDEX, PACK, REVISION, Vault

CLOCK = "clock"
KEPT_SHARE = 0.5  # a pack of which less is live is rewritten
YOUNG = 1e18  # seconds: too young to be condemned in this collection
MOVED = 500  # chunks moved at a time
SMALL_PACK, SMALL_PACKS = 1024 * 1024, 32  # more than so many packs of less than so many bytes are joined
SMALL_INDEXES = 32  # with more index objects than this, small ones are joined
SAVE_LIMIT = 3600.0  # seconds; a smaller grace is only for stores that nobody writes to


class Collected(msgspec.Struct):
    """What one collection did. Bytes are those of packs."""

    revisions: int = 0
    live_revisions: int = 0
    packs: int = 0
    bytes: int = 0
    condemned_packs: int = 0
    condemned_bytes: int = 0
    rewritten_packs: int = 0
    reprieved_packs: int = 0


_SCHEMA = """
CREATE TEMP TABLE live (name BLOB PRIMARY KEY, tree INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE listed (name TEXT PRIMARY KEY, size INTEGER, modified REAL) WITHOUT ROWID;
CREATE TEMP TABLE ripe (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE chosen (name BLOB PRIMARY KEY, pack INTEGER, length INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE used (pack TEXT PRIMARY KEY, bytes INTEGER) WITHOUT ROWID;
"""


def collect(
    vault: Vault,
    live_heads: Iterable[str],
    grace: float = 24 * 3600.0,
    *,
    spared: Iterable[str] = (),
    cache: Path | None = None,
    told: Told = nobody_told,
) -> Collected:
    """Keep these revisions and what they need; all heads, kept revisions and bases in use must be among them.

    `spared` are kept too, if they are there. `grace` in seconds, longer than any save takes. Damaged, and nothing is
    removed, if a live revision is not whole.
    """
    if grace < 0:
        raise Invalid("grace is a number of seconds, 0 or more")
    index = Index(vault, cache)
    chunks = Chunks(vault, index)
    try:
        index.refresh()
        return _Collection(vault, index, chunks, told).run(set(live_heads), set(spared), grace)
    finally:
        chunks.close()
        index.close()


class _Collection:
    def __init__(self, vault: Vault, index: Index, chunks: Chunks, told: Told) -> None:
        self._vault = vault
        self._index = index
        self._chunks = chunks
        self._told = told
        self._database = index.database
        self._database.executescript(_SCHEMA)
        self._found = Collected()

    def run(self, heads: set[str], spared: set[str], grace: float) -> Collected:
        before = self._store_time() - grace
        self._list_packs()
        dead = self._mark_revisions(heads, spared, before)
        for name in dead:
            self._vault.delete(REVISION, name)
        self._found.revisions = len(dead)
        lists = self._ripe_lists(before)
        self._count_use()
        self._sweep(lists)
        self._condemn(before)
        return self._found

    def _store_time(self) -> float:
        """Ages are compared by the store's clock alone."""
        name = secrets.token_hex(16)
        self._vault.create(CLOCK, name, b"")
        try:
            return self._vault.store.head(self._vault.path(CLOCK, name)).modified
        finally:
            self._vault.delete(CLOCK, name)

    def _list_packs(self) -> None:
        # Packs are listed before revisions: what is uploaded later is not looked at in this collection.
        rows = ((name, found.size, found.modified) for name, found in self._vault.listed(PACK))
        self._database.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?, ?)", rows)

    def _mark_revisions(self, heads: set[str], spared: set[str], before: float) -> list[str]:
        """Find everything that live revisions need; returns the ids of those that are not live."""
        found = {name: one.modified for name, one in self._vault.listed(REVISION)}
        missing = heads - found.keys()
        if missing:
            raise Damaged(f"revision {min(missing)} should be kept but is not in the object store; nothing was removed")
        live = [name for name, modified in found.items() if name in heads | spared or modified > before]
        self._index.refresh()  # a revision just found may need packs that were indexed after the first look
        for name in live:
            self._told("revision", 1)
            self._mark(revision.read(self._vault, name).manifest)
        self._found.live_revisions = len(live)
        return sorted(found.keys() - set(live))

    def _new(self, name: bytes, tree: bool) -> bool:
        return self._database.execute("INSERT OR IGNORE INTO live VALUES (?, ?)", (name, tree)).rowcount > 0

    def _mark(self, manifest: bytes) -> None:
        """A page or group that was marked before brings nothing new, and neither does what it names."""
        for group, _ in records(manifest):
            if not self._new(group, True):
                continue
            fresh = [page for page in decoded_group(self._chunks.one(group)) if self._new(page.name, True)]
            for at in range(0, len(fresh), 48):
                some = fresh[at : at + 48]
                data = self._chunks.several([page.name for page in some])
                for page in some:
                    for entry in decoded_page(page, data[page.name]):
                        if entry.kind == FILE and entry.content:
                            self._mark_content(entry.content, entry.lists)

    def _mark_content(self, content: bytes, lists: bool) -> None:
        for name, _ in records(content):
            if name != HOLE and self._new(name, lists) and lists:
                self._mark_content(self._chunks.one(name), False)

    def _ripe_lists(self, before: float) -> list[str]:
        """Lists of condemned packs that are old enough to be acted upon."""
        lists = [name for name, found in self._vault.listed(CONDEMNED) if found.modified <= before]
        for name in lists:
            rows = [(pack,) for pack in read_condemned(self._vault, name)]
            self._database.executemany("INSERT OR IGNORE INTO ripe VALUES (?)", rows)
        return lists

    def _choose(self) -> None:
        """For each live chunk the one pack it is kept in: not a condemned one, if it can be; the latest."""
        self._database.execute(
            "INSERT INTO chosen SELECT l.name, p.id, c.length FROM live l JOIN chunks c ON c.name = l.name "
            "JOIN blocks b ON b.id = c.block JOIN packs p ON p.id = b.pack JOIN listed s ON s.name = p.name "
            "LEFT JOIN condemned x ON x.pack = p.name WHERE true "
            "ORDER BY x.pack IS NULL, p.id ON CONFLICT (name) DO UPDATE SET pack = excluded.pack"
        )

    def _lost(self) -> bytes | None:
        """A live chunk that is in no pack."""
        query = "SELECT l.name FROM live l LEFT JOIN chosen c ON c.name = l.name WHERE c.name IS NULL LIMIT 1"
        row = self._database.execute(query).fetchone()
        return None if row is None else row[0]

    def _count_use(self) -> None:
        self._choose()
        if self._lost() is not None:  # the packs of a revision that came after the listing
            rows = ((name, found.size, YOUNG) for name, found in self._vault.listed(PACK))
            self._database.executemany("INSERT OR IGNORE INTO listed VALUES (?, ?, ?)", rows)
            self._choose()
        if (lost := self._lost()) is not None:
            raise Damaged(f"chunk {lost.hex()} of a live revision is missing from the object store")
        self._database.execute(
            "INSERT INTO used SELECT p.name, sum(c.length) FROM chosen c JOIN packs p ON p.id = c.pack GROUP BY p.id"
        )

    def _sweep(self, lists: Sequence[str]) -> None:
        query = (
            "SELECT r.name, s.size FROM ripe r LEFT JOIN used u ON u.pack = r.name "
            "LEFT JOIN listed s ON s.name = r.name WHERE u.pack IS NULL"
        )
        gone = dict(self._database.execute(query).fetchall())
        (self._found.reprieved_packs,) = self._database.execute(
            "SELECT count(*) FROM ripe JOIN used ON pack = name"
        ).fetchone()
        self._join_indexes(set(gone))
        for name, size in gone.items():
            self._told("delete", 1)
            self._vault.delete(PACK, name)
            self._found.packs += size is not None
            self._found.bytes += size or 0
        for name in lists:
            self._vault.delete(CONDEMNED, name)

    def _join_indexes(self, gone: set[str]) -> None:
        """New index objects without `gone` first, then the old ones go."""
        names = self._vault.names(INDEX)
        joining = len(names) > SMALL_INDEXES
        if not joining and not gone:
            return
        replaced: list[str] = []
        kept: list[Pack] = []
        seen: set[str] = set()
        for name in names:
            packs = read_index(self._vault, name)
            small = joining and _chunk_count(packs) < INDEX_CHUNKS // 2
            if not small and not any(pack.name in gone for pack in packs):
                continue
            replaced.append(name)
            for pack in packs:
                if pack.name not in gone and pack.name not in seen:
                    seen.add(pack.name)
                    kept.append(pack)
            if _chunk_count(kept) >= INDEX_CHUNKS:
                self._write_index(kept)
                kept = []
        if kept:
            self._write_index(kept)
        for name in replaced:
            self._vault.delete(INDEX, name)

    def _write_index(self, packs: Sequence[Pack]) -> None:
        self._told(INDEX, len(packs))
        self._vault.create(INDEX, secrets.token_hex(16), encode_index(packs))

    def _condemn(self, before: float) -> None:
        """Dead packs; mostly dead or many small ones, after what lives in them was moved; and those no index knows."""
        dead: list[tuple[str, int]] = []
        moving: list[tuple[str, int]] = []
        small: list[tuple[str, int]] = []
        query = (
            "SELECT s.name, s.size, coalesce(u.bytes, 0), "
            "(SELECT sum(b.raw) FROM packs p JOIN blocks b ON b.pack = p.id WHERE p.name = s.name) "
            "FROM listed s LEFT JOIN used u ON u.pack = s.name WHERE s.modified <= ? "
            "AND NOT EXISTS (SELECT 1 FROM condemned x WHERE x.pack = s.name)"
        )
        for name, size, live, raw in self._database.execute(query, (before,)).fetchall():
            if live == 0:
                dead.append((name, size))
            elif live < raw * KEPT_SHARE:
                moving.append((name, size))
            elif size < SMALL_PACK:
                small.append((name, size))
        if len(small) > SMALL_PACKS:
            moving += small
        if moving:
            self._move([name for name, _ in moving])
        if dead or moving:
            packs = [name for name, _ in dead + moving]
            self._told(CONDEMNED, len(packs))
            value = msgspec.msgpack.encode(Condemned(packs))
            self._vault.create(CONDEMNED, secrets.token_hex(16), value)
        self._found.rewritten_packs = len(moving)
        self._found.condemned_packs = len(dead) + len(moving)
        self._found.condemned_bytes = sum(size for _, size in dead + moving)

    def _move(self, packs: Sequence[str]) -> None:
        packer = Packer(self._vault, self._index, 2, self._told, anew=True)
        try:
            for tree in (True, False):
                for names in _batched(self._living(packs, tree), MOVED):
                    tasks = self._chunks.begin(names, lambda _, data, tree=tree: _ignore(packer.add(data, tree)))
                    for task in tasks:
                        task.result()
            packer.finish()
            self._vault.store.settle()
        finally:
            packer.close()

    def _living(self, packs: Sequence[str], tree: bool) -> Iterator[bytes]:
        for pack in packs:
            query = (
                "SELECT c.name FROM chosen c JOIN packs p ON p.id = c.pack JOIN live l ON l.name = c.name "
                "WHERE p.name = ? AND l.tree = ?"
            )
            for (name,) in self._database.execute(query, (pack, tree)).fetchall():
                yield name


def _ignore(name: bytes) -> None:
    """A taker of chunks returns nothing."""


def _chunk_count(packs: Sequence[Pack]) -> int:
    return sum(len(block.chunks) for pack in packs for block in pack.blocks) // CHUNK_ROW


def _batched(names: Iterable[bytes], count: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for name in names:
        batch.append(name)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch
