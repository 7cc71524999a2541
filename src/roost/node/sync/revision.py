"""A revision: one saved state of a workspace, written last and never changed."""

import secrets
from typing import Annotated

import msgspec

from roost.clock import now_ns
from roost.errors import TooLarge
from roost.node.sync.seal import Damaged
from roost.node.sync.vault import REVISION, Vault

MAX_REVISION = 4 * 1024 * 1024  # bytes; 40 for every 32,000 names or so

Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Revision(msgspec.Struct, frozen=True):
    """time: ns since the epoch. image: its content id. size: bytes of all files. stored: bytes that this save added.

    used: bytes that the files take on a disk, as `du` counts them; None: whoever saved it did not say.

    manifest: records of the chunks that list the manifest's pages (see `manifest`).
    """

    id: Id
    parent: Id | None
    time: int
    job: str
    image: str
    size: int
    entries: int
    stored: int
    manifest: bytes
    used: int | None = None


def new_id() -> str:
    """Sorts by time; unique without asking anybody."""
    return f"{now_ns() // 1_000_000:011x}{secrets.token_hex(8)}"


def write(vault: Vault, revision: Revision) -> None:
    """Raises TooLarge for what `read` would refuse."""
    data = msgspec.msgpack.encode(revision)
    if len(data) > MAX_REVISION:
        raise TooLarge("the workspace has more names than the object store can hold in one revision; delete some")
    vault.create(REVISION, revision.id, data)


def read(vault: Vault, revision_id: str) -> Revision:
    """NotFound if there is none of that id under this account and key."""
    data = vault.read(REVISION, revision_id, MAX_REVISION)
    try:
        revision = msgspec.msgpack.decode(data, type=Revision)
    except msgspec.MsgspecError as error:
        raise Damaged(f"revision {revision_id} is not readable: {error}") from error
    if revision.id != revision_id:
        raise Damaged(f"revision {revision_id} says that it is {revision.id}")
    return revision
