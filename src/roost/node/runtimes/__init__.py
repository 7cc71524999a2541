"""The drivers that make sandboxes, behind one Protocol.

The pool asks a `Runtime` for members and returns them here; nothing else starts or ends one. What a driver was asked
to run stays listed until `destroy` has returned, whoever was killed in between, so a restarted node can clean up.
"""

from pathlib import Path
from typing import Protocol


class RuntimeFailed(Exception):
    """The program that makes sandboxes failed; the text is its own. A fault of this machine, not of a request."""


class Runtime(Protocol):
    """Makes and removes the isolated place that one pool member is."""

    @property
    def name(self) -> str:
        """What users see: `runc`, `crun`, `runsc`."""
        ...

    async def run(self, container_id: str, bundle: Path, listen_fd: int) -> int:
        """Start guest init from `bundle`, with the listening Unix socket `listen_fd` as its descriptor 3.

        Returns its pid on this machine. Raises RuntimeFailed with the driver's own words when it did not come up.
        Whether it raised, was cancelled, or this process was killed in between: `list` still names the id and
        `destroy` cleans it. An id is used once. The caller keeps `listen_fd` and closes it.
        """
        ...

    async def destroy(self, container_id: str) -> None:
        """Kill everything in it and remove it; returns when it is gone. An id that does not exist is no error."""
        ...

    def list(self) -> set[str]:
        """Ids of everything that was begun and not yet destroyed, half-made ones included."""
        ...
