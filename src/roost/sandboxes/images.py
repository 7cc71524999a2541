"""Which images the node has, so that a submission can name a missing one at once.

Names are remembered: an image that another instance has removed meanwhile shows as the job's error instead.
"""

import re
from typing import TYPE_CHECKING

from roost.errors import Invalid, NodeUnavailable

if TYPE_CHECKING:
    from roost.node.client import NodeClient


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


def image_name(field: str, name: str) -> str:
    """It, if it can be one. Raises Invalid."""
    if not _NAME.match(name):
        raise Invalid(f"{field}: {name[:80]!r} is no image name (letters, digits, '.', '_' and '-')")
    return name


class Images:
    def __init__(self, node: "NodeClient") -> None:
        self._node = node
        self._names: set[str] = set()

    async def require(self, name: str, field: str = "rootfs_type") -> None:
        """Raises Invalid, listing what there is. Without a node nobody knows: the job will tell."""
        if name in self._names:
            return
        try:
            self._names = {image.name for image in await self._node.images()}
        except NodeUnavailable:
            return
        if name not in self._names:
            there_is = ", ".join(sorted(self._names)) or "none yet; see `roost image build`"
            raise Invalid(f"{field}: there is no image {name!r}; the images here are: {there_is}")

    def forget(self, name: str) -> None:
        self._names.discard(name)
