"""Commands about workspaces, and the upload of files for a job."""

import http.client
import itertools
import json
import os
import urllib.parse
from pathlib import Path

import click

from roost.cli import progress
from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Interrupted, Json, api_options
from roost.cli.names import JOB, WORKSPACE
from roost.cli.paths import path_of
from roost.cli.times import told
from roost.errors import Invalid, RoostError

WORKSPACES = "/api/v1/mags-workspaces"
FILES = "/api/v1/mags-files"
UPLOADING = 600.0  # seconds without a sign of life
CHECKING = 3600.0  # seconds; every byte may have to be read
PAGE = 100


@click.group()
def workspace() -> None:
    """List, delete, check, recover and restore workspaces."""


@workspace.command("list")
@as_json
@api_options
def list_workspaces(api: Api, raw: bool) -> None:
    """List workspaces, those used last first."""
    answer = api.call("GET", WORKSPACES)
    if raw:
        return print_json(answer)
    rows = [
        [
            word(one["workspace_id"]),
            f"{one['job_count']}",
            told(one["last_used"]),
            "yes" if one["has_active"] else "no",
            "object store" if one["persistent"] else "this node",
        ]
        for one in answer["workspaces"]
    ]
    print_table(["WORKSPACE", "JOBS", "LAST USED", "ACTIVE", "KEPT IN"], rows)
    for one in answer["workspaces"]:
        for left in one.get("unsaved", ()):
            name = word(one["workspace_id"])
            click.echo(
                f"{name}: {left['revision']} is not saved yet: {word(left['error'])}; roost workspace recover {name}"
            )
    return None


@workspace.command()
@click.argument("name", type=WORKSPACE)
@click.option("--force", is_flag=True, help="Do not ask.")
@as_json
@api_options
def delete(api: Api, name: str, force: bool, raw: bool) -> None:
    """Delete a workspace with all its revisions."""
    if not force:
        click.confirm(f"Delete workspace {name!r} with all its revisions?", abort=True, err=True)
    answer = api.call("DELETE", _path(name))
    print_json(answer) if raw else click.echo(answer["message"])


@workspace.command()
@click.argument("name", type=WORKSPACE)
@click.option("--page", type=click.IntRange(min=1), default=1, show_default=True)
@as_json
@api_options
def revisions(api: Api, name: str, page: int, raw: bool) -> None:
    """List a workspace's revisions, the newest first; * marks the one that the next job begins from."""
    answer = api.call("GET", f"{_path(name)}/revisions?page={page}&page_size={PAGE}")
    if raw:
        return print_json(answer)
    rows = [
        ["*" if one["head"] else " ", one["revision"], told(one["created_at"]), _megabytes(one["size"]), _maker(one)]
        for one in answer["revisions"]
    ]
    print_table([" ", "REVISION", "CREATED", "SIZE", "MADE BY"], rows)
    for one in answer["revisions"]:
        if one.get("unsaved"):
            click.echo(
                f"{one['revision']} is not saved yet: {word(one['unsaved'])}; roost workspace recover {word(name)}"
            )
    return None


@workspace.command()
@click.argument("name", type=WORKSPACE)
@click.argument("revision")
@as_json
@api_options
def restore(api: Api, name: str, revision: str, raw: bool) -> None:
    """Let the next job begin from an older revision."""
    answer = api.call("POST", f"{_path(name)}/restore", {"revision": revision})
    print_json(answer) if raw else click.echo(answer["message"])


@workspace.command()
@click.argument("name", type=WORKSPACE)
@as_json
@api_options
def recover(api: Api, name: str, raw: bool) -> None:
    """Save now what could not be saved before; status 1 if something still cannot be."""
    answer = api.call("POST", f"{_path(name)}/recover", timeout=CHECKING)
    print_json(answer) if raw else click.echo(answer["message"])
    for left in () if raw else answer["unsaved"]:
        click.echo(f"  {word(left['error'])}")
    if not answer["success"]:
        raise click.exceptions.Exit(1)


@workspace.command()
@click.argument("names", nargs=-1, type=WORKSPACE)
@click.option("--read-data", is_flag=True, help="Read and verify every byte in the object store.")
@as_json
@api_options
def check(api: Api, names: tuple[str, ...], read_data: bool, raw: bool) -> None:
    """Check that every revision of the named workspaces, or of all, is there and whole; status 1 if one is not."""
    wanted = list(names) or [one["workspace_id"] for one in api.call("GET", WORKSPACES)["workspaces"]]
    query = f"check?read_data={str(read_data).lower()}"
    answers = [api.call("GET", f"{_path(name)}/{query}", timeout=CHECKING) for name in wanted]
    if raw:
        print_json(answers)
    for answer in () if raw else answers:
        click.echo(f"{word(answer['workspace_id'])}: {answer['checked']} revision(s){', ok' if answer['ok'] else ''}")
        for problem in [*(f"missing: {one}" for one in answer["missing"]), *answer["problems"]]:
            click.echo(f"  {word(problem)}")
    if not all(answer["ok"] for answer in answers):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("job", type=JOB)
@as_json
@api_options
def sync(api: Api, job: str, raw: bool) -> None:
    """Save a running job's workspace now, by the job's id or name or the workspace's name."""
    answer = api.call("POST", f"{path_of(job)}/sync", timeout=60)
    print_json(answer) if raw else click.echo(answer["message"])


def upload(api: Api, file: Path) -> str:
    """The id of the uploaded file, which is sent in pieces."""
    boundary = f"roost-{os.urandom(16).hex()}"
    head, tail = form_edges(file.name, boundary)
    try:
        with file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            headers = {
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Content-Length": str(len(head) + size + len(tail)),
            }
            with (
                progress.sent(content, size, file.name) as pieces,
                api.stream("POST", FILES, itertools.chain([head], pieces, [tail]), headers, UPLOADING) as answer,
            ):
                return str(json.loads(answer.read(65536))["file_id"])
    except Interrupted as error:
        raise RoostError(str(error)) from error
    except (http.client.HTTPException, ValueError) as error:
        raise RoostError(f"the answer of {api.url} broke off ({error}); try again") from error
    except OSError as error:
        raise Invalid(f"cannot read {file}: {error.strerror or error}") from error


def form_edges(name: str, boundary: str) -> tuple[bytes, bytes]:
    """What goes before and after the file's bytes."""
    quoted = name.replace("\\", "%5C").replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    disposition = f'Content-Disposition: form-data; name="file"; filename="{quoted}"'
    head = f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    return head.encode("utf-8", "surrogateescape"), f"\r\n--{boundary}--\r\n".encode()


def _path(name: str) -> str:
    return f"{WORKSPACES}/{urllib.parse.quote(name, safe='')}"


def _maker(revision: Json) -> str:
    made = revision.get("request_id")
    return "an edit" if made is None else f"job {made}{' (periodic)' if revision.get('periodic') else ''}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
