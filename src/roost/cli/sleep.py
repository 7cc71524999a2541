"""Commands about how persistent jobs sleep: new, set, sleep, wake, keepalive."""

import click

from roost.cli.answers import as_json, print_json
from roost.cli.connection import Api, Json, api_options
from roost.cli.names import JOB, WORKSPACE
from roost.cli.paths import path_of
from roost.cli.starting import started, submitted, waited_for
from roost.cli.wording import note
from roost.errors import Invalid

WAKE_TIMEOUT = 120  # seconds


@click.command()
@click.argument("name")
@click.option("-p", "--persistent", is_flag=True, help="Keep its files in the object store, not on this node alone.")
@click.option("--base", type=WORKSPACE, metavar="NAME", help="Begin from this workspace, which stays as it is.")
@click.option("--disk", type=click.IntRange(min=1), metavar="GB", help="Disk limit (2).")
@click.option("--image", "--type", "image", metavar="IMAGE", help="Root file system (standard).")
@click.option("--no-sleep", is_flag=True, help="Never put it to sleep, and start it again when it ends.")
@click.option("--startup-command", metavar="CMD", help="Runs now, and each time it wakes from cold.")
@as_json
@api_options
def new(api: Api, name: str, persistent: bool, no_sleep: bool, raw: bool, **options: object) -> None:
    """Make a sandbox that stays, with workspace NAME, and wait until it runs."""
    names = {"base": "base_workspace_id", "disk": "disk_gb", "image": "rootfs_type"}
    body: dict[str, object] = {"type": "inline", "persistent": True, "workspace_id": name}
    body |= {} if options["startup_command"] else {"script": "sleep infinity"}
    body |= {names.get(key, key): value for key, value in options.items() if value is not None}
    body |= {"no_sync": True} if not persistent else {}
    body |= {"no_sleep": True} if no_sleep else {}
    with waited_for(api) as made:
        shown = started(api, submitted(api, body, made)["request_id"])
    if raw:
        return print_json(shown)
    click.echo(shown["request_id"])
    note(f"`roost exec {name} CMD` runs a command in it, `roost stop {name}` ends it")
    return None


@click.command("set")
@click.argument("job", type=JOB)
@click.option("--no-sleep/--sleep", default=None, help="Whether it stays awake, used or not.")
@click.option("--startup-command", metavar="CMD", help="Runs when it wakes from cold; '' for none.")
@click.option(
    "--idle-minutes", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Unused, until it sleeps."
)
@as_json
@api_options
def set_options(api: Api, job: str, raw: bool, **options: object) -> None:
    """Change how a persistent job sleeps."""
    body = {name: value for name, value in options.items() if value is not None}
    if not body:
        raise Invalid("nothing to change: give --no-sleep, --sleep, --startup-command or --idle-minutes")
    answer = api.call("PATCH", path_of(job), body, timeout=WAKE_TIMEOUT)
    print_json(answer) if raw else click.echo(f"{answer['name']}: {', '.join(_said(answer))}")


def _said(job: Json) -> list[str]:
    sleeps = "never sleeps" if job.get("no_sleep") else f"sleeps after {job.get('idle_minutes', 10):g} idle minutes"
    command = job.get("startup_command")
    return [sleeps, f"runs {command!r} when it wakes from cold"] if command else [sleeps]


@click.command("sleep")
@click.argument("job", type=JOB)
@click.option("--cold", is_flag=True, help="Save its files and end its processes; otherwise they stand still.")
@as_json
@api_options
def put_to_sleep(api: Api, job: str, cold: bool, raw: bool) -> None:
    """Put a job to sleep now; the next request, login or command wakes it."""
    answer = api.call("POST", f"{path_of(job)}/sleep", {"depth": "cold" if cold else "frozen"}, timeout=60)
    print_json(answer) if raw else click.echo(f"{answer['status']} ({answer.get('sleep_depth', 'awake')})")


@click.command()
@click.argument("job", type=JOB)
@as_json
@api_options
def wake(api: Api, job: str, raw: bool) -> None:
    """Wake a job that sleeps."""
    answer = api.call("POST", f"{path_of(job)}/wake", timeout=WAKE_TIMEOUT)
    print_json(answer) if raw else click.echo(answer["status"])


@click.command()
@click.argument("job", type=JOB)
@click.option("--seconds", type=click.IntRange(1, 3600), default=600, show_default=True)
@as_json
@api_options
def keepalive(api: Api, job: str, seconds: int, raw: bool) -> None:
    """Keep a job awake for background work; run it again before the time is over."""
    answer = api.call("POST", f"{path_of(job)}/keepalive", {"seconds": seconds}, timeout=WAKE_TIMEOUT)
    print_json(answer) if raw else click.echo(f"awake until {answer['awake_until']}")
