"""Commands about jobs: run, list, status, logs, stop, pool.

`run` shows the script's own bytes on the right streams as they come and ends with the script's exit status; a
status that was lost is never shown as success.
"""

import json
import os
import sys
import urllib.parse
from pathlib import Path

import click

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options
from roost.cli.follow import Ending, follow
from roost.cli.workspaces import upload
from roost.errors import Invalid, RoostError

JOBS = "/api/v1/mags-jobs"
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE = 141  # 128 + SIGPIPE


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("script")
@click.option("-n", "--name", help="A name to find the job by.")
@click.option("-e", "--env", "pairs", multiple=True, metavar="KEY=VALUE", help="Environment; repeatable.")
@click.option("-t", "--timeout", type=click.IntRange(min=1), metavar="S", help="Seconds it may run (300).")
@click.option("--image", metavar="I", help="Root file system (standard).")
@click.option("--memory", type=click.IntRange(min=1), metavar="MB", help="Memory limit.")
@click.option("--vcpus", type=click.FloatRange(min=0, min_open=True), metavar="N", help="CPU limit.")
@click.option("--disk", type=click.IntRange(min=1), metavar="GB", help="Disk limit (2).")
@click.option("-w", "--workspace", metavar="NAME", help="Begin from this workspace and save to it.")
@click.option("--base", metavar="NAME", help="Begin from this workspace (or NAME@REVISION), which stays as it is.")
@click.option("-p", "--persistent", is_flag=True, default=None, help="Keep the sandbox until `roost stop`.")
@click.option("--no-sleep", is_flag=True, default=None, help="Never put it to sleep; with -p.")
@click.option("--startup-command", metavar="CMD", help="Runs when it wakes from cold; with -p.")
@click.option("--idle-minutes", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Until it sleeps (10).")
@click.option(
    "-f", "--file", "files", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Upload a file into /root; repeatable.",
)  # fmt: skip
@as_json
@api_options
def run(api: Api, script: str, pairs: tuple[str, ...], files: tuple[Path, ...], raw: bool, **options: object) -> None:
    """Run a script in a new sandbox, show its output as it comes, and end with its exit status.

    SCRIPT is shell text, the name of a file that holds it, or - for standard input. Ctrl-C stops the job. With -p the
    command prints the job's id and ends, and the sandbox stays.
    """
    body = submission(read_script(script), pairs, **options)
    if files:
        body["file_ids"] = [upload(api, file) for file in files]
    accepted = api.call("POST", JOBS, body)
    job = str(accepted["request_id"])
    if options.get("persistent"):
        return _leave(job, accepted, raw)
    try:
        ending = follow(api, f"{path_of(job)}/logs", _discard if raw else _show)
    except KeyboardInterrupt:
        _stop_interrupted(api, job)
        sys.exit(INTERRUPTED)
    if raw:
        print_json(api.call("GET", f"{path_of(job)}/status"))
    elif ending.error:
        click.echo(f"roost: {ending.error}", err=True)
    sys.exit(exit_status(ending))


def _leave(job: str, accepted: Json, raw: bool) -> None:
    if raw:
        return print_json(accepted)
    click.echo(job)
    click.echo(f"roost: follow it with `roost logs -f {job}`, end it with `roost stop {job}`", err=True)
    return None


def submission(script: str, pairs: tuple[str, ...], **options: object) -> dict[str, object]:
    """The body of POST mags-jobs; what was not asked for is left to the server."""
    names = {
        "image": "rootfs_type", "memory": "memory_mb", "disk": "disk_gb", "workspace": "workspace_id",
        "base": "base_workspace_id",
    }  # fmt: skip
    asked = {names.get(name, name): value for name, value in options.items() if value is not None}
    body: dict[str, object] = {"script": script, "type": "inline", **asked}
    if pairs:
        body["environment"] = dict(_pair(text) for text in pairs)
    return body


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


def _show(source: str, data: bytes) -> None:
    stream = sys.stdout.buffer if source == "stdout" else sys.stderr.buffer
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        os._exit(BROKEN_PIPE)  # at once: the stream would fail again on the way out


def _discard(source: str, data: bytes) -> None:
    """With --json, standard output holds the JSON alone."""


def _stop_interrupted(api: Api, job: str) -> None:
    click.echo(f"\nroost: stopping {job}", err=True)
    try:
        api.call("POST", f"{path_of(job)}/stop")
    except RoostError as error:
        click.echo(f"roost: {error}", err=True)


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
@click.argument("job")
@as_json
@api_options
def status(api: Api, job: str, raw: bool) -> None:
    """Show one job, by its id or name."""
    answer = api.call("GET", f"{path_of(job)}/status")
    if raw:
        return print_json(answer)
    for key, value in answer.items():
        click.echo(f"{key + ':':<20}{word(value)}")
    return None


@click.command()
@click.argument("job")
@click.option("-f", "--follow", "following", is_flag=True, help="Go on until the job ends.")
@as_json
@api_options
def logs(api: Api, job: str, following: bool, raw: bool) -> None:
    """Show a job's output so far, each line on the stream it was written to."""
    if following:
        ending = follow(api, f"{path_of(job)}/logs", _show_json if raw else _show)
        if ending.error:
            click.echo(f"roost: {ending.error}", err=True)
        return None
    answer = api.call("GET", f"{path_of(job)}/logs")
    if raw:
        return print_json(answer)
    for entry in answer["logs"]:
        click.echo(entry["message"], err=entry.get("source") != "stdout")
    return None


def _show_json(source: str, data: bytes) -> None:
    click.echo(json.dumps({"source": source, "message": data.decode("utf-8", "replace")}))


@click.command()
@click.argument("job")
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
    for key, value in answer.items():
        click.echo(f"{key + ':':<20}{word(value)}")
    return None


def path_of(job: str) -> str:
    return f"{JOBS}/{urllib.parse.quote(job, safe='')}"
