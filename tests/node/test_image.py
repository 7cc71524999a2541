"""Images come in as archives, keep their names, and stay for as long as somebody uses them."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from roost.errors import Conflict, Invalid, NotFound, TooLarge
from roost.node.images import ImageStore
from roost.node.images import store as store_module

from .image_world import Tarball, build_shell, in_chunks, kill, packed_with, root_with, run_shell

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and set-uid bits need root")


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_shell(tmp_path_factory.mktemp("shell"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def contents(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "images/rootfs")


def work(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "images/work")


PACKERS = {
    "tar": ["cat"],
    "gzip": ["gzip", "-c"],
    "bzip2": ["bzip2", "-c"],
    "xz": ["xz", "-c"],
    "zstd": ["zstd", "-qc"],
}


@pytest.mark.parametrize("packer", PACKERS)
async def test_an_archive_becomes_an_image_whatever_packed_it(store: ImageStore, shell: bytes, packer: str) -> None:
    packed = packed_with(PACKERS[packer], root_with(shell).bytes())
    image = await store.import_archive("small", in_chunks(packed), quiet)
    assert store.list() == [image]
    assert (image.name, image.source) == ("small", "import: archive")
    assert image.digest.startswith("sha256:")
    assert image.size >= len(shell)
    assert run_shell(store.rootfs("small")) == "the shell of the image\n"


async def test_a_file_of_this_machine_is_imported_under_its_own_name(
    store: ImageStore, shell: bytes, tmp_path: Path
) -> None:
    archive = root_with(shell).save(tmp_path / "mine.tar")
    image = await store.import_file("mine", archive, quiet)
    assert image.source == "import: mine.tar"
    assert archive.exists()
    with pytest.raises(Invalid, match="not a file"):
        await store.import_file("mine", tmp_path / "absent.tar", quiet)


async def test_owners_modes_times_links_and_capabilities_survive(store: ImageStore, shell: bytes) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
    tarball = (
        root_with(shell)
        .file("bin/su", b"x", mode=0o4755)
        .directory("var/mail", mode=0o2775, uid=8, gid=12, mtime=1_600_000_000)
        .file("var/mail/you", b"post", mode=0o640, uid=65535, gid=8, mtime=1_500_000_000)
        .hardlink("var/same", "var/mail/you")
        .symlink("absolute", "/var/mail")
        .fifo("var/pipe")
        .file("bin/ping", b"x", 0o755, pax_headers={"SCHILY.xattr.security.capability": _pax(capability)})
    )
    await store.import_archive("rich", in_chunks(tarball.bytes()), quiet)
    root = store.rootfs("rich")
    assert (root / "bin/su").stat().st_mode & 0o7777 == 0o4755
    mail = (root / "var/mail").stat()
    assert (mail.st_mode & 0o7777, mail.st_uid, mail.st_gid, mail.st_mtime) == (0o2775, 8, 12, 1_600_000_000)
    you = (root / "var/mail/you").stat()
    assert (you.st_mode & 0o777, you.st_uid, you.st_gid, you.st_mtime) == (0o640, 65535, 8, 1_500_000_000)
    assert (root / "var/same").stat().st_ino == you.st_ino
    assert os.readlink(root / "absolute") == "/var/mail"
    assert (root / "var/pipe").is_fifo()
    assert os.getxattr(root / "bin/ping", "security.capability") == capability


def _pax(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


async def test_a_sandbox_finds_the_directories_it_mounts_over(store: ImageStore, shell: bytes) -> None:
    said: list[str] = []
    tarball = (
        root_with(shell)
        .directory("dev")
        .file("dev/core", b"x" * 100)
        .symlink("proc", "/etc")
        .file("run", b"not a directory")
        .directory("etc")
        .file("etc/kept", b"")
    )
    await store.import_archive("odd", in_chunks(tarball.bytes()), said.append)
    root = store.rootfs("odd")
    for name in ("proc", "dev", "sys", "run", "tmp", "root"):
        assert (root / name).is_dir()
        assert not (root / name).is_symlink()
        assert os.listdir(root / name) == []
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "etc/kept").exists()
    assert "/proc of the image was not a directory; replaced by an empty one" in said
    assert any(line.startswith("/run of the image") for line in said)


async def test_progress_can_be_followed(store: ImageStore, shell: bytes) -> None:
    said: list[str] = []
    await store.import_archive("small", in_chunks(root_with(shell).bytes()), said.append)
    assert said[0].startswith("received")
    assert "unpacking" in said
    assert said[-1].startswith("image small is ready")


async def test_an_unknown_name_is_answered_with_those_there_are(store: ImageStore, shell: bytes) -> None:
    with pytest.raises(NotFound, match="none yet"):
        store.rootfs("standard")
    await store.import_archive("small", in_chunks(root_with(shell).bytes()), quiet)
    with pytest.raises(NotFound, match="there are: small"):
        store.hold("standard")


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "A", ".hidden", "-x", "ü", "a" * 64, "a\n"])
async def test_a_name_that_is_no_name_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(Invalid, match="cannot name an image"):
        await store.import_archive(name, in_chunks(b""), quiet)
    with pytest.raises(Invalid, match="cannot name an image"):
        store.rootfs(name)


async def test_an_image_without_a_shell_is_refused(store: ImageStore, shell: bytes, tmp_path: Path) -> None:
    without = Tarball().directory("bin").file("bin/ash", shell, 0o755)
    plain = Tarball().directory("bin").file("bin/sh", shell, 0o644)
    directory = Tarball().directory("bin").directory("bin/sh")
    (tmp_path / "sh").write_bytes(shell)
    (tmp_path / "sh").chmod(0o755)
    outside = Tarball().directory("bin").symlink("bin/sh", f"../../../../../../../..{tmp_path}/sh")
    loop = Tarball().directory("bin").symlink("bin/sh", "sh")
    for tarball in (without, plain, directory, outside):
        with pytest.raises(Invalid, match="no executable /bin/sh"):
            await store.import_archive("broken", in_chunks(tarball.bytes()), quiet)
    with pytest.raises(Invalid, match="circles"):
        await store.import_archive("broken", in_chunks(loop.bytes()), quiet)
    assert store.list() == []
    assert contents(tmp_path) == work(tmp_path) == []


async def test_a_shell_behind_links_within_the_root_is_found(store: ImageStore, shell: bytes) -> None:
    tarball = (
        Tarball()
        .directory("usr/bin")
        .file("usr/bin/busybox", shell, 0o755)
        .symlink("bin", "/usr/bin")
        .symlink("usr/bin/sh", "../../../bin/busybox")
    )
    await store.import_archive("merged", in_chunks(tarball.bytes()), quiet)
    assert run_shell(store.rootfs("merged")) == "the shell of the image\n"


@pytest.mark.parametrize("data", [b"", b"this is no archive" * 100, b"\x1f\x8b" + b"x" * 1000])
async def test_what_is_no_archive_is_refused(store: ImageStore, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        await store.import_archive("nothing", in_chunks(data), quiet)
    assert work(tmp_path) == []


@pytest.mark.parametrize("packer", PACKERS)
async def test_half_an_archive_is_refused(store: ImageStore, shell: bytes, packer: str) -> None:
    whole = packed_with(PACKERS[packer], root_with(shell).file("big", os.urandom(3_000_000)).bytes())
    with pytest.raises(Invalid, match="cannot be used"):
        await store.import_archive("half", in_chunks(whole[: len(whole) // 2], 100_000), quiet)


async def test_an_upload_above_the_limit_is_stopped(tmp_path: Path, shell: bytes) -> None:
    store = ImageStore(tmp_path / "images", max_unpacked=1_000_000)

    async def endless():
        while True:
            yield bytes(100_000)

    with pytest.raises(TooLarge, match="larger than the 1 MB"):
        await store.import_archive("endless", endless(), quiet)
    assert work(tmp_path) == []


async def test_a_replaced_image_stays_for_those_who_hold_it(store: ImageStore, shell: bytes, tmp_path: Path) -> None:
    await store.import_archive("app", in_chunks(root_with(shell).file("version", b"1").bytes()), quiet)
    with store.hold("app") as old:
        await store.import_archive("app", in_chunks(root_with(shell).file("version", b"2").bytes()), quiet)
        assert (old.path / "version").read_bytes() == b"1"
        assert (store.rootfs("app") / "version").read_bytes() == b"2"
        assert len(store.list()) == 1
        assert len(contents(tmp_path)) == 2
    await store.collect()
    assert contents(tmp_path) == [store.rootfs("app").name]


async def test_an_image_that_is_in_use_is_not_removed(store: ImageStore, shell: bytes, tmp_path: Path) -> None:
    await store.import_archive("app", in_chunks(root_with(shell).bytes()), quiet)
    first, second = store.hold("app"), store.hold("app")
    with pytest.raises(Conflict, match=r"2 sandbox\(es\) on this machine run in it; stop them"):
        await store.remove("app")
    first.release()
    with pytest.raises(Conflict, match="1 sandbox"):
        await store.remove("app")
    assert [image.name for image in store.list()] == ["app"]
    second.release()
    second.release()
    await store.remove("app")
    assert store.list() == []
    left = [*contents(tmp_path), *work(tmp_path), *os.listdir(tmp_path / "images/holds")]
    assert left + os.listdir(tmp_path / "images/configs") == []
    with pytest.raises(NotFound):
        await store.remove("app")


async def test_an_image_that_revisions_of_a_node_stand_on_stays(
    store: ImageStore, shell: bytes, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    node = ImageStore(tmp_path / "images", keeper=state)
    await store.import_archive("app", in_chunks(root_with(shell).bytes()), quiet)
    content = store.list()[0].content
    node.keep(content)
    with pytest.raises(Conflict, match="workspaces stand on it; delete them first"):
        await store.remove("app")
    await store.import_archive("app", in_chunks(root_with(shell).bytes()), quiet)
    newer = store.list()[0].content
    assert sorted(contents(tmp_path)) == sorted([content, newer]), "what a name no longer means is kept, too"
    ImageStore(tmp_path / "images", keeper=state).keep_only({newer, "0" * 16})
    assert await store.collect() == 1
    assert contents(tmp_path) == [newer]
    with pytest.raises(Conflict, match="workspaces"):
        await store.remove("app")
    state.rmdir()  # that node is no more
    await store.remove("app")
    assert contents(tmp_path) == os.listdir(tmp_path / "images/kept") == []


async def test_two_imports_of_one_name_leave_one_whole_image(store: ImageStore, shell: bytes, tmp_path: Path) -> None:
    other = ImageStore(tmp_path / "images")
    one, two = (root_with(shell).file("version", version).bytes() for version in (b"1", b"2"))
    await asyncio.gather(
        store.import_archive("app", in_chunks(one), quiet), other.import_archive("app", in_chunks(two), quiet)
    )
    assert [image.name for image in store.list()] == ["app"]
    assert (store.rootfs("app") / "version").read_bytes() in (b"1", b"2")
    assert contents(tmp_path) == [store.rootfs("app").name]


async def test_a_cancelled_import_leaves_nothing(store: ImageStore, shell: bytes, tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def stalled():
        yield root_with(shell).bytes()[:1000]
        arrived.set()
        await asyncio.Event().wait()

    importing = asyncio.create_task(store.import_archive("app", stalled(), quiet))
    await arrived.wait()
    assert len(work(tmp_path)) == 2
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert work(tmp_path) == []


def node(tmp_path: Path, body: str) -> "subprocess.Popen[str]":
    """Another process with the same store, which prints a line when it is where the test wants it."""
    program = """
        import asyncio, sys, time
        from pathlib import Path
        from roost.node.images import ImageStore
        store = ImageStore(Path(sys.argv[1]))
    """
    text = textwrap.dedent(program) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", text, str(tmp_path / "images")], stdout=subprocess.PIPE, text=True)


async def test_what_a_killed_import_left_is_swept(store: ImageStore, shell: bytes, tmp_path: Path) -> None:
    big = root_with(shell).file("big", os.urandom(200_000_000)).save(tmp_path / "big.tar")
    importing = node(
        tmp_path,
        f"""
        say = lambda line: print(line, flush=True)
        asyncio.run(store.import_file("big", Path({str(big)!r}), say))
        """,
    )
    assert importing.stdout is not None
    assert importing.stdout.readline() == "unpacking\n"
    await _until(lambda: any((tmp_path / "images/work").glob("*/root/big")))
    await store.sweep()
    assert len(work(tmp_path)) == 2, "a sweep spares the living"
    kill(importing)
    await _until(lambda: not _processes_at(tmp_path))
    assert len(work(tmp_path)) == 2
    await store.sweep()
    assert work(tmp_path) == []
    assert store.list() == []


async def test_a_hold_of_another_process_protects_and_its_crash_leaves_time_to_come_back(
    store: ImageStore, shell: bytes, tmp_path: Path
) -> None:
    await store.import_archive("app", in_chunks(root_with(shell).bytes()), quiet)
    holder = node(tmp_path, 'hold = store.hold("app")\nprint(hold.content, flush=True)\ntime.sleep(600)')
    assert holder.stdout is not None
    content = holder.stdout.readline().strip()
    await store.import_archive("app", in_chunks(root_with(shell).bytes()), quiet)
    assert content in contents(tmp_path)
    kill(holder)
    assert await store.collect() == 0
    with store.hold_content(content) as again:
        _make_orphans_old(tmp_path)
        assert await store.collect() == 0
        assert (again.path / "bin/sh").exists()
    assert await store.collect() == 1
    assert contents(tmp_path) == [store.rootfs("app").name]
    with pytest.raises(NotFound):
        store.hold_content(content)


def _make_orphans_old(tmp_path: Path) -> None:
    past = time.time() - store_module.ORPHAN_GRACE - 1
    for orphan in (tmp_path / "images/holds").glob("*/*.orphan"):
        os.utime(orphan, (past, past))


def _processes_at(place: Path) -> list[str]:
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_text(errors="replace")
        except OSError:
            continue
        if str(place) in words:
            found.append(words)
    return found


async def _until(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
