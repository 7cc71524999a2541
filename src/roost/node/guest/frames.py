"""Frames between the node and guest init: `init.c` defines them, this is their bounded reader and their writers.

What comes from the guest is hostile. `FrameReader` accepts only frames of known type and exact or bounded size, and
holds at most one incomplete frame; anything else is `GuestMisbehaved`, which ends that sandbox and nothing more.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

PROTOCOL = 1
MAX_TO_GUEST = 256 * 1024  # bytes of payload; the same number stands in init.c
MAX_FROM_GUEST = 64 * 1024
STDIN_WINDOW = 64 * 1024
MAX_PROCESS_ID = 2**31 - 1  # above are the node's numbers of its other requests
OUTPUT_WINDOW = 128 * 1024  # bytes that a process may have sent and not had acknowledged

HOSTNAME = "\x01"  # in what `write_own` writes

HEADER = struct.Struct("<IBBHI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GuestMisbehaved(Exception):
    """The guest sent what no guest init sends."""


class ToGuest(IntEnum):
    HELLO = 1
    NETWORK = 2
    ATTACH = 3
    WRITE_FILE = 4
    EXEC = 5
    STDIN = 6
    ACK = 7
    SIGNAL = 8
    RESIZE = 9
    RELEASE = 10
    PING = 11
    PREPARE = 12


class FromGuest(IntEnum):
    HELLO = 64
    PROCESS = 65
    DONE = 66
    FAILED = 67
    STARTED = 68
    OUTPUT = 69
    EXITED = 70
    STDIN_TAKEN = 71
    PONG = 72
    STDIN_STATE = 73


@dataclass(frozen=True, slots=True)
class Hello:
    protocol: int
    attached: bool
    processes: int


@dataclass(frozen=True, slots=True)
class Process:
    """A process that guest init already has: told after HELLO, and when its id is started again."""

    id: int
    exited: bool
    pid: int
    acknowledged: int
    produced: int
    stdin_waiting: int  # bytes of input that it has not read yet


@dataclass(frozen=True, slots=True)
class Done:
    id: int


@dataclass(frozen=True, slots=True)
class Failed:
    id: int
    errno: int
    message: str


@dataclass(frozen=True, slots=True)
class Started:
    id: int
    pid: int


@dataclass(frozen=True, slots=True)
class Output:
    """`offset` counts the bytes of both streams that the process produced before these."""

    id: int
    stream: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """From waitid: `signal` is 0 for an exit by itself. `produced` is all output there will be."""

    id: int
    code: int
    signal: int
    produced: int

    @property
    def exit_code(self) -> int:
        """As a shell says it: 128 + signal for a process that a signal ended."""
        return 128 + self.signal if self.signal else self.code


@dataclass(frozen=True, slots=True)
class StdinTaken:
    id: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StdinState:
    """Follows Process after HELLO: how many bytes of input have arrived in all, and whether their end has."""

    id: int
    received: int
    ended: bool


@dataclass(frozen=True, slots=True)
class Pong:
    id: int


Frame = Hello | Process | Done | Failed | Started | Output | Exited | StdinTaken | StdinState | Pong

STDOUT, STDERR = 1, 2
_PAIR = struct.Struct("<II")
_HELLO = struct.Struct("<III")
_PROCESS = struct.Struct("<IQQI")
_EXITED = struct.Struct("<iiQ")
_EXACT = {
    FromGuest.HELLO: _HELLO.size,
    FromGuest.PROCESS: _PROCESS.size,
    FromGuest.DONE: 0,
    FromGuest.STARTED: 4,
    FromGuest.EXITED: _EXITED.size,
    FromGuest.STDIN_TAKEN: 4,
    FromGuest.STDIN_STATE: 8,
    FromGuest.PONG: 0,
}


def _count(value: int) -> int:
    """Bytes that a process produced: small enough to be added to and still be written as 64 bits."""
    if value >> 63:
        raise GuestMisbehaved(f"a count of {value} bytes")
    return value


def _parse(kind: int, detail: int, id: int, payload: bytes) -> Frame:
    expected = _EXACT.get(kind)  # type: ignore[arg-type]
    if expected is not None and len(payload) != expected:
        raise GuestMisbehaved(f"frame {kind} of {len(payload)} bytes")
    match kind:
        case FromGuest.OUTPUT if len(payload) > 8 and detail in (STDOUT, STDERR):
            return Output(id, detail, _count(_U64.unpack_from(payload)[0]), payload[8:])
        case FromGuest.EXITED:
            code, signal, produced = _EXITED.unpack(payload)
            if not (0 <= code <= 255 and 0 <= signal <= 64):
                raise GuestMisbehaved(f"exit status {code}, signal {signal}")
            return Exited(id, code, signal, _count(produced))
        case FromGuest.DONE:
            return Done(id)
        case FromGuest.STARTED:
            return Started(id, _U32.unpack(payload)[0])
        case FromGuest.FAILED if 4 <= len(payload) <= 512:
            return Failed(id, _U32.unpack_from(payload)[0], payload[4:].decode("utf-8", "replace"))
        case FromGuest.HELLO:
            protocol, attached, processes = _HELLO.unpack(payload)
            return Hello(protocol, bool(attached), processes)
        case FromGuest.PROCESS:
            pid, acknowledged, produced, waiting = _PROCESS.unpack(payload)
            if id > MAX_PROCESS_ID or waiting > STDIN_WINDOW:
                raise GuestMisbehaved(f"process {id} with {waiting} bytes of input")
            return Process(id, bool(detail), pid, _count(acknowledged), _count(produced), waiting)
        case FromGuest.STDIN_TAKEN:
            return StdinTaken(id, _U32.unpack(payload)[0])
        case FromGuest.STDIN_STATE:
            return StdinState(id, _count(_U64.unpack(payload)[0]), bool(detail))
        case FromGuest.PONG:
            return Pong(id)
        case _:
            raise GuestMisbehaved(f"frame of type {kind}, detail {detail}, {len(payload)} bytes")


class FrameReader:
    """Bytes in, frames out. Holds less than one frame (MAX_FROM_GUEST + header) between calls."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def held(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[Frame]:
        data = self._rest + data
        at = 0
        while len(data) - at >= HEADER.size:
            length, kind, detail, zero, id = HEADER.unpack_from(data, at)
            if length > MAX_FROM_GUEST or zero:
                raise GuestMisbehaved(f"header of type {kind} with length {length}")
            end = at + HEADER.size + length
            if end > len(data):
                break
            yield _parse(kind, detail, id, data[at + HEADER.size : end])
            at = end
        self._rest = data[at:]


def _frame(kind: ToGuest, id: int, payload: bytes = b"", detail: int = 0) -> bytes:
    if len(payload) > MAX_TO_GUEST:
        raise ValueError(f"{kind.name} of {len(payload)} bytes; guest init takes {MAX_TO_GUEST}")
    return HEADER.pack(len(payload), kind, detail, 0, id) + payload


def _words(words: Sequence[str | bytes]) -> bytes:
    encoded = [w.encode() if isinstance(w, str) else w for w in words]
    if any(b"\0" in w for w in encoded):
        raise ValueError("a NUL byte cannot be passed to a process")
    return b"".join(w + b"\0" for w in encoded)


def hello() -> bytes:
    return _frame(ToGuest.HELLO, 0, _U32.pack(PROTOCOL))


def network(id: int, plan: Sequence[str]) -> bytes:
    """`plan`: interface, MTU, then address, prefix length, gateway for IPv4 and for IPv6."""
    return _frame(ToGuest.NETWORK, id, _words(plan))


def prepare(id: int) -> bytes:
    """Before `attach`, while the sandbox's control group is mounted at /slot/memory and /slot/cpu."""
    return _frame(ToGuest.PREPARE, id)


@dataclass(frozen=True, slots=True)
class Sight:
    """What the sandbox's programs are told of their machine. `on`: the processors that they run on; none: any."""

    memory_bytes: int
    cpus: int
    on: Sequence[int] = ()


def attach(id: int, hostname: str, sight: Sight, again: bool = False) -> bytes:
    """`again`: it begins with an earlier sandbox's files; then an edited /etc/hostname counts more than `hostname`."""
    on = ",".join(map(str, sight.on))
    words = [hostname, str(sight.memory_bytes), str(sight.cpus), on, str(int(again))]
    return _frame(ToGuest.ATTACH, id, _words(words))


def write_own(id: int, path: str, mode: int, data: bytes) -> bytes:
    """A short file, unless it was edited since an earlier sandbox wrote it so. HOSTNAME in it becomes the host name."""
    return _frame(ToGuest.WRITE_FILE, id, _U32.pack(mode) + _words([path]) + data, detail=2)


def write_file(id: int, path: str, mode: int, data: bytes) -> Iterator[bytes]:
    """One frame a quarter MiB; the first makes the file anew, the others append. Each is answered."""
    step = MAX_TO_GUEST - 4096
    for start in range(0, max(len(data), 1), step):
        head = _U32.pack(mode) + _words([path])
        yield _frame(ToGuest.WRITE_FILE, id, head + data[start : start + step], detail=int(start > 0))


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute. `terminal` is (rows, columns) for a pty, which merges stderr into stdout."""

    arguments: Sequence[str]
    environment: Mapping[str, str] | None  # None: that of the guest's first process
    directory: str = "/root"
    stdin: bool = False
    terminal: tuple[int, int] | None = None
    end_session: bool = False  # when it exits, end what is left of its session and did not ask to stay
    uid: int = 0
    gid: int = 0
    changes: Mapping[str, str] = field(default_factory=dict[str, str])  # to the first process's environment


_EXEC = struct.Struct("<IIIHHHH")


def execute(id: int, command: Command) -> bytes:
    rows, columns = command.terminal or (0, 0)
    inherits = command.environment is None
    flags = bool(command.terminal) | command.stdin << 1 | command.end_session << 2 | inherits << 3
    variables = command.changes if command.environment is None else command.environment
    environment = [f"{name}={value}" for name, value in variables.items()]
    head = _EXEC.pack(
        *(flags, command.uid, command.gid, rows, columns),
        *(len(command.arguments), len(environment)),
    )
    return _frame(ToGuest.EXEC, id, head + _words([command.directory, *command.arguments, *environment]))


def stdin(id: int, data: bytes) -> bytes:
    """Empty data ends the input."""
    return _frame(ToGuest.STDIN, id, data)


def acknowledge(id: int, upto: int) -> bytes:
    return _frame(ToGuest.ACK, id, _U64.pack(upto))


def signal_group(id: int, number: int) -> bytes:
    return _frame(ToGuest.SIGNAL, id, _U32.pack(number))


def signal_everyone(number: int) -> bytes:
    return _frame(ToGuest.SIGNAL, 0, _U32.pack(number), detail=1)


def resize(id: int, rows: int, columns: int) -> bytes:
    return _frame(ToGuest.RESIZE, id, struct.pack("<HH", rows, columns))


def release(id: int) -> bytes:
    return _frame(ToGuest.RELEASE, id)


def ping(id: int) -> bytes:
    return _frame(ToGuest.PING, id)
