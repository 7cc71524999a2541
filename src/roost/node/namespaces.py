"""A user namespace that belongs to its sandbox's own root.

What the kernel counts for each user (inotify instances and watches, pending signals, message queues) it also counts for
the owner of the user namespace, on the machine. If that were this machine's root, as with a namespace that the OCI
program makes, all sandboxes and the machine itself would share one quota.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from roost.node.runtimes.oci import ID_RANGE


@dataclass(frozen=True)
class UserNamespace:
    """There until `close`, or until those that have entered it have ended."""

    path: Path
    _holder: subprocess.Popen[bytes]

    @classmethod
    def make(cls, init: Path, first_id: int) -> "UserNamespace":
        """Ids 0 to 65535 in it are those from `first_id` on; `init`: guest init's program. Blocks. Raises OSError."""
        argv = [init, "own", str(first_id)]
        holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        made = cls(Path(f"/proc/{holder.pid}/ns/user"), holder)
        try:
            made._settle(first_id)
        except BaseException:
            made.close()
            raise
        return made

    def _settle(self, first_id: int) -> None:
        assert self._holder.stdout and self._holder.stderr
        if self._holder.stdout.read(1) != b"x":
            said = self._holder.stderr.read().decode(errors="replace").strip()
            raise OSError(f"no user namespace can be made: {said}")
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{self._holder.pid}/{kind}").write_text(f"0 {first_id} {ID_RANGE}")

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()
