"""`roost user`: people who may log in. All but one's own password needs an admin of the first account."""

import sys
import urllib.parse

import click

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, api_options
from roost.cli.times import cells
from roost.cli.wording import note
from roost.errors import Invalid

USERS = "/api/v1/users"


@click.group()
def user() -> None:
    """Add, list and disable users; set passwords."""


@user.command()
@click.argument("name")
@click.option("--email", metavar="ADDRESS")
@click.option("--role", type=click.Choice(["owner", "member", "viewer"]), help="Also a member of your account.")
@click.option("--password", "asks", is_flag=True, help="Ask for a password [one is made up and shown].")
@as_json
@api_options
def add(api: Api, name: str, email: str | None, role: str | None, asks: bool, raw: bool) -> None:
    """Add a user, with an account of the same name."""
    password = _new_password() if asks else None
    answer = api.call("POST", USERS, {"name": name, "email": email, "role": role, "password": password})
    if raw:
        return print_json(answer)
    click.echo(f"User {word(answer['name'])} added")
    if "password" in answer:
        click.echo(f"Password: {answer['password']}")
        note("it is not shown again; `roost user password` changes it")
    return None


@user.command("list")
@as_json
@api_options
def list_users(api: Api, raw: bool) -> None:
    """List users."""
    answer = api.call("GET", USERS)
    if raw:
        return print_json(answer)
    keys = ("name", "email", "has_password", "disabled", "created_at", "last_login_at")
    rows = [cells(one, keys) for one in answer["users"]]
    return print_table(["NAME", "EMAIL", "PASSWORD", "DISABLED", "CREATED", "LOGIN"], rows)


@user.command()
@click.argument("name")
@as_json
@api_options
def disable(api: Api, name: str, raw: bool) -> None:
    """Disable a user: sessions, tokens and SSH keys of theirs end at once, for good."""
    answer = api.call("PATCH", _path(name), {"disabled": True})
    print_json(answer) if raw else click.echo(f"User {word(answer['name'])} is disabled")


@user.command()
@click.argument("name")
@as_json
@api_options
def enable(api: Api, name: str, raw: bool) -> None:
    """Let a disabled user log in again."""
    answer = api.call("PATCH", _path(name), {"disabled": False})
    print_json(answer) if raw else click.echo(f"User {word(answer['name'])} may log in")


@user.command()
@click.argument("name")
@as_json
@api_options
def password(api: Api, name: str, raw: bool) -> None:
    """Set a password: your own, or as admin of the first account anybody's.

    Asks for it; where there is no terminal it is the first line of standard input, for your own the second, after the
    current one.
    """
    own = api.call("GET", "/api/v1/whoami")["user"] == name
    current = _asked("Current password") if own else None
    body = {"password": _new_password(), "current_password": current}
    answer = api.call("PUT", f"{_path(name)}/password", body)
    print_json(answer) if raw else click.echo(answer["message"])


def _new_password() -> str:
    return _asked("New password", confirm=True)


def _asked(what: str, confirm: bool = False) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True))
    line = sys.stdin.readline().rstrip("\n")
    if not line:
        raise Invalid(f"{what.lower()}: there is no terminal to ask on, and standard input has no such line")
    return line


def _path(name: str) -> str:
    return f"{USERS}/{urllib.parse.quote(name, safe='')}"
