"""`roost cp`: files and directories to and from a sandbox, as a tar archive through a `tar` inside.

What comes from a sandbox is hostile: nothing is written outside the place that was named, whatever its names and links
say, and nothing of it runs as anybody else.
"""

import base64
import contextlib
import io
import json
import os
import posixpath
import secrets
import shlex
import shutil
import sys
import tarfile
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from roost.cli.answers import as_json, print_json
from roost.cli.connection import Api, Interrupted, Json, api_options
from roost.cli.follow import parse
from roost.cli.leaving import write
from roost.cli.paths import path_of
from roost.cli.stdin import send
from roost.cli.wording import note
from roost.errors import Invalid, NotFound, RoostError

STEP = 1024 * 1024  # bytes
WAKE_WITHIN = 100.0  # seconds
LIMIT = 3600  # seconds; the most that a followed command may take
LARGEST = 1 << 40  # bytes of one file; no sandbox has as much
SAID = 4096  # bytes of what tar complains of
UNPACK = 'cd -- "$1" && exec tar -xf -'
NO_TAR = 127


@dataclass(frozen=True)
class There:
    """A path in a sandbox."""

    job: str
    path: str


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@as_json
@api_options
def cp(api: Api, source: str, target: str, raw: bool) -> None:
    """Copy a file or directory to or from a sandbox, which is woken: NAME:PATH is one there, - a tar archive here.

    \b
    roost cp data.csv web:/root/            # into that directory
    roost cp web:/root/out ./results        # a directory, with all that is in it
    roost cp web:/etc - | tar t
    """
    begin, end = _place(source), _place(target)
    if isinstance(begin, There) == isinstance(end, There):
        raise Invalid("one of the two is in a sandbox: write it as NAME:PATH, and a path here with a colon as ./PATH")
    if isinstance(begin, There):
        _fetch(api, begin, str(end))
    else:
        assert isinstance(end, There)
        _send(api, begin, end)
    if raw:
        print_json({"source": source, "target": target})


def _place(text: str) -> "There | str":
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return text
    return There(name, posixpath.join("/root", path))


# ---- from a sandbox ----------------------------------------------------------------------------------------------


def _fetch(api: Api, source: There, target: str) -> None:
    path = source.path.rstrip("/") or "/"
    folder, name = ("/", ".") if path == "/" else posixpath.split(path)
    command = f"tar -C {shlex.quote(folder)} -cf - {shlex.quote('./' + name)}"
    output = _output(api, source, command)
    if target == "-":
        for data in output:
            write(1, data)
        return
    here = Path(os.path.abspath(target))  # noqa: PTH100 - links in it stay as they are
    if here.is_dir() and name != ".":
        here = here / name
    elif not here.parent.is_dir():
        raise Invalid(f"there is no directory {here.parent} here")
    with tarfile.open(fileobj=io.BufferedReader(_Stream(output), STEP), mode="r|") as archive:
        Unpacking(here, posixpath.normpath(name)).all(archive)
    for _ in output:  # what follows the archive's end, and how tar ended
        pass


def _output(api: Api, source: There, command: str) -> Generator[bytes]:
    """What a command writes. Raises RoostError with its complaint where it fails."""
    body, complaint = json.dumps({"command": command, "timeout": LIMIT}).encode(), b""
    try:
        with api.stream("POST", f"{path_of(source.job)}/exec/follow", body, timeout=WAKE_WITHIN) as answer:
            for message in parse(answer):
                if message.name == "end":
                    return _check(source, json.loads(message.data), complaint)
                if message.name == "message":
                    piece = json.loads(message.data)
                    data = base64.b64decode(piece["data"])
                    if piece["source"] == "stdout":
                        yield data
                    else:
                        complaint = (complaint + data)[-SAID:]
    except Interrupted as error:
        raise RoostError(str(error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise RoostError(f"the connection broke ({error}); copy again") from error
    raise RoostError("the connection broke; copy again")


def _check(there: There, end: Json, complaint: bytes) -> None:
    if end.get("exit_code") == 0:
        return
    said = complaint.decode("utf-8", "replace").strip() or end.get("note") or end.get("reason") or "it does not say why"
    if end.get("exit_code") == NO_TAR:
        raise RoostError(f"{there.job} has no tar, which copying takes ({said}); install it there")
    raise NotFound(f"{there.job}:{there.path}: {said}")


class _Stream(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


class Unpacking:
    """The entry `name` of an archive, and all below it, becomes `here`.

    Links are made when all else is written, so that nothing is written through one that came along.
    """

    def __init__(self, here: Path, name: str) -> None:
        self._here, self._name = here, name
        self._links: list[tuple[Path, str]] = []
        self._modes: list[tuple[Path, int]] = []
        self._made: set[Path] = set()

    def all(self, archive: tarfile.TarFile) -> None:
        """Raises RoostError."""
        try:
            for member in archive:
                self._one(archive, member, self._path(member.name))
            for place, target in self._links:
                self._link(place, target)
            for place, mode in reversed(self._modes):
                place.chmod(mode)
        except tarfile.TarError as error:
            raise RoostError(f"the sandbox sent no whole archive: {error}") from error
        except OSError as error:
            raise RoostError(f"cannot write {error.filename or self._here}: {error.strerror or error}") from error

    def _path(self, name: str) -> Path:
        """Where an entry goes. Raises RoostError for one that would be outside."""
        parts = posixpath.normpath(name).split("/")
        whole = [] if self._name == "." else [self._name]
        if parts[: len(whole)] != whole or ".." in parts or parts[0] == "":
            raise RoostError(f"the sandbox sent {name!r}, which was not asked for")
        return self._here.joinpath(*(part for part in parts[len(whole) :] if part != "."))

    def _one(self, archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
        self._require_within(place)
        if member.isdir():
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise RoostError(f"{place} is here and no directory")
            if not place.exists():
                place.mkdir(mode=0o700)
                self._modes.append((place, member.mode & 0o777))  # when all that goes into it is written
        elif member.issym():
            self._links.append((place, member.linkname))
        elif member.islnk():
            self._hard_link(place, self._path(member.linkname))
        elif member.isfile():
            self._file(archive, member, place)
        else:
            note(f"{member.name} is no file, directory or link; left out")
        self._made.add(place)

    def _require_within(self, place: Path) -> None:
        """Also of links that were here before."""
        root = self._here.parent.resolve()
        if place != self._here and not place.parent.resolve().is_relative_to(root / self._here.name):
            raise RoostError(f"{place} leads out of {self._here}")

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
        if member.size > LARGEST:
            raise RoostError(f"the sandbox sent {member.name!r} of {member.size} bytes, more than it can have")
        content = archive.extractfile(member)
        assert content
        self._remove(place)
        with place.open("xb") as file:
            while data := content.read(STEP):
                if data.count(0) == len(data):
                    file.seek(len(data), os.SEEK_CUR)  # a hole stays one
                else:
                    file.write(data)
            file.truncate()
        place.chmod(member.mode & 0o777)
        os.utime(place, (member.mtime, member.mtime))

    def _hard_link(self, place: Path, first: Path) -> None:
        if first not in self._made:
            raise RoostError(f"the sandbox sent a link to {first}, which it did not send")
        self._remove(place)
        os.link(first, place, follow_symlinks=False)

    def _link(self, place: Path, target: str) -> None:
        self._require_within(place)
        self._remove(place)
        place.symlink_to(target)

    def _remove(self, place: Path) -> None:
        if place.is_dir() and not place.is_symlink():
            raise RoostError(f"{place} is a directory here")
        place.unlink(missing_ok=True)


# ---- to a sandbox ------------------------------------------------------------------------------------------------


def _send(api: Api, source: str, target: There) -> None:
    if source == "-":
        return _unpack(api, target, target.path, lambda out: shutil.copyfileobj(sys.stdin.buffer, out, STEP))
    here = Path(source)
    if not os.path.lexists(here):
        raise Invalid(f"there is no file or directory {source} here")
    into = _is_directory(api, target)
    if target.path.endswith("/") and not into:
        raise NotFound(f"{target.job}:{target.path}: there is no such directory")
    folder, name = (target.path, here.resolve().name) if into else posixpath.split(target.path)

    def pack(out: "Outgoing") -> None:
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            archive.add(here, arcname=name, filter=_root)  # pyright: ignore[reportUnknownMemberType]

    return _unpack(api, target, folder, pack)


def _root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Ids of this machine mean nothing there."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _is_directory(api: Api, there: There) -> bool:
    body = {"command": f"test -d {shlex.quote(there.path)}", "timeout": 30}
    return api.call("POST", f"{path_of(there.job)}/exec", body, timeout=30 + WAKE_WITHIN)["exit_code"] == 0


def _unpack(api: Api, there: There, folder: str, fill: Callable[["Outgoing"], None]) -> None:
    """A kept process takes the archive by position, and is removed whatever happens."""
    chosen = f"{1 + secrets.randbelow(2**30 - 1):08x}"
    body = {"arguments": ["/bin/sh", "-c", UNPACK, "sh", folder], "input": True, "exec_id": chosen}
    where = f"{path_of(there.job)}/execs"
    api.call("POST", where, body, timeout=WAKE_WITHIN)
    process = f"{where}/{urllib.parse.quote(chosen)}"
    try:
        out = Outgoing(api, f"{process}/input")
        with contextlib.suppress(RoostError):  # it has ended early; its own words say why
            fill(out)
            out.close()
        _check(there, *_ended(api, process))
    finally:
        with contextlib.suppress(RoostError):
            api.call("DELETE", process)


def _ended(api: Api, process: str) -> tuple[Json, bytes]:
    """How it ended, and what it complained of."""
    with api.stream("GET", f"{process}/output?follow=true", timeout=WAKE_WITHIN) as answer:
        complaint = b""
        for message in parse(answer):
            if message.name == "end":
                return json.loads(message.data), complaint
            if message.name == "message":
                complaint = (complaint + base64.b64decode(json.loads(message.data)["data"]))[-SAID:]
    raise RoostError("the connection broke; copy again")


class Outgoing:
    """A file for `tarfile` to write."""

    def __init__(self, api: Api, path: str) -> None:
        self._api, self._path = api, path
        self._position = 0
        self._kept = bytearray()

    def write(self, data: bytes) -> int:
        self._kept += data
        if len(self._kept) >= STEP:
            self._flush()
        return len(data)

    def close(self) -> None:
        self._flush()
        send(self._api, self._path, self._position, b"")

    def _flush(self) -> None:
        if self._kept:
            self._position = send(self._api, self._path, self._position, bytes(self._kept))
            self._kept.clear()
