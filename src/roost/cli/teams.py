"""`roost team`: accounts that several people share, and which of yours commands act in."""

import json
import urllib.parse
from collections.abc import Callable
from typing import TypeVar

import click

from roost import logins
from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import MAX_ANSWER, Api, Interrupted, Json, api_options
from roost.cli.times import cells
from roost.errors import RoostError
from roost.logins import Login

ACCOUNTS = "/api/v1/accounts"
MEMBERS = "/api/v1/members"
INVITED = "/api/v1/invited"
INVITATIONS = "/api/v1/invitations"

T = TypeVar("T")
ROLE = click.Choice(["owner", "member", "viewer"])


def of_team(command: Callable[..., T]) -> Callable[..., T]:
    return click.option("--team", metavar="NAME", help="Another of your accounts than the one in use.")(command)


@click.group()
def team() -> None:
    """Share an account with others: its owners decide who may run or see what."""


@team.command("list")
@as_json
@api_options
def list_teams(api: Api, raw: bool) -> None:
    """List your accounts; * marks the one that commands act in."""
    answer = api.call("GET", ACCOUNTS)
    if raw:
        return print_json(answer)
    rows = [["*" if one["current"] else " ", word(one["name"]), word(one["role"])] for one in answer["accounts"]]
    return print_table([" ", "ACCOUNT", "ROLE"], rows)


@team.command()
@click.argument("name")
@click.option("--owner", metavar="USER", help="For the first token, which is nobody's: whose it shall be.")
@as_json
@api_options
def create(api: Api, name: str, owner: str | None, raw: bool) -> None:
    """Make an account for a team; you are its owner."""
    answer = api.call("POST", ACCOUNTS, {"name": name} | ({"owner": owner} if owner else {}))
    print_json(answer) if raw else click.echo(f"Account {word(answer['name'])} made; `roost team use {name}` enters it")


@team.command()
@as_json
@of_team
@api_options
def members(api: Api, team: str | None, raw: bool) -> None:
    """List who is in the account."""
    answer = _call(api, team, "GET", MEMBERS)
    if raw:
        return print_json(answer)
    keys = ("user", "email", "role", "disabled", "since")
    rows = [cells(one, keys) for one in answer["members"]]
    return print_table(["USER", "EMAIL", "ROLE", "DISABLED", "SINCE"], rows)


@team.command()
@click.argument("user")
@click.option("--role", type=ROLE, default="member", show_default=True)
@as_json
@of_team
@api_options
def add(api: Api, user: str, role: str, team: str | None, raw: bool) -> None:
    """Invite USER (a name or e-mail address) to the account; they are in it once they accept."""
    answer = _call(api, team, "POST", MEMBERS, {"user": user, "role": role})
    print_json(answer) if raw else click.echo(answer["message"])


@team.command()
@as_json
@of_team
@api_options
def invited(api: Api, team: str | None, raw: bool) -> None:
    """List whom the account has invited, who have not answered yet."""
    answer = _call(api, team, "GET", INVITED)
    return print_json(answer) if raw else _print_invitations("user", answer["invited"])


@team.command()
@click.argument("user")
@as_json
@of_team
@api_options
def withdraw(api: Api, user: str, team: str | None, raw: bool) -> None:
    """Withdraw the invitation of USER to the account."""
    answer = _call(api, team, "DELETE", _below(INVITED, user))
    print_json(answer) if raw else click.echo(answer["message"])


@team.command()
@as_json
@api_options
def invitations(api: Api, raw: bool) -> None:
    """List the accounts that you are invited to; needs `roost login`."""
    answer = api.call("GET", INVITATIONS)
    return print_json(answer) if raw else _print_invitations("account", answer["invitations"])


@team.command()
@click.argument("name")
@as_json
@api_options
def accept(api: Api, name: str, raw: bool) -> None:
    """Accept the invitation to the account NAME; needs `roost login`."""
    answer = api.call("POST", f"{_below(INVITATIONS, name)}/accept")
    if raw:
        return print_json(answer)
    account = word(answer["name"])
    return click.echo(f"You are {word(answer['role'])} of {account}; `roost team use {account}` enters it")


@team.command()
@click.argument("name")
@as_json
@api_options
def decline(api: Api, name: str, raw: bool) -> None:
    """Decline the invitation to the account NAME; needs `roost login`."""
    answer = api.call("DELETE", _below(INVITATIONS, name))
    print_json(answer) if raw else click.echo(answer["message"])


@team.command()
@click.argument("user")
@as_json
@of_team
@api_options
def remove(api: Api, user: str, team: str | None, raw: bool) -> None:
    """Remove USER from the account, with the tokens and SSH keys they made in it; or leave it yourself."""
    answer = _call(api, team, "DELETE", _below(MEMBERS, user))
    print_json(answer) if raw else click.echo(answer["message"])


@team.command()
@click.argument("user")
@click.argument("role", type=ROLE)
@as_json
@of_team
@api_options
def role(api: Api, user: str, role: str, team: str | None, raw: bool) -> None:
    """Make USER an owner, member or viewer of the account."""
    answer = _call(api, team, "PATCH", _below(MEMBERS, user), {"role": role})
    print_json(answer) if raw else click.echo(answer["message"])


@team.command()
@click.argument("name")
@as_json
@api_options
def use(api: Api, name: str, raw: bool) -> None:
    """Let later commands act in the account NAME; needs `roost login`."""
    answer = api.call("POST", "/api/v1/switch", {"account": name})
    if (kept := logins.load()) and kept.url.rstrip("/") == api.url.rstrip("/"):
        logins.save(Login(kept.url, kept.token, answer["name"]))
    print_json(answer) if raw else click.echo(f"Commands act in {word(answer['name'])} ({word(answer['role'])})")


def _call(api: Api, team: str | None, method: str, path: str, body: Json = None) -> Json:
    if team is None:
        return api.call(method, path, body)
    data, headers = None if body is None else json.dumps(body).encode(), {"X-Roost-Account": team}
    try:
        with api.stream(method, path, data, headers) as answer:
            return json.loads(answer.read(MAX_ANSWER))
    except (Interrupted, OSError, ValueError) as error:
        raise RoostError(str(error)) from error


def _below(path: str, name: str) -> str:
    return f"{path}/{urllib.parse.quote(name, safe='')}"


def _print_invitations(whose: str, invitations: list[Json]) -> None:
    keys = (whose, "role", "invited_by", "invited_at", "expires_at")
    rows = [[word(one[key]) for key in keys] for one in invitations]
    print_table([whose.upper(), "ROLE", "INVITED BY", "SINCE", "UNTIL"], rows)
