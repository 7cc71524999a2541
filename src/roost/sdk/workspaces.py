"""Workspaces and their revisions."""

from roost.sdk import wire
from roost.sdk.results import Check, Recovered, Restored, RevisionPage, Stopped, WorkspaceList
from roost.sdk.wire import Call, quoted

WORKSPACES = "/mags-workspaces"
CHECK_WITHIN = 600.0  # seconds without a byte; every byte in the store may be read


def list_workspaces() -> Call[WorkspaceList]:
    """List workspaces, those used last first."""
    return (yield from wire.call("GET", WORKSPACES))


def delete_workspace(workspace_id: str) -> Call[Stopped]:
    """Delete a workspace and its revisions. Raises Conflict while a job has it."""
    return (yield from wire.call("DELETE", WORKSPACES + quoted(workspace_id)))


def list_revisions(workspace_id: str, *, page: int = 1, page_size: int = 100) -> Call[RevisionPage]:
    """List a workspace's revisions, newest first."""
    path = f"{WORKSPACES}{quoted(workspace_id)}/revisions"
    return (yield from wire.call("GET", path, query={"page": page, "page_size": page_size}))


def restore_workspace(workspace_id: str, revision: str) -> Call[Restored]:
    """Make an older revision the head, from which the next job begins. Raises Conflict while a job writes to it."""
    path = f"{WORKSPACES}{quoted(workspace_id)}/restore"
    return (yield from wire.call("POST", path, {"revision": revision}, repeatable=True))


def recover_workspace(workspace_id: str) -> Call[Recovered]:
    """Save what could not be saved before; what still cannot is kept, and told with the reason."""
    return (
        yield from wire.call(
            "POST", f"{WORKSPACES}{quoted(workspace_id)}/recover", repeatable=True, timeout=CHECK_WITHIN
        )
    )


def check_workspace(workspace_id: str, *, read_data: bool = False) -> Call[Check]:
    """Check that every listed revision is there and whole; `read_data`: by reading every byte in the object store."""
    path = f"{WORKSPACES}{quoted(workspace_id)}/check"
    return (yield from wire.call("GET", path, query={"read_data": read_data}, timeout=CHECK_WITHIN))
