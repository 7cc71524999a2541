"""Commands about jobs: list, status, logs, stop, pool; and what they have in common with `run`."""

import os
import sys
from pathlib import Path

import click

from roost.cli.answers import as_json, print_fields, print_json, print_line, print_table, word
from roost.cli.connection import Api, api_options
from roost.cli.follow import Ending, follow
from roost.cli.names import JOB
from roost.cli.paths import JOBS, path_of
from roost.errors import Invalid

BROKEN_PIPE = 141  # 128 + SIGPIPE


def submission(script: str, pairs: tuple[str, ...], **options: object) -> dict[str, object]:
    """The body of POST mags-jobs; what was not asked for is left to the server."""
    names = {
        "image": "rootfs_type", "memory": "memory_mb", "disk": "disk_gb", "workspace": "workspace_id",
        "base": "base_workspace_id",
    }  # fmt: skip
    asked = {names.get(name, name): value for name, value in options.items() if value is not None}
    body: dict[str, object] = {"script": script, "type": "inline", **asked}
    if pairs:
        body["environment"] = pairs_of(pairs)
    return body


def pairs_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """Of KEY=VALUE each. Raises Invalid."""
    return dict(_pair(text) for text in pairs)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise Invalid(f"-e {text!r} is not KEY=VALUE")
    return key, value


def read_script(argument: str) -> str:
    """The text itself, or what the named file or standard input holds."""
    try:
        if argument == "-":
            return sys.stdin.buffer.read().decode()
        if _names_file(argument):
            return Path(argument).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"the script in {argument} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise Invalid(f"cannot read the script: {error}") from error
    return argument


def _names_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # too long for a name, or holds what no name can
        return False


def exit_status(ending: Ending) -> int:
    """The script's own status; 1 where it was lost or something else went wrong."""
    if ending.exit_code is None:
        return 1
    failed = ending.status == "error" and ending.exit_code == 0
    return 1 if failed else ending.exit_code


def show_bytes(source: str, data: bytes) -> None:
    stream = sys.stdout.buffer if source == "stdout" else sys.stderr.buffer
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        os._exit(BROKEN_PIPE)  # at once: the stream would fail again on the way out


def discard(source: str, data: bytes) -> None:
    """With --json, standard output holds the JSON alone."""


@click.command("list")
@click.option("--page", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(min=1, max=100), default=20, show_default=True)
@as_json
@api_options
def list_jobs(api: Api, page: int, page_size: int, raw: bool) -> None:
    """List jobs, the newest first."""
    answer = api.call("GET", f"{JOBS}?page={page}&page_size={page_size}")
    if raw:
        return print_json(answer)
    keys = ("request_id", "status", "exit_code", "created_at", "workspace_id", "name")
    rows = [[word(job.get(key)) for key in keys] for job in answer["jobs"]]
    print_table(["ID", "STATUS", "EXIT", "CREATED", "WORKSPACE", "NAME"], rows)
    return None


@click.command()
@click.argument("job", type=JOB)
@as_json
@api_options
def status(api: Api, job: str, raw: bool) -> None:
    """Show one job, by its id or name."""
    answer = api.call("GET", f"{path_of(job)}/status")
    if raw:
        return print_json(answer)
    return print_fields(answer)


@click.command()
@click.argument("job", type=JOB)
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job ends.")
@as_json
@api_options
def logs(api: Api, job: str, following: bool, raw: bool) -> None:
    """Show a job's output so far, each line on the stream it was written to.

    With -f and --json: a line of JSON for each piece of output, {"source", "message"}, and one for the end, {"status",
    "exit_code", "error"}.
    """
    if following:
        return _follow(api, job, raw)
    answer = api.call("GET", f"{path_of(job)}/logs")
    if raw:
        return print_json(answer)
    for entry in answer["logs"]:
        click.echo(entry["message"], err=entry.get("source") != "stdout")
    return None


def _follow(api: Api, job: str, raw: bool) -> None:
    ending = follow(api, f"{path_of(job)}/logs", _show_json if raw else show_bytes)
    if raw:
        print_line(ending.__dict__)
    elif ending.error:
        click.echo(f"roost: {ending.error}", err=True)


def _show_json(source: str, data: bytes) -> None:
    print_line({"source": source, "message": data.decode("utf-8", "replace")})


@click.command()
@click.argument("job", type=JOB)
@as_json
@api_options
def stop(api: Api, job: str, raw: bool) -> None:
    """Stop a job and its sandbox."""
    answer = api.call("POST", f"{path_of(job)}/stop", timeout=60)
    print_json(answer) if raw else click.echo(answer.get("message", "Job stopped"))


@click.command()
@as_json
@api_options
def pool(api: Api, raw: bool) -> None:
    """Show the pool of warm sandboxes."""
    answer = api.call("GET", f"{JOBS}/pool-status")
    if raw:
        return print_json(answer)
    return print_fields(answer)
