"""The `apk` of built images: what Alpine's words come to, without a package being installed."""

import pytest

from roost.node.images.inside import apk
from roost.node.images.inside.apk import Failed, debian_names, parse, perform, resolve

THERE = dict.fromkeys(
    (
        "python3", "python3-pip", "python3-requests", "nodejs", "npm", "build-essential", "git", "openjdk-17-jdk",
        "openjdk-17-jre-headless", "libssl-dev", "libffi-dev", "zlib1g-dev", "libxml2-dev", "php8.2-cli", "php8.2-curl",
        "postgresql-client-15", "fonts-dejavu", "libjson-perl", "libevent-dev", "yq", "curl",
    ),
    "1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("alpine", "debian"),
    [
        ("python3", ["python3"]),
        ("py3-pip", ["python3-pip"]),
        ("py3-requests", ["python3-requests"]),
        ("build-base", ["build-essential"]),
        ("alpine-sdk", ["build-essential", "git"]),
        ("openjdk17", ["openjdk-17-jdk"]),
        ("openjdk17-jre-headless", ["openjdk-17-jre-headless"]),
        ("openssl-dev", ["libssl-dev"]),
        ("libffi-dev", ["libffi-dev"]),
        ("event-dev", ["libevent-dev"]),
        ("zlib-dev", ["zlib1g-dev"]),
        ("php82", ["php8.2-cli"]),
        ("php82-curl", ["php8.2-curl"]),
        ("postgresql15-client", ["postgresql-client-15"]),
        ("ttf-dejavu", ["fonts-dejavu"]),
        ("perl-json", ["libjson-perl"]),
        ("libc6-compat", []),
        ("git-bash-completion", []),
    ],
)
def test_a_name_of_alpine_means_packages_of_debian(alpine: str, debian: list[str]) -> None:
    assert resolve([alpine], THERE) == debian


def test_all_that_is_missing_is_named_with_what_was_looked_for() -> None:
    with pytest.raises(Failed) as told:
        resolve(["python3", "nosuch", "py3-nosuch", "yq"], THERE)
    for text in ("unable to select packages", "world[nosuch]", "nor python3-nosuch", "yq is another program"):
        assert text in str(told.value)
    assert "world[python3]" not in str(told.value)


@pytest.mark.parametrize("name", ["curl=8.5.0-r0", "curl>8", "curl~8", "curl@edge", "!curl"])
def test_versions_of_alpine_are_refused(name: str) -> None:
    with pytest.raises(Failed, match="leave it out"):
        debian_names(name)


def test_options_stand_anywhere_and_belong_to_their_command() -> None:
    options = parse(["-q", "add", "--no-cache", "-U", "-t.build-deps", "gcc", "-s", "--", "-x"])
    assert (options.command, options.words) == ("add", ["gcc", "-x"])
    assert options.given == {"quiet", "no_cache", "update", "virtual", "simulate"}
    assert options.values == {"virtual": ".build-deps"}
    assert parse(["info", "-s", "-a", "curl"]).given == {"size", "all"}
    assert parse(["upgrade", "-sa"]).given == {"simulate", "available"}
    assert parse(["add", "--virtual=x", "--cache-max-age", "5", "y"]).values == {"virtual": "x", "max_age": "5"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["add", "--bogus", "x"], "unrecognized option '--bogus'"),
        (["del", "--virtual", "x"], "no option of apk del"),
        (["add", "-t"], "needs a value"),
        (["add", "--quiet=1", "x"], "takes no value"),
        (["add", "--root", "/mnt", "x"], "--root: "),
        (["add", "-X", "https://alpine", "x"], "another C library"),
        (["add", "--arch", "s390x", "x"], "this machine's architecture"),
        (["add", "--no-scripts", "x"], "scripts that set them up"),
        (["install", "x"], "not an apk command here; there are add, del"),
        ([], "usage: apk"),
        (["--help"], "usage: apk"),
    ],
)
def test_what_has_no_effect_here_is_refused_with_the_reason(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["apk", *words])
    status = apk.main()
    assert why in "".join(capsys.readouterr())
    assert status == (0 if words == ["--help"] else 1)


def test_its_own_architecture_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert perform(["--print-arch"]) == 0
    own = capsys.readouterr().out.strip()
    assert parse(["add", f"--arch={own}", "x"]).words == ["x"]


@pytest.mark.parametrize("name", ["", "A", "a b", "a;b", "-x"])
def test_what_can_name_no_package_names_no_group(name: str) -> None:
    with pytest.raises(Failed, match="--virtual"):
        apk.virtual_package(name)
