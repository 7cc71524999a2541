"""The manifest: all names of a revision in key order, in pages that are chunks like any other.

Where a page ends depends only on the names in it, so a save after few changes writes few pages and takes the others
over unread, and the same tree gives the same pages whoever saves it. Groups of page references are chunks in turn, cut
the same way; the revision names the groups.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated

import msgspec
from blake3 import blake3

from roost.node.sync.entry import FILE, Entry, Key, checked, record, records
from roost.node.sync.fetch import Chunks
from roost.node.sync.index import MAX_BLOCK
from roost.node.sync.pack import Packer
from roost.node.sync.seal import ID_BYTES, Damaged

PAGE_CUT, MAX_PAGE, MAX_PAGE_BYTES = 256, 1024, 384 * 1024
GROUP_CUT, MAX_GROUP, MAX_GROUP_BYTES = 64, 256, 512 * 1024
AHEAD = 48  # pages read at a time: about 3 MB


class Page(msgspec.Struct, frozen=True, array_like=True):
    """A reference to one page. first, last: its keys; entries: how many; size: bytes of the files in it."""

    first: Key
    last: Key
    name: Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    length: Annotated[int, msgspec.Meta(gt=0, le=MAX_BLOCK)]
    entries: Annotated[int, msgspec.Meta(gt=0, le=MAX_PAGE)]
    size: Annotated[int, msgspec.Meta(ge=0)]


_encoder = msgspec.msgpack.Encoder()
_entries = msgspec.msgpack.Decoder(list[Entry])
_pages = msgspec.msgpack.Decoder(list[Page])


def ends_page(key: bytes) -> bool:
    """One name in PAGE_CUT, by its hash."""
    return blake3(key).digest(1)[0] % PAGE_CUT == 0


class Writer:
    """Takes entries in key order, and whole pages of an older manifest where it is between two pages."""

    def __init__(self, packer: Packer) -> None:
        self._packer = packer
        self._page: list[bytes] = []
        self._bytes = 0
        self._size = 0
        self._first = b""
        self._last = b""
        self._group: list[Page] = []
        self._group_bytes = 0
        self._groups: list[bytes] = []
        self.entries = 0
        self.size = 0

    @property
    def between_pages(self) -> bool:
        return not self._page

    def add(self, entry: Entry) -> None:
        encoded = _encoder.encode(entry)
        if self._page and self._bytes + len(encoded) > MAX_PAGE_BYTES:
            self._end_page()
        if not self._page:
            self._first = entry.key
        self._last = entry.key
        self._page.append(encoded)
        self._bytes += len(encoded)
        self._size += entry.size if entry.kind == FILE else 0
        if len(self._page) >= MAX_PAGE or ends_page(entry.key):
            self._end_page()

    def _end_page(self) -> None:
        data = _array_head(len(self._page)) + b"".join(self._page)
        name = self._packer.add(data, tree=True)
        self.take(Page(self._first, self._last, name, len(data), len(self._page), self._size))
        self._page, self._bytes, self._size = [], 0, 0

    def take(self, page: Page) -> None:
        self.entries += page.entries
        self.size += page.size
        self._group.append(page)
        self._group_bytes += len(page.first) + len(page.last) + 64
        if page.name[0] % GROUP_CUT == 0 or len(self._group) >= MAX_GROUP or self._group_bytes > MAX_GROUP_BYTES:
            self._end_group()

    def _end_group(self) -> None:
        data = _encoder.encode(self._group)
        self._groups.append(record(self._packer.add(data, tree=True), len(data)))
        self._group, self._group_bytes = [], 0

    def finish(self) -> bytes:
        """Records of the groups, for the revision."""
        if self._page:
            self._end_page()
        if self._group:
            self._end_group()
        return b"".join(self._groups)


def _array_head(count: int) -> bytes:
    """MessagePack's head of a list, so that entries are encoded once."""
    return bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def pages(manifest: bytes, chunks: Chunks) -> Iterator[Page]:
    """In order; Damaged if the keys are not."""
    last: bytes | None = None
    for name, _ in records(manifest):
        for page in decoded_group(chunks.one(name)):
            if page.last < page.first or (last is not None and page.first <= last):
                raise Damaged("a manifest's pages are not in order")
            last = page.last
            yield page


def decoded_group(data: bytes) -> list[Page]:
    try:
        return _pages.decode(data)
    except msgspec.MsgspecError as error:
        raise Damaged(f"a manifest's list of pages is not readable: {error}") from error


def decoded_page(page: Page, data: bytes) -> list[Entry]:
    """Checked as far as one page can be."""
    try:
        found = _entries.decode(data)
    except msgspec.MsgspecError as error:
        raise Damaged(f"a page of a manifest is not readable: {error}") from error
    if len(found) != page.entries or found[0].key != page.first or found[-1].key != page.last:
        raise Damaged("a page of a manifest holds other names than the manifest says")
    last: bytes | None = None
    for entry in found:
        if last is not None and entry.key <= last:
            raise Damaged("the names of a manifest are not in order")
        last = checked(entry).key
    return found


def entries(wanted: Iterable[Page], chunks: Chunks) -> Iterator[Entry]:
    """All names of these pages, read some pages ahead."""
    batch: list[Page] = []
    for page in wanted:
        batch.append(page)
        if len(batch) == AHEAD:
            yield from _batch(batch, chunks)
            batch = []
    yield from _batch(batch, chunks)


def _batch(batch: Sequence[Page], chunks: Chunks) -> Iterator[Entry]:
    data = chunks.several([page.name for page in batch])
    for page in batch:
        yield from decoded_page(page, data[page.name])


def content_records(entry: Entry, read: Callable[[bytes], bytes]) -> Iterator[tuple[bytes, int]]:
    """The chunks of a file in order, through its lists; `read` returns a chunk by name. Damaged unless sizes add up."""
    total = 0
    for name, length in records(entry.content):
        if entry.lists:
            covered = 0
            for inner in records(read(name)):
                covered += inner[1]
                total += inner[1]
                if total > entry.size:
                    break
                yield inner
            if covered != length:
                raise Damaged("a list of chunks covers more or less than the manifest says")
        else:
            total += length
            if total <= entry.size:
                yield name, length
    if total != entry.size:
        raise Damaged("a file of a manifest has more or fewer bytes than its chunks")
