"""An image is built from the distribution's own packages, and what scripts expect of it works."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from roost.cli.machine import node_image
from roost.errors import Invalid, NotFound, SetupMissing
from roost.node.images import ImageStore, build, npm
from roost.node.images.sources import KEYRINGS, Host, Source, choose, deb822_sources, one_line_sources
from roost.node.protocol import BuildImage, Image

from .image_world import run_inside

SHARED = Path("/var/lib/roost/images")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="packages are unpacked as root")


@pytest.fixture
async def standard_root() -> Path:
    """The machine's standard image, which `make setup` builds; built here where it is missing."""
    store = ImageStore(SHARED)
    try:
        return store.rootfs("standard")
    except NotFound:
        await store.build("standard", BuildImage(), print)
        return store.rootfs("standard")


@needs_root
async def test_the_standard_image_has_what_scripts_expect(standard_root: Path) -> None:
    for program in ("sh", "bash", "python3", "python", "pip", "curl", "apt-get", "ps"):
        assert run_inside(standard_root, "/bin/sh", "-c", f"command -v {program}").strip()
    assert "pip" in run_inside(standard_root, "python3", "-m", "pip", "--version")
    assert run_inside(standard_root, "python3", "-c", "import venv, ssl, sqlite3; print('fine')") == "fine\n"
    assert run_inside(standard_root, "apt-get", "-s", "autoremove").splitlines()[-1].startswith("0 upgraded")
    assert "LOCAL" in run_inside(standard_root, "dpkg-divert", "--listpackage", "/bin/sh")
    assert os.listdir(standard_root / "dev") == []
    assert not (standard_root / "etc/machine-id").exists()
    assert not list(standard_root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"))
    assert run_inside(standard_root, "apt-config", "dump", "APT::Sandbox::User").strip().endswith('"root";')
    assert not [name for name in os.listdir(standard_root / "var/lib/apt/lists") if "Packages" in name]


@needs_root
async def test_the_standard_image_trusts_what_this_machine_trusts(standard_root: Path) -> None:
    host = build.certificates(Path("/", build.BUNDLE))
    assert host <= build.certificates(standard_root / build.BUNDLE)


@needs_root
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_an_image_is_built_with_further_packages(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    said: list[str] = []
    image = await store.build("tools", BuildImage(packages=["jq"]), said.append)
    root = store.rootfs("tools")
    assert image.source.startswith("build: ") and image.source.endswith(" with jq")
    assert image.recipe == build.recipe(BuildImage(packages=["jq"]))
    assert image.size < 350_000_000
    assert run_inside(root, "/bin/sh", "-c", "echo '{\"a\":1}' | jq .a") == "1\n"
    assert build.certificates(Path("/", build.BUNDLE)) <= build.certificates(root / build.BUNDLE)
    assert os.listdir(root / "dev") == []
    assert len(said) >= 6
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@needs_root
def test_the_standard_image_is_small_enough(standard_root: Path) -> None:
    image = next(image for image in ImageStore(SHARED).list() if image.name == "standard")
    assert image.size < 350_000_000
    assert image.recipe == build.recipe(BuildImage()), "`make setup` builds it anew"


def test_a_recipe_follows_from_the_definition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = build.recipe(BuildImage())
    assert first == build.recipe(BuildImage())
    assert first != build.recipe(BuildImage(packages=["jq"]))
    for name, changed in (
        ("PACKAGES", (*build.PACKAGES, "jq")),
        ("LEFT_OUT", ()),
        ("FILES", build.FILES | {"etc/motd": "x"}),
        ("PREPARE", ":"),
        ("INSIDE", tmp_path),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(build, name, changed)
            assert build.recipe(BuildImage()) != first, name


@needs_root
def test_an_image_is_built_anew_only_where_its_definition_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    async def image(_: ImageStore, name: str, request: BuildImage, progress: object) -> Image:
        built.append(name)
        return stands(recipe=build.recipe(request))

    def stands(**fields: str) -> Image:
        source = build.source_of(BuildImage())
        known = {"name": "standard", "digest": "sha256:0", "size": 1, "source": source, "created_ns": 1}
        return Image(**(known | fields))  # type: ignore[arg-type]

    monkeypatch.setattr(ImageStore, "build", image)
    for there, builds in (
        (None, True),
        (stands(recipe=build.recipe(BuildImage())), False),
        (stands(recipe="another"), True),
        (stands(recipe="another", source="pull: docker://docker.io/library/alpine:3"), False),
        (stands(recipe="another", source=f"{build.source_of(BuildImage())} with jq"), False),
    ):
        built.clear()
        monkeypatch.setattr(ImageStore, "list", lambda _, there=there: [there] if there else [])
        CliRunner().invoke(node_image, ["ensure", "standard", "--images", str(tmp_path)], catch_exceptions=False)
        assert built == (["standard"] if builds else []), there


async def test_npm_is_left_out_where_its_registry_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(npm, "URL", "http://127.0.0.1:9/npm.tgz")
    assert await npm.fetch("bookworm", said.append) is None
    assert said[0].startswith("leaving npm out")
    assert await npm.fetch("jammy", said.append) is None, "its Node is too old"


async def test_another_archive_than_that_of_the_digest_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    (tmp_path / "npm.tgz").write_bytes(b"other")
    monkeypatch.setattr(npm, "URL", (tmp_path / "npm.tgz").as_uri())
    assert await npm.fetch("bookworm", said.append) is None
    assert "has other bytes" in said[0]


async def test_what_is_no_package_or_suite_is_refused(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    for request in (BuildImage(packages=["--help"]), BuildImage(packages=["a b"]), BuildImage(suite="-x")):
        with pytest.raises(Invalid):
            await store.build("odd", request, print)
    assert os.listdir(tmp_path / "images/work") == []


def host(distribution: str, codename: str, *sources: Source, keys: tuple[str, ...] = ()) -> Host:
    return Host(distribution, codename, sources, frozenset(KEYRINGS[key] for key in keys))  # type: ignore[index]


MIRROR = Source("http://mirror.example/debian", ("bookworm", "bookworm-updates", "bookworm-backports"))


def test_the_hosts_mirror_is_used_for_its_own_suite() -> None:
    origin = choose("bookworm", host("debian", "bookworm", MIRROR, keys=("debian",)))
    assert origin.sources == (Source("http://mirror.example/debian", ("bookworm", "bookworm-updates")),)
    assert origin.deb822() == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_another_suite_comes_from_the_public_mirrors() -> None:
    origin = choose("trixie", host("debian", "bookworm", MIRROR, keys=("debian",)))
    assert [source.uri for source in origin.sources] == [
        "http://deb.debian.org/debian",
        "http://deb.debian.org/debian-security",
    ]


def test_an_ubuntu_host_without_debian_keys_builds_its_own_distribution() -> None:
    origin = choose("bookworm", host("ubuntu", "noble", keys=("ubuntu",)))
    assert (origin.distribution, origin.suite) == ("ubuntu", "noble")
    assert origin.sources[0].uri == "http://archive.ubuntu.com/ubuntu"


def test_a_suite_whose_keys_are_missing_names_the_package_that_brings_them() -> None:
    with pytest.raises(SetupMissing, match="debian-archive-keyring"):
        choose("trixie", host("ubuntu", "noble", keys=("ubuntu",)))
    with pytest.raises(Invalid, match="not known"):
        choose("sarge", host("debian", "bookworm", keys=("debian",)))


def test_both_kinds_of_apt_sources_are_read() -> None:
    assert one_line_sources(
        "# deb http://old.example/ x main\ndeb [arch=amd64 signed-by=/k] https://m.example/debian/ bookworm main\n"
        "deb-src http://m.example/debian bookworm main\ndeb cdrom:[x]/ bookworm main\n"
        "deb https://user:secret@m.example/debian bookworm main\n"
    ) == [Source("https://m.example/debian", ("bookworm",))]
    assert deb822_sources(
        "Types: deb deb-src\n# comment\nURIs: http://a.example/debian\n http://b.example/debian/\n"
        "Suites: bookworm\nComponents: main contrib\n\nTypes: deb\nEnabled: no\nURIs: http://c.example\n"
        "Suites: bookworm\nComponents: main\n"
    ) == [Source("http://a.example/debian", ("bookworm",)), Source("http://b.example/debian", ("bookworm",))]


def test_mmdebstrap_is_called_with_nothing_that_a_shell_reads() -> None:
    origin = choose("bookworm", host("debian", "bookworm", MIRROR, keys=("debian",)))
    argv = build.mmdebstrap_argv(origin, ["curl", "python3"], Path("/w/root"))
    assert argv[:8] == ["setpriv", "--pdeathsig", "KILL", "--", "unshare", "--pid", "--fork", "--kill-child=KILL"]
    assert argv[argv.index("mmdebstrap") :][:5] == [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--include=curl,python3",
    ]
    assert argv[-3:] == ["bookworm", "/w/root", "-"]
