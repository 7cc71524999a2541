"""`roost token`: API tokens for programs."""

import re
import urllib.parse

import click

from roost.cli.answers import as_json, print_json, print_table
from roost.cli.connection import Api, api_options
from roost.cli.times import cells
from roost.cli.wording import note

TOKENS = "/api/v1/tokens"
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[int]):
    """`3600`, `90m`, `12h`, `30d`: seconds."""

    name = "duration"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", value)
        if found is None or not int(found[1]):
            self.fail(f"{value!r} is no time like 90m, 12h or 30d", param, ctx)
        return int(found[1]) * SECONDS[found[2]]


@click.group()
def token() -> None:
    """Make, list and revoke API tokens."""


@token.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(["read", "run", "admin"]), default="run", show_default=True)
@click.option("--expires-in", type=Duration(), metavar="TIME", help="Like 12h or 30d [it does not expire].")
@as_json
@api_options
def create(api: Api, name: str, scope: str, expires_in: int | None, raw: bool) -> None:
    """Make a token called NAME, and print it; it is not shown again."""
    answer = api.call("POST", TOKENS, {"name": name, "scope": scope, "expires_in": expires_in})
    if raw:
        return print_json(answer)
    click.echo(answer["token"])
    until = f"until {answer['expires_at']}" if answer["expires_at"] else "until it is revoked"
    note(f"keep it now; scope {scope}, good {until}; `roost token revoke {answer['id']}` ends it")
    return None


@token.command("list")
@as_json
@api_options
def list_tokens(api: Api, raw: bool) -> None:
    """List tokens: the account's for its owners, else your own."""
    answer = api.call("GET", TOKENS)
    if raw:
        return print_json(answer)
    keys = ("id", "name", "scope", "created_by", "created_at", "expires_at", "last_used_at")
    rows = [cells(one, keys) for one in answer["tokens"]]
    return print_table(["ID", "NAME", "SCOPE", "BY", "CREATED", "EXPIRES", "USED"], rows)


@token.command()
@click.argument("id")
@as_json
@api_options
def revoke(api: Api, id: str, raw: bool) -> None:
    """Revoke the token with this ID, at once."""
    answer = api.call("DELETE", f"{TOKENS}/{urllib.parse.quote(id, safe='')}")
    print_json(answer) if raw else click.echo(answer["message"])
