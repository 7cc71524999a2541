"""Whatever a layer holds comes back bit for bit, whether it was saved at once or step by step."""

import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roost import linux
from roost.errors import Conflict, Invalid
from roost.node.descent import walk
from roost.node.disk import unmount
from roost.node.sync import Layer, Revision, Saving, Vault, check, open_store, restore, save
from tests.node.sync.trees import content, dig, opaque, overlaid, snapshot, whiteout

FIRST_ID = 2**30 + 65536
MB = 1 << 20


def restored(vault: Vault, revision: Revision, target: Path, first_id: int = 0) -> Path:
    target.mkdir()
    restore(vault, revision, target, first_id)
    return target


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    (tmp_path / "layer").mkdir()
    return tmp_path / "layer"


def test_everything_a_file_can_be_comes_back(local: Vault, layer: Path, tmp_path: Path) -> None:
    make_everything(layer, 0)
    made = save(local, None, [Layer(layer, 0)], "image", "job")
    assert snapshot(restored(local, made, tmp_path / "out")) == snapshot(layer)
    assert check(local, read_data=True) == []


def test_owners_are_those_of_the_guest_wherever_it_runs(local: Vault, layer: Path, tmp_path: Path) -> None:
    make_everything(layer, FIRST_ID)
    made = save(local, None, [Layer(layer, FIRST_ID)], "image", "job")
    elsewhere = FIRST_ID + 7 * 65536
    out = restored(local, made, tmp_path / "out", elsewhere)
    assert snapshot(out, elsewhere) == snapshot(layer, FIRST_ID)
    assert os.stat(out / "owned").st_uid == elsewhere + 1000
    raw = os.getxattr(out / "capable", "security.capability")
    assert struct.unpack_from("<I", raw, 20)[0] == elsewhere


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize(("depth", "name"), [(10_000, "d"), (60, "n" * 200)])
def test_what_no_path_reaches_comes_back(local: Vault, tmp_path: Path, depth: int, name: str) -> None:
    place = tmp_path / "deep"
    place.mkdir()
    linux.mount("deep", place, "tmpfs")  # which goes at once, however deep it is
    try:
        dig(place / "layer", depth, name)
        made = save(local, None, [Layer(place / "layer", 0)], "image", "job")
        assert made.entries == depth + 2
        back = restored(local, made, place / "out")
        assert [(one.name, one.status.st_size * (not one.is_directory)) for one in walk(back)] == [
            *[(name, 0)] * depth,
            ("file", 4096),
        ]
        assert check(local, read_data=True) == []
    finally:
        unmount(place)


def test_what_the_store_cannot_hold_is_refused_and_not_left_out(local: Vault, tmp_path: Path) -> None:
    place = tmp_path / "deep"
    place.mkdir()
    linux.mount("deep", place, "tmpfs")
    try:
        dig(place / "layer", 700, "n" * 200)
        with pytest.raises(Invalid, match="nested deeper than the object store can hold"):
            save(local, None, [Layer(place / "layer", 0)], "image", "job")
    finally:
        unmount(place)


def make_everything(root: Path, first_id: int) -> None:
    (root / "etc" / "deep" / "er").mkdir(parents=True)
    (root / "etc" / "a").write_bytes(b"hello")
    os.link(root / "etc" / "a", root / "z-link")
    os.link(root / "etc" / "a", root / "etc" / "deep" / "link")
    os.symlink("../nowhere\n", root / "etc" / "symlink")
    os.link(root / "etc" / "symlink", root / "etc" / "symlink2", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    (root / "empty").touch()
    (root / "large").write_bytes(os.urandom(3 * MB))
    (root / "huge").write_bytes(os.urandom(MB) * 130)  # several segments and lists of chunks
    with open(root / "sparse", "wb") as file:
        file.seek(5 * MB)
        file.write(b"middle" * 1000)
        file.truncate(20 * MB)
    with open(root / "hole", "wb") as file:
        file.truncate(MB)
    with open(root / os.fsdecode(b"not utf-8 \xe9\xff"), "wb") as file:
        file.write(b"x")
    (root / "new\nline").mkdir()
    (root / ("n" * 255)).write_bytes(b"long name")
    (root / "owned").write_bytes(b"owned")
    (root / "setuid").write_bytes(b"#!")
    (root / "capable").write_bytes(b"#!")
    os.setxattr(root / "owned", "user.note", b"\0\xffvalue")
    os.setxattr(root / "etc", "user.dir", b"d")
    whiteout(root / "deleted")
    (root / "replaced").mkdir()
    opaque(root / "replaced")
    (root / "replaced" / "new").write_bytes(b"new")
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *one)
        for one in [(1, 6, 2**32 - 1), (2, 4, first_id + 33), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1)]
    )
    for directory, directories, files in os.walk(os.fsencode(root)):
        for name in [b"", *directories, *files]:
            path = os.path.join(directory, name)
            os.chown(path, first_id, first_id, follow_symlinks=False)
    os.chown(root / "owned", first_id + 1000, first_id + 65535)
    os.chown(root / "etc" / "symlink", first_id + 5, first_id + 6, follow_symlinks=False)
    os.setxattr(root / "owned", "system.posix_acl_access", acl)
    rest = struct.pack("<4I", 0x400, 0, 0, 0)
    version = struct.pack("<I", 0x03000001) if first_id else struct.pack("<I", 0x02000001)
    os.setxattr(
        root / "capable", "security.capability", version + rest + (struct.pack("<I", first_id) if first_id else b"")
    )
    os.chmod(root / "setuid", 0o6755)
    os.chmod(root / "etc" / "deep", 0o1770)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_234_567_890_123_456_789 + number), follow_symlinks=False)
    os.utime(root / "empty", ns=(0, -5_000_000_001))
    os.utime(root, ns=(0, 1_000_000_001))


def test_devices_and_sockets_are_left_out_and_hide_what_was_there(local: Vault, tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    (lower / "disk").write_text("an old file")
    os.mknod(upper / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(upper / "socket"))
        base = save(local, None, [Layer(lower, 0)], "image", "job")
        with Saving(local, base, [Layer(upper, 0)], "image", "job") as saving:
            saving.first_pass()
            made = saving.commit()
    remarks = saving.counts[0].remarks
    assert any(remark.startswith("/disk: ") and "device" in remark for remark in remarks)
    assert any(remark.startswith("/socket: ") and "socket" in remark for remark in remarks)
    found = snapshot(restored(local, made, tmp_path / "out"))
    assert found[b"disk"].kind == "w"


def test_owners_outside_the_sandbox_become_nobody(local: Vault, layer: Path, tmp_path: Path) -> None:
    (layer / "roots").write_text("x")
    with Saving(local, None, [Layer(layer, FIRST_ID)], "image", "job") as saving:
        saving.first_pass()
        made = saving.commit()
    assert any("/roots" in remark for remark in saving.counts[0].remarks)
    assert snapshot(restored(local, made, tmp_path / "out"))[b"roots"].uid == 65534


def test_layers_with_redirects_are_refused(local: Vault, layer: Path) -> None:
    (layer / "moved").mkdir()
    os.setxattr(layer / "moved", "trusted.overlay.redirect", b"/elsewhere")
    with pytest.raises(Invalid, match="redirect or metacopy"):
        save(local, None, [Layer(layer, 0)], "image", "job")


def test_a_directory_that_is_not_empty_is_not_restored_into(local: Vault, layer: Path) -> None:
    made = save(local, None, [Layer(layer, 0)], "image", "job")
    (layer / "file").touch()
    with pytest.raises(Conflict, match="not empty"):
        restore(local, made, layer, 0)


# ---- any tree

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"a!", b"A", b"\xff", b"a\x01", b"a b"]),
    st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 47}),
)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.integers(0, 255), st.integers(0, 400_000)).map(lambda one: bytes([one[0]]) * one[1]),
    st.randoms(use_true_random=False).map(lambda chance: chance.randbytes(150_000)),
)
METAS = st.tuples(st.integers(0, 0o7777), st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 2**33 * 10**9))
LEAVES = st.one_of(
    st.tuples(
        st.just("f"), CONTENTS, METAS, st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.binary(max_size=9))
    ),
    st.tuples(st.just("l"), st.binary(min_size=1, max_size=50).filter(lambda one: 0 not in one), METAS),
    st.tuples(st.just("p"), METAS),
    st.just(("w",)),
    st.just(("h",)),  # a further name of the file made last
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=5),
    lambda inner: st.dictionaries(
        NAMES, st.one_of(LEAVES, st.tuples(st.just("d"), inner, METAS, st.booleans())), max_size=5
    ),
    max_leaves=15,
)


def make(tree: dict, where: bytes, last: list[bytes], hides: bool = True) -> None:
    """`hides`: whether whiteouts and opaque marks mean anything here; the kernel makes them nowhere else."""
    for name, node in tree.items():
        path = os.path.join(where, name)
        if node[0] == "d":
            os.mkdir(path)
            make(node[1], path, last, hides and not node[3])
            if node[3] and hides:
                os.setxattr(path, "trusted.overlay.opaque", b"y")
        elif node[0] == "f":
            with open(path, "wb") as file:
                file.write(node[1])
            last[:] = [path]
        elif node[0] == "l":
            os.symlink(node[1], path)
        elif node[0] == "p":
            os.mkfifo(path)
        elif node[0] == "w":
            if hides:
                whiteout(path)  # type: ignore[arg-type]
            continue
        elif last:
            os.link(last[0], path)
            continue
        else:
            continue
        mode, uid, gid, mtime = node[2] if node[0] != "p" else node[1]
        os.chown(path, uid, gid, follow_symlinks=False)
        if node[0] != "l":
            os.chmod(path, mode)
        for key, value in (node[3] if node[0] == "f" else {}).items():
            os.setxattr(path, key, value)
        os.utime(path, ns=(0, mtime), follow_symlinks=False)


@contextmanager
def scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="roost-test-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES, st.booleans())
def test_any_layer_comes_back(tree: dict, secret: bool) -> None:
    with scratch() as work:
        vault = Vault(open_store(f"file://{work}/store"), "account", b"k" * 32 if secret else None)
        (work / "layer").mkdir()
        make(tree, os.fsencode(work / "layer"), [])
        made = save(vault, None, [Layer(work / "layer", 0)], "image", "job")
        assert snapshot(restored(vault, made, work / "out")) == snapshot(work / "layer")
        assert check(vault, read_data=True) == []


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TREES, min_size=2, max_size=4))
def test_saving_layer_by_layer_is_saving_all_at_once(trees: list[dict]) -> None:
    with scratch() as work:
        vault = Vault(open_store(f"file://{work}/store"), "account")
        layers: list[Layer] = []
        step: Revision | None = None
        for number, tree in enumerate(trees):
            path = work / f"layer{number}"
            path.mkdir()
            make(tree, os.fsencode(path), [])
            layers.append(Layer(path, 0))
            step = save(vault, step, [layers[-1]], "image", "job")
        assert step is not None
        whole = save(vault, None, layers, "image", "job")
        one, other = snapshot(restored(vault, step, work / "step")), snapshot(restored(vault, whole, work / "whole"))
        assert one == other
        assert (step.entries, step.size) == (whole.entries, whole.size)
        assert content(one) == content(overlaid(*(snapshot(layer.path) for layer in layers)))
        assert check(vault) == []


# ---- what overlayfs really does

STEPS = {
    "delete a file": lambda root: (root / "etc" / "conf").unlink(),
    "delete a directory": lambda root: shutil.rmtree(root / "usr"),
    "replace a directory": lambda root: (
        shutil.rmtree(root / "usr"),
        (root / "usr").mkdir(),
        (root / "usr/new").touch(),
    ),
    "directory becomes file": lambda root: (shutil.rmtree(root / "usr"), (root / "usr").write_text("file")),
    "file becomes directory": lambda root: ((root / "etc/conf").unlink(), (root / "etc/conf").mkdir()),
    "rename a directory": lambda root: shutil.move(root / "usr", root / "moved"),
    "rename it back": lambda root: (
        shutil.move(root / "usr", root / "moved"),
        shutil.move(root / "moved", root / "usr"),
    ),
    "append": lambda root: (root / "etc" / "conf").open("a").write("more"),
    "change a mode": lambda root: (root / "usr" / "lib" / "one").chmod(0o600),
    "create": lambda root: (root / "usr" / "lib" / "fresh").write_text("fresh"),
    "delete what was made": lambda root: [path.unlink() for path in root.glob("usr/lib/fresh")],
    "link": lambda root: os.link(root / "etc" / "conf", root / "etc" / "second"),
}


@contextmanager
def overlay(work: Path, lowers: list[Path], upper: Path | None = None) -> Iterator[Path]:
    view = work / "view"
    view.mkdir(exist_ok=True)
    options = f"lowerdir={':'.join(map(str, lowers))},redirect_dir=off,metacopy=off,index=off"
    if upper is not None:
        (work / "work").mkdir(exist_ok=True)
        options += f",upperdir={upper},workdir={work}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(view)], check=True)
    try:
        yield view
    finally:
        subprocess.run(["umount", str(view)], check=True)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4), min_size=1, max_size=3))
def test_what_overlayfs_showed_is_shown_again(jobs: list[list[str]]) -> None:
    """Jobs change a real overlay over an image; the restored layer over the image shows the same."""
    with scratch() as work:
        vault = Vault(open_store(f"file://{work}/store"), "account")
        image = work / "image"
        (image / "usr" / "lib" / "inner").mkdir(parents=True)
        (image / "etc").mkdir()
        for name in ("etc/conf", "usr/lib/one", "usr/lib/two", "usr/lib/inner/three"):
            (image / name).write_text(name)
        lowers, revision = [image], None
        for number, steps in enumerate(jobs):
            upper = work / f"upper{number}"
            upper.mkdir()
            with overlay(work, lowers, upper) as view:
                for step in steps:
                    try:
                        STEPS[step](view)
                    except (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError):
                        pass
                shown = content(snapshot(view))
            revision = save(vault, revision, [Layer(upper, 0)], "image", "job")
            lowers.insert(0, upper)
        assert revision is not None
        out = restored(vault, revision, work / "out")
        with overlay(work, [out, image]) as view:
            assert content(snapshot(view)) == shown


# ---- while the sandbox runs


def test_what_changed_between_the_passes_is_saved_as_it_is_in_the_second(
    local: Vault, layer: Path, tmp_path: Path
) -> None:
    for number in range(200):
        (layer / f"file{number}").write_text(f"first {number}")
    with Saving(local, None, [Layer(layer, 0, live=True)], "image", "job") as saving:
        saving.first_pass()
        (layer / "file7").write_text("second")
        (layer / "file8").unlink()
        (layer / "new").mkdir()
        (layer / "new" / "file").write_text("new")
        saving.second_pass()
        made = saving.commit()
    assert snapshot(restored(local, made, tmp_path / "out")) == snapshot(layer)


def test_writes_through_a_memory_map_are_seen(local: Vault, layer: Path, tmp_path: Path) -> None:
    """The page is writable already when the first pass begins, so only a write-back makes its next write visible."""
    (layer / "mapped").write_bytes(bytes(8192))
    os.utime(layer / "mapped", ns=(0, 0))
    with open(layer / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[0:5] = b"early"
        with Saving(local, None, [Layer(layer, 0, live=True)], "image", "job") as saving:
            saving.first_pass()
            memory[0:5] = b"later"
            saving.second_pass()
            made = saving.commit()
        out = restored(local, made, tmp_path / "out")
        assert (out / "mapped").read_bytes()[:5] == b"later"


def test_a_live_layer_is_read_once_however_often_it_is_saved(local: Vault, layer: Path, tmp_path: Path) -> None:
    for number in range(100):
        (layer / f"file{number}").write_text(f"content {number}" * 100)
    (layer / "huge").write_bytes(os.urandom(MB) * 80)
    memory = tmp_path / "memory"
    settle(layer)
    first = saved_live(local, None, layer, memory)[0]
    (layer / "file3").write_text("changed")
    (layer / "file4").unlink()
    second, read = saved_live(local, first, layer, memory)
    assert read == len("changed")
    assert second.stored < 20_000
    assert second.parent == first.id
    assert snapshot(restored(local, second, tmp_path / "out")) == snapshot(layer)
    _, read = saved_live(local, second, layer, memory)
    assert read <= len("changed")  # too young to be trusted the last time


def saved_live(vault: Vault, parent: Revision | None, layer: Path, memory: Path) -> tuple[Revision, int]:
    one = Layer(layer, 0, live=True, memory=memory)
    with Saving(vault, None, [one], "image", "job", parent=parent.id if parent else None) as saving:
        saving.first_pass()
        saving.second_pass()
        made = saving.commit()
        return made, saving.counts[0].read


def settle(layer: Path) -> None:
    """Let the files be older than the clock's grain, as those of a job are."""
    mark = layer.parent / "mark"
    newest = max(path.stat().st_ctime_ns for path in layer.rglob("*"))
    while True:
        mark.write_text("x")
        if mark.stat().st_ctime_ns > newest + 50_000_000:
            return


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own on a loop device, as a sandbox has."""
    image, mounted = tmp_path / "disk", tmp_path / "mounted"
    mounted.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 * MB)
    options = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
    try:
        (mounted / "upper").mkdir()
        yield mounted / "upper"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_an_idle_disk_is_frozen_for_milliseconds(local: Vault, disk: Path) -> None:
    """The second pass asks the block device whether anything was written, and looks at no file."""
    for number in range(3000):
        (disk / f"file{number}").write_text("x")
    with Saving(local, None, [Layer(disk, 0, live=True)], "image", "job") as saving:
        saving.first_pass()
        saving.second_pass()
        assert len(saving.counts) == 1
        assert saving.frozen_seconds < 0.5
        (disk / "late").write_text("late")
        saving.second_pass()
        assert len(saving.counts) == 2
        made = saving.commit()
    assert made.entries == 3002
