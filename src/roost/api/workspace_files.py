"""Single files and directories of a workspace: of its live sandbox while a job has it, else of its head revision.

The paths are data here, bytes as the caller wrote them; that they cannot leave the file system is the node's work.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import quote, unquote_to_bytes

import msgspec
from litestar import Request, Response, delete, get, put
from litestar.datastructures import State
from litestar.params import Parameter
from litestar.response import Stream

from roost.accounts.tokens import Account
from roost.api.errors import answer
from roost.api.output import begun
from roost.api.plane import ControlPlane, Plane
from roost.api.workspaces import Name
from roost.clock import rfc3339
from roost.errors import Conflict, Invalid, NotFound
from roost.jobs import job as jobs
from roost.node.protocol import Entry, SaveRequest
from roost.workspaces import revisions, workspace
from roost.workspaces.workspace import Workspace

MAX_PATH = 4096  # bytes, as the kernel counts

Caller = Request[Account, str, State]
Place = Annotated[Path | None, Parameter(description="From the root, byte by byte percent-encoded; empty: the root")]
PATHS = ["/mags-workspaces/{id:str}/files", "/mags-workspaces/{id:str}/files/{path:path}"]

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})\Z")
_encode = msgspec.json.Encoder().encode


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str  # with U+FFFD for what is no UTF-8; `encoded` then has its exact bytes
    type: str
    size: int
    mode: str  # octal, like "0644"
    modified_at: str
    uid: int
    gid: int
    target: str | None = None  # of a symbolic link
    encoded: str | None = None  # percent-encoded, as a path wants it


class Listing(msgspec.Struct, frozen=True):
    workspace_id: str
    path: str
    entries: list[FileEntry]


class Changed(msgspec.Struct, frozen=True, omit_defaults=True):
    success: bool
    message: str
    revision: str | None = None  # the new head; none for a live sandbox


@get(
    PATHS,
    summary="Read a file, or list a directory",
    opt={"answers": ("application/octet-stream", "application/x-tar"), "ranges": True},
    description=(
        "A file's bytes (with `Range`, 206 or 416), a directory as `{workspace_id, path, entries: [{name, type, size, "
        "mode, modified_at, uid, gid, target}]}`; `tar=true`: a tar archive of either. From the sandbox of the job "
        "that has the workspace, if one runs, else from the head revision."
    ),
)
async def read(
    request: Caller,
    plane: Plane,
    id: Name,
    path: Place = None,
    tar: bool = False,
    byte_range: Annotated[str | None, Parameter(header="Range")] = None,
    if_range: Annotated[str | None, Parameter(header="If-Range")] = None,
) -> Response[Any]:
    asked = path_of(request)
    where = await _readable(plane, request.user.id, id)
    if tar:
        archive = cast("AsyncGenerator[bytes]", plane.node.tar(where, request.user.id, asked))
        return Stream(await begun(archive), media_type="application/x-tar")
    entries = cast("AsyncGenerator[Entry]", plane.node.list_files(where, request.user.id, asked))
    thing = await anext(entries)
    if thing.type == "directory":
        return Stream(_listing(id, asked, entries), media_type="application/json")
    await entries.aclose()
    if thing.type != "file":
        raise Invalid(f"path: {_shown(asked)!r} is neither a file nor a directory")
    found = Found(where, request.user.id, asked, thing)
    return await _content(plane, found, byte_range, if_range)


@put(
    PATHS[1],
    status_code=200,
    request_max_body_size=None,
    summary="Write a file",
    opt={"body": "application/octet-stream"},
    description=(
        "The body is its content; missing directories are made. A file that exists keeps its owner, its links and "
        "without `mode` (octal) its mode; what is new belongs to the owner of the directory above, with mode 0644. "
        "Into the sandbox of the job that has the workspace, if one runs; else the workspace gets a new revision."
    ),
)
async def write(request: Caller, plane: Plane, id: Name, path: Path, mode: str | None = None) -> Changed:
    asked, permissions = _file_of(request), None if mode is None else _mode(mode)
    live = await _live(plane, request.user.id, id)
    if live is not None:
        await plane.node.write_file(live, asked, request.stream(), permissions)
        return Changed(True, f"{_shown(asked)} written")
    return await _edit(plane, request.user.id, id, asked, request.stream(), permissions)


@delete(PATHS[1], status_code=200, summary="Delete a file, or a directory with all that is in it")
async def remove(request: Caller, plane: Plane, id: Name, path: Path) -> Changed:
    asked = _file_of(request)
    live = await _live(plane, request.user.id, id)
    if live is not None:
        await plane.node.delete_file(live, asked)
        return Changed(True, f"{_shown(asked)} deleted")
    return await _edit(plane, request.user.id, id, asked, None, None)


# ---- where -------------------------------------------------------------------------------------------------


async def _live(plane: ControlPlane, account_id: int, name: str) -> str | None:
    """The sandbox of the job that has the workspace. Raises Conflict while that job has none, NotFound."""
    await workspace.find(plane.database, account_id, name)
    holder = await workspace.writer(plane.database, account_id, name)
    if holder is None:
        return None
    sandbox = await _sandbox(plane, account_id, holder)
    if sandbox is None:
        raise workspace.in_use(name, holder)
    return sandbox


async def _sandbox(plane: ControlPlane, account_id: int, request_id: str) -> str | None:
    job = await jobs.find(plane.database, account_id, request_id)
    run = plane.live.run_of(job)
    return job.vm_id if run is not None and run.serves else None


async def _readable(plane: ControlPlane, account_id: int, name: str) -> str:
    """A sandbox's id or a revision's. Raises NotFound."""
    holder = await workspace.writer(plane.database, account_id, name)
    if holder is not None and (sandbox := await _sandbox(plane, account_id, holder)) is not None:
        return sandbox
    found = await workspace.find(plane.database, account_id, name)
    if found.head is None:
        raise NotFound(f"workspace '{name}' holds nothing yet; a job has to run with it first")
    return found.head


async def _edit(
    plane: ControlPlane, account_id: int, name: str, path: str, chunks: AsyncIterator[bytes] | None, mode: int | None
) -> Changed:
    """A new revision with that one change; it becomes the head if the head is still the one that was changed."""
    found = await workspace.find(plane.database, account_id, name)
    with plane.live.unrecorded.chosen() as revision:
        save = SaveRequest(revision=revision, account=account_id, upload=found.persistent)
        made = await plane.node.edit(_head(found), save, path, chunks, mode)
        await revisions.settle_edit(plane.database, found, made)
    verb = "deleted" if chunks is None else "written"
    return Changed(True, f"{_shown(path)} {verb}", made.id)


def _head(of: Workspace) -> str:
    if of.head is None:
        raise Conflict(f"workspace '{of.name}' holds nothing yet; a job has to run with it first")
    return of.head


# ---- what --------------------------------------------------------------------------------------------------


def path_of(request: Caller) -> str:
    """What follows `/files/`, exactly as it was sent, relative to the root. Raises Invalid."""
    parts = request.scope["raw_path"].partition(b"?")[0].split(b"/")
    if b"mags-workspaces" not in parts:
        raise Invalid("path: write the part before the file's path without percent signs")
    sent = unquote_to_bytes(b"/".join(parts[parts.index(b"mags-workspaces") + 3 :]))
    components = [one for one in sent.split(b"/") if one]
    if b"\0" in sent or len(sent) > MAX_PATH:
        raise Invalid(f"path: at most {MAX_PATH} bytes, none of them NUL")
    if b".." in components or b"." in components:
        raise Invalid("path: may not hold '.' or '..'; write it from the root")
    return b"/".join(components).decode("utf-8", "surrogateescape")


def _file_of(request: Caller) -> str:
    path = path_of(request)
    if not path or request.scope["raw_path"].endswith(b"/"):
        raise Invalid("path: name a file, without a slash at its end")
    return path


def _mode(text: str) -> int:
    if not re.fullmatch(r"[0-7]{3,4}", text):
        raise Invalid(f"mode: {text[:20]!r} is no octal mode; write it like 0644")
    return int(text, 8)


def _shown(path: str) -> str:
    return "/" + path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclass(frozen=True)
class Found:
    """A file, and where it is."""

    where: str  # a sandbox's id or a revision's
    account_id: int
    path: str
    entry: Entry


async def _content(plane: ControlPlane, found: Found, byte_range: str | None, if_range: str | None) -> Response[Any]:
    file = found.entry
    tag = f'"{file.mtime_ns:x}-{file.size:x}"'
    headers = {"Accept-Ranges": "bytes", "ETag": tag}
    start, end, status = 0, file.size, 200
    span = _span(byte_range, file.size) if if_range in (None, tag) else None
    if span is not None:
        start, end, status = *span, 206
        if start >= end:
            text = f"Range: the file has {file.size} bytes, none of which that asks for"
            return answer(416, text, {"Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["Content-Length"] = str(end - start)
    if start == end:
        return Response(b"", headers=headers, media_type="application/octet-stream")
    content = cast("AsyncGenerator[bytes]", plane.node.read_file(found.where, found.account_id, found.path, start, end))
    return Stream(await begun(content), status_code=status, headers=headers, media_type="application/octet-stream")


def _span(byte_range: str | None, size: int) -> tuple[int, int] | None:
    """What a `Range` of one part asks for; empty if that is not there. Other forms count as absent (RFC 9110)."""
    found = _RANGE.match(byte_range or "")
    if found is None or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        return (max(0, size - int(found["last"])), size) if int(found["last"]) else (0, 0)
    first, last = int(found["first"]), int(found["last"] or size)
    return None if last < first and found["last"] else (first, min(size, last + 1))


async def _listing(name: str, path: str, entries: AsyncGenerator[Entry]) -> AsyncGenerator[bytes]:
    """However many there are, without holding them all."""
    yield b'{"workspace_id":%b,"path":%b,"entries":[' % (_encode(name), _encode(_shown(path)))
    separator = b""
    try:
        async for entry in entries:
            yield separator + _encode(_entry(entry))
            separator = b","
    finally:
        await entries.aclose()
    yield b"]}"


def _entry(entry: Entry) -> FileEntry:
    name = entry.name.decode("utf-8", "replace")
    return FileEntry(
        name=name,
        type=entry.type,
        size=entry.size,
        mode=f"{entry.mode:04o}",
        modified_at=rfc3339(max(entry.mtime_ns, 0)),
        uid=entry.uid,
        gid=entry.gid,
        target=None if entry.target is None else entry.target.decode("utf-8", "replace"),
        encoded=None if name.encode() == entry.name else quote(entry.name, safe=""),
    )
