"""Workspaces over HTTP: listed, deleted, and their revisions listed, checked and restored."""

from typing import Annotated

import msgspec
from litestar import Request, delete, get, post
from litestar.datastructures import State
from litestar.params import Parameter

from roost.accounts.tokens import Account
from roost.api.bodies import JsonBody
from roost.api.mags import MAX_PAGE, Stopped
from roost.api.plane import Plane
from roost.clock import rfc3339
from roost.errors import NotFound, Unsaved
from roost.node import protocol
from roost.workspaces import revisions, workspace
from roost.workspaces.revisions import Revision
from roost.workspaces.workspace import Listed

Caller = Request[Account, str, State]
Name = Annotated[str, Parameter(description="Name of a workspace")]
MAX_LISTED = 10_000  # official clients ask for no page and expect everything


class UnsavedFiles(msgspec.Struct, frozen=True):
    """What a sandbox has left and what could not be saved yet: it is kept as it is, and saving is tried again."""

    revision: str
    error: str


class WorkspaceRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    workspace_id: str
    job_count: int  # that wrote to it
    last_used: str
    has_active: bool  # a job that has not ended writes to it or began from it
    persistent: bool  # in the object store
    created_at: str
    revision: str | None = None  # its head
    unsaved: list[UnsavedFiles] = []


class WorkspaceList(msgspec.Struct, frozen=True):
    workspaces: list[WorkspaceRecord]
    total: int


class RevisionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    revision: str
    head: bool
    created_at: str
    size: int  # bytes of files above the image
    stored: bool  # in the object store
    stored_bytes: int  # that this save added to the store
    image: str
    parent: str | None = None
    request_id: str | None = None  # of the job that made it; an edit has none
    periodic: bool = False  # the next save replaces it
    unsaved: str | None = None  # why its files cannot be used yet; they are kept, and saving is tried again


class RevisionPage(msgspec.Struct, frozen=True):
    workspace_id: str
    revisions: list[RevisionRecord]
    total: int
    page: int
    page_size: int


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revision: str


class Restored(msgspec.Struct, frozen=True):
    success: bool
    message: str
    revision: str


class Recovered(msgspec.Struct, frozen=True):
    success: bool
    message: str
    recovered: list[str]  # revisions
    unsaved: list[UnsavedFiles]  # that still cannot be saved


class Check(msgspec.Struct, frozen=True):
    workspace_id: str
    ok: bool
    checked: int  # revisions
    missing: list[str]  # revisions that are listed and that the node does not have
    problems: list[str]  # of those in the object store, and what could not be saved yet; a sentence each


@get("/mags-workspaces", summary="List workspaces, those used last first")
async def list_workspaces(
    request: Caller,
    plane: Plane,
    page: Annotated[int, Parameter(ge=1, le=MAX_PAGE)] = 1,
    page_size: Annotated[int, Parameter(ge=1, le=MAX_LISTED)] = MAX_LISTED,
) -> WorkspaceList:
    found = await workspace.page(plane.database, request.user.id, page, page_size)
    unsaved = await revisions.unsaved(plane.database, plane.node, request.user.id)
    return WorkspaceList([_record(listed, unsaved) for listed in found.workspaces], found.total)


@delete("/mags-workspaces/{id:str}", status_code=200, summary="Delete a workspace and its revisions")
async def remove(request: Caller, plane: Plane, id: Name) -> Stopped:
    await workspace.remove(plane.database, request.user.id, id)
    plane.collection.wake()
    return Stopped(True, f"Workspace '{id}' deleted")


@get("/mags-workspaces/{id:str}/revisions", summary="List a workspace's revisions, newest first")
async def list_revisions(
    request: Caller,
    plane: Plane,
    id: Name,
    page: Annotated[int, Parameter(ge=1, le=MAX_PAGE)] = 1,
    page_size: Annotated[int, Parameter(ge=1, le=1000)] = 100,
) -> RevisionPage:
    found = await workspace.find(plane.database, request.user.id, id)
    listed = await revisions.page(plane.database, found, page, page_size)
    true = await revisions.followed(plane.database, plane.node, found, listed.revisions)
    unsaved = {one.id: one.unsaved for one in await revisions.unsaved_of(plane.database, plane.node, found)}
    records = [_revision(one, found.head, unsaved.get(one.id)) for one in true]
    return RevisionPage(id, records, listed.total, page, page_size)


@post(
    "/mags-workspaces/{id:str}/restore",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Make an older revision the head",
    description="The next job begins from it. Newer revisions stay listed. 409 while a job writes to the workspace.",
)
async def restore(request: Caller, plane: Plane, id: Name, data: Wanted) -> Restored:
    found = await workspace.find(plane.database, request.user.id, id)
    revision = await revisions.restore(plane.database, found, data.revision)
    return Restored(True, f"Workspace '{id}' restored to revision {revision}", revision)


@get(
    "/mags-workspaces/{id:str}/check",
    summary="Check every listed revision",
    description="That it is there and whole; with `read_data=true` every byte in the object store is verified.",
)
async def check(request: Caller, plane: Plane, id: Name, read_data: bool = False) -> Check:
    found = await workspace.find(plane.database, request.user.id, id)
    checked, missing, stored, unsaved, number = 0, list[str](), list[str](), list[str](), 1
    while listed := (await revisions.page(plane.database, found, number, 1000)).revisions:
        for one in listed:
            checked += 1
            try:
                known = await plane.node.revision(one.id, request.user.id)
            except NotFound:
                missing.append(one.id)
            else:
                await revisions.refresh(plane.database, one, known)
                stored += [one.id] if known.stored else []
                unsaved += [f"revision {one.id} is kept and not saved yet: {known.unsaved}"] if known.unsaved else []
        number += 1
    problems = list[str]()
    if stored:
        wanted = protocol.Check(account=request.user.id, revisions=stored, read_data=read_data)
        problems = (await plane.node.check(wanted)).problems
    problems = unsaved + problems
    return Check(id, not missing and not problems, checked, missing, problems)


@post(
    "/mags-workspaces/{id:str}/recover",
    status_code=200,
    summary="Save what could not be saved before",
    description="Files that a sandbox has left and that could not be saved are kept on the node as they are. "
    "This tries to save them now; starting a job from them does so too.",
)
async def recover(request: Caller, plane: Plane, id: Name) -> Recovered:
    found = await workspace.find(plane.database, request.user.id, id)
    done, left = list[str](), list[UnsavedFiles]()
    for one in await revisions.unsaved_of(plane.database, plane.node, found, require=True):
        try:
            await revisions.recover(plane.database, plane.node, one.id)
            done.append(one.id)
        except Unsaved as error:
            left.append(UnsavedFiles(one.id, str(error)))
    what = f"{len(done)} revision(s) of workspace '{id}' saved" if done or left else f"All of workspace '{id}' is saved"
    return Recovered(not left, f"{what}; {len(left)} still cannot be" if left else what, done, left)


def _record(listed: Listed, unsaved: dict[int, list[protocol.Revision]]) -> WorkspaceRecord:
    one = listed.workspace
    return WorkspaceRecord(
        workspace_id=one.name,
        job_count=listed.jobs,
        last_used=rfc3339(one.used_ns),
        has_active=listed.active,
        persistent=one.persistent,
        created_at=rfc3339(one.created_ns),
        revision=one.head,
        unsaved=[UnsavedFiles(left.id, left.unsaved or "") for left in unsaved.get(one.id, ())],
    )


def _revision(one: Revision, head: str | None, unsaved: str | None) -> RevisionRecord:
    return RevisionRecord(
        revision=one.id,
        head=one.id == head,
        created_at=rfc3339(one.created_ns),
        size=one.size,
        stored=one.stored,
        stored_bytes=one.stored_bytes,
        image=one.image,
        parent=one.parent,
        request_id=one.request_id,
        periodic=one.periodic,
        unsaved=unsaved,
    )
