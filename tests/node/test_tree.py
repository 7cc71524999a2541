"""The files of a guest, seen from outside: nothing leads out of its root, whatever the guest does meanwhile."""

import contextlib
import fcntl
import io
import os
import signal
import socket
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost import linux
from roost.errors import Conflict, Invalid, NotFound, RoostError
from roost.node import tree as tree_module
from roost.node.tree import CHUNK, DEEPEST, NOBODY, Tree, process_root
from tests.node.sync.trees import dig

FIRST_ID = 2**30 + 7 * 65536
SECRET = b"of the host"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A guest's root; the host's secret is beside it."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(SECRET)
    guest = tmp_path / "root"
    guest.mkdir()
    return guest


@pytest.fixture
def files(root: Path) -> Iterator[Tree]:
    with Tree(root, FIRST_ID) as files:
        yield files


@pytest.fixture
def mounted(root: Path) -> Iterator[Path]:
    """A file system of its own within the root, as /proc is."""
    point = root / "proc"
    point.mkdir()
    linux.mount("roost-test", point, "tmpfs", 0, "size=1m")
    (point / "cmdline").write_bytes(b"private")
    yield point
    linux.umount(point, linux.MNT_DETACH)


def content(files: Tree, path: bytes, start: int = 0, end: int = 2**40) -> bytes:
    return b"".join(files.read(path, start, end))


def archive(files: Tree, path: bytes) -> tarfile.TarFile:
    return unpacked(b"".join(files.tar(path)))


def unpacked(packed: bytes) -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=io.BytesIO(packed), errors="surrogateescape")


def names(files: Tree, path: bytes) -> set[bytes]:
    return {entry.name for entry in files.list(path)}


@contextlib.contextmanager
def all_the_while(act: Callable[[], None]) -> Iterator[None]:
    """A guest that does this over and over, in a process of its own: on one interpreter lock few races would happen."""
    guest = os.fork()
    if guest == 0:
        linux.set_parent_death_signal(signal.SIGKILL)
    while guest == 0:
        with contextlib.suppress(BaseException):
            act()
    try:
        yield
    finally:
        os.kill(guest, signal.SIGKILL)
        os.waitpid(guest, 0)


def swapping(root: Path, name: str, target: str) -> Callable[[], None]:
    """`name` is a directory and a link to `target` by turns."""
    link, directory = os.fsencode(root / "link"), os.fsencode(root / name)
    os.symlink(target, link)
    os.makedirs(directory, exist_ok=True)

    def swap() -> None:  # RENAME_EXCHANGE: there is no moment without either
        linux._libc.renameat2(linux.AT_FDCWD, link, linux.AT_FDCWD, directory, 2)  # pyright: ignore[reportPrivateUsage]

    return swap


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# looking


def test_lists_the_thing_itself_and_then_what_is_in_it(root: Path, files: Tree) -> None:
    (root / "etc").mkdir(mode=0o750)
    (root / "etc" / "passwd").write_bytes(b"root")
    (root / "etc" / "passwd").chmod(0o640)
    os.utime(root / "etc" / "passwd", ns=(1, 1_700_000_000_123_456_789))
    (root / "etc" / "mtab").symlink_to("/proc/mounts")
    os.mkfifo(root / "etc" / "fifo")
    itself, *found = files.list(b"/etc")
    by_name = {entry.name: entry for entry in found}
    assert (itself.name, itself.type, itself.mode) == (b"", "directory", 0o750)
    assert set(by_name) == {b"passwd", b"mtab", b"fifo"}
    passwd = by_name[b"passwd"]
    assert (passwd.type, passwd.size, passwd.mode, passwd.mtime_ns) == ("file", 4, 0o640, 1_700_000_000_123_456_789)
    assert (by_name[b"mtab"].type, by_name[b"mtab"].target) == ("symlink", b"/proc/mounts")
    assert by_name[b"fifo"].type == "other"


def test_lists_a_single_file_and_the_root(root: Path, files: Tree) -> None:
    (root / "file").write_bytes(b"12345")
    assert [(entry.name, entry.size) for entry in files.list(b"file")] == [(b"", 5)]
    assert names(files, b"") == names(files, b"/") == {b"", b"file"}


def test_ids_are_those_of_the_container(root: Path, files: Tree) -> None:
    for name, owner in {"root": FIRST_ID, "user": FIRST_ID + 1000, "last": FIRST_ID + 65535, "host": 0}.items():
        (root / name).write_bytes(b"")
        os.chown(root / name, owner, owner)
    os.chown(root / "host", FIRST_ID + 65536, 0)
    found = {entry.name: (entry.uid, entry.gid) for entry in files.list(b"") if entry.name}
    assert found == {b"root": (0, 0), b"user": (1000, 1000), b"last": (65535, 65535), b"host": (NOBODY, NOBODY)}


def test_names_may_be_any_bytes(root: Path, files: Tree) -> None:
    name = b"\xff\xfe\n\x01 %2e?#"
    files.write(name, [b"odd"], 0o644)
    assert content(files, name) == b"odd"
    assert names(files, b"") == {b"", name}
    assert archive(files, b"").getnames() == [".", name.decode("utf-8", "surrogateescape")]
    files.delete(name)
    assert names(files, b"") == {b""}
    with pytest.raises(NotFound, match=r"\\xff"):
        content(files, name)


def test_a_large_directory_streams(root: Path, files: Tree) -> None:
    for number in range(20_000):
        os.close(os.open(root / f"file-{number}", os.O_CREAT | os.O_WRONLY))
    listing = files.list(b"")
    first = [next(listing).name for _ in range(10)]
    assert len({*first, *(entry.name for entry in listing)}) == 20_001


def test_an_iterator_that_is_closed_early_leaves_nothing_open(root: Path, files: Tree) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(bytes(3 * CHUNK))
    before = open_descriptors()
    for iterator in (files.list(b"a"), files.read(b"a/b/file", 0, 2**40), files.tar(b"")):
        next(iterator)
        iterator.close()  # type: ignore[attr-defined]
    assert open_descriptors() == before


def test_reads_ranges(root: Path, files: Tree) -> None:
    (root / "file").write_bytes(b"0123456789")
    assert content(files, b"file", 2, 5) == b"234"
    assert content(files, b"file", 8, 100) == b"89"
    assert content(files, b"file", 10, 100) == content(files, b"file", 3, 3) == b""
    for start, end in ((-1, 5), (5, 4), (0, 2**63)):
        with pytest.raises(Invalid, match="no range"):
            content(files, b"file", start, end)


def test_only_files_are_read(root: Path, files: Tree) -> None:
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
        for name in (b"fifo", b"null", b"socket", b"directory"):
            with pytest.raises(Invalid):
                content(files, name)
    assert [member.name for member in archive(files, b"")] == [".", "directory"]


def test_what_is_not_there_is_told(root: Path, files: Tree) -> None:
    (root / "file").write_bytes(b"")
    (root / "circle").symlink_to("circle")
    (root / "dangling").symlink_to("nowhere")
    for path in (b"nothing", b"no/thing", b"dangling"):
        with pytest.raises(NotFound):
            list(files.list(path))
        with pytest.raises(NotFound):
            content(files, path)
    for path in (b"circle", b"file/below", b"x" * 256, b"a\0b"):
        with pytest.raises(Invalid):
            content(files, path)


# tar


def test_an_archive_holds_modes_owners_times_and_links(root: Path, files: Tree) -> None:
    (root / "home" / "deep").mkdir(parents=True)
    script = root / "home" / "deep" / "script"
    script.write_bytes(b"#!/bin/sh\n" * 100)
    os.chown(script, FIRST_ID + 1000, FIRST_ID + 100)
    script.chmod(0o4755)
    os.utime(script, ns=(1, 1_700_000_000_500_000_000))
    (root / "home" / "out").symlink_to("/etc/shadow")
    packed = archive(files, b"home")
    assert set(packed.getnames()) == {".", "deep", "deep/script", "out"}
    member = packed.getmember("deep/script")
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o4755, 1000, 100, 1_700_000_000.5)
    assert packed.extractfile(member).read() == b"#!/bin/sh\n" * 100  # type: ignore[union-attr]
    assert (packed.getmember("out").type, packed.getmember("out").linkname) == (tarfile.SYMTYPE, "/etc/shadow")


def test_tar_itself_reads_the_archive(root: Path, files: Tree, tmp_path: Path) -> None:
    (root / ("long" * 50)).mkdir()
    (root / ("long" * 50) / "\udcff").write_bytes(b"odd")
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", str(target)], input=b"".join(files.tar(b"")), check=True, timeout=20)
    assert (target / ("long" * 50) / "\udcff").read_bytes() == b"odd"


def test_a_single_file_is_an_archive_of_one(root: Path, files: Tree) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "file").write_bytes(b"1")
    assert archive(files, b"etc/file").getnames() == ["file"]


def test_a_sparse_file_takes_no_memory(root: Path, files: Tree) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert all(len(chunk) <= 2 * CHUNK for chunk in files.read(b"sparse", 0, 1 << 24))
    packed = b"".join(files.tar(b"sparse"))
    assert len(packed) < 8192
    (member,) = unpacked(packed).getmembers()
    assert (member.name, member.size) == ("sparse", 1 << 30)


@pytest.mark.parametrize("program", ["tar", "python"])
def test_holes_links_and_attributes_come_back(root: Path, files: Tree, tmp_path: Path, program: str) -> None:
    (root / "d" / "empty").mkdir(parents=True)
    with (root / "d" / "disk.img").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"middle" * 20_000)
        file.seek(30 << 20)
        file.write(b"end")
    with (root / "holes-at-both-ends").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 5000)
        file.truncate(9 << 20)
    (root / "one").write_bytes(b"of three names")
    os.link(root / "one", root / "d" / "two")
    os.link(root / "one", root / "d" / "three")
    os.setxattr(root / "one", "user.note", b"\x00\xff mine")
    target = tmp_path / "unpacked"
    target.mkdir()
    packed = b"".join(files.tar(b""))
    assert len(packed) < 300_000
    if program == "tar":
        command = ["tar", "--xattrs", "-xf", "-", "-C", str(target)]
        subprocess.run(command, input=packed, check=True, timeout=20)
        assert os.getxattr(target / "one", "user.note") == b"\x00\xff mine"
    else:
        unpacked(packed).extractall(target)
    for name in ("d/disk.img", "holes-at-both-ends"):
        assert (target / name).read_bytes() == (root / name).read_bytes()
        assert (target / name).stat().st_blocks * 512 < 1 << 20
    assert (target / "d" / "empty").is_dir()
    assert {(target / name).stat().st_ino for name in ("one", "d/two", "d/three")} == {(target / "one").stat().st_ino}
    assert (target / "d" / "two").read_bytes() == b"of three names"


def test_a_file_that_changes_its_size_does_not_break_the_archive(root: Path, files: Tree) -> None:
    file = root / "a"
    for size in (0, 20 * CHUNK):
        file.write_bytes(b"x" * (10 * CHUNK))
        packing = files.tar(b"")
        packed = next(packing)
        os.truncate(file, size)
        packed += b"".join(packing)
        (member,) = [one for one in unpacked(packed) if one.isfile()]
        assert member.size == 10 * CHUNK
        assert len(packed) % 512 == 0


@pytest.mark.parametrize(("depth", "name"), [(3000, "d"), (60, "n" * 200)])
def test_a_tree_of_any_depth_is_archived_and_deleted(mounted: Path, depth: int, name: str) -> None:
    dig(mounted / "deep", depth, name)
    with Tree(mounted, FIRST_ID) as files:
        found = archive(files, b"deep").getnames()
        assert len(found) == depth + 2
        assert max(found, key=len) == "/".join([*[name] * depth, "file"])
        files.delete(b"deep")
        assert names(files, b"") == {b"", b"cmdline"}


def test_the_directories_that_a_write_makes_have_a_limit(root: Path, files: Tree) -> None:
    with pytest.raises(Invalid, match="deeper"):
        files.write(b"e/" * (DEEPEST + 10) + b"f", [], 0o644)
    assert names(files, b"") == {b""}


# changing


def test_a_file_is_written_with_its_directories_for_the_containers_root(root: Path, files: Tree) -> None:
    files.write(b"a/b/file", iter([b"one ", b"two"]), 0o4751)
    assert (root / "a/b/file").read_bytes() == b"one two"
    for path, mode in (("a", 0o755), ("a/b", 0o755), ("a/b/file", 0o4751)):
        status = (root / path).lstat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (FIRST_ID, FIRST_ID, mode)
    files.write(b"a/b/file", [b"three"], 0o600)
    assert os.listdir(root / "a/b") == ["file"]
    assert content(files, b"a/b/file") == b"three"


def owned(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_uid - FIRST_ID, status.st_gid - FIRST_ID, stat.S_IMODE(status.st_mode)


def test_what_is_replaced_keeps_its_owner_mode_and_attributes(root: Path, files: Tree) -> None:
    file = root / "tool"
    file.write_bytes(b"old")
    os.chown(file, FIRST_ID + 1000, FIRST_ID + 100)
    file.chmod(0o4755)
    os.setxattr(file, "user.note", b"mine")
    files.write(b"tool", [b"new content"])
    assert (file.read_bytes(), owned(file)) == (b"new content", (1000, 100, 0o4755))
    assert os.getxattr(file, "user.note") == b"mine"
    files.write(b"tool", [b"again"], 0o600)
    assert owned(file) == (1000, 100, 0o600)


@pytest.mark.parametrize("content", [b"", b"shorter", b"much longer than what was there " * 1000])
def test_a_file_of_several_names_stays_one(root: Path, files: Tree, content: bytes) -> None:
    first = root / "first"
    first.write_bytes(b"what was there before")
    os.chown(first, FIRST_ID + 7, FIRST_ID + 7)
    first.chmod(0o640)
    os.link(first, root / "second")
    files.write(b"second", [content])
    assert first.read_bytes() == (root / "second").read_bytes() == content
    assert first.samefile(root / "second") and owned(first) == (7, 7, 0o640)
    assert sorted(os.listdir(root)) == ["first", "second"]


def test_a_write_to_several_names_that_breaks_off_changes_nothing(mounted: Path) -> None:
    with Tree(mounted, FIRST_ID) as files:
        files.write(b"one", [b"old" * 100_000])
        os.link(mounted / "one", mounted / "two")
        with pytest.raises(Conflict, match="disk_gb"):
            files.write(b"two", [bytes(CHUNK)] * 20)
        with pytest.raises(Conflict, match="disk_gb"):
            files.write(b"two", [bytes(CHUNK)] * 2)  # its bytes fit once, and not once more in place
        assert content(files, b"one") == content(files, b"two") == b"old" * 100_000


def test_what_is_new_belongs_to_the_owner_of_its_directory(root: Path, files: Tree) -> None:
    home = root / "home"
    home.mkdir()
    os.chown(home, FIRST_ID + 1000, FIRST_ID + 50)
    home.chmod(0o2755)
    files.write(b"home/project/src/main.py", [b"x"])
    assert owned(home / "project") == owned(home / "project/src") == (1000, 50, 0o2755)
    assert owned(home / "project/src/main.py") == (1000, 50, 0o644)


def test_a_write_that_breaks_off_changes_nothing(root: Path, files: Tree) -> None:
    (root / "file").write_bytes(b"old")

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        files.write(b"file", broken(), 0o644)
    assert (root / "file").read_bytes() == b"old"
    assert os.listdir(root) == ["file"]


def test_a_full_disk_is_told_and_leaves_the_old_file(mounted: Path) -> None:
    with Tree(mounted, FIRST_ID) as files:
        files.write(b"file", [b"old"], 0o644)
        with pytest.raises(Conflict, match="disk_gb"):
            files.write(b"file", [bytes(CHUNK)] * 20, 0o644)
        assert content(files, b"file") == b"old"
        assert names(files, b"") == {b"", b"file", b"cmdline"}


def test_writing_follows_links_inside_the_root(root: Path, files: Tree, tmp_path: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "resolv.conf").symlink_to("../run/resolv.conf")
    files.write(b"etc/resolv.conf", [b"x"], 0o644)
    assert (root / "run" / "resolv.conf").read_bytes() == b"x"
    (root / "up").symlink_to("../../../../../../secret")
    files.write(b"up", [b"mine"], 0o644)
    assert (root / "secret").read_bytes() == b"mine"
    (root / "absolute").symlink_to(tmp_path / "outside")
    with pytest.raises((Invalid, NotFound)):
        files.write(b"absolute/kept/x/..", [b"x"], 0o644)
    (root / "circle").symlink_to("circle")
    with pytest.raises(Invalid, match="circles"):
        files.write(b"circle", [b"x"], 0o644)


def test_what_is_no_file_is_not_written_over(root: Path, files: Tree) -> None:
    (root / "directory").mkdir()
    (root / "file").write_bytes(b"")
    os.mkfifo(root / "fifo")
    for path in (b"directory", b"file/x", b"fifo", b"", b"/", b".", b"a/..", b"a\0b", b"\0/a"):
        with pytest.raises(Invalid):
            files.write(path, [b"x"], 0o644)
    assert sorted(os.listdir(root)) == ["directory", "fifo", "file"]


def test_deletes_files_links_and_directories(root: Path, files: Tree, tmp_path: Path) -> None:
    (root / "d" / "e" / "f").mkdir(parents=True)
    (root / "d" / "file").write_bytes(b"")
    (root / "d" / "out").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "d" / "e" / "fifo")
    (root / "link").symlink_to("d")
    files.delete(b"link")
    assert (root / "d").is_dir()
    files.delete(b"d/")
    assert os.listdir(root) == []
    assert (tmp_path / "outside" / "kept").read_bytes() == SECRET
    with pytest.raises(NotFound):
        files.delete(b"d")
    for path in (b"", b"/", b"//", b".", b"..", b"../..", b"../outside/.."):
        with pytest.raises(Invalid):
            files.delete(path)


def test_a_directory_that_is_filled_all_the_while_is_a_conflict_or_gone(root: Path, files: Tree) -> None:
    (root / "d").mkdir()

    def fill() -> None:
        (root / "d" / "x").write_bytes(b"")

    with all_the_while(fill), contextlib.suppress(Conflict):
        files.delete(b"d")


# hostile


@pytest.mark.parametrize("way", [b"../secret", b"a/../../secret", b"up/secret", b"/../secret", b"absolute/secret"])
def test_no_path_leads_out(root: Path, files: Tree, tmp_path: Path, way: bytes) -> None:
    (root / "a").mkdir()
    (root / "up").symlink_to("../..")
    (root / "absolute").symlink_to(tmp_path)
    with pytest.raises((NotFound, Invalid)):
        content(files, way)
    with pytest.raises((NotFound, Invalid)):
        list(files.list(way))
    with pytest.raises((NotFound, Invalid)):
        files.delete(way)
    assert (tmp_path / "secret").read_bytes() == SECRET


def test_other_file_systems_are_refused(mounted: Path, root: Path) -> None:
    with Tree(root, FIRST_ID) as files:
        for path in (b"proc", b"proc/cmdline"):
            with pytest.raises(Invalid, match="use exec"):
                list(files.list(path))
        with pytest.raises(Invalid, match="use exec"):
            content(files, b"proc/cmdline")
        with pytest.raises(Invalid, match="use exec"):
            files.write(b"proc/x", [b"x"], 0o644)
        with pytest.raises(Invalid, match="use exec"):
            files.delete(b"proc")
        assert [member.name for member in archive(files, b"")] == [".", "proc"]
        assert names(files, b"") == {b"", b"proc"}
    assert (mounted / "cmdline").read_bytes() == b"private"


@pytest.mark.parametrize("target", ["/etc", "/", "../outside"])
def test_a_directory_swapped_for_a_link_cannot_be_read_through(root: Path, files: Tree, target: str) -> None:
    descriptors = open_descriptors()
    with all_the_while(swapping(root, "d", target)):
        for _ in range(500):
            for act in (
                lambda: content(files, b"d/passwd") + content(files, b"d/etc/passwd"),
                lambda: content(files, b"d/kept"),
                lambda: content(files, b"d/../../secret"),
                lambda: b"".join(files.tar(b"d")),
                lambda: b"".join(names(files, b"d") - {b""}),
            ):
                with contextlib.suppress(RoostError):
                    found = act()
                    assert SECRET not in found and b"root" not in found and b"kept" not in found
    assert open_descriptors() == descriptors


@pytest.mark.parametrize("absolute", [True, False])
def test_a_directory_swapped_for_a_link_cannot_be_written_through(
    root: Path, files: Tree, tmp_path: Path, absolute: bool
) -> None:
    outside = tmp_path / "outside"
    descriptors = open_descriptors()
    with all_the_while(swapping(root, "d", str(outside) if absolute else "../outside")):
        for _ in range(300):
            for act in (
                lambda: files.write(b"d/kept", [b"guest's"], 0o644),
                lambda: files.write(b"d/e/f", [b"guest's"], 0o644),
                lambda: files.delete(b"d/kept"),
                lambda: files.delete(b"d/e"),
            ):
                with contextlib.suppress(RoostError):
                    act()
    assert open_descriptors() == descriptors
    assert os.listdir(outside) == ["kept"]
    assert (outside / "kept").read_bytes() == SECRET


def test_deleting_a_tree_whose_directories_become_links_stays_inside(root: Path, files: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for turn in range(20):
        top = root / f"top-{turn}"
        swaps: list[Callable[[], None]] = []
        for number in range(40):
            (top / str(number)).mkdir(parents=True)
            swaps.append(swapping(top / str(number), "d", str(outside)))

        def swap(swaps: list[Callable[[], None]] = swaps) -> None:
            for one in swaps:
                one()

        with all_the_while(swap), contextlib.suppress(RoostError):
            files.delete(os.fsencode(top.name))
        assert os.listdir(outside) == ["kept"]
    assert (outside / "kept").read_bytes() == SECRET


def test_a_directory_that_moves_about_does_not_let_dot_dot_out(root: Path, files: Tree) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "c").mkdir()

    def move() -> None:
        (root / "a" / "b").rename(root / "c" / "b")
        (root / "c" / "b").rename(root / "a" / "b")

    with all_the_while(move):
        for _ in range(2000):
            with contextlib.suppress(RoostError):
                assert content(files, b"a/b/../../../secret") != SECRET


def test_a_file_with_a_lease_is_not_waited_for(root: Path, files: Tree) -> None:
    (root / "file").write_bytes(b"x")
    held = os.open(root / "file", os.O_RDWR)
    earlier = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(Conflict, match="held"):
            content(files, b"file")
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, earlier)


# the root of a running guest


def test_the_root_of_a_process_is_taken_only_from_whom_it_belongs_to(root: Path) -> None:
    (root / "mine").write_bytes(b"guest's")
    waiting = [
        "python3",
        "-c",
        f"import os,time; os.chroot({str(root)!r}); os.setuid({FIRST_ID}); print(flush=True); time.sleep(60)",
    ]
    with subprocess.Popen(waiting, stdout=subprocess.PIPE) as guest:
        assert guest.stdout is not None
        guest.stdout.readline()
        with Tree(process_root(guest.pid, FIRST_ID), FIRST_ID) as files:
            assert content(files, b"mine") == b"guest's"
        with pytest.raises(Conflict):
            process_root(guest.pid, FIRST_ID + 65536)
        guest.kill()
        guest.wait()
        descriptors = open_descriptors()
        for pid in (guest.pid, os.getpid()):
            with pytest.raises(Conflict, match="ended"):
                process_root(pid, FIRST_ID)
        with pytest.raises(Conflict):
            process_root(os.getpid(), 0)  # whose root is the host's
        assert open_descriptors() == descriptors


# overlays, as guests have them


def test_an_overlay_of_several_layers_reads_writes_and_deletes(root: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (root / name).mkdir()
    (root / "lower" / "usr" / "lib").mkdir(parents=True)
    for number in range(200):
        (root / "lower" / "usr" / "lib" / str(number)).write_bytes(b"below")
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    linux.mount("overlay", root / "merged", "overlay", linux.MS_NODEV, options)
    try:
        with Tree(root / "merged", FIRST_ID) as files:
            files.write(b"usr/lib/0", [b"above"], 0o644)
            assert content(files, b"usr/lib/0") == b"above"
            assert len(names(files, b"usr/lib")) == 201
            files.delete(b"usr")
            assert names(files, b"") == {b""}
    finally:
        linux.umount(root / "merged")
    assert (root / "lower" / "usr" / "lib" / "0").read_bytes() == b"below"


def test_a_read_only_tree_says_so(root: Path, mounted: Path) -> None:
    linux.mount(None, mounted, None, linux.MS_REMOUNT | linux.MS_RDONLY)
    with Tree(mounted, 0) as files:
        with pytest.raises(Conflict, match="does not change"):
            files.write(b"x", [b"x"], 0o644)
        with pytest.raises(Conflict, match="does not change"):
            files.delete(b"cmdline")


def test_every_condition_names_the_path() -> None:
    assert all("{path}" in text for _, text in tree_module._CONDITIONS.values())  # pyright: ignore[reportPrivateUsage]
