"""Is everything there that the revisions need, and is it what was saved? Reads only; usable while others save."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from roost.errors import NotFound, RoostError
from roost.node.sync import revision
from roost.node.sync.entry import DIRECTORY, FILE, HOLE, Entry, split
from roost.node.sync.fetch import Chunks
from roost.node.sync.index import Index, Place
from roost.node.sync.manifest import Page, content_records, entries, pages
from roost.node.sync.save import Told, nobody_told
from roost.node.sync.seal import Damaged
from roost.node.sync.vault import INDEX, PACK, REVISION, Vault

ENOUGH = 1000  # problems; a store with more is known to be broken
BATCH = 2000


class Problem(msgspec.Struct, frozen=True):
    """kind: of the object (revision, index, pack, chunk). subject: its name. text: what is the case."""

    kind: str
    subject: str
    text: str


_SCHEMA = """
CREATE TEMP TABLE checked (name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE listed (name TEXT PRIMARY KEY, size INTEGER) WITHOUT ROWID;
"""


def check(
    vault: Vault,
    heads: Iterable[str] | None = None,
    read_data: bool = False,
    *,
    cache: Path | None = None,
    told: Told = nobody_told,
) -> list[Problem]:
    """Problems of these revisions, or of all that the store holds. `read_data`: fetch and hash every chunk as well."""
    index = Index(vault, cache)
    chunks = Chunks(vault, index)
    try:
        checking = _Checking(vault, index, chunks, read_data, told)
        try:
            index.refresh()
        except RoostError as error:
            checking.note(INDEX, vault.root, str(error))
            return checking.problems
        checking.packs()
        names = sorted(vault.names(REVISION)) if heads is None else sorted(heads)
        for name in names:
            if len(checking.problems) < ENOUGH:
                checking.revision(name)
        return checking.problems
    finally:
        chunks.close()
        index.close()


class _Checking:
    def __init__(self, vault: Vault, index: Index, chunks: Chunks, read_data: bool, told: Told) -> None:
        self._vault = vault
        self._index = index
        self._chunks = chunks
        self._read_data = read_data
        self._told = told
        self._database = index.database
        self._database.executescript(_SCHEMA)
        self.problems: list[Problem] = []

    def note(self, kind: str, subject: str, text: str) -> None:
        if len(self.problems) < ENOUGH:
            self.problems.append(Problem(kind, subject, text))

    def packs(self) -> None:
        """Every pack that an index names exists and has the size it should."""
        rows = ((name, found.size) for name, found in self._vault.listed(PACK))
        self._database.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?)", rows)
        query = (
            "SELECT p.name, p.size, s.size FROM packs p LEFT JOIN listed s ON s.name = p.name "
            "WHERE s.size IS NOT p.size"
        )
        for name, size, found in self._database.execute(query).fetchall():
            if found is None:
                self.note(PACK, name, "is in the index but missing; if a collection just ran, check again")
            else:
                self.note(PACK, name, f"has {found} bytes instead of {size}")

    def revision(self, name: str) -> None:
        self._told("revision", 1)
        try:
            found = revision.read(self._vault, name)
            count, size = self._tree(entries(self._pages(found.manifest), self._chunks))
        except NotFound:
            self.note(REVISION, name, "is missing")
            return
        except RoostError as error:
            self.note(REVISION, name, str(error))
            return
        if (count, size) != (found.entries, found.size):
            self.note(REVISION, name, f"has {count} names and {size} bytes, but says {found.entries} and {found.size}")

    def _pages(self, manifest: bytes) -> Iterator[Page]:
        return pages(manifest, self._chunks)

    def _tree(self, tree: Iterable[Entry]) -> tuple[int, int]:
        """Names and bytes; every name in a directory, every chunk in the index with the length that it should have."""
        count = size = 0
        stack: list[bytes] = []
        wanted: dict[bytes, int] = {}
        for entry in tree:
            count += 1
            parent = split(entry.key)[0]
            while stack and entry.key and stack[-1] != parent:
                stack.pop()
            if entry.key and not stack:
                raise Damaged("its manifest holds a name outside any directory")
            if entry.kind == DIRECTORY:
                stack.append(entry.key)
            elif entry.kind == FILE:
                size += entry.size
                for chunk, length in content_records(entry, self._chunks.one):
                    if chunk != HOLE and wanted.setdefault(chunk, length) != length:
                        raise Damaged(f"chunk {chunk.hex()} is said to have two sizes")
            if len(wanted) >= BATCH:
                self._verify(wanted)
                wanted = {}
        self._verify(wanted)
        return count, size

    def _verify(self, wanted: dict[bytes, int]) -> None:
        places = self._index.places(wanted)
        for chunk, length in wanted.items():
            place = places.get(chunk)
            if place is None:
                raise Damaged(f"chunk {chunk.hex()} is missing from the index")
            if place.length != length:
                raise Damaged(f"chunk {chunk.hex()} has {place.length} bytes instead of {length}")
        if self._read_data:
            self._read(places)

    def _read(self, places: dict[bytes, Place]) -> None:
        """Each chunk once, however many revisions have it."""
        add = "INSERT OR IGNORE INTO checked VALUES (?)"
        unread = [name for name in places if self._database.execute(add, (name,)).rowcount]
        for task in self._chunks.begin(unread, lambda name, data: None):
            task.result()
