"""Images of layers come from OCI layouts, docker archives and registries, and layers remove what they should."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.errors import Invalid
from roost.node.images import ImageStore, oci
from roost.node.protocol import PullImage
from roost.node.reference import normalised

from .image_world import (
    Layout,
    Tarball,
    build_shell,
    in_chunks,
    packed_with,
    registry,
    root_with,
    run_shell,
    skopeo_copy,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and set-uid bits need root")


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_shell(tmp_path_factory.mktemp("shell"))


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout").create()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, shell: bytes) -> Iterator[str]:
    """A registry that has `team/app:1`, of two layers."""
    place = tmp_path_factory.mktemp("registry")
    made = Layout(place / "layout").create().image("1", root_with(shell), Tarball().file("added", b"above"))
    with registry(place) as address:
        skopeo_copy(f"oci:{made.path}:1", f"docker://{address}/team/app:1")
        yield address


async def test_an_oci_archive_is_recognised_by_its_content(store: ImageStore, shell: bytes, layout: Layout) -> None:
    layout.image("v1", root_with(shell), Tarball().file("added", b"above"))
    packed = packed_with(["gzip"], layout.archive())
    image = await store.import_archive("layered", in_chunks(packed), quiet)
    assert image.source == "import: archive"
    assert run_shell(store.rootfs("layered")) == "the shell of the image\n"
    assert (store.rootfs("layered") / "added").read_bytes() == b"above"
    assert not (store.rootfs("layered") / "index.json").exists()


async def test_a_docker_archive_is_recognised_by_its_content(
    store: ImageStore, shell: bytes, layout: Layout, tmp_path: Path
) -> None:
    layout.image("v1", root_with(shell), Tarball().file("added", b"above"))
    skopeo_copy(f"oci:{layout.path}:v1", f"docker-archive:{tmp_path}/saved.tar:team/app:v1")
    await store.import_file("saved", tmp_path / "saved.tar", quiet)
    assert run_shell(store.rootfs("saved")) == "the shell of the image\n"
    assert (store.rootfs("saved") / "added").read_bytes() == b"above"


async def test_whiteouts_remove_what_lower_layers_brought_and_nothing_else(
    store: ImageStore, shell: bytes, layout: Layout
) -> None:
    lower = (
        root_with(shell)
        .file("gone", b"lower")
        .file("again", b"lower")
        .file("keep", b"lower")
        .directory("old")
        .file("old/inner/file", b"lower")
        .directory("opaque")
        .file("opaque/lower", b"lower")
        .file("opaque/both", b"lower")
        .file("kind", b"a file")
        .directory("linked")
        .symlink("alias", "linked")
    )
    upper = (
        Tarball()
        .file(".wh.gone")
        .file("again", b"upper")
        .file(".wh.again")
        .file(".wh.old")
        .directory("opaque")
        .file("opaque/both", b"upper")
        .file("opaque/.wh..wh..opq")
        .file("opaque/new", b"upper")
        .directory("kind")
        .file("kind/inner", b"upper")
        .file("alias/through", b"upper")
    )
    layout.image("v1", lower, upper)
    await store.import_archive("layered", in_chunks(layout.archive()), quiet)
    root = store.rootfs("layered")
    assert not (root / "gone").exists()
    assert (root / "again").read_bytes() == b"upper"
    assert (root / "keep").read_bytes() == b"lower"
    assert not (root / "old").exists()
    assert sorted(os.listdir(root / "opaque")) == ["both", "new"]
    assert (root / "opaque/both").read_bytes() == b"upper"
    assert (root / "kind/inner").read_bytes() == b"upper"
    assert (root / "linked/through").read_bytes() == b"upper"
    assert not [name for _, _, names in os.walk(root) for name in names if name.startswith(".wh.")]


@pytest.mark.parametrize("name", [".wh...", ".wh..", ".wh.", "d/.wh..."])
async def test_a_whiteout_that_climbs_is_refused(store: ImageStore, shell: bytes, layout: Layout, name: str) -> None:
    layout.image("v1", root_with(shell).directory("d"), Tarball().file(name))
    with pytest.raises(Invalid, match="not a name that a layer can remove"):
        await store.import_archive("layered", in_chunks(layout.archive()), quiet)


async def test_an_opaque_directory_behind_a_symlink_empties_nothing_of_the_host(
    store: ImageStore, shell: bytes, layout: Layout, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("host")
    upper = Tarball().file("door/.wh.secret").file("door/.wh..wh..opq")
    layout.image("v1", root_with(shell).symlink("door", str(outside)), upper)
    await store.import_archive("layered", in_chunks(layout.archive()), quiet)
    assert (outside / "secret").read_text() == "host"


async def test_a_layer_that_was_changed_is_refused(
    store: ImageStore, shell: bytes, layout: Layout, tmp_path: Path
) -> None:
    layout.image("v1", root_with(shell))
    largest = max((layout.path / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(data)
    with pytest.raises(Invalid, match="damaged"):
        await store.import_archive("layered", in_chunks(layout.archive()), quiet)


async def test_a_blob_that_is_a_link_to_the_host_is_refused(
    store: ImageStore, shell: bytes, layout: Layout, tmp_path: Path
) -> None:
    layout.image("v1", root_with(shell))
    for blob in (layout.path / "blobs/sha256").iterdir():
        moved = blob.rename(tmp_path / blob.name)
        blob.symlink_to(moved)
    with pytest.raises(Invalid, match="lacks"):
        await store.import_archive("layered", in_chunks(layout.archive()), quiet)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"manifests":[]}',
        b'{"manifests":[{"digest":"sha256:../../../etc/passwd"}]}',
        b'{"manifests":[{"digest":"sha256:' + b"0" * 64 + b'"}]}',
        b'{"manifests":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"manifests":[{"digest":7}]}',
    ],
)
async def test_an_index_that_is_none_is_refused(store: ImageStore, layout: Layout, index: bytes) -> None:
    (layout.path / "index.json").write_bytes(index)
    with pytest.raises(Invalid):
        await store.import_archive("layered", in_chunks(layout.archive()), quiet)


async def test_of_several_images_latest_is_taken_and_otherwise_they_are_named(
    store: ImageStore, shell: bytes, layout: Layout
) -> None:
    layout.image("v1", root_with(shell).file("version", b"1")).image("v2", root_with(shell).file("version", b"2"))
    with pytest.raises(Invalid, match=r"several images \(v1, v2\)"):
        await store.import_archive("layered", in_chunks(layout.archive()), quiet)
    layout.image("latest", root_with(shell).file("version", b"3"))
    await store.import_archive("layered", in_chunks(layout.archive()), quiet)
    assert (store.rootfs("layered") / "version").read_bytes() == b"3"


async def test_an_image_for_another_machine_is_refused(store: ImageStore, shell: bytes, layout: Layout) -> None:
    layout.image("v1", root_with(shell))
    index = json.loads((layout.path / "index.json").read_bytes())
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "s390x"}
    (layout.path / "index.json").write_text(json.dumps(index))
    with pytest.raises(Invalid, match="no variant for linux/"):
        await store.import_archive("layered", in_chunks(layout.archive()), quiet)


async def test_an_image_is_pulled_from_a_registry(store: ImageStore, served: str) -> None:
    said: list[str] = []
    request = PullImage(reference=f"{served}/team/app:1", tls_verify=False)
    image = await store.pull("app", request, said.append)
    assert image.source == f"pull: docker://{served}/team/app:1"
    assert run_shell(store.rootfs("app")) == "the shell of the image\n"
    assert (store.rootfs("app") / "added").read_bytes() == b"above"
    assert f"pulling {image.digest}" in "\n".join(said)
    assert "unpacking layer 2 of 2" in said


async def test_the_same_image_again_by_digest_is_the_same(store: ImageStore, served: str) -> None:
    first = await store.pull("one", PullImage(reference=f"{served}/team/app:1", tls_verify=False), quiet)
    again = PullImage(reference=f"{served}/team/app@{first.digest}", tls_verify=False)
    assert (await store.pull("two", again, quiet)).digest == first.digest


async def test_an_image_that_the_registry_lacks_is_said(store: ImageStore, served: str) -> None:
    with pytest.raises(Invalid, match="manifest unknown"):
        await store.pull("app", PullImage(reference=f"{served}/team/app:9", tls_verify=False), quiet)
    with pytest.raises(Invalid, match="asking for docker://"):
        await store.pull("app", PullImage(reference=f"{served}/team/app:1", tls_verify=True), quiet)


async def test_an_image_is_pulled_from_a_layout_of_this_machine(
    store: ImageStore, shell: bytes, layout: Layout
) -> None:
    layout.image("v1", root_with(shell)).image("v2", root_with(shell).file("version", b"2"))
    image = await store.pull("local", PullImage(reference=f"oci:{layout.path}:v2"), quiet)
    assert image.source == f"pull: oci:{layout.path}:v2"
    assert (store.rootfs("local") / "version").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("alpine", "docker://docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker://docker.io/library/alpine:3.20"),
        ("docker://alpine:3.20", "docker://docker.io/library/alpine:3.20"),
        ("docker.io/alpine", "docker://docker.io/library/alpine:latest"),
        ("python/slim:3", "docker://docker.io/python/slim:3"),
        ("ghcr.io/team/app:v1", "docker://ghcr.io/team/app:v1"),
        ("localhost/app", "docker://localhost/app:latest"),
        ("127.0.0.1:5000/team/app:1", "docker://127.0.0.1:5000/team/app:1"),
        ("[::1]:5000/app:1", "docker://[::1]:5000/app:1"),
        (f"app:1@sha256:{'a' * 64}", f"docker://docker.io/library/app@sha256:{'a' * 64}"),
        ("oci:/srv/layout:v1", "oci:/srv/layout:v1"),
    ],
)
def test_a_reference_is_completed_as_everywhere(short: str, full: str) -> None:
    assert normalised(short) == full


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "-h",
        "--help",
        "Alpine",
        "a b",
        "docker-daemon:alpine:1",
        "containers-storage:x",
        "dir:/etc",
        "oci:relative:v1",
        "oci:/a/../b:v1",
        "alpine:",
        "alpine\n",
        "user:password@host/app",
        "https://host/app",
        f"app@sha256:{'a' * 63}",
    ],
)
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(Invalid):
        normalised(reference)


def test_skopeo_runs_without_any_capability() -> None:
    argv = oci.copy_argv("docker://h/a:1", False, Path("/w/layout"))
    assert "--bounding-set=-all" in argv
    assert argv[-3:] == ["--src-tls-verify=false", "docker://h/a:1", "oci:/w/layout:image"]
