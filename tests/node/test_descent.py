"""Walks of trees that no path reaches the end of: at any depth, with few descriptors, while others move directories."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost import linux
from roost.node.canonical import canonicalise
from roost.node.descent import OPEN, Descent, walk
from roost.node.disk import unmount
from roost.node.prune import prune
from roost.node.usage import grown
from tests.node.sync.trees import dig

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other owners")
DEEP = 10_000  # directories in one another
LONG = "n" * 200


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """`rmtree` of a test's directory knows paths only."""
    linux.mount("deep", tmp_path, "tmpfs")
    yield tmp_path
    unmount(tmp_path)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4 * OPEN + 64, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("depth", "name"), [(DEEP, "d"), (60, LONG)])
def test_a_walk_reaches_what_no_path_does(place: Path, few_descriptors: None, depth: int, name: str) -> None:
    dig(place / "top", depth, name)
    assert [one.name for one in walk(place / "top")] == [name] * depth + ["file"]


@pytest.mark.parametrize(("depth", "name"), [(DEEP, "d"), (60, LONG)])
def test_the_innermost_file_of_a_layer_gets_its_container_id(place: Path, depth: int, name: str) -> None:
    dig(place / "top", depth, name)
    for found in walk(place / "top"):
        os.chown(found.name, 70_005, 70_005, dir_fd=found.directory)
    canonicalise(place / "top", 70_000)
    assert {found.status.st_uid for found in walk(place / "top")} == {5}


def test_a_deep_layer_is_measured_and_pruned(place: Path, few_descriptors: None) -> None:
    dig(place / "lower", DEEP)
    dig(place / "upper", DEEP)
    added = grown(place / "upper", [])
    assert added >= 4096
    assert grown(place / "upper", [place / "lower"]) == 0
    (place / "hiding").mkdir()
    os.mknod(place / "hiding/d", 0o020000, os.makedev(0, 0))
    assert grown(place / "hiding", [place / "lower"]) == -added
    assert prune(place / "upper", place / "lower") == 0
    assert prune(place / "hiding", place / "upper") == 0


def test_a_directory_whose_content_was_moved_away_is_found_by_its_names(place: Path) -> None:
    dig(place / "top", 2 * OPEN)
    with Descent(place / "top") as descent:
        for _ in range(2 * OPEN):
            descent.enter("d")
        place.joinpath("top", *["d"] * (OPEN - 1)).rename(place / "elsewhere")
        for _ in range(2 * OPEN):
            descent.leave()
        assert os.path.samestat(os.fstat(descent.here), (place / "top").stat())


def test_what_took_the_place_of_a_directory_is_not_taken_for_it(place: Path) -> None:
    dig(place / "top", 2 * OPEN)
    above, inner = place / "top/d/d", place / "top/d/d/d"
    with Descent(place / "top") as descent:
        for _ in range(2 * OPEN):
            descent.enter("d")
        inner.rename(place / "elsewhere")
        above.rename(place / "away")
        above.mkdir()
        while descent.depth > 3:
            descent.leave()
        with pytest.raises(FileNotFoundError):
            descent.leave()
        descent.leave()
        assert os.path.samestat(os.fstat(descent.here), (place / "top/d").stat())
