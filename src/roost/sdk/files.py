"""Uploads for jobs, and single files of workspaces."""

import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast
from urllib.parse import quote

from roost.sdk import wire
from roost.sdk.errors import MagsError
from roost.sdk.results import Changed
from roost.sdk.wire import Body, Call, Flow, Progress, Request, decoded, quoted

STEP = 256 * 1024  # bytes
FORM_TIMEOUT = 120.0  # seconds; the server stores the whole file before it answers


class FileEntry(TypedDict):
    """`mode` is octal; `target` is a symbolic link's; `encoded` is for names that are no UTF-8."""

    name: str
    type: str
    size: int
    mode: str
    modified_at: str
    uid: int
    gid: int
    target: NotRequired[str]
    encoded: NotRequired[str]


class Listing(TypedDict):
    workspace_id: str
    path: str
    entries: list[FileEntry]


def upload_file(file_path: str | os.PathLike[str], *, progress: Progress | None = None) -> Call[str]:
    """Upload a file for jobs; returns the id to name in `file_ids`. `progress(sent, size)` is called as it goes."""
    local = Path(file_path)
    if not local.is_file():
        raise MagsError(f"File not found: {file_path}")
    boundary = secrets.token_hex(16)
    name = local.name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    size = local.stat().st_size

    def pieces() -> Iterator[bytes]:
        yield head
        yield from _pieces(local, size, progress)
        yield tail

    body = Body(pieces, len(head) + size + len(tail), f"multipart/form-data; boundary={boundary}")
    answer = yield from wire.send(Request("POST", "/mags-files", body=body, timeout=FORM_TIMEOUT, repeatable=True))
    return str(decoded(answer)["file_id"])


def upload_files(file_paths: Sequence[str | os.PathLike[str]], *, progress: Progress | None = None) -> Call[list[str]]:
    """Upload several; returns their ids in that order. `progress` begins anew with each."""
    found = list[str]()
    for path in file_paths:
        found.append((yield from upload_file(path, progress=progress)))
    return found


def list_files(workspace_id: str, path: str = "") -> Call[Listing]:
    """List a directory of a workspace: of its live sandbox while a job has it, else of its newest revision."""
    answer = yield from wire.send(Request("GET", _path(workspace_id, path)))
    if not answer.headers.get("content-type", "").startswith("application/json"):
        raise MagsError(f"{path!r} is a file; read_file reads it")
    return decoded(answer)


def read_file(workspace_id: str, path: str) -> Call[bytes]:
    """A file's bytes, in memory; `stream_file` and `download_file` are for large ones."""
    answer = yield from wire.send(Request("GET", _path(workspace_id, path)))
    if answer.headers.get("content-type", "").startswith("application/json"):
        raise MagsError(f"{path!r} is a directory; list_files lists it")
    return answer.content


def stream_file(workspace_id: str, path: str, *, tar: bool = False) -> Flow[bytes]:
    """A file's bytes in pieces; with `tar` an archive of a file or directory."""
    return (yield from wire.read_all(Request("GET", _path(workspace_id, path), {"tar": True} if tar else {})))


def download_file(
    workspace_id: str,
    path: str,
    to: str | os.PathLike[str],
    *,
    tar: bool = False,
    progress: Progress | None = None,
) -> Call[int]:
    """Write a workspace's file, or with `tar` an archive, to this machine; returns its size.

    `to` is replaced when all of it has come. `progress(got, size)` has size 0 where it is not known.
    """
    request = Request("GET", _path(workspace_id, path), {"tar": True} if tar else {})
    answer = yield from wire.opened(request)
    if not tar and answer.headers.get("content-type", "").startswith("application/json"):
        raise MagsError(f"{path!r} is a directory; give tar=True, or list it by list_files")
    draft = Path(f"{os.fspath(to)}.part-{secrets.token_hex(4)}")
    got, size = 0, int(answer.headers.get("content-length", 0))
    try:
        with draft.open("wb") as file:
            while data := cast(bytes, (yield wire.Read())):
                file.write(data)
                got += len(data)
                if progress:
                    progress(got, size)
        draft.replace(to)
    finally:
        draft.unlink(missing_ok=True)
    return got


def write_file(
    workspace_id: str,
    path: str,
    content: bytes | str | os.PathLike[str],
    *,
    mode: str | None = None,
    progress: Progress | None = None,
) -> Call[Changed]:
    """Write a file of a workspace; missing directories are made.

    `mode` is octal; without it a file that exists keeps what it has, and a new one gets 0644.
    `content` is its bytes, its text, or a Path of a file on this machine. Into the live sandbox while a job has the
    workspace; else the workspace gets a new revision, which the answer names.
    """
    request = Request(
        "PUT",
        _path(workspace_id, path),
        {} if mode is None else {"mode": mode},
        body=body_of(content, progress),
        timeout=FORM_TIMEOUT,
    )
    return decoded((yield from wire.send(request)))


def delete_file(workspace_id: str, path: str) -> Call[Changed]:
    """Delete a file, or a directory with all that is in it."""
    return (yield from wire.call("DELETE", _path(workspace_id, path), timeout=FORM_TIMEOUT))


def _path(workspace: str, path: str) -> str:
    base = f"/mags-workspaces{quoted(workspace)}/files"
    inner = path.strip("/")
    return f"{base}/{quote(inner, safe='/', errors='surrogateescape')}" if inner else base


def body_of(
    content: bytes | str | os.PathLike[str], progress: Progress | None, kind: str = "application/octet-stream"
) -> Body:
    """Of bytes, a text, or a file of this machine."""
    if isinstance(content, str):
        content = content.encode()
    if isinstance(content, bytes):
        held = content
        return Body(lambda: _counted(iter([held] if held else []), len(held), progress), len(held), kind)
    local = Path(content)
    if not local.is_file():
        raise MagsError(f"File not found: {content}")
    size = local.stat().st_size
    return Body(lambda: _pieces(local, size, progress), size, kind)


def _pieces(local: Path, size: int, progress: Progress | None) -> Iterator[bytes]:
    with local.open("rb") as file:
        yield from _counted(iter(lambda: file.read(STEP), b""), size, progress)


def _counted(pieces: Iterator[bytes], size: int, progress: Progress | None) -> Iterator[bytes]:
    sent = 0
    for piece in pieces:
        yield piece
        sent += len(piece)
        if progress:
            progress(sent, size)
