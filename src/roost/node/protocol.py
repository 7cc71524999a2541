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
    POST   /v1/sandboxes/{id}/input?at=N&end=0|1        bytes of the script's input -> Taken; `end`: it has no more
    GET    /v1/sandboxes/{id}/log?after=N&follow=0|1    stream of LogRecord with seq > N
    DELETE /v1/sandboxes/{id}/log
    GET    /v1/events                      stream of SandboxState: all that exist, Snapshot, then each change
    GET    /v1/usage                       list of Usage: of every sandbox there is, and of ended ones until forgotten
    GET    /v1/images                      list of Image
    POST   /v1/images/{name}/import|pull|build          stream of Progress; the last one has `done` or `error`
    DELETE /v1/images/{name}?unlisted=ID   Conflict while it is in use; ID: a content on which no listed revision stands
    POST   /v1/sandboxes/{id}/save         SaveRequest -> Revision           the same id again answers that one
    GET    /v1/revisions/{id}?account=N    Revision
    GET    /v1/unsaved                     list of Revision: those with `unsaved`
    POST   /v1/revisions/{id}/recover      -> Revision                       saved now; or Unsaved with why it cannot
    POST   /v1/revisions/collect           Collect -> Collected
    POST   /v1/revisions/check             Check -> Checked
    POST   /v1/sandboxes/{id}/freeze       Freeze -> SandboxState            every process stands still; again: the same
    POST   /v1/sandboxes/{id}/thaw         -> SandboxState                   they go on where they were
    PUT    /v1/sandboxes/{id}/processes/{pid}             StartProcess -> ProcessState    the same id again: its state
    GET    /v1/sandboxes/{id}/processes                   list of ProcessState
    GET    /v1/sandboxes/{id}/processes/{pid}             ProcessState
    POST   /v1/sandboxes/{id}/processes/{pid}/input?at=N  bytes of its input from position N on -> Taken
    POST   /v1/sandboxes/{id}/processes/{pid}/change      ChangeProcess -> ProcessState
    GET    /v1/sandboxes/{id}/processes/{pid}/output?after=N&follow=0|1    stream of LogRecord with seq > N
    DELETE /v1/sandboxes/{id}/processes/{pid}             ends it; forgets it and its output
    GET    /v1/sandboxes/{id}/session      WebSocket: one process that ends with the connection, see `Session…` below
    PUT    /v1/files/{id}?limit=N          the bytes of an upload -> Stored; TooLarge beyond `limit`, nothing is kept
    DELETE /v1/files/{id}
    GET    {place}/files/{path}?view=list  stream of Entry: what the path leads to (its name empty), then a directory's
    GET    {place}/files/{path}?view=content&start=N&end=N     the bytes of a file from `start` to before `end`
    GET    {place}/files/{path}?view=tar   a tar archive of a directory or file, names relative to it
    PUT    /v1/sandboxes/{id}/files/{path}?mode=N              the bytes of a file; missing parents are made. Without
                                                               `mode` one that exists keeps its own
    DELETE /v1/sandboxes/{id}/files/{path}                     a file, a link or a directory with all that is in it
    PUT    /v1/revisions/{id}/files/{path}?mode=N&revision=ID&account=N&upload=0|1     -> Revision: that file changed
    DELETE /v1/revisions/{id}/files/{path}?revision=ID&account=N&upload=0|1            -> Revision: without it

{place} is /v1/sandboxes/{id} or /v1/revisions/{id}; GET also takes the `account=N` whose it is. {path} is relative to
the root of the file system, percent-encoded byte by byte, empty for the root; symbolic links are followed inside that
root only. Contents have no envelope.

Beside it, `dial.sock` (SOCK_SEQPACKET) hands out sockets inside sandboxes: each packet is a `Dial`, each answer a
`Dialled` with the same number and, where it went well, the socket as SCM_RIGHTS. Answers may come in another order.

Errors: status 4xx/5xx with a `Fault` body; `kind` is the name of a class in `roost.errors`.
"""

import struct
from typing import Literal

import msgspec

VERSION = 1  # sent by both sides in the header `roost-protocol`; a node refuses another number

HEADER = "roost-protocol"
MAX_BODY = 4 * 1024 * 1024  # bytes; a script of 1 MiB and 128 KiB of environment fit with room
MAX_STREAM_MESSAGE = 1024 * 1024  # bytes
SESSION_WINDOW = 256 * 1024  # bytes
SESSION_CHUNK = 64 * 1024  # bytes of input or output in one message of a session, at most
MAX_DIAL = 4096  # bytes of one packet on `dial.sock`
LENGTH = struct.Struct("<I")

Phase = Literal["starting", "running", "ended"]
Cause = Literal["exited", "timeout", "oom", "stopped", "disk", "excess", "lost", "failed"]

PIDS = 512  # processes and threads of a sandbox; Chromium with a few pages, a JVM or a build of npm take 100 to 300


LONGEST_LINE = 64 * 1024  # bytes of a line in a log; a longer one is cut into pieces of this size


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """A value that crosses the border; unknown fields are ignored, so that a newer side may say more."""


class Limits(Wire, frozen=True):
    """What a sandbox may use."""

    vcpus: float
    memory_mb: int
    disk_gb: int
    pids: int
    timeout_seconds: int  # wall clock of the script; 0 = none


class SaveRequest(Wire, frozen=True):
    """Make the files of a sandbox a revision. The caller chooses its id: the same id again is the same save."""

    revision: str  # 16 lower-case hex characters
    account: int  # chunks are shared within an account only
    upload: bool  # into the object store; otherwise it is kept on this node's disk alone


class Revision(Wire, frozen=True):
    """An immutable state of a workspace's files."""

    id: str
    parent: str | None  # what it was made from: the revision it began with, or an earlier save of the same sandbox
    image: str  # content id of the image below it
    created_ns: int
    size: int  # bytes of files above the image, as `du` counts
    stored: bool  # in the object store, so that any node can restore it
    stored_bytes: int  # what this save added to the store
    unsaved: str | None = None  # why it cannot be used yet; its files are on the node as they were left


class File(Wire, frozen=True):
    """An upload that is placed in a sandbox's /root."""

    id: str
    name: str  # one path component
    size: int


class StartSandbox(Wire, frozen=True):
    """Claim a sandbox, give it a root file system and start the script in it.

    `start_from` brings its own image; `image` is for a sandbox that begins empty. The end state is saved, where `save`
    asks for it, after the script is over or the sandbox is stopped, and before `ended` is told.
    """

    image: str
    script: bytes
    environment: dict[str, str]
    hostname: str  # unless its files have an /etc/hostname that somebody has edited
    limits: Limits
    account: int = 0  # whose revisions and uploads these are
    linger: bool = False  # it stays when its script has exited, and ends by `stop` only
    start_from: str | None = None  # id of the revision whose files it begins with; it is not collected while this runs
    reboots: bool = False  # it goes on from an earlier sandbox as a machine that is started again: /tmp is empty
    log: str | None = None  # id of an earlier sandbox, whose log this one continues; None: a log of its own
    save: SaveRequest | None = None
    sync_seconds: int = 0  # more than 0: also saved every so many seconds, under ids the node chooses; events tell them
    files: list[File] = []
    directories: list[str] = []  # below /, one path component each; made where they are missing
    tools: list[Literal["microvm"]] = []  # put into /run/roost/tools before the script starts
    input: bool = False  # the script is given some, by calls of `input`; otherwise it is empty


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
    revision: Revision | None = None  # its newest save; with `ended`, the final one
    save_error: str | None = None  # with `ended`: why the end state could not be saved; `revision` says what is kept
    frozen: bool = False  # every process stands still
    processes: int = 0  # kept ones that run
    ipv4: str | None = None  # its addresses, while it has a member
    ipv6: str | None = None
    usage: "Usage | None" = None  # with `ended`: all that it has used


class Usage(Wire, frozen=True):
    """What a sandbox has used since its start: counters that never go back, also over restarts of the node.

    Memory counts while it is frozen too. Bytes are those of its link, with all headers.
    """

    sandbox: str
    at_ns: int  # when they were so
    cpu_ns: int = 0
    memory_mb_seconds: float = 0.0
    rx_bytes: int = 0  # that it received
    tx_bytes: int = 0  # that it sent
    awake_ns: int = 0
    frozen_ns: int = 0


class Snapshot(Wire, frozen=True):
    """Marks, in the event stream, that every sandbox which exists has been told."""

    sandboxes: int


class Event(Wire, frozen=True):
    state: SandboxState | None = None
    snapshot: Snapshot | None = None


class StopSandbox(Wire, frozen=True):
    """TERM to every process group of the sandbox, then KILL after `grace_seconds`. A frozen one is thawed for it.

    `save` replaces what StartSandbox asked for; the first stop's holds.
    """

    grace_seconds: float = 5.0
    reason: str = "stopped"
    save: SaveRequest | None = None


class Freeze(Wire, frozen=True):
    reclaim: bool = False  # also give back what memory its files' cache takes, and what can be swapped out


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # of a job that brings no PATH
TERMINAL_NAME = "SSH_TTY"  # a variable that is given empty to a process with a terminal has the terminal's name


class Terminal(Wire, frozen=True):
    rows: int = 24
    columns: int = 80


class StartProcess(Wire, frozen=True):
    """A process beside whatever runs in the sandbox, in a process group (with a terminal: a session) of its own.

    It gets the environment of the sandbox's first process, changed by `environment`, and starts in `directory`
    (None: the image's working directory, or /root) as the image's user, or root.
    """

    arguments: list[str]
    environment: dict[str, str] = {}
    directory: str | None = None
    terminal: Terminal | None = None  # its three streams are one terminal, output is all stdout
    input: bool = True  # False: its standard input is empty
    output_limit: int = (
        64 * 1024 * 1024
    )  # bytes that are kept of a process (not of a session); more is dropped and said
    end_session: bool = False  # when it exits, end what is left of its session and did not ask to stay
    tools: list[Literal["sftp-server", "scp", "rsync"]] = []  # put into /run/roost/tools first, for any image
    root: bool = False  # as root, at home in /root, whatever user and working directory the image says


class ProcessState(Wire, frozen=True):
    """exit_code: from waitpid, 128 + signal for one that was ended by it; None while it runs, and None for good where
    the status was lost (`reason` then says how)."""

    id: int
    arguments: list[str]
    started_ns: int
    ended_ns: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    terminal: bool = False
    input_taken: int = 0  # position behind the last byte of input that was accepted
    input_closed: bool = False
    dropped: int = 0  # bytes of output beyond the limit


class ChangeProcess(Wire, frozen=True):
    signal: int | None = None  # to its process group
    terminal: Terminal | None = None  # the terminal's new size
    close_input: bool = False


class Taken(Wire, frozen=True):
    position: int  # behind the last byte of input that was accepted


class SessionStart(Wire, frozen=True, tag="start"):
    """The first message of a session, to the node; it answers SessionStarted, or SessionEnd with `refused`."""

    process: StartProcess


class SessionInput(Wire, frozen=True, tag="input"):
    data: bytes  # empty: the end of its input


class SessionChange(Wire, frozen=True, tag="change"):
    change: ChangeProcess


class SessionTaken(Wire, frozen=True, tag="taken"):
    """So many more bytes of input (from the node) or of output (to it) have been taken.

    At most SESSION_WINDOW bytes may be under way in each direction, so that whoever receives always may read on, and
    neither signals nor the other direction wait behind what is not taken.
    """

    count: int


class SessionStarted(Wire, frozen=True, tag="started"):
    pass


class SessionOutput(Wire, frozen=True, tag="output"):
    source: Literal["stdout", "stderr"]
    data: bytes


class SessionEnd(Wire, frozen=True, tag="end"):
    """The last message, from the node. exit_code and signal as in ProcessState; `refused` is why it was not started."""

    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    refused: str | None = None


ToSession = SessionStart | SessionInput | SessionChange | SessionTaken
FromSession = SessionStarted | SessionOutput | SessionTaken | SessionEnd


class Dial(Wire, frozen=True):
    """A TCP connection from inside the sandbox, or with `listen` a listening socket there.

    `host` is an IP address; None means the sandbox itself: 127.0.0.1, ::1 and its own addresses, in this order. What
    is not the sandbox is reached through its network, as the guest itself would.
    """

    number: int  # of the request
    sandbox: str
    port: int  # 0 with `listen`: any free one
    host: str | None = None
    listen: bool = False


class Dialled(Wire, frozen=True):
    number: int
    fault: "Fault | None" = None  # kind Refused: nobody listens there


class Exec(Wire, frozen=True):
    """Run one command to its end beside whatever runs in the sandbox; what did not leave its session ends with it."""

    command: str
    timeout_seconds: float
    output_limit: int  # bytes of stdout and stderr together; more is dropped and said


class ExecResult(Wire, frozen=True):
    exit_code: int | None  # None: the status was lost; `reason` says how, and why it was killed for its time
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
    lines_before: int | None = None  # of a remark that stands for what was left out: lines that ended before it


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
    content: str = ""  # id of what the name means now, as in `Revision.image`
    recipe: str = ""  # of a built one: what it was made by


class PullImage(Wire, frozen=True):
    reference: str  # docker://host[:port]/name:tag or oci:DIR:tag
    tls_verify: bool = True


class BuildImage(Wire, frozen=True):
    packages: list[str] = []
    suite: str = "bookworm"


class Collect(Wire, frozen=True):
    """Frees what no revision in `live` needs.

    Untouched, whatever `live` says: what a sandbox that the node still knows began with or has saved, and every
    revision made at `before_ns` or later, because the caller may not have heard of it when it wrote the list.
    What is in `live` and not there is a fault of the store, for which nothing of that account is removed; ids that are
    only reserved, for a save that may never come, are in `reserved`.
    """

    live: dict[int, list[str]]  # by account; accounts that have nothing left are named too
    before_ns: int
    reserved: list[str] = []  # kept where they exist
    images: list[str] | None = None  # ids of all contents that live revisions stand on; None: not all are known


class Collected(Wire, frozen=True):
    bytes_freed: int
    revisions_removed: int
    refused: dict[int, str] = {}  # accounts of which nothing went from the store, and why


class Check(Wire, frozen=True):
    """Verify revisions in the object store: all that they name is there, and with `read_data` every byte is right."""

    account: int
    revisions: list[str]
    read_data: bool


class Checked(Wire, frozen=True):
    problems: list[str]  # a sentence each; none: all is well


class Stored(Wire, frozen=True):
    size: int


class Entry(Wire, frozen=True):
    """A file, directory or other thing, as `lstat` sees it."""

    name: bytes  # any bytes but "/" and NUL
    type: Literal["file", "directory", "symlink", "other"]
    size: int
    mode: int  # permission bits, 0 to 0o7777
    mtime_ns: int
    uid: int = 0
    gid: int = 0
    target: bytes | None = None  # of a symbolic link


class Progress(Wire, frozen=True):
    message: str
    done: Image | None = None
    error: str | None = None


class Fault(Wire, frozen=True):
    kind: str
    message: str
