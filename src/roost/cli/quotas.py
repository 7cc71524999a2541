"""Commands about quotas: show, set."""

import urllib.parse
from typing import Any

import click

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options

NAMES = ("running", "vcpus", "memory_mb", "disk_gb", "stored_bytes", "requests_per_second")


@click.group()
def quota() -> None:
    """What accounts may use at a time."""


@quota.command()
@click.argument("account", required=False)
@as_json
@api_options
def show(api: Api, account: str | None, raw: bool) -> None:
    """Show what your account may use and uses, or (for whoever runs this Roost) another."""
    _print(api.call("GET", _path(account) if account else "/api/v1/quotas"), raw)


@quota.command("set")
@click.argument("account")
@click.option("--running", type=click.IntRange(min=0), metavar="N", help="Sandboxes that run or wait.")
@click.option("--vcpus", type=click.FloatRange(min=0), metavar="N")
@click.option("--memory", "memory_mb", type=click.IntRange(min=0), metavar="MB")
@click.option("--disk", "disk_gb", type=click.IntRange(min=0), metavar="GB")
@click.option("--stored", "stored_bytes", type=click.IntRange(min=0), metavar="BYTES", help="Workspaces and uploads.")
@click.option("--requests", "requests_per_second", type=click.IntRange(min=0), metavar="N", help="A second.")
@as_json
@api_options
def set_quota(api: Api, account: str, raw: bool, **limits: Json) -> None:
    """Set all that ACCOUNT may use; what is left out is the installation's default."""
    _print(api.call("PUT", _path(account), limits), raw)


def _path(account: str) -> str:
    return f"/api/v1/accounts/{urllib.parse.quote(account, safe='')}/quotas"


def _print(answer: Any, raw: bool) -> None:
    if raw:
        return print_json(answer)
    limits, used = answer["limits"], answer["used"]
    rows = [[name, word(used.get(name)), "no limit" if limits[name] is None else word(limits[name])] for name in NAMES]
    return print_table(["QUOTA", "USED", "LIMIT"], rows)
