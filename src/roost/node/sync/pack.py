"""Chunks on their way into the store: collected in blocks, compressed beside the reader, uploaded in packs.

A block is what is compressed as one (many small chunks, or one large); a pack is one object of some megabytes. Chunks
of the manifest go to packs of their own, so that reading trees never reads files. A pack counts once an index object
names it. Whoever adds faster than the store takes waits: about 60 MB are under way at most.
"""

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from roost.node.sync.index import CHUNK_ROW, MAX_BLOCK, Block, Index, Pack, encode_index
from roost.node.sync.seal import ID_BYTES
from roost.node.sync.vault import INDEX, PACK, Vault

BLOCK = 256 * 1024  # bytes; larger ones compress no better, and reading one small file takes a whole block
PACK_BYTES = 8 * 1024 * 1024
BLOCK_CHUNKS, PACK_CHUNKS = 2048, 32_768  # tiny files: what is known of them must stay small too
INDEX_PACKS, INDEX_CHUNKS = 16, 50_000  # an index object is written after so many
BLOCKS_UNDER_WAY = 24
UPLOADS = 4
FRESH = 16_384  # names kept in memory before they go to the temporary database
BLOCK_ROLE = b"block"


@dataclass
class _Stream:
    """One of the two kinds of packs while it is being filled."""

    parts: list[bytes] = field(default_factory=list[bytes])
    names: bytearray = field(default_factory=bytearray)
    raw: int = 0
    pieces: list[bytes] = field(default_factory=list[bytes])
    blocks: list[Block] = field(default_factory=list[Block])
    size: int = 0
    chunks: int = 0  # in its blocks


class Packer:
    """Add chunks from any thread, then `finish`. Nothing of it is in the store's index before that, or only in part."""

    def __init__(
        self, vault: Vault, index: Index, workers: int, told: Callable[[str, int], None], *, anew: bool = False
    ) -> None:
        """anew: store even what the account has already, to move it."""
        self._vault = vault
        self._index = index
        self._told = told
        self._search = not anew and not index.empty
        self._lock = threading.RLock()
        self._streams = {False: _Stream(), True: _Stream()}
        self._compress = ThreadPoolExecutor(workers, "compress")
        self._upload = ThreadPoolExecutor(UPLOADS, "upload")
        self._blocks = threading.BoundedSemaphore(BLOCKS_UNDER_WAY)
        self._packs = threading.BoundedSemaphore(UPLOADS + 1)
        self._tasks: set[Future[None]] = set()
        self._failed: BaseException | None = None
        self._written: list[Pack] = []
        self._written_chunks = 0
        self._fresh: set[bytes] = set()
        self._spilled = False
        self.built_on: set[str] = set()
        self.own: set[str] = set()
        self.stored = 0

    def add(self, data: bytes | memoryview, tree: bool = False) -> bytes:
        """The chunk's name; it is stored unless the account has it already. At most MAX_BLOCK bytes."""
        name = self._vault.seal.name(data)
        full: tuple[bytes, bytes] | None = None
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._known(name):
                return name
            self._remember(name)
            stream = self._streams[tree]
            if stream.raw and (stream.raw + len(data) > BLOCK or len(stream.names) >= BLOCK_CHUNKS * CHUNK_ROW):
                full = self._cut(stream)
            stream.parts.append(bytes(data))
            stream.names += name + len(data).to_bytes(4, "big")
            stream.raw += len(data)
        if full is not None:
            self._begin(tree, *full)
        return name

    def _known(self, name: bytes) -> bool:
        if name in self._fresh:
            return True
        database = self._index.database
        if self._spilled and database.execute("SELECT 1 FROM temp.fresh WHERE name = ?", (name,)).fetchone():
            return True
        pack = self._index.pack_to_build_on(name) if self._search else None
        if pack is None:
            return False
        self.built_on.add(pack)
        return True

    def _remember(self, name: bytes) -> None:
        self._fresh.add(name)
        if len(self._fresh) < FRESH:
            return
        with self._index.lock:  # one connection, one lock
            database = self._index.database
            database.execute("CREATE TEMP TABLE IF NOT EXISTS fresh (name BLOB PRIMARY KEY) WITHOUT ROWID")
            database.execute("BEGIN")
            database.executemany("INSERT INTO temp.fresh VALUES (?)", [(one,) for one in sorted(self._fresh)])
            database.execute("COMMIT")
        self._spilled = True
        self._fresh.clear()

    def known(self, name: bytes) -> bool:
        """Whether this save may refer to the chunk without adding it."""
        with self._lock:
            return self._known(name)

    def _cut(self, stream: _Stream) -> tuple[bytes, bytes]:
        block = b"".join(stream.parts), bytes(stream.names)
        stream.parts, stream.names, stream.raw = [], bytearray(), 0
        return block

    def _begin(self, tree: bool, data: bytes, names: bytes) -> None:
        self._blocks.acquire()
        self._start(self._compress, self._seal_block, tree, data, names)

    def _start(self, pool: ThreadPoolExecutor, call: Callable[..., None], *arguments: Any) -> None:
        task = pool.submit(self._guarded, call, *arguments)
        with self._lock:
            self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: Future[None]) -> None:
        with self._lock:
            self._tasks.discard(task)

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except BaseException as error:
            with self._lock:
                self._failed = self._failed or error

    def _seal_block(self, tree: bool, data: bytes, names: bytes) -> None:
        try:
            sealed = self._vault.seal.close(data, BLOCK_ROLE)
        finally:
            self._blocks.release()
        with self._lock:
            stream = self._streams[tree]
            stream.pieces.append(sealed)
            stream.blocks.append(Block(stream.size, len(sealed), len(data), names))
            stream.size += len(sealed)
            stream.chunks += len(names) // CHUNK_ROW
            enough = stream.size >= PACK_BYTES or stream.chunks >= PACK_CHUNKS
            full = self._cut_pack(stream) if enough else None
        if full is not None:
            self._begin_upload(*full)

    def _cut_pack(self, stream: _Stream) -> tuple[list[bytes], list[Block]]:
        pack = stream.pieces, stream.blocks
        stream.pieces, stream.blocks, stream.size, stream.chunks = [], [], 0, 0
        return pack

    def _begin_upload(self, pieces: list[bytes], blocks: list[Block]) -> None:
        while not self._packs.acquire(timeout=0.5):
            if self._failed is not None:
                return
        self._start(self._upload, self._upload_pack, b"".join(pieces), blocks)

    def _upload_pack(self, data: bytes, blocks: list[Block]) -> None:
        try:
            if self._failed is not None:
                return
            name = secrets.token_hex(16)
            self._told(PACK, len(data))
            self._vault.store.create(self._vault.path(PACK, name), data)
        finally:
            self._packs.release()
        with self._lock:
            self.stored += len(data)
            self.own.add(name)
            self._written.append(Pack(name, len(data), blocks))
            self._written_chunks += sum(len(block.chunks) for block in blocks) // CHUNK_ROW
            enough = len(self._written) >= INDEX_PACKS or self._written_chunks >= INDEX_CHUNKS
            written = self._take_written() if enough else None
        if written:
            self._write_index(written)

    def _take_written(self) -> list[Pack]:
        written, self._written, self._written_chunks = self._written, [], 0
        return written

    def _write_index(self, packs: list[Pack]) -> None:
        name = secrets.token_hex(16)
        self._told(INDEX, len(packs))
        size = self._vault.create(INDEX, name, encode_index(packs))
        with self._lock:
            self.stored += size
        self._index.learn(name, packs)

    def finish(self) -> None:
        """Everything added is in the store and in its index."""
        for tree, stream in self._streams.items():
            with self._lock:
                last = self._cut(stream) if stream.raw else None
            if last is not None:
                self._begin(tree, *last)
        self._wait()
        for stream in self._streams.values():
            if stream.blocks:
                self._begin_upload(*self._cut_pack(stream))
        self._wait()
        with self._lock:
            written = self._take_written()
        if written:
            self._write_index(written)

    def _wait(self) -> None:
        while True:
            with self._lock:
                tasks = list(self._tasks)
            if not tasks:
                break
            for task in tasks:
                task.result()
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Waits for what is under way; safe after a failure."""
        with self._lock:
            self._failed = self._failed or RuntimeError("the packer is closed")
        self._compress.shutdown(cancel_futures=True)
        self._upload.shutdown(cancel_futures=True)


assert ID_BYTES + 4 == CHUNK_ROW and BLOCK <= MAX_BLOCK
