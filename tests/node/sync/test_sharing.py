"""What is the same is stored once, what changed little costs little, and a key hides everything."""

import os
import random
from pathlib import Path

import pytest

from roost.errors import Conflict, Invalid, NotFound
from roost.node.sync import Layer, Vault, check, open_store, restore, revision, save
from roost.node.sync.content import SEGMENT
from roost.node.sync.seal import Damaged
from tests.node.sync.trees import snapshot

MB = 1 << 20


def directory(path: Path) -> Path:
    path.mkdir()
    return path


def test_workspaces_of_an_account_share_what_is_equal(local: Vault, tmp_path: Path) -> None:
    data = os.urandom(6 * MB)
    one, two = directory(tmp_path / "one"), directory(tmp_path / "two")
    (one / "file").write_bytes(data)
    (two / "other").write_bytes(b"inserted at the front" + data)
    assert save(local, None, [Layer(one, 0)], "image", "job").stored > 6 * MB
    assert save(local, None, [Layer(two, 0)], "image", "job").stored < MB


def test_accounts_share_nothing(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    layer = directory(tmp_path / "layer")
    (layer / "file").write_bytes(os.urandom(MB))
    made = save(Vault(store, "one"), None, [Layer(layer, 0)], "image", "job")
    assert save(Vault(store, "two"), None, [Layer(layer, 0)], "image", "job").stored > MB
    with pytest.raises(NotFound):
        revision.read(Vault(store, "two"), made.id)


def test_a_megabyte_changed_in_a_large_file_uploads_little(local: Vault, tmp_path: Path) -> None:
    before, after = directory(tmp_path / "before"), directory(tmp_path / "after")
    data = bytearray(random.Random(1).randbytes(3 * SEGMENT))
    (before / "file").write_bytes(data)
    base = save(local, None, [Layer(before, 0)], "image", "job")
    data[100 * MB : 101 * MB] = os.urandom(MB)
    (after / "file").write_bytes(data)
    made = save(local, base, [Layer(after, 0)], "image", "job")
    assert MB <= made.stored < 3 * MB
    (target := tmp_path / "out").mkdir()
    restore(local, made, target, 0)
    assert (target / "file").read_bytes() == data


def test_few_files_changed_of_many_upload_little(local: Vault, tmp_path: Path) -> None:
    base_layer, upper = directory(tmp_path / "base"), directory(tmp_path / "upper")
    for number in range(20_000):
        if number % 500 == 0:
            (base_layer / f"d{number // 500}").mkdir()
        (base_layer / f"d{number // 500}" / f"f{number}").write_text(f"file {number}")
    base = save(local, None, [Layer(base_layer, 0)], "image", "job")
    for number in (77, 9_000, 19_999):
        (upper / f"d{number // 500}").mkdir()
        (upper / f"d{number // 500}" / f"f{number}").write_text("changed")
    made = save(local, base, [Layer(upper, 0)], "image", "job")
    assert made.entries == base.entries
    assert made.stored < base.stored / 10


def test_with_a_key_the_store_sees_nothing_of_content_names_or_jobs(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    layer = directory(tmp_path / "layer")
    (layer / "remarkable-name").write_bytes(b"remarkable content " * 10)
    vault = Vault(store, "account", b"1" * 32)
    made = save(vault, None, [Layer(layer, 0)], "remarkable-image", "remarkable-job")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"remarkable" not in stored
    assert save(vault, made, [Layer(layer, 0)], "remarkable-image", "job").stored < 1000
    plain = Vault(store, "account")
    save(plain, None, [Layer(layer, 0)], "image", "job")
    assert plain.seal.name(b"x") != vault.seal.name(b"x")
    (target := tmp_path / "out").mkdir()
    restore(vault, made, target, 0)
    assert snapshot(target) == snapshot(layer)


def test_without_the_key_there_is_no_such_revision(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    layer = directory(tmp_path / "layer")
    made = save(Vault(store, "account", b"1" * 32), None, [Layer(layer, 0)], "image", "job")
    for key in (None, b"2" * 32):
        with pytest.raises(NotFound):
            revision.read(Vault(store, "account", key), made.id)
    with pytest.raises(Invalid, match="32 bytes"):
        Vault(store, "account", b"short")


@pytest.mark.parametrize("key", [None, b"1" * 32])
def test_a_changed_bit_in_any_object_is_noticed(key: bytes | None, tmp_path: Path) -> None:
    vault = Vault(open_store(f"file://{tmp_path}/store"), "account", key)
    layer = directory(tmp_path / "layer")
    (layer / "file").write_bytes(os.urandom(200_000))
    made = save(vault, None, [Layer(layer, 0)], "image", "job")
    for number, path in enumerate(sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
        try:
            problems = check(vault, [made.id], read_data=True)
            (target := tmp_path / f"out{number}").mkdir()
            try:
                restore(vault, revision.read(vault, made.id), target, 0)
                assert snapshot(target) == snapshot(layer), path
            except Damaged:
                assert problems, path
            assert problems or key is None
        finally:
            path.write_bytes(whole)
    assert check(vault, read_data=True) == []


def test_a_revision_is_not_continued_over_another_image(local: Vault, tmp_path: Path) -> None:
    layer = directory(tmp_path / "layer")
    base = save(local, None, [Layer(layer, 0)], "image", "job")
    with pytest.raises(Invalid, match="same image"):
        save(local, base, [Layer(layer, 0)], "other", "job")


def test_a_base_that_was_removed_meanwhile_is_a_conflict(local: Vault, tmp_path: Path) -> None:
    layer = directory(tmp_path / "layer")
    base = save(local, None, [Layer(layer, 0)], "image", "job")
    local.delete("revision", base.id)
    with pytest.raises(Conflict, match="removed"):
        save(local, base, [Layer(layer, 0)], "image", "job")
    assert local.names("revision") == []
