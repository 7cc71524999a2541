"""A store that lies gets nothing written outside the target, no endless memory, and a clear answer."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.errors import RoostError
from roost.node.sync import Layer, Revision, Vault, check, restore, revision, save
from roost.node.sync.entry import MAX_DEPTH, Entry, record
from roost.node.sync.index import Block, Index, Pack, encode_index
from roost.node.sync.manifest import Page, Writer, decoded_group, decoded_page
from roost.node.sync.pack import Packer
from roost.node.sync.save import nobody_told
from roost.node.sync.seal import PLAIN, Damaged, Seal
from tests.node.sync.trees import snapshot

ROOT = Entry(b"", "d", 0o755)


def forged(vault: Vault, make: Callable[[Packer], list[Entry]]) -> Revision:
    """A revision whose manifest says anything."""
    index = Index(vault)
    index.refresh()
    packer = Packer(vault, index, 1, nobody_told)
    writer = Writer(packer)
    for entry in make(packer):
        writer.add(entry)
    manifest = writer.finish()
    packer.finish()
    packer.close()
    index.close()
    made = Revision(revision.new_id(), None, 0, "job", "image", writer.size, writer.entries, 0, manifest)
    revision.write(vault, made)
    return made


def file(packer: Packer, key: bytes, data: bytes = b"data") -> Entry:
    return Entry(key, "f", 0o644, size=len(data), content=record(packer.add(data), len(data)))


FORGERIES: dict[str, Callable[[Packer], list[Entry]]] = {
    "up and out": lambda p: [ROOT, file(p, b"..")],
    "up and out of a directory": lambda p: [ROOT, Entry(b"a", "d", 0o755), file(p, b"a\0..")],
    "here": lambda p: [ROOT, file(p, b".")],
    "a slash in a name": lambda p: [ROOT, file(p, b"../escape")],
    "an absolute name": lambda p: [ROOT, file(p, b"/escape")],
    "an empty name": lambda p: [ROOT, Entry(b"a", "d", 0o755), file(p, b"a\0")],
    "through a symbolic link": lambda p: [ROOT, Entry(b"a", "l", target=b".."), file(p, b"a\0escape")],
    "below a file": lambda p: [ROOT, file(p, b"a"), file(p, b"a\0escape")],
    "below nothing": lambda p: [ROOT, file(p, b"a\0escape")],
    "without a root": lambda p: [file(p, b"a")],
    "a root that is a link": lambda p: [Entry(b"", "l", target=b"/"), file(p, b"a")],
    "twice the same": lambda p: [ROOT, file(p, b"a"), file(p, b"a")],
    "out of order": lambda p: [ROOT, file(p, b"b"), file(p, b"a")],
    "a long name": lambda p: [ROOT, file(p, b"n" * 256)],
    "a device": lambda p: [ROOT, Entry(b"a", "b", 0o600)],  # type: ignore[arg-type]
    "an owner outside": lambda p: [ROOT, Entry(b"a", "d", 0o755, uid=2**31)],
    "a mode with a type": lambda p: [ROOT, Entry(b"a", "d", 0o140755)],
    "too deep": lambda p: [ROOT, Entry(b"\0".join([b"d"] * (MAX_DEPTH + 1)), "d", 0o755)],
    "more bytes than chunks": lambda p: [ROOT, Entry(b"a", "f", size=9, content=record(p.add(b"data"), 4))],
    "fewer bytes than chunks": lambda p: [ROOT, Entry(b"a", "f", size=2, content=record(p.add(b"data"), 4))],
    "a chunk of another size": lambda p: [ROOT, Entry(b"a", "f", size=9, content=record(p.add(b"data"), 9))],
    "a chunk that is nowhere": lambda p: [ROOT, Entry(b"a", "f", size=9, content=record(b"x" * 32, 9))],
    "half a record": lambda p: [ROOT, Entry(b"a", "f", size=9, content=b"x" * 39)],
    "a list that is none": lambda p: [
        ROOT,
        Entry(b"a", "f", size=4, lists=True, content=record(p.add(b"not records of chunks"), 4)),
    ],
    "a linked directory": lambda p: [ROOT, Entry(b"a", "d", 0o755, link=5)],
}


@pytest.mark.parametrize("what", sorted(FORGERIES))
def test_a_forged_manifest_is_refused_and_writes_nothing_outside(what: str, local: Vault, tmp_path: Path) -> None:
    made = forged(local, FORGERIES[what])
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Damaged):
        restore(local, made, target, 0)
    assert os.listdir(tmp_path / "deep") == ["target"]
    assert sorted(os.listdir(tmp_path)) == ["deep", "store"]
    assert check(local, [made.id]) != []
    assert len(os.listdir("/proc/self/fd")) <= opened


def test_attributes_that_would_command_the_overlay_are_not_set(local: Vault, tmp_path: Path) -> None:
    mean = ((b"trusted.overlay.redirect", b"/etc"), (b"trusted.overlay.metacopy", b""), (b"user.fine", b"1"))
    made = forged(local, lambda p: [ROOT, Entry(b"a", "d", 0o755, xattrs=mean)])
    (target := tmp_path / "out").mkdir()
    restore(local, made, target, 0)
    assert os.listxattr(target / "a") == ["user.fine"]


def test_links_join_only_what_is_the_same(local: Vault, tmp_path: Path) -> None:
    def entries(packer: Packer) -> list[Entry]:
        replace = msgspec.structs.replace
        return [ROOT, *(replace(file(packer, name, data), link=7) for name, data in ((b"a", b"1"), (b"b", b"22")))]

    (target := tmp_path / "out").mkdir()
    restore(local, forged(local, entries), target, 0)
    found = snapshot(target)
    assert (found[b"a"].data, found[b"b"].data) == (b"1", b"22")


def test_a_bomb_is_not_expanded(local: Vault) -> None:
    bomb = PLAIN + zstandard.ZstdCompressor(19).compress(bytes(1 << 30))
    with pytest.raises(Damaged, match="at most"):
        Seal(None).open(bomb, b"block", 1 << 20)
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 22))
    with pytest.raises(Damaged):
        Seal(None).open(PLAIN + endless, b"block", 1 << 20)


def test_an_index_that_points_beyond_its_pack_is_refused(local: Vault, tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    save(local, None, [Layer(tmp_path / "layer", 0)], "image", "job")
    lie = Pack("0" * 32, 100, [Block(90, 20, 4, b"n" * 32 + (4).to_bytes(4, "big"))])
    local.create("index", "f" * 32, encode_index([lie]))
    assert [problem.kind for problem in check(local)] == ["index"]
    with pytest.raises(Damaged, match="beyond"):
        save(local, None, [Layer(tmp_path / "layer", 0)], "image", "job")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    page = Page(b"", b"", bytes(32), 1, 1, 0)
    for read in (
        lambda: decoded_page(page, data),
        lambda: decoded_group(data),
        lambda: Seal(None).open(data, b"block", 1 << 20),
        lambda: Seal(b"k" * 32).open(data, b"block", 1 << 20),
    ):
        try:
            read()
        except RoostError:
            pass
