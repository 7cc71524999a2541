"""Commands about templates of jobs and their schedules."""

import urllib.parse

import click

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options
from roost.cli.jobs import pairs_of, read_script
from roost.cli.times import cells

TEMPLATES = "/api/v1/job-templates"
SCHEDULES = "/api/v1/schedules"


@click.group()
def template() -> None:
    """Jobs that are saved with their history and run as often as wanted."""


@template.command()
@click.argument("script")
@click.option("-n", "--name", required=True)
@click.option(
    "--type", "script_type", type=click.Choice(["inline", "python", "docker"]), help="Of the script (inline)."
)
@click.option("--docker-image", metavar="IMAGE", help="With --type docker.")
@click.option("--vcpus", type=click.IntRange(min=1), metavar="N")
@click.option("--memory", "memory_mb", type=click.IntRange(min=1), metavar="MB")
@click.option("-e", "--env", "pairs", multiple=True, metavar="KEY=VALUE", help="Environment; repeatable.")
@click.option("--description", metavar="TEXT")
@click.option("--comment", metavar="TEXT", help="Of the first revision.")
@as_json
@api_options
def add(api: Api, script: str, pairs: tuple[str, ...], raw: bool, **options: Json) -> None:
    """Save SCRIPT (shell text, a file, or - for standard input), and print the template's id."""
    body = _given(options) | {"script": read_script(script), "environment": pairs_of(pairs)}
    answer = api.call("POST", TEMPLATES, body)
    print_json(answer) if raw else click.echo(answer["id"])


@template.command("list")
@as_json
@api_options
def list_templates(api: Api, raw: bool) -> None:
    """List templates, the newest first."""
    answer = api.call("GET", f"{TEMPLATES}?page_size=100")
    if raw:
        return print_json(answer)
    rows = [
        [word(one["id"]), word(one["name"]), word(one["script_type"]), word(one["latest_revision"]["revision"])]
        for one in answer["templates"]
    ]
    return print_table(["ID", "NAME", "TYPE", "REVISION"], rows)


@template.command("set")
@click.argument("id")
@click.option("--script", metavar="SCRIPT", help="Shell text, a file, or -.")
@click.option("-n", "--name")
@click.option("--vcpus", type=click.IntRange(min=1), metavar="N")
@click.option("--memory", "memory_mb", type=click.IntRange(min=1), metavar="MB")
@click.option("-e", "--env", "pairs", multiple=True, metavar="KEY=VALUE", help="In place of what it had; repeatable.")
@click.option("--description", metavar="TEXT")
@click.option("--comment", metavar="TEXT", help="Why; kept with the revision.")
@as_json
@api_options
def set_options(api: Api, id: str, script: str | None, pairs: tuple[str, ...], raw: bool, **options: Json) -> None:
    """Make a new revision of a template, and print its number."""
    body = _given(options)
    body |= {"script": read_script(script)} if script is not None else {}
    body |= {"environment": pairs_of(pairs)} if pairs else {}
    answer = api.call("PUT", _path(TEMPLATES, id), body)
    print_json(answer) if raw else click.echo(answer["latest_revision"]["revision"])


@template.command()
@click.argument("id")
@as_json
@api_options
def revisions(api: Api, id: str, raw: bool) -> None:
    """List a template's revisions, the newest first."""
    answer = api.call("GET", f"{_path(TEMPLATES, id)}/revisions")
    if raw:
        return print_json(answer)
    keys = ("revision", "created_at", "created_by", "comment")
    rows = [cells(one, keys) for one in answer["revisions"]]
    return print_table(["REVISION", "CREATED", "BY", "COMMENT"], rows)


@template.command()
@click.argument("id")
@click.argument("revision", type=click.IntRange(min=1))
@as_json
@api_options
def restore(api: Api, id: str, revision: int, raw: bool) -> None:
    """Make REVISION the newest again, as a revision of its own."""
    answer = api.call("POST", f"{_path(TEMPLATES, id)}/revisions/{revision}/restore", {})
    print_json(answer) if raw else click.echo(answer["latest_revision"]["revision"])


@template.command()
@click.argument("id")
@click.option("--revision", type=click.IntRange(min=1), metavar="N", help="Not the newest, but this one.")
@click.option("-e", "--env", "pairs", multiple=True, metavar="KEY=VALUE", help="Over the template's own; repeatable.")
@as_json
@api_options
def run(api: Api, id: str, revision: int | None, pairs: tuple[str, ...], raw: bool) -> None:
    """Run a template, and print the job's id (see `roost logs`)."""
    answer = api.call("POST", f"{_path(TEMPLATES, id)}/run", {"revision": revision, "environment": pairs_of(pairs)})
    print_json(answer) if raw else click.echo(answer["request_id"])


@template.command()
@click.argument("id")
@as_json
@api_options
def remove(api: Api, id: str, raw: bool) -> None:
    """Remove a template with its revisions and schedules; jobs of it stay."""
    answer = api.call("DELETE", _path(TEMPLATES, id))
    print_json(answer) if raw else click.echo(answer["message"])


@click.group()
def schedule() -> None:
    """Run templates and saved jobs at certain times."""


@schedule.command("add")
@click.argument("job", metavar="TEMPLATE")
@click.argument("expression", metavar="EXPR")
@click.option("--revision", type=click.IntRange(min=1), metavar="N", help="Always this one of a template.")
@click.option("--timezone", metavar="ZONE", help="Like Europe/Berlin (UTC).")
@click.option("--missed", type=click.Choice(["none", "latest", "all"]), help="Runs to make up for (latest).")
@click.option("--overlap", type=click.Choice(["skip", "queue", "parallel"]), help="While one is under way (skip).")
@click.option("--disabled", is_flag=True, help="Do not begin before `roost schedule enable`.")
@as_json
@api_options
def add_schedule(api: Api, job: str, expression: str, disabled: bool, raw: bool, **options: Json) -> None:
    """Run TEMPLATE (an id; or a saved job's) at the times of EXPR (five fields), and print the schedule's id."""
    body = _given(options) | {"job_id": job, "cron": expression, "enabled": not disabled}
    answer = api.call("POST", SCHEDULES, body)
    print_json(answer) if raw else click.echo(answer["id"])


@schedule.command("list")
@as_json
@api_options
def list_schedules(api: Api, raw: bool) -> None:
    """List schedules, the newest first."""
    answer = api.call("GET", SCHEDULES)
    if raw:
        return print_json(answer)
    keys = ("id", "job_name", "cron", "timezone", "enabled", "next_run_at", "last_status")
    rows = [cells(one, keys) for one in answer["schedules"]]
    return print_table(["ID", "JOB", "SCHEDULE", "ZONE", "ENABLED", "NEXT", "LAST"], rows)


@schedule.command()
@click.argument("id")
@as_json
@api_options
def enable(api: Api, id: str, raw: bool) -> None:
    """Let a schedule run again, from its next time on."""
    _switch(api, id, True, raw)


@schedule.command()
@click.argument("id")
@as_json
@api_options
def disable(api: Api, id: str, raw: bool) -> None:
    """Keep a schedule, and run nothing."""
    _switch(api, id, False, raw)


@schedule.command()
@click.argument("id")
@as_json
@api_options
def runs(api: Api, id: str, raw: bool) -> None:
    """Show what became of a schedule's times, the newest first."""
    answer = api.call("GET", f"{_path(SCHEDULES, id)}/runs")
    if raw:
        return print_json(answer)
    keys = ("scheduled_at", "status", "request_id", "exit_code", "reason")
    rows = [cells(one, keys) for one in answer["runs"]]
    return print_table(["TIME", "STATUS", "JOB", "EXIT", "REASON"], rows)


@schedule.command("remove")
@click.argument("id")
@as_json
@api_options
def remove_schedule(api: Api, id: str, raw: bool) -> None:
    """Remove a schedule and its history."""
    answer = api.call("DELETE", _path(SCHEDULES, id))
    print_json(answer) if raw else click.echo(answer["message"])


def _switch(api: Api, id: str, enabled: bool, raw: bool) -> None:
    answer = api.call("PATCH", _path(SCHEDULES, id), {"enabled": enabled})
    print_json(answer) if raw else click.echo(f"schedule {answer['id']} {'enabled' if enabled else 'disabled'}")


def _given(options: dict[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in options.items() if value is not None}


def _path(base: str, id: str) -> str:
    return f"{base}/{urllib.parse.quote(id, safe='')}"
