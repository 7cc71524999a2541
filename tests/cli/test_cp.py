"""What `roost cp` makes of an archive that a hostile sandbox sends."""

import io
import tarfile
from pathlib import Path

import pytest

from roost.cli.cp import There, Unpacking, _place
from roost.errors import RoostError


def archive(*members: tarfile.TarInfo | tuple[str, bytes]) -> tarfile.TarFile:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as made:
        for member in members:
            if isinstance(member, tuple):
                entry = tarfile.TarInfo(member[0])
                entry.size, entry.mode = len(member[1]), 0o4755
                made.addfile(entry, io.BytesIO(member[1]))
            else:
                made.addfile(member)
    content.seek(0)
    return tarfile.open(fileobj=content, mode="r|")


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, 0o755
    return made


def link(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, target)


def folder(name: str) -> tarfile.TarInfo:
    return entry(name, tarfile.DIRTYPE)


@pytest.mark.parametrize(
    "members",
    [
        [("../out", b"x")],
        [("/etc/out", b"x")],
        [("other", b"x")],
        [folder("got"), ("got/../../out", b"x")],
        [folder("got"), entry("got/hard", tarfile.LNKTYPE, "../../../etc/passwd")],
        [folder("got"), entry("got/hard", tarfile.LNKTYPE, "got/never-sent")],
    ],
)
def test_nothing_is_written_outside_the_place_that_was_named(tmp_path: Path, members: list[object]) -> None:
    place = tmp_path / "here" / "got"
    place.parent.mkdir()
    with pytest.raises(RoostError):
        Unpacking(place, "got").all(archive(*members))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nothing_is_written_through_a_link_that_came_along_or_was_there(tmp_path: Path) -> None:
    outside, place = tmp_path / "outside", tmp_path / "got"
    outside.mkdir()
    with pytest.raises(RoostError):
        Unpacking(place, "got").all(archive(folder("got"), link("got/a", str(outside)), ("got/a/x", b"x")))
    place.mkdir(exist_ok=True)
    (place / "b").symlink_to(outside)
    with pytest.raises(RoostError):
        Unpacking(place, "got").all(archive(folder("got"), ("got/b/x", b"x")))
    assert list(outside.iterdir()) == []


def test_files_modes_links_and_holes_arrive_and_set_user_id_does_not(tmp_path: Path) -> None:
    place = tmp_path / "got"
    members = [folder("got"), ("got/tool", b"#!/bin/sh\n"), link("got/also", "tool"), ("got/hole", bytes(3_000_000))]
    members.append(entry("got/same", tarfile.LNKTYPE, "got/tool"))
    Unpacking(place, "got").all(archive(*members))  # type: ignore[arg-type]
    assert (place / "tool").stat().st_mode & 0o7777 == 0o755
    assert ((place / "also").readlink(), (place / "hole").read_bytes()) == (Path("tool"), bytes(3_000_000))
    assert (place / "hole").stat().st_blocks * 512 < 1_000_000
    assert (place / "same").samefile(place / "tool")


def test_a_name_and_a_colon_mean_a_sandbox_and_paths_there_begin_at_root() -> None:
    assert _place("web:out") == There("web", "/root/out")
    assert _place("web:/etc/x") == There("web", "/etc/x")
    assert (_place("./a:b"), _place("dir/a:b"), _place("-"), _place(":x")) == ("./a:b", "dir/a:b", "-", ":x")
