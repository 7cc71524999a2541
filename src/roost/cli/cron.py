"""Commands about schedules: add, list, remove, enable, disable, runs."""

import urllib.parse

import click

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options
from roost.cli.jobs import read_script, submission
from roost.cli.names import WORKSPACE
from roost.cli.times import cells
from roost.cli.wording import note

CRONS = "/api/v1/mags-cron"


@click.group()
def cron() -> None:
    """Run scripts on a schedule."""


@cron.command()
@click.argument("script")
@click.option("-n", "--name", required=True, help="Of the cron job and of its jobs.")
@click.option("--schedule", "cron_expression", required=True, metavar="EXPR", help="Five fields, like '30 2 * * *'.")
@click.option(
    "-w", "--workspace", type=WORKSPACE, metavar="NAME", help="Keep files here; wakes the sandbox that has it."
)
@click.option("--timezone", metavar="ZONE", help="Like Europe/Berlin (UTC).")
@click.option("--missed", type=click.Choice(["none", "latest", "all"]), help="Runs to make up for (latest).")
@click.option("--overlap", type=click.Choice(["skip", "queue", "parallel"]), help="While one is under way (skip).")
@click.option("-p", "--persistent", is_flag=True, default=None, help="Its sandbox stays, and later runs enter it.")
@click.option("-e", "--env", "pairs", multiple=True, metavar="KEY=VALUE", help="Environment; repeatable.")
@click.option("-t", "--timeout", type=click.IntRange(min=1), metavar="S", help="Seconds a run may take (300).")
@click.option("--disabled", is_flag=True, help="Do not begin before `roost cron enable`.")
@as_json
@api_options
def add(api: Api, script: str, pairs: tuple[str, ...], disabled: bool, raw: bool, **options: object) -> None:
    """Run SCRIPT (shell text, a file, or - for standard input) at certain times, and print the schedule's id."""
    body = submission(read_script(script), pairs, **options)
    del body["type"]
    answer = api.call("POST", CRONS, body | ({"enabled": False} if disabled else {}))
    if raw:
        return print_json(answer)
    click.echo(answer["id"])
    note(f"{_next(answer)}; `roost cron runs {answer['id']}` shows what became of it")
    return None


@cron.command("list")
@as_json
@api_options
def list_crons(api: Api, raw: bool) -> None:
    """List cron jobs, the newest first."""
    answer = api.call("GET", CRONS)
    if raw:
        return print_json(answer)
    keys = ("id", "name", "cron_expression", "timezone", "workspace_id", "enabled", "next_run_at", "last_status")
    rows = [cells(one, keys) for one in answer["cron_jobs"]]
    return print_table(["ID", "NAME", "SCHEDULE", "ZONE", "WORKSPACE", "ENABLED", "NEXT", "LAST"], rows)


@cron.command()
@click.argument("id")
@as_json
@api_options
def remove(api: Api, id: str, raw: bool) -> None:
    """Remove a cron job and its history; jobs that it started go on."""
    answer = api.call("DELETE", _path(id))
    print_json(answer) if raw else click.echo(answer["message"])


@cron.command()
@click.argument("id")
@as_json
@api_options
def enable(api: Api, id: str, raw: bool) -> None:
    """Let a cron job run again, from its next time on."""
    _switch(api, id, True, raw)


@cron.command()
@click.argument("id")
@as_json
@api_options
def disable(api: Api, id: str, raw: bool) -> None:
    """Let a cron job rest."""
    _switch(api, id, False, raw)


@cron.command()
@click.argument("id")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest.")
@as_json
@api_options
def runs(api: Api, id: str, limit: int, raw: bool) -> None:
    """Show what became of a cron job's runs, the newest first."""
    answer = api.call("GET", f"{_path(id)}/runs?limit={limit}")
    if raw:
        return print_json(answer)
    keys = ("scheduled_at", "status", "exit_code", "request_id", "exec_id", "reason")
    rows = [cells(one, keys) for one in answer["runs"]]
    return print_table(["SCHEDULED", "STATUS", "EXIT", "JOB", "EXEC", "REASON"], rows)


def _switch(api: Api, id: str, enabled: bool, raw: bool) -> None:
    answer = api.call("PATCH", _path(id), {"enabled": enabled})
    print_json(answer) if raw else click.echo(f"{word(answer['name'])}: {_next(answer)}")


def _next(answer: Json) -> str:
    return f"runs next at {word(answer['next_run_at'])}" if answer["enabled"] else "disabled"


def _path(id: str) -> str:
    return f"{CRONS}/{urllib.parse.quote(id, safe='')}"
