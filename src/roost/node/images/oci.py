"""Images made of layers: what a reference means, how it is fetched, and which layers it has.

skopeo talks to registries, without any capability, and leaves an OCI layout; layouts and `docker save` archives are
read here, as hostile input: bounded JSON, links resolved inside the layout only, every blob checked against its
digest. The layers themselves are unpacked by `archive`, like any tarball.
"""

import asyncio
import hashlib
import os
import platform
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from roost.errors import Invalid, TooLarge
from roost.node.images import command, tree
from roost.node.images.config import NOTHING, Told
from roost.node.reference import LATEST

PULL_TIMEOUT = 3600  # seconds
INSPECT_TIMEOUT = 120  # seconds
MAX_JSON = 4 * 1024 * 1024  # bytes of an index, manifest or configuration; registries allow about as much
MAX_LAYERS = 500
MAX_INDEX_DEPTH = 3  # an index of indexes is what buildx writes; deeper is a loop
TAG = "image"  # the name of the fetched image inside its layout

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}
INDEX_TYPES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
REF_NAME = "org.opencontainers.image.ref.name"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    media_type: str = ""
    size: int = 0
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True):
    manifests: list[Descriptor]


class Manifest(msgspec.Struct, frozen=True):
    layers: list[Descriptor]
    config: Descriptor | None = None


class Configuration(msgspec.Struct, frozen=True):
    """What a manifest's `config` names; `config` in it is what `docker inspect` shows."""

    config: Told | None = None


class SavedImage(msgspec.Struct, frozen=True, rename="pascal"):
    """One entry of a `docker save` archive's manifest.json; the layers' paths are relative to it."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class InspectedLayer(msgspec.Struct, frozen=True, rename="pascal"):
    size: int = 0


class Inspected(msgspec.Struct, frozen=True, rename="pascal"):
    """The part of `skopeo inspect` that is used."""

    digest: str
    layers_data: list[InspectedLayer] | None = None

    @property
    def size(self) -> int:
        """Packed bytes; 0 where this skopeo does not say."""
        return sum(layer.size for layer in self.layers_data or [])


@dataclass(frozen=True)
class Layer:
    path: Path
    digest: str | None  # of the packed bytes; docker archives give none

    def verify(self) -> None:
        """Raises Invalid unless the bytes are those that the manifest means."""
        if self.digest is None:
            return
        with self.path.open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != self.digest:
            raise Invalid(f"layer {self.digest} is damaged: its bytes have the digest {found}")


@dataclass(frozen=True)
class LayeredImage:
    """digest: of the manifest; layers: the lowest first."""

    digest: str
    layers: tuple[Layer, ...]
    told: Told = NOTHING


def inspect_argv(reference: str, tls_verify: bool) -> list[str]:
    return _skopeo_argv("inspect", f"--tls-verify={_word(tls_verify)}", "--no-tags", reference)


def copy_argv(reference: str, tls_verify: bool, layout: Path) -> list[str]:
    return _skopeo_argv("copy", f"--src-tls-verify={_word(tls_verify)}", reference, f"oci:{layout}:{TAG}")


def _skopeo_argv(action: str, *arguments: str) -> list[str]:
    return command.network_argv(["skopeo", *_policy(), f"--override-arch={_architecture()}", action, *arguments])


def _policy() -> list[str]:
    """The machine's signature policy; without one skopeo refuses everything."""
    return [] if Path("/etc/containers/policy.json").exists() else ["--insecure-policy"]


def _word(value: bool) -> str:
    return "true" if value else "false"


def _architecture() -> str:
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


async def fetch(
    reference: str, tls_verify: bool, layout: Path, max_bytes: int, progress: Callable[[str], None]
) -> None:
    """Copy the image for this machine's architecture into a new OCI layout. Raises Invalid, TooLarge."""
    progress(f"asking for {reference}")
    try:
        environment = command.environment(layout.parent)
        inspected = await _inspect(reference, tls_verify, environment)
        if inspected.size > max_bytes:
            raise TooLarge(f"{reference} has {_mb(inspected.size)} packed; {_mb(max_bytes)} are allowed and free")
        progress(f"pulling {inspected.digest}" + (f", {_mb(inspected.size)}" if inspected.size else ""))
        watch = _Watch(layout, inspected.size, max_bytes, progress)
        await watch.over(copy_argv(reference, tls_verify, layout), f"pulling {reference}", environment)
    except command.CommandFailed as error:
        raise Invalid(str(error)) from None


async def _inspect(reference: str, tls_verify: bool, environment: dict[str, str]) -> Inspected:
    lines: list[str] = []
    follower = command.Follower(line=lambda line: lines.append(line) if len(lines) < 10_000 else None)
    argv = inspect_argv(reference, tls_verify)
    await command.run(
        argv,
        what=f"asking for {reference}",
        timeout=INSPECT_TIMEOUT,
        environment=environment,
        follower=follower,
    )
    text = "\n".join(lines)
    return _decoded(text[max(text.find("{"), 0) :].encode(), Inspected, reference)


class _Watch:
    """Tells how far a fetch is, and stops one that takes more room than it said."""

    def __init__(self, layout: Path, size: int, max_bytes: int, progress: Callable[[str], None]) -> None:
        self._layout, self._size, self._max_bytes, self._progress = layout, size, max_bytes, progress
        self._started = time.monotonic()
        self._too_large = False

    async def over(self, argv: list[str], what: str, environment: dict[str, str]) -> None:
        follower = command.Follower(tick=self._look)
        running = asyncio.ensure_future(
            command.run(argv, what=what, timeout=PULL_TIMEOUT, environment=environment, follower=follower)
        )
        self._stop = running.cancel
        try:
            await running
        except asyncio.CancelledError:
            if not self._too_large:
                running.cancel()
                raise
            raise TooLarge(f"{what} took more than {_mb(self._max_bytes)} and was stopped") from None

    def _look(self) -> None:
        here = sum(path.lstat().st_size for path in _files(self._layout))
        percent = f" ({min(100, 100 * here // self._size)} %)" if self._size else ""
        self._progress(f"pulled {_mb(here)}{percent} in {time.monotonic() - self._started:.0f} s")
        if here > self._max_bytes:
            self._too_large = True
            self._stop()


def _files(layout: Path) -> list[Path]:
    return [Path(directory, name) for directory, _, names in os.walk(layout) for name in names]


# reading


def is_archive(directory: Path) -> bool:
    """Whether an unpacked archive is an OCI layout or a docker archive, rather than a root file system."""
    if _is_file(directory / "oci-layout") and _is_file(directory / "index.json"):
        return True
    return _is_file(directory / "manifest.json") and not os.path.lexists(directory / "bin")


def read_archive(directory: Path) -> LayeredImage:
    """The image of an unpacked archive. Raises Invalid."""
    if _is_file(directory / "oci-layout"):
        return read_layout(directory)
    return _read_docker(directory)


def read_layout(directory: Path) -> LayeredImage:
    """The image of an OCI layout that fits this machine. Raises Invalid."""
    index = _decoded(_read(directory, "index.json"), Index, "index.json")
    chosen = _choose(index)
    for _ in range(MAX_INDEX_DEPTH):
        data = _read_blob(directory, chosen)
        if chosen.media_type not in INDEX_TYPES:
            break
        chosen = _choose(_decoded(data, Index, chosen.digest))
    else:
        raise Invalid("the index of this image leads to indexes only")
    manifest = _decoded(data, Manifest, chosen.digest)
    layers = tuple(Layer(_blob(directory, layer.digest), layer.digest) for layer in manifest.layers)
    said = _read_blob(directory, manifest.config) if manifest.config else b"{}"
    return LayeredImage(chosen.digest, _bounded(layers), _told(said, "the image's configuration"))


def _told(data: bytes, what: str) -> Told:
    return _decoded(data, Configuration, what).config or NOTHING


def _choose(index: Index) -> Descriptor:
    """The one for this machine; among several names, `latest`."""
    fitting = [entry for entry in index.manifests if _fits(entry.platform)]
    if not fitting:
        raise Invalid(f"this image has no variant for linux/{_architecture()}")
    names = [(entry.annotations or {}).get(REF_NAME, "") for entry in fitting]
    if len({entry.digest for entry in fitting}) == 1:
        return fitting[0]
    if LATEST in names:
        return fitting[names.index(LATEST)]
    raise Invalid(f"this archive holds several images ({', '.join(names)}); pack one, or name it `{LATEST}`")


def _fits(wanted: Platform | None) -> bool:
    return wanted is None or (wanted.os == "linux" and wanted.architecture == _architecture())


def _read_docker(directory: Path) -> LayeredImage:
    data = _read(directory, "manifest.json")
    images = _decoded(data, list[SavedImage], "manifest.json")
    if len(images) != 1:
        raise Invalid(f"this archive holds {len(images)} images; save one (`docker save NAME:TAG`)")
    layers = tuple(Layer(_inside_file(directory, path), None) for path in images[0].layers)
    said = _read(directory, str(_inside_file(directory, images[0].config).relative_to(directory)))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return LayeredImage(digest, _bounded(layers), _told(said, "the image's configuration"))


def _bounded(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise Invalid(f"this image has {len(layers)} layers; from 1 to {MAX_LAYERS} can be unpacked")
    return layers


def _read_blob(directory: Path, blob: Descriptor) -> bytes:
    data = _read(directory, str(_blob(directory, blob.digest).relative_to(directory)))
    found = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if found != blob.digest:
        raise Invalid(f"{blob.digest} is damaged: its bytes have the digest {found}")
    return data


def _blob(directory: Path, digest: str) -> Path:
    if not _DIGEST.fullmatch(digest):
        raise Invalid(f"{digest[:100]!r} is not a SHA-256 digest")
    return _inside_file(directory, f"blobs/sha256/{digest.removeprefix('sha256:')}")


def _inside_file(directory: Path, path: str) -> Path:
    """A regular file of the layout; old docker archives have links among their layers."""
    found = tree.inside(directory, path)
    if not _is_file(found):
        raise Invalid(f"the archive lacks {path[:200]!r}")
    return found


def _read(directory: Path, path: str) -> bytes:
    with _inside_file(directory, path).open("rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise Invalid(f"{path} is larger than the {MAX_JSON} bytes that a manifest may have")
    return data


def _decoded(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"{what} is not what the OCI image specification says: {error}") from None


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
