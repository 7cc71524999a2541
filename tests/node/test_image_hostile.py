"""An archive that means harm hurts nothing outside its own root, and is refused in words."""

import io
import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from roost.errors import Invalid, RoostError
from roost.node.images import ImageStore, archive

from .image_world import Tarball, build_shell, in_chunks, packed_with, root_with

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and set-uid bits need root")


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_shell(tmp_path_factory.mktemp("shell"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", max_unpacked=100_000_000)


async def refusal(store: ImageStore, data: bytes) -> str:
    with pytest.raises(Invalid) as refused:
        await store.import_archive("hostile", in_chunks(data, 1 << 20), quiet)
    assert store.list() == []
    return str(refused.value)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host that the archives below try to write to, with one secret in it."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "secret").write_text("host")
    return directory


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/../evil", ".."])
async def test_a_name_that_climbs_is_refused(store: ImageStore, shell: bytes, name: str) -> None:
    assert "climbs" in await refusal(store, root_with(shell).file(name, b"x").bytes())


async def test_an_absolute_name_lands_inside(store: ImageStore, shell: bytes, outside: Path) -> None:
    tarball = root_with(shell).file(f"{outside}/evil", b"x")
    await store.import_archive("inside", in_chunks(tarball.bytes()), quiet)
    assert os.listdir(outside) == ["secret"]
    assert Path(f"{store.rootfs('inside')}{outside}/evil").exists()


@pytest.mark.parametrize("target", ["absolute", "relative"])
async def test_a_file_behind_a_symlink_lands_inside(
    store: ImageStore, shell: bytes, outside: Path, target: str
) -> None:
    leads_to = str(outside) if target == "absolute" else "../" * 40 + str(outside)[1:]
    there_too = root_with(shell).directory(str(outside)).symlink("door", leads_to).file("door/evil", b"x")
    await store.import_archive("inside", in_chunks(there_too.bytes()), quiet)
    assert Path(f"{store.rootfs('inside')}{outside}/evil").exists()
    nowhere = root_with(shell).symlink("door", leads_to).file("door/evil", b"x")
    await refusal_or_inside(store, nowhere.bytes())
    assert os.listdir(outside) == ["secret"]


async def refusal_or_inside(store: ImageStore, data: bytes) -> None:
    try:
        await store.import_archive("other", in_chunks(data), quiet)
    except RoostError:
        pass


async def test_a_file_over_a_symlink_replaces_the_link(store: ImageStore, shell: bytes, outside: Path) -> None:
    tarball = root_with(shell).symlink("secret", f"{outside}/secret").file("secret", b"image")
    await store.import_archive("inside", in_chunks(tarball.bytes()), quiet)
    assert (outside / "secret").read_text() == "host"
    assert not (store.rootfs("inside") / "secret").is_symlink()


async def test_a_directory_over_a_symlink_does_not_change_what_it_led_to(
    store: ImageStore, shell: bytes, outside: Path
) -> None:
    before = outside.stat().st_mode
    tarball = root_with(shell).symlink("d", str(outside)).directory("d", mode=0o777, uid=7).file("d/x", b"")
    await store.import_archive("inside", in_chunks(tarball.bytes()), quiet)
    assert (outside.stat().st_mode, outside.stat().st_uid) == (before, 0)
    assert os.listdir(outside) == ["secret"]


async def test_a_hard_link_to_a_file_of_the_host_is_refused(store: ImageStore, shell: bytes, outside: Path) -> None:
    direct = root_with(shell).hardlink("loot", "/etc/passwd")
    assert "hard link" in await refusal(store, direct.bytes())
    through = root_with(shell).symlink("door", str(outside)).hardlink("loot", "door/secret")
    assert "hard link" in await refusal(store, through.bytes())
    climbing = root_with(shell).hardlink("loot", "../../../../etc/passwd")
    assert "climbs" in await refusal(store, climbing.bytes())
    assert (outside / "secret").stat().st_nlink == 1


async def test_device_nodes_are_left_out_and_said(store: ImageStore, shell: bytes) -> None:
    said: list[str] = []
    tarball = root_with(shell).device("disk", 254, 0, tarfile.BLKTYPE).device("etc/kmem", 1, 2)
    whiteout = tarball.device("bin/hidden", 0, 0)  # to overlayfs a device 0:0 means: removed
    await store.import_archive("devices", in_chunks(whiteout.bytes()), said.append)
    assert "left out 3 device nodes: a sandbox gets its own /dev" in said
    for directory, _, names in os.walk(store.rootfs("devices")):
        for name in names:
            mode = Path(directory, name).lstat().st_mode
            assert not stat.S_ISBLK(mode)
            assert not stat.S_ISCHR(mode)


async def test_extended_attributes_that_steer_the_overlay_are_dropped(store: ImageStore, shell: bytes) -> None:
    steering = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y"}
    tarball = root_with(shell).directory("d", pax_headers=steering).file("f", b"", pax_headers=steering)
    await store.import_archive("attributes", in_chunks(tarball.bytes()), quiet)
    root = store.rootfs("attributes")
    assert os.listxattr(root / "d") == os.listxattr(root / "f") == []


@pytest.mark.parametrize("owner", [{"uid": 65536}, {"gid": 10**9}, {"uid": -1}])
async def test_an_owner_that_no_sandbox_has_is_refused(store: ImageStore, shell: bytes, owner: dict[str, int]) -> None:
    tarball = Tarball()
    tarball.tar.format = tarfile.GNU_FORMAT
    tarball.directory("bin").file("bin/sh", shell, 0o755).file("alien", b"", **owner)
    assert "ids 0 to 65535 only" in await refusal(store, tarball.bytes())


def sparse_entry(name: str, size: int) -> bytes:
    """An old GNU sparse file: `size` bytes, all of them a hole."""
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = b"%011o\0" % 0  # one map entry: offset 0, 0 bytes
    header[398:410] = b"%011o\0" % 0
    header[483:495] = b"\x80" + struct.pack(">Q", size).rjust(11, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


async def test_a_sparse_bomb_is_refused_before_it_is_written(store: ImageStore, shell: bytes) -> None:
    honest = root_with(shell).bytes().rstrip(b"\0")
    padded = honest + bytes(-len(honest) % 512)
    bomb = padded + sparse_entry("bomb", 1 << 50) + bytes(1024)
    assert "more than the 100 MB" in await refusal(store, bomb)


async def test_a_sparse_file_within_the_limit_stays_sparse(store: ImageStore, shell: bytes) -> None:
    tarball = root_with(shell).file("hole", bytes(50_000_000) + b"end")
    await store.import_archive("sparse", in_chunks(packed_with(["gzip"], tarball.bytes())), quiet)
    hole = (store.rootfs("sparse") / "hole").stat()
    assert hole.st_size == 50_000_003
    assert hole.st_blocks * 512 < 1_000_000
    assert (store.rootfs("sparse") / "hole").read_bytes().endswith(b"\0end")


async def test_a_compression_bomb_stops_at_the_limit(store: ImageStore, shell: bytes) -> None:
    def blocks():
        tarball = root_with(shell)
        for number in range(30):
            tarball.file(f"f{number}", bytes(10_000_000))
        return tarball.bytes()

    packed = packed_with(["zstd", "-qc"], blocks())
    assert len(packed) < 1_000_000
    assert "more than the 100 MB" in await refusal(store, packed)


async def test_endless_data_after_the_end_is_refused(store: ImageStore, shell: bytes) -> None:
    packed = packed_with(["gzip", "-1"], root_with(shell).bytes() + bytes(200_000_000))
    assert "endless" in await refusal(store, packed)


async def test_an_endless_header_ends_the_reader_and_not_the_host(store: ImageStore) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    data = header.tobuf(tarfile.GNU_FORMAT)

    async def chunks():
        feed = packed_with(["sh", "-c", "{ cat; head -c 1500000000 /dev/zero; } | zstd -qc -1"], data)
        for start in range(0, len(feed), 1 << 20):
            yield feed[start : start + (1 << 20)]

    with pytest.raises(Invalid, match="cannot be used"):
        await store.import_archive("header", chunks(), quiet)


async def test_a_tree_too_deep_to_walk_is_refused(store: ImageStore, shell: bytes) -> None:
    assert "deeper" in await refusal(store, root_with(shell).file("d/" * 300 + "x").bytes())


async def test_a_deep_tree_behind_links_can_be_imported_and_removed(
    store: ImageStore, shell: bytes, tmp_path: Path
) -> None:
    tarball = root_with(shell).directory("d/" * 150)
    for level in range(15):
        tarball.symlink(f"l{level}", (f"l{level - 1}/" if level else "") + "d/" * 150)
        tarball.directory(f"l{level}/" + "d/" * 150)
    await refusal_or_inside(store, tarball.bytes())
    for image in store.list():
        await store.remove(image.name)
    await store.collect()
    assert os.listdir(tmp_path / "images/work") == os.listdir(tmp_path / "images/rootfs") == []


@pytest.mark.parametrize("seed", range(8))
async def test_garbage_in_the_headers_is_refused_in_words(store: ImageStore, shell: bytes, seed: int) -> None:
    data = bytearray(root_with(shell).file("f", b"x" * 600).bytes())
    for place in range(seed * 3, 512 * 3, 41 + seed):
        data[place] ^= 0xA5 + seed
    try:
        await store.import_archive("garbage", in_chunks(bytes(data)), quiet)
    except Invalid as error:
        assert "\n" not in str(error).partition(":\n")[0]


async def test_a_name_with_control_characters_is_shown_harmlessly(store: ImageStore, shell: bytes) -> None:
    said = await refusal(store, root_with(shell).file("../\x1b[2J\r\nevil").bytes())
    assert "\x1b" not in said
    assert "\r" not in said


async def test_an_unpacker_leaves_no_process_and_no_mount(store: ImageStore, shell: bytes, tmp_path: Path) -> None:
    await store.import_archive("small", in_chunks(root_with(shell).bytes()), quiet)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_the_unpacker_runs_confined() -> None:
    job = archive.Job("/a.tar", "/root", 10, 5, layer=False)
    argv = archive.argv(job)
    assert argv[:3] == ["setpriv", "--pdeathsig", "KILL"]
    assert {"--pid", "--net", "--kill-child=KILL", "--no-new-privs", "--inh-caps=-all"} <= set(argv)
    assert not any("mknod" in word or "sys_admin" in word for word in argv)
    assert argv[-1] == '{"archive":"/a.tar","root":"/root","max_bytes":10,"reserve":5,"layer":false}'
    assert io.BytesIO(argv[-1].encode()).read().isascii()
