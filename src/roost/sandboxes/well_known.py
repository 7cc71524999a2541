"""Names that documents and people use for systems, and what they mean here: `ubuntu-22.04`, `python`, `node-20`.

An image of the name wins, whatever it is; then one that was built or pulled as that system; then a registry's, if it
can be reached. Else the default image is taken, and the answer says so: who asked for a machine has one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from roost.errors import Invalid, Refused
from roost.node.protocol import Image
from roost.node.reference import normalised
from roost.sandboxes.pulls import TRANSPORT, Pulls, image_of

WITHIN = 10.0  # seconds that a registry has to say whether it knows an image

# name -> repository, version where none is said, end of every tag
SYSTEMS: dict[str, tuple[str, str, str]] = {
    "alpine": ("alpine", "latest", ""),
    "debian": ("debian", "12", ""),
    "ubuntu": ("ubuntu", "22.04", ""),
    "fedora": ("fedora", "latest", ""),
    "python": ("python", "3", "-slim"),
    "node": ("node", "lts", "-slim"),
    "golang": ("golang", "1", ""),
    "go": ("golang", "1", ""),
    "rust": ("rust", "1", "-slim"),
    "ruby": ("ruby", "3", "-slim"),
}
SUITES = {
    "debian-11": "debian bullseye", "debian-12": "debian bookworm", "debian-13": "debian trixie",
    "ubuntu-22.04": "ubuntu jammy", "ubuntu-24.04": "ubuntu noble",
}  # fmt: skip
_NAME = re.compile(rf"({'|'.join(SYSTEMS)})(?:-([0-9][0-9.]{{0,9}}))?")


@dataclass(frozen=True)
class Taken:
    """The image of a sandbox. source: where it is pulled from first; note: why it is not simply what was named."""

    image: str
    source: str | None = None
    note: str | None = None


def reference_of(name: str) -> str | None:
    """`ubuntu-22.04` is `ubuntu:22.04`; None for what is no system's name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    repository, version, end = SYSTEMS[found[1]]
    return f"{repository}:{found[2] or version}{end}"


async def take(name: str, there: Sequence[Image], pulls: Pulls, default: str) -> Taken:
    """`there`: the images of the node. Raises Invalid for a name that means nothing here."""
    names = [image.name for image in there]
    if name in names:
        return Taken(name)
    reference = reference_of(name)
    if reference is None:
        listed = ", ".join(sorted(names)) or "none yet; see `roost image build`"
        raise Invalid(
            f"there is no image {name!r}; the images here are: {listed}. Who runs this Roost can add it by "
            f"`roost image pull REFERENCE --name {name}`"
        )
    alike = next((image.name for image in there if _is(image, name, reference)), None)
    if alike is not None:
        return Taken(alike, note=f"{name} is the image {alike} here")
    try:
        source = pulls.registries.source("image", reference)
        await pulls.find(source, WITHIN)
        told = source.removeprefix(TRANSPORT)
        return Taken(image_of(source), source, f"{name} is {told}, which is pulled where it is not here yet")
    except (Invalid, Refused) as refusal:
        if default not in names:
            raise Invalid(f"{name} cannot be had: {refusal}. There is no image {default!r} to take instead") from None
        return Taken(default, note=f"{name} cannot be pulled here, so the image {default} was taken: {refusal}")


def _is(image: Image, name: str, reference: str) -> bool:
    built = SUITES.get(name)
    return image.source == f"pull: {normalised(reference)}" or (
        built is not None and image.source.partition(" with ")[0] == f"build: {built}"
    )
