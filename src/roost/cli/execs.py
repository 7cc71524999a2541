"""`roost exec`: a command in a job's sandbox; with -i or -t attached to this terminal, see `attach.py`."""

import base64
import http.client
import json
import shlex
import sys
import urllib.parse
from typing import NoReturn

import click

from roost.cli.answers import OUR_FAILURE, Carrying, as_json, print_json
from roost.cli.connection import Api, Interrupted, Json, api_options
from roost.cli.follow import parse
from roost.cli.jobs import show_bytes
from roost.cli.names import JOB
from roost.cli.paths import path_of
from roost.cli.wording import note
from roost.errors import Invalid, RoostError

WAKE_WITHIN = 100.0  # seconds; the server gives itself 90, and says something more often while a command runs
TIMEOUT = 30  # seconds; documented
LOST_SIGHT = "the connection broke, which ended the command; its exit status is not known"


@click.command(
    "exec", cls=Carrying, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("-i", "--interactive", is_flag=True, help="Send it this command's standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal; with -i.")
@click.option("--timeout", type=click.IntRange(min=1), metavar="S", help="Seconds it may run (30; with -i, any).")
@click.argument("job", type=JOB)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@as_json
@api_options
def exec_command(
    api: Api, job: str, command: tuple[str, ...], interactive: bool, tty: bool, timeout: int | None, raw: bool
) -> None:
    """Run COMMAND in a job's sandbox and end with its exit status; wake it if it sleeps. Options come before JOB.

    A `--` may stand before COMMAND. One word is shell text; several are a program and its arguments. Output is passed
    on byte for byte. Who goes away ends the command, unless `setsid` has detached it. With -i or -t a lost connection
    is made again and the command goes on where it was. Status 125 is ours: the command was not run, or lost.
    """
    command = without_dashes(command)
    if not (interactive or tty):
        once = _answered if raw else _followed
        once(api, job, command, timeout or TIMEOUT)
    if raw or timeout:
        raise Invalid("--json and --timeout are for commands without -i and -t")
    from roost.cli import attach  # its WebSocket takes a fifth of a second to import

    body: dict[str, object] = {"input": True}
    body |= {"command": command[0]} if len(command) == 1 else {"arguments": [*command]}
    if tty:
        body |= attach.terminal_of()
    started = attach.start(api, f"{path_of(job)}/execs", body)
    sys.exit(attach.attach(api, f"{path_of(job)}/execs/{urllib.parse.quote(started)}", tty))


def without_dashes(command: tuple[str, ...]) -> tuple[str, ...]:
    """What follows the `--` between a job and its command, as docker, kubectl and ssh take it.

    Click hands it on, because the options of a command are not ours. Raises UsageError when nothing follows.
    """
    rest = command[1:] if command[0] == "--" else command
    if not rest:
        raise click.UsageError("nothing follows `--`; give the command to run")
    return rest


def _followed(api: Api, job: str, command: tuple[str, ...], timeout: int) -> NoReturn:
    """Byte for byte as it comes. Who goes away takes the connection along, which ends the command."""
    body = json.dumps({"command": _text(command), "timeout": timeout}).encode()
    try:
        with api.stream("POST", f"{path_of(job)}/exec/follow", body, timeout=WAKE_WITHIN) as answer:
            for message in parse(answer):
                if message.name == "end":
                    sys.exit(_status(json.loads(message.data), timeout))
                if message.name == "message":
                    piece = json.loads(message.data)
                    show_bytes(piece["source"], base64.b64decode(piece["data"]))
    except Interrupted as error:
        raise RoostError(str(error)) from error
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise RoostError(f"{LOST_SIGHT} ({error})") from error
    raise RoostError(LOST_SIGHT)


def _answered(api: Api, job: str, command: tuple[str, ...], timeout: int) -> NoReturn:
    body = {"command": _text(command), "timeout": timeout}
    answer = api.call("POST", f"{path_of(job)}/exec", body, timeout=timeout + WAKE_WITHIN)
    print_json(answer)
    sys.exit(_status(answer, timeout))


def _text(command: tuple[str, ...]) -> str:
    return command[0] if len(command) == 1 else shlex.join(command)


def _status(end: Json, timeout: int) -> int:
    if end.get("timed_out"):
        note(f"the command ran into its limit of {timeout} s and was ended; --timeout S gives it more")
    elif end.get("note"):
        note(end["note"])
    code = end.get("exit_code")
    return code if isinstance(code, int) and 0 <= code <= 255 else OUR_FAILURE
