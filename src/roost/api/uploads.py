"""`POST mags-files`: an upload on its way from the caller to the node, and a row that tells of it."""

import unicodedata

import msgspec
from litestar import Request, post
from litestar.datastructures import State

from roost.accounts.tokens import Account
from roost.api.form import MAX_OTHERS, Form
from roost.api.plane import Plane
from roost.api.submission import INVISIBLE
from roost.errors import Invalid, TooLarge
from roost.workspaces import uploads

MAX_FILE = 100 * 1024 * 1024  # bytes; the documented 100 MB, read generously
MAX_NAME = 255  # bytes of one path component

Caller = Request[Account, str, State]


class Uploaded(msgspec.Struct, frozen=True):
    file_id: str
    file_name: str
    size: int


@post(
    ["/mags-files", "/jobs/files"],
    status_code=201,
    request_max_body_size=None,
    summary="Upload a file for jobs",
    opt={"body": "multipart/form-data"},
    description="multipart/form-data, field `file`, at most 100 MB. Kept for 7 days; name it in a job's `file_ids`.",
)
async def upload(request: Caller, plane: Plane) -> Uploaded:
    _refuse_at_once(request.headers.get("content-length", ""))
    form = Form(request.headers.get("content-type", ""), request.stream(), MAX_FILE)
    name = file_name(await form.find_file())
    await plane.quotas.require_storage(request.user.id)
    file_id = await uploads.begin(plane.database, request.user.id, name)
    try:
        size = await plane.node.put_file(file_id, form.file(), MAX_FILE)
    except Exception:
        await uploads.abandon(plane.database, file_id)
        raise
    await uploads.complete(plane.database, file_id, size)
    return Uploaded(file_id, name, size)


def _refuse_at_once(content_length: str) -> None:
    """Where the caller says how much comes, nothing need be read."""
    if content_length.isdigit() and len(content_length) < 20 and int(content_length) > MAX_FILE + MAX_OTHERS:
        raise TooLarge("the file is larger than 100 MB; send it in parts, or let the script fetch it")


def file_name(told: str) -> str:
    """The last component of what the client says, which may be a whole path of its own system. Raises Invalid."""
    name = told.replace("\\", "/").rpartition("/")[2].strip()
    if name in ("", ".", ".."):
        raise Invalid("file: has no name; give one, like curl -F 'file=@PATH;filename=NAME'")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise Invalid("file: its name may not hold line breaks or other control characters")
    if INVISIBLE.search(name):
        raise Invalid("file: its name holds characters that nobody sees, or that turn it round; leave them out")
    if len(name.encode()) > MAX_NAME:
        raise Invalid(f"file: its name is longer than {MAX_NAME} bytes")
    return name
