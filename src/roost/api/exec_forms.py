"""What callers say of execs and are told of them: read strictly, refused in words that say what to change."""

import signal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from roost.api.mags import MAX_COMMAND
from roost.clock import rfc3339
from roost.errors import Invalid, NotFound
from roost.jobs.execs import exec_id, number_of
from roost.node.protocol import ProcessState, StartProcess, Terminal

MAX_WORDS = 128 * 1024  # bytes of arguments and environment together
MAX_COUNT = 4096  # of them


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: int = 24
    columns: int = 80


class NewExec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    command: Annotated[str | None, Meta(description="Shell text; or give `arguments`")] = None
    arguments: Annotated[list[str] | None, Meta(description="A program and its arguments, without a shell")] = None
    environment: Annotated[dict[str, str] | None, Meta(description="Changes to the job's own")] = None
    directory: Annotated[str | None, Meta(description="Where it starts; default /root")] = None
    terminal: Annotated[Size | None, Meta(description="Gives it a terminal of this size; its output is all stdout")] = (
        None
    )
    input: Annotated[
        bool | str, Meta(description="A text is its whole input; true: input follows; false: it is empty")
    ] = False
    exec_id: Annotated[
        str | None, Meta(description="8 hex digits below 40000000 of your choice: the same again starts nothing")
    ] = None


class ExecState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    exec_id: str
    status: Literal["running", "ended"]
    arguments: list[str]
    started_at: str
    input_taken: int
    input_closed: bool
    ended_at: str | None = None
    exit_code: int | None = None  # 128 + signal for one that was ended by it; absent when it is not known
    signal: str | None = None
    reason: str | None = None  # why the exit code is not known
    terminal: bool = False
    dropped_bytes: int = 0  # of output, beyond the limit


class Signal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signal: Annotated[str | int, Meta(description="TERM, INT, KILL, … or a number; to its process group")] = "TERM"


def state_of(state: ProcessState) -> ExecState:
    return ExecState(
        exec_id=exec_id(state.id),
        status="running" if state.ended_ns is None else "ended",
        arguments=state.arguments,
        started_at=rfc3339(state.started_ns),
        ended_at=None if state.ended_ns is None else rfc3339(state.ended_ns),
        exit_code=state.exit_code,
        signal=_name_of(state.signal),
        reason=state.reason,
        terminal=state.terminal,
        input_taken=state.input_taken,
        input_closed=state.input_closed,
        dropped_bytes=state.dropped,
    )


def process_of(wanted: NewExec) -> StartProcess:
    """Raises Invalid."""
    if (wanted.command is None) == (wanted.arguments is None):
        raise Invalid("give either command (shell text) or arguments (a program and its arguments)")
    if wanted.command is not None and not wanted.command.strip():
        raise Invalid("command: empty; give a shell command")
    arguments = ["/bin/sh", "-c", wanted.command] if wanted.command is not None else wanted.arguments or []
    if not arguments or not arguments[0]:
        raise Invalid("arguments: empty; the first is the program to execute")
    environment = dict(wanted.environment or {})
    _check_words(arguments, environment, wanted.directory)
    if wanted.terminal is not None:
        environment.setdefault("TERM", "xterm")
    return StartProcess(
        arguments=arguments,
        environment=environment,
        directory=wanted.directory,
        terminal=None if wanted.terminal is None else terminal_of(wanted.terminal),
        input=wanted.input is not False,
    )


def _check_words(arguments: list[str], environment: dict[str, str], directory: str | None) -> None:
    words = [*arguments, *(f"{name}={value}" for name, value in environment.items()), directory or ""]
    if any(not name or "=" in name for name in environment):
        raise Invalid("environment: a name is empty or has a `=`")
    if any("\0" in word for word in words):
        raise Invalid("no argument, variable or directory can hold a NUL byte")
    if max(len(word.encode()) for word in words) > MAX_COMMAND:
        raise Invalid(f"an argument or variable may have at most {MAX_COMMAND} bytes")
    if len(words) > MAX_COUNT or sum(len(word.encode()) + 1 for word in words) > MAX_WORDS:
        raise Invalid(
            f"arguments and environment may have at most {MAX_WORDS} bytes and {MAX_COUNT} words; upload a file"
        )
    if directory is not None and not directory.startswith("/"):
        raise Invalid(f"directory: {directory[:80]!r} is not absolute")


def terminal_of(size: Size) -> Terminal:
    """Raises Invalid."""
    if not (0 < size.rows < 65536 and 0 < size.columns < 65536):
        raise Invalid("rows and columns: 1 to 65535")
    return Terminal(rows=size.rows, columns=size.columns)


def signal_number(wanted: str | int) -> int:
    """Raises Invalid."""
    try:
        if isinstance(wanted, int):
            return int(signal.Signals(wanted)) if wanted < signal.SIGRTMIN else _real_time(wanted)
        return int(signal.Signals[f"SIG{wanted.upper().removeprefix('SIG')}"])
    except (KeyError, ValueError):
        raise Invalid(f"signal: there is no signal {wanted!r}; give a name like TERM, or its number") from None


def _real_time(number: int) -> int:
    if number > signal.SIGRTMAX:
        raise ValueError(number)
    return number


def _name_of(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)


def number_of_choice(chosen: str) -> int:
    """Raises Invalid."""
    try:
        return number_of(chosen)
    except NotFound:
        raise Invalid("exec_id: 8 lower-case hex digits, more than 0 and below 40000000") from None
