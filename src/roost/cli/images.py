"""Commands about images, through the API: long steps show each line of progress as the node tells it."""

import http.client
import json
import urllib.parse
from collections.abc import Generator, Iterable
from pathlib import Path

import click

from roost.cli.answers import as_json, print_table
from roost.cli.connection import Api, Interrupted, Json, api_options
from roost.errors import RoostError

IMAGES = "/api/v1/images"
CHUNK = 256 * 1024  # bytes of an upload sent at a time
SILENCE = 1800.0  # seconds; unpacking a large layer says nothing meanwhile
MAX_LINE = 1024 * 1024  # bytes of one line of progress


@click.group()
def image() -> None:
    """List, import, pull and build images."""


@image.command("list")
@as_json
@api_options
def list_images(api: Api, raw: bool) -> None:
    """List the images that jobs can use."""
    answer = api.call("GET", IMAGES)
    if raw:
        return click.echo(json.dumps(answer, indent=2))
    rows = [[i["name"], f"{i['size'] / 1e6:.0f} MB", i["digest"][:19], i["source"]] for i in answer["images"]]
    return print_table(["NAME", "SIZE", "DIGEST", "SOURCE"], rows)


@image.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-n", "--name", help="The image's name; default: the file's, without its endings.")
@as_json
@api_options
def import_image(api: Api, file: Path, name: str | None, raw: bool) -> None:
    """Import FILE: a tar archive of a root file system, an OCI layout or what `docker save` writes."""
    size = {"Content-Length": str(file.stat().st_size)}
    with file.open("rb") as content:
        chunks = iter(lambda: content.read(CHUNK), b"")
        _show(_steps(api, name or file.name.split(".")[0], "import", chunks, size), raw)


@image.command()
@click.argument("reference")
@click.option("-n", "--name", help="The image's name; default: the last part of REFERENCE.")
@click.option("--insecure", is_flag=True, help="Accept a registry without valid TLS.")
@as_json
@api_options
def pull(api: Api, reference: str, name: str | None, insecure: bool, raw: bool) -> None:
    """Pull REFERENCE from a registry, for example alpine:3.20 or docker://HOST:5000/NAME:TAG."""
    body = {"reference": reference, "tls_verify": not insecure}
    _show(_steps(api, name or default_name(reference), "pull", json.dumps(body).encode()), raw)


def default_name(reference: str) -> str:
    """`docker://host:5000/team/alpine:3` is `alpine`."""
    return reference.rpartition("/")[2].partition("@")[0].partition(":")[0]


@image.command()
@click.argument("name")
@click.option("-p", "--package", "packages", multiple=True, help="A Debian package to add; repeatable.")
@click.option("--suite", help="The Debian release.")
@as_json
@api_options
def build(api: Api, name: str, packages: tuple[str, ...], suite: str | None, raw: bool) -> None:
    """Build NAME from the distribution's packages."""
    body = {"packages": list(packages)} | ({"suite": suite} if suite else {})
    _show(_steps(api, name, "build", json.dumps(body).encode()), raw)


def _steps(
    api: Api, name: str, verb: str, body: bytes | Iterable[bytes], headers: dict[str, str] | None = None
) -> Generator[Json]:
    """The lines of progress as they come."""
    path = f"{IMAGES}/{urllib.parse.quote(name, safe='')}/{verb}"
    try:
        with api.stream("POST", path, body, headers, timeout=SILENCE) as answer:
            while line := answer.readline(MAX_LINE):
                yield json.loads(line)
    except Interrupted as error:
        raise RoostError(str(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RoostError(f"the answer of {api.url} broke off ({error}); the node may still go on") from error


def _show(steps: Iterable[Json], raw: bool) -> None:
    done = None
    for step in steps:
        if step.get("error"):
            raise RoostError(step["error"])
        done = step.get("done") or done
        if raw:
            click.echo(json.dumps(step))
        elif step.get("message"):
            click.echo(step["message"], err=True)
    if done is None:
        raise RoostError("the server did not say how it ended; see `roost image list`")
    if not raw:
        click.echo(f"{done['name']}  {done['digest']}")
