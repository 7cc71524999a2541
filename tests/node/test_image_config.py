"""What an image says of its processes is read with it: environment, working directory, user."""

import json
import os
from pathlib import Path

import pytest

from roost.errors import Invalid
from roost.node.images import ImageStore
from roost.node.images.config import Config, Told, prepare
from roost.node.protocol import PullImage

from .image_world import Layout, Tarball, build_shell, in_chunks, root_with, skopeo_copy

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")

PASSWD = b"root:x:0:0::/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\nodd:x:x:1:::\n"
GROUP = b"root:x:0:\nnode:x:1001:\nstaff:x:50:node\n"


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_shell(tmp_path_factory.mktemp("shell"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    (place / "etc").mkdir(parents=True)
    (place / "etc/passwd").write_bytes(PASSWD)
    (place / "etc/group").write_bytes(GROUP)
    return place


def layout_with(tmp_path: Path, shell: bytes) -> Layout:
    files = root_with(shell).directory("etc").file("etc/passwd", PASSWD).file("etc/group", GROUP)
    return Layout(tmp_path / "layout").create().image("v1", files, Tarball().file("added")).configure(
        "v1", "--config.env=PATH=/opt/go/bin:/bin", "--config.env=JAVA_HOME=/opt/java", "--config.workingdir=/srv/app",
        "--config.user=node",
    )  # fmt: skip


EXPECTED = Config(
    {"HOME": "/home/node", "USER": "node", "LOGNAME": "node", "PATH": "/opt/go/bin:/bin", "JAVA_HOME": "/opt/java"},
    "/srv/app",
    1000,
    1001,
)


async def test_it_comes_with_an_oci_layout(tmp_path: Path, shell: bytes) -> None:
    store = ImageStore(tmp_path / "images")
    layout = layout_with(tmp_path, shell)
    await store.pull("app", PullImage(reference=f"oci:{layout.path}:v1"), quiet)
    with store.hold("app") as hold:
        assert hold.config == EXPECTED
        assert (hold.path / "srv/app").is_dir()
        with ImageStore(tmp_path / "images").hold_content(hold.content) as again:
            assert again.config == EXPECTED


async def test_it_comes_with_a_docker_archive(tmp_path: Path, shell: bytes) -> None:
    store = ImageStore(tmp_path / "images")
    skopeo_copy(f"oci:{layout_with(tmp_path, shell).path}:v1", f"docker-archive:{tmp_path}/saved.tar:team/app:v1")
    await store.import_file("app", tmp_path / "saved.tar", quiet)
    with store.hold("app") as hold:
        assert hold.config == EXPECTED


async def test_a_root_file_system_says_nothing_and_what_it_leaves_goes_with_it(tmp_path: Path, shell: bytes) -> None:
    store = ImageStore(tmp_path / "images")
    await store.import_archive("plain", in_chunks(root_with(shell).bytes()), quiet)
    with store.hold("plain") as hold:
        assert hold.config == Config()
    assert len(os.listdir(tmp_path / "images/configs")) == 1
    await store.remove("plain")
    assert os.listdir(tmp_path / "images/configs") == []


@pytest.mark.parametrize(
    ("user", "uid", "gid", "home"),
    [
        ("node", 1000, 1001, "/home/node"),
        ("1000", 1000, 1001, "/home/node"),
        ("node:staff", 1000, 50, "/home/node"),
        ("node:7", 1000, 7, "/home/node"),
        ("4242", 4242, 0, "/"),
        ("4242:50", 4242, 50, "/"),
    ],
)
def test_a_user_is_looked_up_as_docker_does(root: Path, user: str, uid: int, gid: int, home: str) -> None:
    config = prepare(Told(user=user), root)
    assert (config.uid, config.gid, config.environment["HOME"]) == (uid, gid, home)


@pytest.mark.parametrize("user", [None, "", "root", "0", "0:0"])
def test_root_is_root(root: Path, user: str | None) -> None:
    assert prepare(Told(user=user), root) == Config()


@pytest.mark.parametrize("user", ["nobody-knows", "node:nobody-knows", "70000", "odd", "../../etc"])
def test_a_user_that_cannot_be_is_refused(root: Path, user: str) -> None:
    with pytest.raises(Invalid, match="the image says USER"):
        prepare(Told(user=user), root)


def test_a_home_or_name_that_the_image_says_itself_stays(root: Path) -> None:
    config = prepare(Told(user="node", env=["HOME=/data"]), root)
    assert (config.environment["HOME"], config.environment["USER"]) == ("/data", "node")
    assert config.as_root().environment["HOME"] == "/root"
    assert (config.as_root().uid, config.as_root().directory) == (0, "/root")


@pytest.mark.parametrize(
    ("said", "directory"), [(None, "/root"), ("", "/root"), ("/", "/root"), ("/app", "/app"), ("app/x", "/app/x")]
)
def test_a_working_directory_is_made_and_the_root_counts_as_none(root: Path, said: str | None, directory: str) -> None:
    assert prepare(Told(working_dir=said), root).directory == directory
    assert said in (None, "", "/") or (root / directory[1:]).is_dir()


def test_a_working_directory_leads_nowhere_outside(root: Path, tmp_path: Path) -> None:
    (root / "door").symlink_to(tmp_path)
    prepare(Told(working_dir="/door/made"), root)
    assert not (tmp_path / "made").exists()
    (root / "file").write_text("")
    for path in ("/file/x", "/../x", "/a\0b"):
        with pytest.raises(Invalid, match="working directory"):
            prepare(Told(working_dir=path), root)


@pytest.mark.parametrize(
    "entries", [["=x"], ["A=b\0c"], ["A=" + "x" * 70_000], [f"A{at}=" for at in range(1001)], ["A" * 70_000]]
)
def test_an_environment_that_no_process_can_have_is_refused(root: Path, entries: list[str]) -> None:
    with pytest.raises(Invalid, match="environment"):
        prepare(Told(env=entries), root)


async def test_a_configuration_that_is_none_is_refused(tmp_path: Path, shell: bytes) -> None:
    layout = layout_with(tmp_path, shell)
    manifest_of(layout, {"config": {"Env": "PATH=/bin"}})
    with pytest.raises(Invalid, match="the image's configuration is not what"):
        await ImageStore(tmp_path / "images").import_archive("app", in_chunks(layout.archive(), 100_000), quiet)


def manifest_of(layout: Layout, configuration: object) -> None:
    """Put `configuration` in the place of the image's own, with digests that fit."""
    index = json.loads((layout.path / "index.json").read_bytes())
    at = index["manifests"][0]
    manifest = json.loads(layout.blob(at["digest"]))
    data = json.dumps(configuration).encode()
    manifest["config"] |= {"digest": layout.add(data), "size": len(data)}
    whole = json.dumps(manifest).encode()
    at |= {"digest": layout.add(whole), "size": len(whole)}
    (layout.path / "index.json").write_text(json.dumps(index))
