"""Commands about webhooks: add, list, change, remove, rotate, test, deliveries, redeliver."""

import urllib.parse

import click

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options
from roost.cli.times import cells
from roost.cli.wording import note

WEBHOOKS = "/api/v1/webhooks"


@click.group()
def webhook() -> None:
    """Have a URL told of what jobs and sandboxes do."""


@webhook.command()
@click.argument("address", metavar="URL")
@click.option("--event", "events", multiple=True, metavar="TYPE", help="Like job.completed; repeatable (all).")
@click.option("--description", metavar="TEXT")
@as_json
@api_options
def add(api: Api, address: str, events: tuple[str, ...], description: str | None, raw: bool) -> None:
    """Post messages to URL from now on, and print the webhook's id and its secret, which is shown this once."""
    body: dict[str, Json] = {"url": address, "events": list(events), "description": description}
    answer = api.call("POST", WEBHOOKS, body)
    if raw:
        return print_json(answer)
    click.echo(f"{answer['id']} {answer['secret']}")
    note("keep the secret: receivers check signatures by it (`roost webhook test ID` sends one)")
    return None


@webhook.command("list")
@as_json
@api_options
def list_webhooks(api: Api, raw: bool) -> None:
    """List webhooks, the newest first."""
    answer = api.call("GET", WEBHOOKS)
    if raw:
        return print_json(answer)
    rows = [
        [word(one["id"]), word(one["enabled"]), ",".join(one["events"]) or "all", word(one["url"])]
        for one in answer["webhooks"]
    ]
    return print_table(["ID", "ENABLED", "EVENTS", "URL"], rows)


@webhook.command("set")
@click.argument("id")
@click.option("--address", metavar="URL")
@click.option("--event", "events", multiple=True, metavar="TYPE", help="Instead of what it had; repeatable.")
@click.option("--enable/--disable", "enabled", default=None)
@as_json
@api_options
def set_options(
    api: Api, id: str, address: str | None, events: tuple[str, ...], enabled: bool | None, raw: bool
) -> None:
    """Change a webhook, or switch it off and on."""
    wanted: dict[str, Json] = {"url": address, "events": list(events) or None, "enabled": enabled}
    body = {name: value for name, value in wanted.items() if value is not None}
    if not body:
        raise click.UsageError("give --address, --event, --enable or --disable")
    answer = api.call("PATCH", _path(id), body)
    print_json(answer) if raw else click.echo(f"webhook {answer['id']} changed")


@webhook.command()
@click.argument("id")
@as_json
@api_options
def remove(api: Api, id: str, raw: bool) -> None:
    """Remove a webhook, with what it has not sent."""
    answer = api.call("DELETE", _path(id))
    print_json(answer) if raw else click.echo(answer["message"])


@webhook.command()
@click.argument("id")
@as_json
@api_options
def rotate(api: Api, id: str, raw: bool) -> None:
    """Replace a webhook's secret and print the new one; the old one signs, too, for a day."""
    answer = api.call("POST", f"{_path(id)}/rotate")
    print_json(answer) if raw else click.echo(answer["secret"])


@webhook.command()
@click.argument("id")
@as_json
@api_options
def test(api: Api, id: str, raw: bool) -> None:
    """Send a message of the type webhook.test, and print its id."""
    answer = api.call("POST", f"{_path(id)}/test")
    print_json(answer) if raw else click.echo(answer["id"])


@webhook.command()
@click.argument("id")
@click.option("--status", type=click.Choice(["waiting", "delivered", "failed"]))
@as_json
@api_options
def deliveries(api: Api, id: str, status: str | None, raw: bool) -> None:
    """List what became of a webhook's messages, the newest first."""
    answer = api.call("GET", f"{_path(id)}/deliveries" + (f"?status={status}" if status else ""))
    if raw:
        return print_json(answer)
    keys = ("id", "type", "status", "attempts", "created_at", "error")
    rows = [cells(one, keys) for one in answer["deliveries"]]
    return print_table(["ID", "TYPE", "STATUS", "ATTEMPTS", "CREATED", "ERROR"], rows)


@webhook.command()
@click.argument("id")
@click.argument("message")
@as_json
@api_options
def redeliver(api: Api, id: str, message: str, raw: bool) -> None:
    """Send a message again, with the same id."""
    answer = api.call("POST", f"{_path(id)}/deliveries/{urllib.parse.quote(message, safe='')}/redeliver")
    print_json(answer) if raw else click.echo(f"{answer['id']} waits to be sent again")


def _path(id: str) -> str:
    return f"{WEBHOOKS}/{urllib.parse.quote(id, safe='')}"
