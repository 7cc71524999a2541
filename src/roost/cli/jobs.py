"""Commands about jobs: list, status, logs, stop, pool; and what they have in common with `run`."""

import base64
import os
import re
import sys
from datetime import datetime
from pathlib import Path

import click

from roost.cli.answers import (
    OUR_FAILURE,
    as_json,
    on_terminal,
    print_fields,
    print_json,
    print_line,
    print_table,
    short,
    word,
)
from roost.cli.connection import Api, Json, api_options
from roost.cli.follow import Ending, follow
from roost.cli.leaving import write
from roost.cli.names import JOB
from roost.cli.paths import JOBS, path_of
from roost.cli.times import SINCE, told
from roost.cli.wording import note
from roost.errors import Invalid

STATUSES = ("pending", "running", "sleeping", "completed", "error")
MAX_NAME = 255  # bytes, of a file
SCRIPTS = (".sh", ".bash", ".py", ".js", ".mjs", ".ts", ".rb", ".pl", ".php")
_PATH = re.compile(r"[\w.+@-][\w.+@/-]*")  # relative
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")


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
    """Of NAME=VALUE each, or of NAME: its value is the caller's. Raises Invalid."""
    return dict(_pair(text) for text in pairs)


def _pair(text: str) -> tuple[str, str]:
    """Without a value it is the caller's own: one that is not set is more likely mistyped than meant."""
    key, equals, value = text.partition("=")
    if not key:
        raise Invalid(f"-e {text!r} is not NAME=VALUE")
    if equals:
        return key, value
    if key not in os.environ:
        raise Invalid(f"-e {key}: there is no such variable here; set it, or give -e {key}=VALUE")
    return key, os.environ[key]


def read_script(argument: str, has_files: bool = False) -> str:
    """The text itself, or what the named file or standard input holds. `has_files`: the sandbox begins with some.

    Raises Invalid, also for what can only be meant as the name of a file here and is none.
    """
    try:
        if argument == "-":
            return sys.stdin.buffer.read().decode()
        if _names_file(argument):
            return Path(argument).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"the script in {argument} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise Invalid(f"cannot read the script: {error}") from error
    if _looks_like_path(argument, has_files):
        raise Invalid(f"no such file here: {argument}; for one in the sandbox write `sh {argument}`")
    return argument


def _looks_like_path(argument: str, has_files: bool) -> bool:
    """No program has such a name; and a relative path leads nowhere in a sandbox that begins with no files."""
    if len(argument) > MAX_NAME or not _PATH.fullmatch(argument) or Path(argument).exists():
        return False
    return not has_files if "/" in argument else argument.endswith(SCRIPTS)


def _names_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # too long for a name, or holds what no name can
        return False


def exit_status(ending: Ending) -> int:
    """The script's own status; OUR_FAILURE where it was lost or something else went wrong."""
    if ending.exit_code is None:
        return OUR_FAILURE
    failed = ending.status == "error" and ending.exit_code == 0
    return OUR_FAILURE if failed else ending.exit_code


def show_bytes(source: str, data: bytes) -> None:
    """As they are. Raises Left where nobody reads them any more."""
    write(1 if source == "stdout" else 2, data)


def discard(source: str, data: bytes) -> None:
    """With --json, standard output holds the JSON alone."""


@click.command("list")
@click.option("--page", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--page-size", type=click.IntRange(min=1, max=100), default=20, show_default=True)
@click.option("--status", type=click.Choice(STATUSES), help="Only those.")
@as_json
@api_options
def list_jobs(api: Api, page: int, page_size: int, status: str | None, raw: bool) -> None:
    """List jobs, the newest first."""
    show_page(api, f"page={page}&page_size={page_size}{f'&status={status}' if status else ''}", raw)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended: the same as `list`.")
@as_json
@api_options
def ps(api: Api, everything: bool, raw: bool) -> None:
    """List jobs that have not ended, the newest first."""
    show_page(api, "page_size=100" + ("" if everything else "&status=unfinished"), raw)


def show_page(api: Api, query: str, raw: bool) -> None:
    answer = api.call("GET", f"{JOBS}?{query}")
    if raw:
        return print_json(answer)
    rows = [
        [
            short(job["request_id"]), word(job["status"]), word(job.get("exit_code")), told(job["created_at"]),
            word(job.get("workspace_id")), word(job["name"]),
        ]
        for job in answer["jobs"]
    ]  # fmt: skip
    print_table(["ID", "STATUS", "EXIT", "CREATED", "WORKSPACE", "NAME"], rows)
    if on_terminal() and answer["total"] > len(answer["jobs"]) and answer["page"] == 1:
        note(f"the newest {len(answer['jobs'])} of {answer['total']}; `roost list --page N` shows more")
    for job in answer["jobs"]:
        if reason := job.get("pending_reason"):
            note(f"{job['request_id'][:8]} {reason}")
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
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="The last N lines.")
@click.option("--since", type=SINCE, metavar="TIME", help="Not older than 10m, 2h, 1d, or 2027-01-31T12:00:00Z.")
@as_json
@api_options
def logs(api: Api, job: str, following: bool, tail: int | None, since: datetime | None, raw: bool) -> None:
    """Show a job's output so far, byte for byte, on the stream it was written to.

    With -f and --json: a line of JSON for each piece of output, {"source", "message"}, and one for the end, {"status",
    "exit_code", "error"}.
    """
    path = f"{path_of(job)}/logs"
    if raw and not following:
        answer = api.call("GET", path)
        return print_json(answer | {"logs": latest(answer["logs"], tail, since)})
    last = 0
    show = _show_json if raw else show_bytes
    if not following or tail is not None or since is not None:
        records = api.call("GET", f"{path}?raw=true")["records"]
        last = records[-1]["seq"] if records else 0
        whole = tail is None and since is None
        for line in _undivided(records) if whole else latest(lines_of(records), tail, since):
            show(line["source"], line["data"])
    return _follow(api, path, last, raw) if following else None


def _undivided(records: list[Json]) -> list[Json]:
    return [{"source": record["source"], "data": base64.b64decode(record["data"])} for record in records]


def lines_of(records: list[Json]) -> list[Json]:
    """Lines as they were written, each with the time when it began; the last ones may have no end yet."""
    lines, open_lines = list[Json](), dict[str, Json]()
    for record in records:
        for data in _LINE.findall(base64.b64decode(record["data"])):
            unended = open_lines.pop(record["source"], None)
            if unended is None:
                unended = {"source": record["source"], "timestamp": record["timestamp"], "data": b""}
                lines.append(unended)
            unended["data"] += data
            if not data.endswith(b"\n"):
                open_lines[record["source"]] = unended
    return lines


def latest(lines: list[Json], tail: int | None, since: datetime | None) -> list[Json]:
    if since is not None:
        lines = [line for line in lines if datetime.fromisoformat(line["timestamp"]) >= since]
    return lines if tail is None else lines[max(0, len(lines) - tail) :]


def _follow(api: Api, path: str, last: int, raw: bool) -> None:
    ending = follow(api, path, _show_json if raw else show_bytes, last)
    if raw:
        print_line(ending.__dict__)
    elif ending.error:
        note(f"{ending.error}")


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
