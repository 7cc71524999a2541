"""`roost service`: Roost as a systemd service of this machine."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from roost.cli.answers import as_json, print_fields, print_json
from roost.cli.machine import as_root, up
from roost.errors import Invalid
from roost.service import DELEGATES, NAME, Service, systemd_version

name = click.option("--name", default=NAME, show_default=True, help="Of the unit.")
INACTIVE = 3  # as `systemctl status` ends for what does not run


@click.group()
def service() -> None:
    """Run Roost as a systemd service, from this start of the machine to its end."""


@service.command(context_settings={"ignore_unknown_options": True})
@name
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[UP-OPTIONS]...")
def install(name: str, options: tuple[str, ...]) -> None:
    """Write the unit, enable and start it; once more to change its options or after the program moved.

    UP-OPTIONS are those of `roost up`, for example --listen 0.0.0.0:8484.
    """
    from roost.service import install as install_service

    as_root("`roost service install` writes to /etc/systemd/system")
    wanted = _service(name, options)
    install_service(wanted)
    click.echo(f"{wanted.unit.name} runs, and starts with the machine")
    click.echo(f"  state   {wanted.state}")
    click.echo(f"  events  journalctl -u {name}")
    click.echo(f"  after an upgrade: systemctl restart {name}")


@service.command()
@name
def remove(name: str) -> None:
    """Stop and disable the service and remove its unit; what Roost keeps in its state stays."""
    from roost.service import remove as remove_service

    as_root("`roost service remove` writes to /etc/systemd/system")
    remove_service(_service(name))
    click.echo(f"{name}.service is removed; its state stays where it was")


@service.command()
@name
@as_json
def status(name: str, raw: bool) -> None:
    """Show whether the service runs; ends with 3 where it does not."""
    from roost.service import status as service_status

    told = service_status(_service(name))
    if raw:
        print_json(told)
    else:
        print_fields(told)
        click.echo(f"events: journalctl -u {name}")
    if told.get("ActiveState") != "active":
        sys.exit(INACTIVE)


def _service(name: str, options: tuple[str, ...] = ()) -> Service:
    given = read_up(options)
    if given.params["hello"]:
        raise Invalid("--hello is for a person who looks on, not for a service")
    program = (sys.executable, "-P", "-m", "roost.cli", "up", *up_words(given))
    owner = int(os.environ.get("SUDO_UID") or os.getuid())
    return Service(program, given.params["state"].absolute(), owner, name, systemd_version() >= DELEGATES)


def read_up(options: Sequence[str]) -> click.Context:
    """Raises click's own errors for what `roost up` would not take."""
    return up.make_context("roost service install", list(options), help_option_names=["-h", "--help"])


def up_words(given: click.Context) -> list[str]:
    """The options that were given to `up`, with whole paths; events are text unless they say otherwise."""
    words: list[str] = []
    for parameter in given.command.params:
        if given.get_parameter_source(str(parameter.name)) is not ParameterSource.COMMANDLINE:
            continue
        value = given.params[str(parameter.name)]
        for one in value if parameter.multiple else (value,):
            words += [parameter.opts[-1], _said(one)]
    return words if "--log-format" in words else [*words, "--log-format", "text"]


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return str(value.absolute() if isinstance(value, Path) else value)
