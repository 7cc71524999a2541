"""`roost ssh` and `roost ssh-key`: the system's ssh with a key that was made for this one call, and keys to keep."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.parse
import uuid
from pathlib import Path

import click

from roost.cli.answers import Carrying, as_json, print_json, print_table
from roost.cli.connection import Api, Json, api_options
from roost.cli.names import JOB
from roost.cli.paths import path_of
from roost.cli.starting import FINAL, started, submitted, waited_for
from roost.cli.times import cells
from roost.cli.wording import note
from roost.errors import Invalid, NotFound, SetupMissing

KEYS = "/api/v1/ssh-keys"
WAKE_WITHIN = 100.0  # seconds; the server gives itself 90
ALIAS = "roost-sandbox"  # under which the gateway's key is known in the call's own file
AT_HOME = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")


@click.command("ssh", cls=Carrying, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-t", "terminal", is_flag=True, help="With COMMAND: give it a terminal.")
@click.option("-N", "quiet", is_flag=True, help="No shell and no command; only the forwardings.")
@click.option("-L", "local", multiple=True, metavar="[BIND:]PORT:HOST:PORT", help="Lead a port here into the sandbox.")
@click.option("-R", "remote", multiple=True, metavar="[BIND:]PORT:HOST:PORT", help="Lead one of the sandbox here.")
@click.option("-D", "dynamic", multiple=True, metavar="[BIND:]PORT", help="A SOCKS proxy into the sandbox.")
@click.argument("name", type=JOB)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@as_json
@api_options
def ssh(
    api: Api,
    name: str,
    command: tuple[str, ...],
    terminal: bool,
    quiet: bool,
    local: tuple[str, ...],
    remote: tuple[str, ...],
    dynamic: tuple[str, ...],
    raw: bool,
) -> None:
    """Open a shell in a sandbox, or run COMMAND there, by ssh; wake it if it sleeps.

    NAME is a job's name, workspace or id. Where none runs, a persistent sandbox with the workspace NAME is started; it
    stays until `roost stop NAME`. Options come before NAME. --json prints host, port and a key and does not connect.
    """
    if raw:
        return print_json(_access(api, name))
    program = shutil.which("ssh")
    if program is None:
        raise SetupMissing("there is no ssh here; install it (Debian: apt-get install openssh-client)")
    flags = [*(["-t"] if terminal else []), *(["-N"] if quiet else [])]
    for letter, values in (("-L", local), ("-R", remote), ("-D", dynamic)):
        flags += [word for value in values for word in (letter, value)]
    access = _access(api, name)
    with tempfile.TemporaryDirectory(prefix="roost-ssh-") as place:  # mode 0700
        words = ssh_words(program, access, Path(place), flags, command)
        write_access(access, Path(place))
        sys.exit(execute(words))


def _access(api: Api, name: str) -> Json:
    return api.call("POST", f"{path_of(_running(api, name))}/access", {"port": 22}, timeout=WAKE_WITHIN)


def ssh_words(program: str, access: Json, place: Path, flags: list[str], command: tuple[str, ...]) -> list[str]:
    """The key from `access` and no other, and no gateway but the one that has the key which `access` told."""
    options = (
        f"IdentityFile={place / 'key'}",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={place / 'known_hosts'}",
        f"HostKeyAlias={ALIAS}",
        "LogLevel=ERROR",
    )
    words = [program, *(word for option in options for word in ("-o", option)), "-p", str(access["ssh_port"]), *flags]
    return [*words, f"{access.get('ssh_user', 'root')}@{access['ssh_host']}", *command]


def write_access(access: Json, place: Path) -> None:
    key = os.open(place / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(key, "w") as file:
        file.write(access["ssh_private_key"])
    (place / "known_hosts").write_text(f"{ALIAS} {access['host_key']}\n")


def execute(words: list[str]) -> int:
    """ssh's exit status. Ctrl-C is for what runs in the sandbox; ours is to remove the key afterwards."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(words, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: process.send_signal(number))
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status


def _running(api: Api, name: str) -> str:
    """The request id of a job that has not ended; a new one where there is none."""
    try:
        state = api.call("GET", f"{path_of(name)}/status")
        if state["status"] not in FINAL:
            return str(started(api, state["request_id"])["request_id"])
    except NotFound:
        pass
    if _is_id(name):
        raise NotFound(f"there is no job {name} that runs or sleeps; give a name to start one")
    note(f"starting a sandbox with the workspace {name!r}; `roost stop {name}` ends it")
    body = {"script": "sleep infinity", "type": "inline", "persistent": True, "workspace_id": name}
    with waited_for(api) as made:
        return str(started(api, submitted(api, body, made)["request_id"])["request_id"])


def _is_id(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name.lower()
    except ValueError:
        return False


# ---- keys ----------------------------------------------------------------------------------------------------


@click.group("ssh-key")
def ssh_key() -> None:
    """Your own public keys: each opens all of your sandboxes, as in `ssh NAME@HOST`."""


@ssh_key.command("add")
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("-n", "--name", help="Where the key is kept [its comment].")
@as_json
@api_options
def add(api: Api, file: Path | None, name: str | None, raw: bool) -> None:
    """Register the public key in FILE (- for standard input; by default the one in ~/.ssh)."""
    key = api.call("POST", KEYS, {"public_key": _public_key(file), "name": name or ""})
    print_json(key) if raw else click.echo(f"{key['id']}  {key['fingerprint']}  {key['name']}")


def _public_key(file: Path | None) -> str:
    if file is None:
        home = Path.home() / ".ssh"
        file = next((home / one for one in AT_HOME if (home / one).is_file()), None)
        if file is None:
            raise Invalid(f"no public key in {home}; make one with `ssh-keygen -t ed25519`, or name a file")
    text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8", "replace")
    if "PRIVATE KEY" in text:
        raise Invalid(f"{file} is a private key, which stays with you; give the file whose name ends in .pub")
    return text.strip()


@ssh_key.command("list")
@as_json
@api_options
def list_keys(api: Api, raw: bool) -> None:
    """List your public keys."""
    answer = api.call("GET", KEYS)
    if raw:
        return print_json(answer)
    keys = ("id", "type", "fingerprint", "last_used_at", "name")
    print_table(["ID", "TYPE", "FINGERPRINT", "LAST USED", "NAME"], [cells(key, keys) for key in answer["keys"]])
    return None


@ssh_key.command("remove")
@click.argument("key_id")
@as_json
@api_options
def remove(api: Api, key_id: str, raw: bool) -> None:
    """Remove a key, and close what it has opened."""
    answer = api.call("DELETE", f"{KEYS}/{urllib.parse.quote(key_id, safe='')}")
    print_json(answer) if raw else click.echo(answer["message"])
