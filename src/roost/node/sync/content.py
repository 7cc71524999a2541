"""The bytes of files as chunks: cut where the content says so, holes kept, large files read by several threads.

Cuts depend on content alone, but for a forced one each SEGMENT bytes: that is where another thread takes over. After an
insertion at the front of a large file one chunk per segment is new.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pyfastcdc import FastCDC

from roost.node.sync.entry import HOLE, RECORD, record
from roost.node.sync.pack import Packer

MIN_CHUNK, AVERAGE_CHUNK, MAX_CHUNK = 64 * 1024, 256 * 1024, 1024 * 1024
SEGMENT = 64 * 1024 * 1024
DIRECT = 64  # chunks that an entry names itself; more go to lists of about 256
LIST_CUT, MAX_LIST = 256, 1024


class _Window:
    """A part of an open file, to be read once, in order. Reading past the end of a file that shrank ends it."""

    def __init__(self, fd: int, start: int, length: int) -> None:
        self._fd = fd
        self._at = start
        self._end = start + length

    def readinto(self, b: memoryview) -> int:
        room = min(len(b), self._end - self._at)
        if room <= 0:
            return 0
        count = os.preadv(self._fd, [b[:room]], self._at)
        self._at += count
        return count


def _chunker() -> FastCDC:
    return FastCDC(AVERAGE_CHUNK, min_size=MIN_CHUNK, max_size=MAX_CHUNK, normalized_chunking=2)


def _segment(fd: int, start: int, length: int, packer: Packer) -> bytes:
    if length <= MIN_CHUNK:
        data = os.pread(fd, length, start)
        return record(packer.add(data), len(data)) if data else b""
    return b"".join(
        record(packer.add(chunk.data), chunk.length) for chunk in _chunker().cut_stream(_Window(fd, start, length))
    )


def _extents(fd: int, size: int, sparse: bool) -> Iterator[tuple[int, int, bool]]:
    """Start, bytes and whether there is data, of each part of the file, in order."""
    at = 0
    while at < size:
        if not sparse:
            yield at, size - at, True
            return
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            begin = size
        begin = min(begin, size)
        if begin > at:
            yield at, begin - at, False
        if begin >= size:
            return
        at = max(begin + 1, min(os.lseek(fd, begin, os.SEEK_HOLE), size))
        yield begin, at - begin, True


def stored(fd: int, state: os.stat_result, packer: Packer, pool: ThreadPoolExecutor) -> tuple[bytes, bool, int]:
    """Store a file's bytes. Returns the entry's content, whether these are lists, and how many bytes were read."""
    size = state.st_size
    if size <= MIN_CHUNK and state.st_blocks * 512 >= size:
        data = os.read(fd, size + 1)[:size] if size else b""
        return (record(packer.add(data), len(data)) if data else b""), False, len(data)
    found = bytearray()
    for start, length, data in _extents(fd, size, sparse=state.st_blocks * 512 < size):
        if not data:
            found += record(HOLE, length)
            continue
        starts = range(start, start + length, SEGMENT)
        if len(starts) == 1:
            found += _segment(fd, start, length, packer)
            continue
        tasks = [pool.submit(_segment, fd, at, min(SEGMENT, start + length - at), packer) for at in starts]
        found += b"".join(task.result() for task in tasks)
    read = sum(int.from_bytes(found[at - 8 : at], "big") for at in range(RECORD, len(found) + 1, RECORD))
    if len(found) <= DIRECT * RECORD:
        return bytes(found), False, read
    return _listed(bytes(found), packer), True, read


def _listed(content: bytes, packer: Packer) -> bytes:
    """Records of chunks that hold `content`. They end where a chunk's name says so, to stay equal around a change."""
    lists: list[bytes] = []
    begin = 0
    for end in range(RECORD, len(content) + 1, RECORD):
        last = content[end - RECORD]
        full = end - begin >= MAX_LIST * RECORD
        if end == len(content) or full or (last % LIST_CUT == 1):
            part = content[begin:end]
            covers = sum(int.from_bytes(part[at - 8 : at], "big") for at in range(RECORD, len(part) + 1, RECORD))
            lists.append(record(packer.add(part, tree=True), covers))
            begin = end
    return b"".join(lists)
