"""Commands about microVMs: create, list, show, ssh, start, stop, restart, delete, key."""

import os
import shutil
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import click

from roost.cli.answers import Carrying, as_json, print_fields, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options
from roost.cli.ssh import execute, ssh_words, write_access
from roost.cli.wording import note
from roost.errors import Conflict, Invalid, SetupMissing

MICROVMS = "/api/v1/microvms"
USER = "ubuntu"
WAKE_WITHIN = 100.0  # seconds
LOOK = 0.1  # seconds between looks whether it runs
ON_THE_WAY = ("creating", "starting", "stopping")


@click.group()
def vm() -> None:
    """Machines that stay until they are deleted: log in as ubuntu, become root by sudo."""


def _path(name: str, *more: str) -> str:
    return "/".join([MICROVMS, urllib.parse.quote(name, safe=""), *more])


@vm.command()
@click.argument("name")
@click.option("--cpu", type=float, help="Processors (2).")
@click.option("--memory", type=int, metavar="MB", help="Memory (2048).")
@click.option("--disk", type=int, metavar="GB", help="Disk (20).")
@click.option("--image", help="An image's name, or a well-known one like debian-12 or python (ubuntu-22.04).")
@click.option("--runtime", help="What runs it (oci).")
@click.option(
    "--ssh-key", "keys", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="A public key that may log in; repeatable. Without any a key pair is generated.",
)  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Do not wait until it runs.")
@as_json
@api_options
def create(
    api: Api, name: str, cpu: float | None, memory: int | None, disk: int | None, image: str | None,
    runtime: str | None, keys: tuple[Path, ...], no_wait: bool, raw: bool,
) -> None:  # fmt: skip
    """Create a machine, and wait until it runs."""
    body: dict[str, Json] = {
        "name": name, "cpu": cpu, "memory": memory, "disk": disk, "image": image, "runtime": runtime,
        "ssh_public_keys": [_public_key(file) for file in keys] or None,
    }  # fmt: skip
    told = made = api.call("POST", MICROVMS, body)
    if not no_wait:
        made = told | _settled(api, made)
    if raw:
        return print_json(made)
    click.echo(made["id"])
    if told.get("image_note"):
        note(told["image_note"])
    note(f"enter it by `roost vm ssh {made['name']}`")
    if made["key_generated"]:
        note(f"`roost vm key {made['name']}` saves its key, once, for other clients")
    return None


def _public_key(file: Path) -> str:
    text = file.read_text("utf-8", "replace")
    if "PRIVATE KEY" in text:
        raise Invalid(f"{file} is a private key, which stays with you; give the file whose name ends in .pub")
    return text.strip()


def _settled(api: Api, made: Json) -> Json:
    """As it is once it runs. Raises Conflict when it will not."""
    while made["state"] in ON_THE_WAY:
        time.sleep(LOOK)
        made = api.call("GET", _path(made["id"]))
    if made["state"] == "error":
        raise Conflict(f"{made['name']}: {made['error']}")
    return made


@vm.command("list")
@as_json
@api_options
def list_vms(api: Api, raw: bool) -> None:
    """List machines, the newest first."""
    answer = api.call("GET", MICROVMS)
    if raw:
        return print_json(answer)
    names = ("name", "state", "cpu", "memory", "disk", "image", "id")
    rows = [[word(one[name]) for name in names] for one in answer["microvms"]]
    return print_table(["NAME", "STATE", "CPU", "MB", "GB", "IMAGE", "ID"], rows)


@vm.command()
@click.argument("name")
@as_json
@api_options
def show(api: Api, name: str, raw: bool) -> None:
    """Show a machine, and how other clients log in."""
    answer = api.call("GET", _path(name)) | api.call("GET", _path(name, "ssh-connection"))
    print_json(answer) if raw else print_fields(answer)


@vm.command(cls=Carrying, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("-t", "terminal", is_flag=True, help="A terminal for COMMAND too.")
@as_json
@api_options
def ssh(api: Api, name: str, command: tuple[str, ...], terminal: bool, raw: bool) -> None:
    """Open a shell as ubuntu in the machine NAME, or run COMMAND there, with a key made for this one call.

    --json prints host, port and a key and does not connect.
    """
    if raw:
        return print_json(_access(api, name))
    program = shutil.which("ssh")
    if program is None:
        raise SetupMissing("there is no ssh here; install it (Debian: apt-get install openssh-client)")
    access = _access(api, name)
    with tempfile.TemporaryDirectory(prefix="roost-ssh-") as place:  # mode 0700
        words = ssh_words(program, access, Path(place), ["-t"] if terminal else [], command)
        write_access(access, Path(place))
        sys.exit(execute(words))


def _access(api: Api, name: str) -> Json:
    id = api.call("GET", _path(name))["id"]
    return api.call("POST", f"/api/v1/mags-jobs/{id}/access", {"port": 22}, timeout=WAKE_WITHIN) | {"ssh_user": USER}


def _act(api: Api, name: str, verb: str, raw: bool) -> None:
    answer = api.call("POST", _path(name, verb))
    print_json(answer) if raw else click.echo(word(answer["state"]))


@vm.command()
@click.argument("name")
@as_json
@api_options
def start(api: Api, name: str, raw: bool) -> None:
    """Start a machine that is stopped."""
    _act(api, name, "start", raw)


@vm.command()
@click.argument("name")
@as_json
@api_options
def stop(api: Api, name: str, raw: bool) -> None:
    """Stop a machine; its files are kept."""
    _act(api, name, "stop", raw)


@vm.command()
@click.argument("name")
@as_json
@api_options
def restart(api: Api, name: str, raw: bool) -> None:
    """Restart a machine; its files are kept."""
    _act(api, name, "restart", raw)


@vm.command()
@click.argument("name")
@as_json
@api_options
def delete(api: Api, name: str, raw: bool) -> None:
    """Delete a machine, with its files and keys."""
    answer = api.call("DELETE", _path(name))
    print_json(answer) if raw else click.echo(word(answer["message"]))


@vm.command()
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="[~/.ssh/vm-ID-key.pem]")
@as_json
@api_options
def key(api: Api, name: str, output: Path | None, raw: bool) -> None:
    """Save a machine's generated private key, once, and print how to log in with it."""
    found = api.call("GET", _path(name, "ssh-connection"))
    id = api.call("GET", _path(name))["id"]
    place = output or Path.home() / ".ssh" / f"vm-{id}-key.pem"
    _write(place, lambda: _download(api, id))
    answer = found | {"file": str(place)}
    if output is not None:
        answer["ssh_command"] = found["ssh_command"].replace(f"~/.ssh/vm-{id}-key.pem", str(output))
    print_json(answer) if raw else click.echo(answer["ssh_command"])


def _download(api: Api, id: str) -> bytes:
    with api.stream("GET", _path(id, "ssh-keys", "download")) as answer:
        return answer.read()


def _write(place: Path, content: Callable[[], bytes]) -> None:
    """The file is there before the key is asked for, which is told once only. Nothing is left of a failure."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Invalid(f"{place} cannot be made: {error.strerror}; choose another file with -o") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content())
    except BaseException:
        place.unlink()
        raise
