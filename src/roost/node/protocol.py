"""What the control plane and a node say to each other: one typed, versioned protocol.

HTTP/1.1 over a Unix socket; bodies are MessagePack of the values below, streams are those values one after the other,
each behind its length (`u32`, little endian). Every call may be made again after a broken connection: it is keyed by
the sandbox's id and means "make it so".

    GET    /v1/node                        NodeInfo
    PUT    /v1/sandboxes/{id}              StartSandbox -> SandboxState      the same id again answers the state it has
    GET    /v1/sandboxes/{id}              SandboxState
    POST   /v1/sandboxes/{id}/stop         StopSandbox -> SandboxState       answers when it has ended
    DELETE /v1/sandboxes/{id}              forget an ended sandbox (its log stays)
    POST   /v1/sandboxes/{id}/exec         Exec -> ExecResult
    GET    /v1/sandboxes/{id}/log?after=N&follow=0|1    stream of LogRecord with seq > N
    DELETE /v1/sandboxes/{id}/log
    GET    /v1/events                      stream of SandboxState: all that exist, Snapshot, then each change
    GET    /v1/images                      list of Image
    POST   /v1/images/{name}/import|pull|build          stream of Progress; the last one has `done` or `error`
    DELETE /v1/images/{name}

Errors: status 4xx/5xx with a `Fault` body; `kind` is the name of a class in `roost.errors`.
"""

import struct
from typing import Literal

import msgspec

VERSION = 1  # sent by both sides in the header `roost-protocol`; a node refuses another number

HEADER = "roost-protocol"
MAX_BODY = 4 * 1024 * 1024  # bytes; a script of 1 MiB and 128 KiB of environment fit with room
MAX_STREAM_MESSAGE = 1024 * 1024  # bytes
LENGTH = struct.Struct("<I")

Phase = Literal["starting", "running", "ended"]
Cause = Literal["exited", "timeout", "oom", "stopped", "disk", "lost", "failed"]


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """A value that crosses the border; unknown fields are ignored, so that a newer side may say more."""


class Limits(Wire, frozen=True):
    """What a sandbox may use."""

    vcpus: float
    memory_mb: int
    disk_gb: int
    pids: int
    timeout_seconds: int  # wall clock of the script; 0 = none


class StartSandbox(Wire, frozen=True):
    """Claim a sandbox, give it a root file system and start the script in it."""

    image: str
    script: bytes
    environment: dict[str, str]
    hostname: str
    limits: Limits


class SandboxState(Wire, frozen=True):
    """What a node knows of one sandbox. `ended` is final: the sandbox is gone, its log remains.

    A script that is over is told at once, by `script_ended_ns` and `cause`; `ended` follows when the sandbox is gone.
    exit_code: from waitpid, 128 + signal for a script that was ended by one; None while it runs, and None for good
    where the status was lost (`reason` then says how). Times are nanoseconds since the epoch.
    """

    id: str
    phase: Phase
    started_ns: int | None = None
    script_ended_ns: int | None = None
    exit_code: int | None = None
    reason: str | None = None
    cause: Cause | None = None
    ended_ns: int | None = None


class Snapshot(Wire, frozen=True):
    """Marks, in the event stream, that every sandbox which exists has been told."""

    sandboxes: int


class Event(Wire, frozen=True):
    state: SandboxState | None = None
    snapshot: Snapshot | None = None


class StopSandbox(Wire, frozen=True):
    """TERM to every process group of the sandbox, then KILL after `grace_seconds`."""

    grace_seconds: float = 5.0
    reason: str = "stopped"


class Exec(Wire, frozen=True):
    """Run one command to its end beside whatever runs in the sandbox; its process group is ended with the call."""

    command: str
    timeout_seconds: float
    output_limit: int  # bytes of stdout and stderr together; more is dropped and said


class ExecResult(Wire, frozen=True):
    exit_code: int | None  # None: the status was lost, `reason` says how
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False
    duration_ms: int = 0
    reason: str | None = None


class LogRecord(Wire, frozen=True):
    """Bytes as they arrived; `system` records are Roost's own remarks.

    `seq` grows from record to record: give it as `after` to continue behind this one.
    """

    seq: int
    time_ns: int
    source: Literal["stdout", "stderr", "system"]
    data: bytes


class PoolStatus(Wire, frozen=True):
    idle: int
    busy: int
    creating: int
    min_size: int
    max_size: int  # 0 = by capacity


class NodeInfo(Wire, frozen=True):
    version: str
    protocol: int
    runtime: str
    cgroup: Literal["v1", "v2"]
    cpus: int
    memory_mb: int
    memory_available_mb: int
    pool: PoolStatus


class Image(Wire, frozen=True):
    name: str
    digest: str  # of the packed or unpacked content: "sha256:..."
    size: int  # bytes unpacked
    source: str  # "build: debian bookworm", "import: FILE", "pull: docker://..."
    created_ns: int


class PullImage(Wire, frozen=True):
    reference: str  # docker://host[:port]/name:tag or oci:DIR:tag
    tls_verify: bool = True


class BuildImage(Wire, frozen=True):
    packages: list[str] = []
    suite: str = "bookworm"


class Progress(Wire, frozen=True):
    message: str
    done: Image | None = None
    error: str | None = None


class Fault(Wire, frozen=True):
    kind: str
    message: str
