"""Execs: processes in a job's sandbox with input, output, signals and a terminal, kept whoever watches.

They are driven by plain requests, which may be repeated: output has sequence numbers and input has positions.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from roost.sdk import wire
from roost.sdk.errors import TimedOut
from roost.sdk.jobs import WAKE_WITHIN, Output, output_of, path_of
from roost.sdk.results import ExecList, ExecState, Taken
from roost.sdk.wire import Body, Call, Flow, Json, Request, Wait, decoded, given, quoted

STEP = 1024 * 1024  # bytes of input in one request; the server takes 2 MiB
INPUT_WITHIN = 60.0  # seconds; the server answers what it took after 25


def path(job: str, exec_id: str) -> str:
    return f"{path_of(job)}/execs{quoted(exec_id)}"


def start_exec(
    name_or_id: str,
    command: str | Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: str | None = None,
    terminal: tuple[int, int] | None = None,
    input: bool | str = False,
) -> Call[ExecState]:
    """Start a process beside a job's script; wakes the job. `exec_id` of the answer names it.

    `command` is shell text, or a program and its arguments. `input`: a text is its whole input, True: `write_exec` will
    give it. `terminal` is rows and columns.
    """
    body = given(environment=environment, directory=directory)
    body |= {"command": command} if isinstance(command, str) else {"arguments": list(command)}
    if terminal:
        body["terminal"] = {"rows": terminal[0], "columns": terminal[1]}
    # chosen here, so that asking again starts nothing twice
    body |= {"input": input, "exec_id": f"{1 + secrets.randbelow(2**30 - 1):08x}"}
    where = f"{path_of(name_or_id)}/execs"
    return (yield from wire.call("POST", where, body, timeout=WAKE_WITHIN, repeatable=True))


def list_execs(name_or_id: str) -> Call[ExecList]:
    """List the processes that are kept for a job's sandbox."""
    return (yield from wire.call("GET", f"{path_of(name_or_id)}/execs"))


def exec_status(name_or_id: str, exec_id: str) -> Call[ExecState]:
    """Show whether a process has ended, and how."""
    return (yield from wire.call("GET", path(name_or_id, exec_id)))


def follow_exec(name_or_id: str, exec_id: str, *, after: int = 0) -> Flow[Output]:
    """Its output as it comes, until it has ended; `end` then is its state, with `exit_code`.

    A connection that breaks is made again, and nothing is lost or repeated. `after` is the seq to go on behind.
    """
    return (yield from wire.follow(f"{path(name_or_id, exec_id)}/output", {"follow": True}, after, output_of))


def read_exec(name_or_id: str, exec_id: str, source: Literal["stdout", "stderr"] = "stdout") -> Flow[bytes]:
    """The exact bytes that it has written by now, in pieces."""
    query = {"format": "raw", "source": source}
    return (yield from wire.read_all(Request("GET", f"{path(name_or_id, exec_id)}/output", query)))


def write_exec(
    name_or_id: str, exec_id: str, data: bytes | str = b"", *, at: int | None = None, end: bool = False
) -> Call[Taken]:
    """Give it input, all of it, and with `end` close it. Waits while the process does not read.

    `at` is the number of the first byte; None: behind what it has taken by now.
    """
    content = data.encode() if isinstance(data, str) else data
    if at is None:
        state = yield from exec_status(name_or_id, exec_id)
        at = state["input_taken"]
    first, last = at, at + len(content)
    while True:
        piece = content[at - first : at - first + STEP]
        closes = end and at + len(piece) == last
        taken: Taken = yield from _write(f"{path(name_or_id, exec_id)}/input", piece, at, closes)
        if (taken["position"] >= last and (taken["closed"] or not end)) or taken["closed"]:
            return taken
        if taken["position"] == at:
            yield Wait(0.05)
        at = taken["position"]


def _write(where: str, piece: bytes, at: int, end: bool) -> Call[Json]:
    body = Body(lambda: iter((piece,)), len(piece))
    query = {"at": at, "end": end}
    answer = yield from wire.send(Request("POST", where, query, body=body, timeout=INPUT_WITHIN, repeatable=True))
    return decoded(answer)


def signal_exec(name_or_id: str, exec_id: str, signal: str | int = "TERM") -> Call[ExecState]:
    """Send a signal to its process group: TERM, INT, KILL, … or a number."""
    return (yield from wire.call("POST", f"{path(name_or_id, exec_id)}/signal", {"signal": signal}))


def resize_exec(name_or_id: str, exec_id: str, rows: int, columns: int) -> Call[ExecState]:
    """Change the size of its terminal."""
    body = {"rows": rows, "columns": columns}
    return (yield from wire.call("POST", f"{path(name_or_id, exec_id)}/resize", body, repeatable=True))


def remove_exec(name_or_id: str, exec_id: str) -> Call[None]:
    """Kill it if it runs, and forget its output."""
    yield from wire.call("DELETE", path(name_or_id, exec_id))


def wait_exec(
    name_or_id: str, exec_id: str, *, timeout: float | None = None, poll_interval: float = 1.0
) -> Call[ExecState]:
    """Its state once it has ended. Raises TimedOut after `timeout` seconds; None: waits as long as it takes."""
    deadline = None if timeout is None else time.monotonic() + timeout
    for pause in wire.pauses(poll_interval):
        state = yield from exec_status(name_or_id, exec_id)
        if state["status"] == "ended":
            return state
        if deadline is not None and time.monotonic() > deadline:
            break
        yield Wait(pause)
    raise TimedOut(f"exec {exec_id} goes on after {timeout} s")
