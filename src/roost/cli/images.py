"""Commands about images, through the API: a bar on a terminal, elsewhere each line of progress as the node tells it."""

import http.client
import itertools
import json
import re
import urllib.parse
from collections.abc import Generator, Iterable
from contextlib import nullcontext
from pathlib import Path

import click

from roost.cli import progress
from roost.cli.answers import as_json, print_json, print_line, print_table, word
from roost.cli.connection import Api, Interrupted, Json, api_options
from roost.errors import Invalid, RoostError

IMAGES = "/api/v1/images"
DEFAULT = "/api/v1/default-image"
SILENCE = 1800.0  # seconds; unpacking a large layer says nothing meanwhile
MAX_LINE = 1024 * 1024  # bytes of one line of progress
# how a step's words begin -> parts of 100 that are done by then; of a build of 67 seconds with 300 MB of packages
SHARES = {
    "running apt-get update": 1, "downloading packages": 4, "extracting archives": 6, "installing essential": 14,
    "installing remaining": 27, "cleaning package lists": 94, "configuring packages": 95, "unpacking": 50,
    "writing to disk": 99,
}  # fmt: skip


@click.group()
def image() -> None:
    """List, import, pull, build and remove images, and choose the default one."""


@image.command("list")
@as_json
@api_options
def list_images(api: Api, raw: bool) -> None:
    """List the images that jobs can use."""
    answer = api.call("GET", IMAGES)
    if raw:
        return print_json(answer)
    rows = [[i["name"], f"{i['size'] / 1e6:.0f} MB", i["digest"][:19], i["source"]] for i in answer["images"]]
    return print_table(["NAME", "SIZE", "DIGEST", "SOURCE"], rows)


@image.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-n", "--name", help="The image's name; default: the file's, without its endings.")
@as_json
@api_options
def import_image(api: Api, file: Path, name: str | None, raw: bool) -> None:
    """Import FILE: a tar archive of a root file system, an OCI layout or what `docker save` writes."""
    size = file.stat().st_size
    with file.open("rb") as content, progress.sent(content, size, file.name) as chunks:
        answer = _steps(api, name or file.name.split(".")[0], "import", chunks, {"Content-Length": str(size)})
        first = next(answer, None)  # comes when all has been sent
    _show(answer if first is None else itertools.chain([first], answer), raw)


@image.command()
@click.argument("reference")
@click.option("-n", "--name", help="The image's name; default: the last part of REFERENCE.")
@click.option("--insecure", is_flag=True, help="Accept a registry without valid TLS.")
@click.option("--default", "chosen", is_flag=True, help="Your jobs that name no image start from it from now on.")
@as_json
@api_options
def pull(api: Api, reference: str, name: str | None, insecure: bool, chosen: bool, raw: bool) -> None:
    """Pull REFERENCE from a registry, for example alpine:3.20 or docker://HOST:5000/NAME:TAG."""
    body = {"reference": reference, "tls_verify": not insecure}
    name = name or default_name(reference)
    _show(_steps(api, name, "pull", json.dumps(body).encode()), raw)
    if chosen:
        _tell_default(api.call("PUT", DEFAULT, {"name": name}), raw)


@image.command()
@click.argument("name", required=False)
@click.option("--unset", is_flag=True, help="Take what the installation has (`roost up --default-image`).")
@as_json
@api_options
def default(api: Api, name: str | None, unset: bool, raw: bool) -> None:
    """Show or choose the image of your account's jobs that name none."""
    if name and unset:
        raise Invalid("give NAME or --unset, not both")
    answer = api.call("PUT", DEFAULT, {"name": name}) if name or unset else api.call("GET", DEFAULT)
    _tell_default(answer, raw)


def _tell_default(answer: Json, raw: bool) -> None:
    if raw:
        return print_json(answer)
    whose = "chosen for your account" if answer["chosen"] else "the installation's"
    return click.echo(f"default image: {answer['name']} ({whose})")


@image.command()
@click.argument("name")
@as_json
@api_options
def remove(api: Api, name: str, raw: bool) -> None:
    """Remove the image NAME; refused while anything needs it."""
    answer = api.call("DELETE", f"{IMAGES}/{urllib.parse.quote(name, safe='')}")
    print_json(answer) if raw else click.echo(answer["message"])


def default_name(reference: str) -> str:
    """`docker://host:5000/team/alpine:3` is `alpine`."""
    return reference.rpartition("/")[2].partition("@")[0].partition(":")[0]


@image.command()
@click.argument("name")
@click.option("-p", "--package", "packages", multiple=True, metavar="P", help="A package to add; repeatable.")
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
    with nullcontext() if raw or not progress.on_terminal() else progress.steps("asking the node") as bar:
        for step in steps:
            if step.get("error"):
                raise RoostError(step["error"])
            done = step.get("done") or done
            if raw:
                print_line(step)
            elif bar is not None:
                bar(word(step["message"]), 100 if step.get("done") else share(step["message"]))
            else:
                click.echo(step["message"], err=True)
    if done is None:
        raise RoostError("the server did not say how it ended; see `roost image list`")
    if not raw:
        click.echo(f"{done['name']}  {done['digest']}")


def share(words: str) -> int:
    """How much of the work is done by what the node says: of 100, and 0 where that is not known."""
    if pulled := re.match(r"pulled .*\((\d+) %\)", words):
        return int(pulled[1]) // 2  # the other half is unpacking
    if layer := re.match(r"unpacking layer (\d+) of (\d+)", words):
        return 50 + 50 * (int(layer[1]) - 1) // int(layer[2])
    return next((done for begin, done in SHARES.items() if words.startswith(begin)), 0)
