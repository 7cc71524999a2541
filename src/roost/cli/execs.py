"""`roost exec`: a command in a job's sandbox; with -i or -t attached to this terminal, see `attach.py`."""

import shlex
import sys
import urllib.parse

import click

from roost.cli.answers import as_json, print_json
from roost.cli.connection import Api, api_options
from roost.cli.names import JOB
from roost.cli.paths import path_of
from roost.errors import Invalid

WAKE_WITHIN = 100.0  # seconds; the server gives itself 90


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
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

    A `--` may stand before COMMAND. One word is shell text; several are a program and its arguments. With -i or -t a
    lost connection is made again and the command goes on where it was.
    """
    command = without_dashes(command)
    if not (interactive or tty):
        _run(api, job, command, timeout or 30, raw)
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


def _run(api: Api, job: str, command: tuple[str, ...], timeout: int, raw: bool) -> None:
    text = command[0] if len(command) == 1 else shlex.join(command)
    body = {"command": text, "timeout": timeout}
    answer = api.call("POST", f"{path_of(job)}/exec", body, timeout=timeout + WAKE_WITHIN)
    if raw:
        print_json(answer)
    else:
        click.echo(answer["stdout"], nl=False)
        click.echo(answer["stderr"], nl=False, err=True)
        if answer.get("note"):
            click.echo(f"roost: {answer['note']}", err=True)
    code = answer.get("exit_code")
    sys.exit(code if isinstance(code, int) and 0 <= code <= 255 else 1)
