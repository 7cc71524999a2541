"""The command `audit`."""

import urllib.parse

import click

from roost.cli.answers import as_json, print_json, print_table
from roost.cli.connection import Api, api_options
from roost.cli.times import cells

MOST = 1000


@click.command()
@click.option("--action", default="", metavar="TEXT", help="How it begins, like 'POST /tokens'.")
@click.option("--actor", default="", metavar="TEXT", help="How it begins, like 'user alice'.")
@click.option("--resource", default="", metavar="TEXT", help="How it begins.")
@click.option("--days", type=click.IntRange(1, 36_500), metavar="N", help="How far back.")
@click.option("--limit", type=click.IntRange(1, MOST), default=100, show_default=True, metavar="N")
@as_json
@api_options
def audit(api: Api, action: str, actor: str, resource: str, days: int | None, limit: int, raw: bool) -> None:
    """Show who did what in your account, the newest first."""
    asked = {"action": action, "actor": actor, "resource": resource, "days": days, "limit": limit}
    query = urllib.parse.urlencode({name: value for name, value in asked.items() if value})
    answer = api.call("GET", f"/api/v1/audit?{query}")
    if raw:
        return print_json(answer)
    keys = ("at", "actor", "action", "resource", "address", "status")
    rows = [cells(one, keys) for one in answer["entries"]]
    return print_table(["AT", "ACTOR", "ACTION", "RESOURCE", "FROM", "STATUS"], rows)
