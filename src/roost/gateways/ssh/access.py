"""What `POST mags-jobs/:id/access {"port": 22}` answers: a way in by SSH, with a new key for this job alone.

Field names are the wire contract of the official clients; `ssh_user` and `host_key` are ours.
"""

from typing import TYPE_CHECKING, Any, Literal

import msgspec
from litestar import Request

from roost.errors import Conflict, Invalid
from roost.gateways.ssh import keys
from roost.jobs.job import Job

if TYPE_CHECKING:
    from roost.api.plane import ControlPlane

WAKE_WITHIN = 25.0  # seconds; clients wait 30 for an answer
CURE = "submit it with persistent: true, so that its sandbox stays when its script has ended"


class SshAccess(msgspec.Struct, frozen=True, kw_only=True):
    success: bool = True
    ssh_host: str
    ssh_port: int
    ssh_private_key: str  # OpenSSH PEM; told here and kept nowhere
    ssh_user: Literal["root"] = "root"
    access_type: Literal["ssh_proxy"] = "ssh_proxy"
    host_key: str  # "ssh-ed25519 AAAA…", for a line of known_hosts


async def ssh_access(
    plane: "ControlPlane", request: Request[Any, Any, Any], job: Job, dedicated: bool = False
) -> SshAccess:
    """Wakes the sandbox. Raises Invalid (not persistent; no ports for `dedicated`), Conflict (ended), Asleep."""
    gateway = plane.ssh
    if job.final:
        raise Conflict(f"job {job.name!r} is not running (status: {job.status}); submit it again")
    if not job.persistent:
        raise Invalid(f"job {job.name!r} is not persistent, so it cannot be entered by SSH; {CURE}")
    gateway.expect()
    await plane.live.awake(job, WAKE_WITHIN)
    port = await gateway.door_of(job) if dedicated else gateway.port
    return SshAccess(
        ssh_host=plane.ssh.settings.ssh_host or host_of(request.headers.get("host", "")) or "localhost",
        ssh_port=port,
        ssh_private_key=await keys.make_for_job(plane.database, job.account_id, job.seq, request.user.user_id),
        host_key=gateway.key.public,
    )


def host_of(header: str) -> str:
    """A Host header without its port; IPv6 addresses without brackets, as ssh takes them."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
