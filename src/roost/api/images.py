"""Images: listed, removed, and made by the node, whose progress is passed on line by line as it comes."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

import msgspec
from litestar import Request, delete, get, post, put
from litestar.datastructures import State
from litestar.params import Parameter
from litestar.response import Stream

from roost.accounts.tokens import Account
from roost.api.bodies import JsonBody
from roost.api.mags import Stopped
from roost.api.output import begun
from roost.api.plane import ControlPlane, Plane
from roost.clock import rfc3339
from roost.errors import Conflict, Invalid, NotFound, RoostError
from roost.jobs.image_use import uses
from roost.node.protocol import BuildImage, Image, Progress, PullImage
from roost.sandboxes.images import image_name

NDJSON = "application/x-ndjson"
INSTALLATION: dict[str, object] = {"scope": "admin", "first": True}  # images are everybody's
LINES: dict[str, object] = {"answers": (NDJSON,)}
_encode = msgspec.json.Encoder().encode

Caller = Request[Account, str, State]
Name = Annotated[str, Parameter(description="Name of an image")]


class ImageRecord(msgspec.Struct, frozen=True):
    name: str
    digest: str
    size: int  # bytes, unpacked
    source: str
    created_at: str


class ImageList(msgspec.Struct, frozen=True):
    images: list[ImageRecord]


class ImageProgress(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line; the last one has `done` or `error`."""

    message: str
    done: ImageRecord | None = None
    error: str | None = None


class ChosenImage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str | None, msgspec.Meta(description="Of an image; null: the installation's default")]


class DefaultImage(msgspec.Struct, frozen=True):
    name: str
    chosen: bool  # by your account; otherwise it is the installation's
    installation: str


class Pull(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reference: str
    tls_verify: bool = True


class Build(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    packages: list[str] = []
    suite: str = "bookworm"


@get("/images", summary="List images")
async def list_images(plane: Plane) -> ImageList:
    return ImageList([_record(image) for image in await plane.node.images()])


@post(
    "/images/{name:str}/pull",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Pull from a registry",
    opt=INSTALLATION | LINES,
)
async def pull(plane: Plane, name: Name, data: Pull) -> Stream:
    if not data.reference.strip():
        raise Invalid("reference: empty; give one like docker://HOST/NAME:TAG")
    wanted = PullImage(reference=data.reference, tls_verify=data.tls_verify)
    return await _told(plane.node.pull_image(image_name("name", name), wanted))


@post(
    "/images/{name:str}/build",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Build from packages",
    opt=INSTALLATION | LINES,
)
async def build(plane: Plane, name: Name, data: Build | None = None) -> Stream:
    wanted = data or Build()
    return await _told(
        plane.node.build_image(image_name("name", name), BuildImage(packages=wanted.packages, suite=wanted.suite))
    )


@post(
    "/images/{name:str}/import",
    status_code=200,
    request_max_body_size=None,
    opt=INSTALLATION | LINES | {"body": "application/x-tar"},
    summary="Import a tar archive of a root file system, which is the body",
)
async def import_archive(request: Caller, plane: Plane, name: Name) -> Stream:
    return await _told(plane.node.import_image(image_name("name", name), request.stream()))


@delete(
    "/images/{name:str}", status_code=200, summary="Remove an image", opt=INSTALLATION,
    description="Refused, with the reason, while it is the default image or sandboxes, workspaces, jobs or schedules "
    "need it. One that was pulled for a job is pulled again when a job needs it.",
)  # fmt: skip
async def remove(plane: Plane, name: Name) -> Stopped:
    image_name("name", name)
    found = next((image for image in await plane.node.images() if image.name == name), None)
    if found is None:
        raise NotFound(f"there is no image {name!r}; `roost image list` shows those that there are")
    default = plane.default_images.uses(name)
    hindrances = [*([default] if default else []), *await uses(plane.database, plane.secret, name, found.content)]
    if hindrances:
        raise Conflict(f"image {name!r} is in use: {'. '.join(hindrances)}")
    plane.images.forget(name)
    await plane.node.remove_image(name, unlisted=found.content)
    return Stopped(True, f"Image {name!r} removed")


@get("/default-image", summary="Show the image of jobs that name none")
async def show_default(request: Caller, plane: Plane) -> DefaultImage:
    return _default(plane, request.user.id)


@put(
    "/default-image", dto=JsonBody, return_dto=None, opt={"scope": "admin"},
    summary="Choose the image of your account's jobs that name none",
    description="It holds from the next submission on. Cron jobs and schedules keep their image.",
)  # fmt: skip
async def choose_default(request: Caller, plane: Plane, data: ChosenImage) -> DefaultImage:
    name = data.name or None
    if name is not None:
        await plane.images.require(image_name("name", name), "name")
    await plane.default_images.choose(request.user.id, name)
    return _default(plane, request.user.id)


def _default(plane: ControlPlane, account_id: int) -> DefaultImage:
    defaults = plane.default_images
    return DefaultImage(defaults.of(account_id), defaults.chosen(account_id) is not None, defaults.installation)


async def _told(steps: AsyncIterator[Progress]) -> Stream:
    return Stream(await begun(_lines(steps)), media_type=NDJSON)


async def _lines(steps: AsyncIterator[Progress]) -> AsyncGenerator[bytes]:
    """A condition before the first step is an error status; after it, the last line."""
    told = False
    try:
        async for step in steps:
            done = None if step.done is None else _record(step.done)
            yield _encode(ImageProgress(step.message, done, step.error)) + b"\n"
            told = True
    except RoostError as error:
        if not told:
            raise
        yield _encode(ImageProgress("failed", error=str(error))) + b"\n"


def _record(image: Image) -> ImageRecord:
    return ImageRecord(image.name, image.digest, image.size, image.source, rfc3339(image.created_ns))
