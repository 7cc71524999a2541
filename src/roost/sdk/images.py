"""Images, which sandboxes are made of. Making one takes minutes, and the node tells of each step."""

import json
import os
from collections.abc import Callable, Sequence
from typing import cast

from roost.sdk import wire
from roost.sdk.errors import RoostError
from roost.sdk.files import body_of
from roost.sdk.results import DefaultImage, ImageList, ImageRecord, Stopped
from roost.sdk.wire import Call, Progress, Request, quoted

IMAGES = "/images"
DEFAULT = "/default-image"
SILENCE = 600.0  # seconds between two steps
Steps = Callable[[str], None]  # is told what the node does, in words


def list_images() -> Call[ImageList]:
    """List images, whose names `rootfs_type` takes."""
    return (yield from wire.call("GET", IMAGES))


def pull_image(name: str, reference: str, *, tls_verify: bool = True, steps: Steps | None = None) -> Call[ImageRecord]:
    """Make an image from a registry's, like `docker://docker.io/library/python:3.12-slim`."""
    body = {"reference": reference, "tls_verify": tls_verify}
    return (yield from _made(Request("POST", f"{IMAGES}{quoted(name)}/pull", json=body, timeout=SILENCE), steps))


def build_image(
    name: str, packages: Sequence[str], *, suite: str = "bookworm", steps: Steps | None = None
) -> Call[ImageRecord]:
    """Make an image of Debian with these packages."""
    body = {"packages": list(packages), "suite": suite}
    return (yield from _made(Request("POST", f"{IMAGES}{quoted(name)}/build", json=body, timeout=SILENCE), steps))


def import_image(
    name: str, archive: bytes | os.PathLike[str], *, progress: Progress | None = None, steps: Steps | None = None
) -> Call[ImageRecord]:
    """Make an image from a tar archive of a root file system: its bytes, or a Path of this machine."""
    body = body_of(archive, progress, "application/x-tar")
    return (yield from _made(Request("POST", f"{IMAGES}{quoted(name)}/import", body=body, timeout=SILENCE), steps))


def remove_image(name: str) -> Call[Stopped]:
    """Remove an image. Raises Conflict while sandboxes, workspaces, jobs or schedules need it."""
    return (yield from wire.call("DELETE", IMAGES + quoted(name)))


def default_image() -> Call[DefaultImage]:
    """The image of jobs that name none."""
    return (yield from wire.call("GET", DEFAULT))


def choose_default_image(name: str | None) -> Call[DefaultImage]:
    """For your account; None: what the installation has."""
    return (yield from wire.call("PUT", DEFAULT, {"name": name}))


def _made(request: Request, steps: Steps | None) -> Call[ImageRecord]:
    """Reads a line of JSON for each step; the last has `done` or `error`."""
    yield from wire.opened(request)
    rest = b""
    while data := cast(bytes, (yield wire.Read())):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            step = json.loads(line)
            if error := step.get("error"):
                raise RoostError(error)
            if steps:
                steps(step["message"])
            if done := step.get("done"):
                return done
    raise RoostError("the server did not say how it ended; see list_images()")
