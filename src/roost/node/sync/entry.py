"""One name of a tree: what the manifest says about it, and how content and names are written down.

A key is the path with NUL between its parts (the root is empty). NUL sorts before every other byte, so in key order a
directory comes before its contents and these are contiguous. Whiteouts and opaque marks are relative to the image.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from roost.node.sync.seal import ID_BYTES, Damaged

MAX_KEY = 128 * 1024  # bytes; a page of the manifest holds three of them, and a chunk many more
MAX_DEPTH = 16 * 1024
MAX_NAME = 255
MAX_FILE = 2**44  # bytes, what ext4 can hold in one file
MAX_CONTENT = 512 * 1024  # bytes of records in one entry: enough for MAX_FILE by lists of lists' size
MAX_XATTRS = 64 * 1024
RECORD = ID_BYTES + 8
HOLE = bytes(ID_BYTES)

FILE, DIRECTORY, LINK, FIFO, WHITEOUT = "f", "d", "l", "p", "w"

U16 = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Key = Annotated[bytes, msgspec.Meta(max_length=MAX_KEY)]


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one name is.

    mtime: nanoseconds. link: the same number in all names of one inode, 0 for a single name; each of them has all
    the rest as well. content: records (see `records`) of chunks, or if `lists`, of chunks that hold such records.
    """

    key: Key
    kind: Literal["f", "d", "l", "p", "w"]
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] = 0
    uid: U16 = 0
    gid: U16 = 0
    mtime: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE)] = 0
    target: Annotated[bytes, msgspec.Meta(max_length=4096)] = b""
    link: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    opaque: bool = False
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    lists: bool = False
    content: Annotated[bytes, msgspec.Meta(max_length=MAX_CONTENT)] = b""


def record(name: bytes, length: int) -> bytes:
    return name + length.to_bytes(8, "big")


def records(content: bytes) -> Iterator[tuple[bytes, int]]:
    """The chunks (name, bytes) of a content in order; a name of zeros stands for a hole."""
    if len(content) % RECORD:
        raise Damaged("a manifest holds half a chunk's name")
    for at in range(0, len(content), RECORD):
        yield content[at : at + ID_BYTES], int.from_bytes(content[at + ID_BYTES : at + RECORD], "big")


def depth(key: bytes) -> int:
    return key.count(0) + 1 if key else 0


def split(key: bytes) -> tuple[bytes, bytes]:
    """The parent's key, and the name in it."""
    parent, _, name = key.rpartition(b"\0")
    return parent, name


def below(key: bytes) -> bytes:
    """What the keys of everything in this directory begin with."""
    return key + b"\0" if key else b""


def checked(entry: Entry) -> Entry:
    """The entry, if a file system can hold it; what was read from a store is not to be believed."""
    name = split(entry.key)[1]
    if entry.key and (name in (b"", b".", b"..") or len(name) > MAX_NAME or b"/" in entry.key):
        raise Damaged("a manifest holds a name that no file can have")
    if entry.key.count(0) >= MAX_DEPTH:
        raise Damaged("a manifest holds a tree that is too deep")
    if not entry.key and entry.kind != DIRECTORY:
        raise Damaged("a manifest's root is not a directory")
    if entry.kind == LINK and (not entry.target or 0 in entry.target):
        raise Damaged("a manifest holds a symbolic link without target")
    if entry.link and entry.kind in (DIRECTORY, WHITEOUT):
        raise Damaged("a manifest holds a hard link of a directory")
    if sum(len(name) + len(value) for name, value in entry.xattrs) > MAX_XATTRS:
        raise Damaged("a manifest holds more extended attributes than a file can have")
    return entry
