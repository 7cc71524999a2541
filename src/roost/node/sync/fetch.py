"""Chunks back from the store: grouped by pack, fetched in ranges by several threads, each checked against its name."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from roost.errors import NotFound
from roost.node.sync.index import MAX_BLOCK, Index, Place
from roost.node.sync.pack import BLOCK_ROLE
from roost.node.sync.seal import Damaged
from roost.node.sync.vault import PACK, Vault

RANGE = 4 * 1024 * 1024  # bytes in one request
GAP = 128 * 1024  # bytes that are read in vain rather than make another request
FETCHES = 6
KEPT = 16  # blocks of the manifest kept expanded

Taker = Callable[[bytes, memoryview], None]


@dataclass(frozen=True)
class Range:
    """One request, and the chunks wanted from it."""

    pack: str
    start: int
    end: int
    places: tuple[tuple[bytes, Place], ...]


def ranges(places: Iterable[tuple[bytes, Place]]) -> list[Range]:
    """Few requests for many chunks: near ones together, none longer than RANGE (or one block)."""
    found: list[Range] = []
    run: list[tuple[bytes, Place]] = []
    start = end = 0
    for name, place in sorted(places, key=lambda one: (one[1].pack, one[1].offset, one[1].at)):
        stop = place.offset + place.stored
        apart = bool(run) and (place.pack != run[0][1].pack or place.offset > end + GAP or stop - start > RANGE)
        if apart:
            found.append(Range(run[0][1].pack, start, end, tuple(run)))
            run = []
        if not run:
            start = end = place.offset
        run.append((name, place))
        end = max(end, stop)
    if run:
        found.append(Range(run[0][1].pack, start, end, tuple(run)))
    return found


class Chunks:
    """Reads chunks of one vault. Safe to use from several threads; close it."""

    def __init__(self, vault: Vault, index: Index) -> None:
        self._vault = vault
        self._index = index
        self.pool = ThreadPoolExecutor(FETCHES, "fetch")
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def located(self, names: Iterable[bytes]) -> dict[bytes, Place]:
        """All of them, or Damaged; the index is read anew before that is said."""
        wanted = set(names)
        found = self._index.places(wanted)
        if len(found) < len(wanted):
            self._index.refresh()
            found = self._index.places(wanted)
        for name in wanted:
            if name not in found:
                raise Damaged(f"chunk {name.hex()} is missing from the object store")
        return found

    def begin(self, names: Iterable[bytes], take: Taker) -> list[Future[None]]:
        """Have each chunk given to `take` by some thread; the futures raise what went wrong."""
        wanted = ranges(self.located(names).items())
        return [self.pool.submit(self._fetch, one, take, True) for one in wanted]

    def _fetch(self, wanted: Range, take: Taker, again: bool) -> None:
        try:
            data = self._vault.store.read_range(
                self._vault.path(PACK, wanted.pack), wanted.start, wanted.end - wanted.start
            )
        except NotFound as error:
            if not again:
                raise Damaged(f"pack {wanted.pack} is missing from the object store") from error
            self._index.refresh()  # a collection moved the chunks meanwhile
            moved = ranges(self.located(name for name, _ in wanted.places).items())
            for one in moved:
                self._fetch(one, take, False)
            return
        self._deliver(wanted, memoryview(data), take)

    def _deliver(self, wanted: Range, data: memoryview, take: Taker) -> None:
        offset, block = -1, b""
        for name, place in wanted.places:
            if place.offset != offset:
                begin = place.offset - wanted.start
                block = self.expanded(data[begin : begin + place.stored], place)
                offset = place.offset
            take(name, self.verified(name, block, place))

    def expanded(self, sealed: memoryview, place: Place) -> bytes:
        block = self._vault.seal.open(bytes(sealed), BLOCK_ROLE, MAX_BLOCK)
        if len(block) != place.raw:
            raise Damaged(f"a block of pack {place.pack} has another size than the index says")
        return block

    def verified(self, name: bytes, block: bytes, place: Place) -> memoryview:
        chunk = memoryview(block)[place.at : place.at + place.length]
        if self._vault.seal.name(chunk) != name:
            raise Damaged(f"chunk {name.hex()} in pack {place.pack} is not what was saved")
        return chunk

    def several(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """Small chunks, all at once in memory: pages of a manifest."""
        found: dict[bytes, bytes] = {}

        def take(name: bytes, data: memoryview) -> None:
            found[name] = bytes(data)

        for task in self.begin(names, take):
            task.result()
        return found

    def one(self, name: bytes) -> bytes:
        """One chunk; its block is kept for a while, since neighbours are asked for next."""
        place = self.located([name])[name]
        key = (place.pack, place.offset)
        with self._lock:
            block = self._kept.get(key)
        if block is None:
            return self._read_one(name, place)
        return bytes(self.verified(name, block, place))

    def _read_one(self, name: bytes, place: Place) -> bytes:
        try:
            sealed = self._vault.store.read_range(self._vault.path(PACK, place.pack), place.offset, place.stored)
        except NotFound:
            return self.several([name])[name]
        block = self.expanded(memoryview(sealed), place)
        with self._lock:
            self._kept[(place.pack, place.offset)] = block
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return bytes(self.verified(name, block, place))
