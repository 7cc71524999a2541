"""Killed at any moment, a save leaves the old revision or the new one, and a collection leaves all that is live."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from roost.node.sync import Layer, Revision, Vault, check, collect, open_store, restore, revision, save
from tests.node.sync.trees import snapshot

MB = 1 << 20
MOST_STEPS = 60


def killed(command: str, store: Path, step: int, before: bool, *arguments: str) -> bool:
    """Whether it was; False if there were fewer steps."""
    moment = "before" if before else "after"
    argv = [sys.executable, "-m", "tests.node.sync.harness", command, f"file://{store}", str(step), moment, *arguments]
    done = subprocess.run(argv, timeout=60, capture_output=True, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def restored(vault: Vault, made: Revision, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    restore(vault, made, target, 0)
    return target


@pytest.mark.parametrize("before", [True, False])
def test_a_save_killed_between_any_two_writes(before: bool, tmp_path: Path) -> None:
    vault = Vault(open_store(f"file://{tmp_path}/store"), "account")
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    (lower / "old").write_bytes(os.urandom(MB))
    base = save(vault, None, [Layer(lower, 0)], "image", "job")
    (upper / "new").write_bytes(os.urandom(18 * MB))
    (upper / "small").write_text("small")
    for step in range(1, MOST_STEPS):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "store", copy)
        was_killed = killed("save", copy, step, before, base.id, str(upper))
        found = Vault(open_store(f"file://{copy}"), "account")
        assert check(found, read_data=True) == []
        revisions = {name: revision.read(found, name) for name in found.names("revision")}
        assert base.id in revisions
        assert len(revisions) <= 2
        for name, made in revisions.items():
            kept = snapshot(restored(found, made, tmp_path / "out"))
            assert set(kept) == ({b"", b"old"} if name == base.id else {b"", b"old", b"new", b"small"})
        again = save(found, base, [Layer(upper, 0)], "image", "job")
        assert again.entries == 4
        collect(found, [again.id], 0)
        collect(found, [again.id], 0)
        assert check(found, read_data=True) == []
        if not was_killed:
            assert step > 5
            return
    pytest.fail("the save never ended")


@pytest.mark.parametrize("before", [True, False])
def test_a_collection_killed_between_any_two_writes(before: bool, tmp_path: Path) -> None:
    vault, live = shrunk(tmp_path)
    whole = snapshot(restored(vault, live, tmp_path / "out"))
    for step in range(1, MOST_STEPS):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "store", copy)
        found = Vault(open_store(f"file://{copy}"), "account")
        was_killed = killed("collect", copy, step, before, live.id) or killed("collect", copy, step, before, live.id)
        assert check(found, [live.id], read_data=True) == []
        for _ in range(3):
            collect(found, [live.id], 0)
        assert check(found, read_data=True) == []
        assert snapshot(restored(found, live, tmp_path / "out")) == whole
        assert found.names("revision") == [live.id]
        assert size(copy) < 3 * MB
        if not was_killed:
            assert step > 5
            return
    pytest.fail("the collection never ended")


def shrunk(work: Path) -> tuple[Vault, Revision]:
    """A store where most of a pack, and other packs whole, are no longer needed."""
    vault = Vault(open_store(f"file://{work}/store"), "account")
    lower, upper = work / "lower", work / "upper"
    lower.mkdir()
    upper.mkdir()
    for number in range(20):
        (lower / f"file{number:02}").write_bytes(os.urandom(MB))
    base = save(vault, None, [Layer(lower, 0)], "image", "job")
    for number in range(1, 20):
        os.mknod(upper / f"file{number:02}", 0o20000, 0)
    return vault, save(vault, base, [Layer(upper, 0)], "image", "job")


def size(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def test_space_comes_back_from_the_heads(tmp_path: Path) -> None:
    vault, live = shrunk(tmp_path)
    before = size(tmp_path / "store")
    first = collect(vault, [live.id], 0)
    assert (first.revisions, first.live_revisions) == (1, 1)
    assert first.condemned_packs > 0 and first.rewritten_packs == 1
    second = collect(vault, [live.id], 0)
    assert second.bytes == first.condemned_bytes
    assert size(tmp_path / "store") < before / 8
    assert check(vault, read_data=True) == []
    assert collect(vault, [live.id], 0).condemned_packs == 0


def test_what_is_young_is_left_alone(tmp_path: Path) -> None:
    vault, _ = shrunk(tmp_path)
    before = size(tmp_path / "store")
    found = collect(vault, [], 3600)
    assert (found.revisions, found.condemned_packs, found.live_revisions) == (0, 0, 2)
    assert size(tmp_path / "store") == before


def test_nothing_is_removed_while_a_live_revision_is_not_whole(tmp_path: Path) -> None:
    vault, live = shrunk(tmp_path)
    with pytest.raises(Exception, match="nothing was removed"):
        collect(vault, [live.id, "0123missing"], 0)
    assert len(vault.names("revision")) == 2
    next(iter((tmp_path / "store" / "account" / "open" / "index").iterdir())).unlink()
    with pytest.raises(Exception, match="missing"):
        collect(vault, [live.id], 0)


def test_what_is_only_spared_may_be_missing(tmp_path: Path) -> None:
    vault, live = shrunk(tmp_path)
    found = collect(vault, [], 0, spared=[live.id, "0123missing"])
    assert (found.revisions, found.live_revisions) == (1, 1)
    assert vault.names("revision") == [live.id]


def test_a_save_that_builds_on_what_is_condemned_meanwhile_is_told_to_try_again(tmp_path: Path) -> None:
    from roost.errors import Conflict
    from roost.node.sync import Saving

    vault, live = shrunk(tmp_path)
    layer = tmp_path / "again"
    layer.mkdir()
    shutil.copy(tmp_path / "lower" / "file09", layer / "file09")
    with Saving(vault, None, [Layer(layer, 0)], "image", "job") as saving:
        saving.first_pass()
        collect(vault, [live.id], 0)
        with pytest.raises(Conflict, match="save it again"):
            saving.commit()
    made = save(vault, None, [Layer(layer, 0)], "image", "job")
    collect(vault, [live.id, made.id], 0)
    assert check(vault, [live.id, made.id], read_data=True) == []


def test_a_condemned_pack_that_is_needed_after_all_stays(tmp_path: Path) -> None:
    """A save that had verified its packs just before they were condemned, and wrote its revision just after."""
    vault, live = shrunk(tmp_path)
    old = next(name for name in vault.names("revision") if name != live.id)
    kept = revision.read(vault, old)
    collect(vault, [live.id], 0)
    revision.write(vault, kept)
    found = collect(vault, [live.id, old], 0)
    assert found.reprieved_packs > 0
    assert check(vault, read_data=True) == []
    collect(vault, [live.id, old], 0)
    assert check(vault, read_data=True) == []


def test_a_restore_goes_on_while_its_chunks_are_moved(tmp_path: Path) -> None:
    vault, live = shrunk(tmp_path)
    cache = tmp_path / "index"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "out").mkdir()
    restore(vault, live, tmp_path / "out", 0, cache=cache)
    collect(vault, [live.id], 0)
    collect(vault, [live.id], 0)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    restore(vault, live, tmp_path / "out", 0, cache=cache)
    assert set(snapshot(tmp_path / "out")) >= {b"", b"file00"}


def test_many_small_objects_are_joined(tmp_path: Path) -> None:
    vault = Vault(open_store(f"file://{tmp_path}/store"), "account")
    layer = tmp_path / "layer"
    layer.mkdir()
    made: Revision | None = None
    for number in range(35):
        (layer / "file").write_text(f"state {number}")
        made = save(vault, made, [Layer(layer, 0)], "image", "job")
    assert made is not None
    heads = vault.names("revision")
    for _ in range(3):
        collect(vault, heads, 0)
    assert len(vault.names("index")) == 1
    assert len(vault.names("pack")) <= 2
    assert check(vault, read_data=True) == []
