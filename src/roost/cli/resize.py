"""`roost resize`: the same files on another disk. A disk is made with its sandbox, so the sandbox is made anew.

Its workspace is saved before the old sandbox goes, and the new one begins from it. Where the new one is refused, one as
before is started, so that a mistake costs a restart and no more.
"""

import time

import click

from roost.cli.answers import as_json, print_json
from roost.cli.connection import Api, Json, api_options
from roost.cli.names import JOB
from roost.cli.paths import JOBS, path_of
from roost.cli.starting import FINAL, started
from roost.cli.wording import note
from roost.errors import Conflict, Invalid, RoostError

SAVE_WITHIN = 600.0  # seconds that saving a large workspace may take
LOOK_AGAIN = 0.1  # seconds
# what the new sandbox takes over; the API does not show a job's environment
KEPT = ("name", "workspace_id", "rootfs_type", "vcpus", "memory_mb", "no_sleep", "startup_command", "idle_minutes")


@click.command()
@click.argument("name", type=JOB)
@click.option("--disk", type=click.IntRange(min=1), required=True, metavar="GB", help="The new size.")
@as_json
@api_options
def resize(api: Api, name: str, disk: int, raw: bool) -> None:
    """Give a sandbox that has a workspace a disk of another size; its files stay.

    It is saved, stopped and made anew, as another job of the same name: with its startup command running if it has one
    (`roost set NAME --startup-command CMD`), without its environment, and with another URL; aliases follow.

    \b
    roost resize myproject --disk 10
    """
    job = api.call("GET", path_of(name))
    refuse_useless(job, disk)
    if job["status"] not in FINAL:
        if not raw:
            note(f"saving and stopping {job['name']}")
        _stop(api, str(job["request_id"]))
    shown = started(api, _submitted(api, job, disk))
    if raw:
        return print_json(shown)
    click.echo(shown["request_id"])
    note(f"{name} has {disk} GB now")
    return None


def refuse_useless(job: Json, disk: int) -> None:
    """Invalid: its files would be lost, or nothing would change."""
    called = f"job {job['name']!r}"
    if not job.get("workspace_id"):
        raise Invalid(f"{called} has no workspace, so its files would be lost; begin with `roost new NAME`")
    if job["status"] in FINAL:
        return
    if not job["persistent"]:
        raise Invalid(f"{called} ends with its script; give the next one a disk with `roost run -w NAME --disk GB`")
    if job["disk_gb"] == disk:
        raise Invalid(f"{called} has {disk} GB already")


def body_for(job: Json, disk: int) -> dict[str, object]:
    """The submission of the new sandbox. It is kept on its node alone if the old one was."""
    script = job.get("startup_command") or "sleep infinity"
    body: dict[str, object] = {"script": script, "type": "inline", "persistent": True, "disk_gb": disk}
    body |= {key: job[key] for key in KEPT if job.get(key)}
    if job["name"] == f"job-{job['request_id'][:8]}":  # made up for it, not given
        del body["name"]
    return body | ({"no_sync": True} if job.get("no_sync") or not job["persistent"] else {})


def _submitted(api: Api, job: Json, disk: int) -> str:
    try:
        return str(api.call("POST", JOBS, body_for(job, disk))["request_id"])
    except RoostError as error:
        if job["status"] in FINAL:
            raise
        again = api.call("POST", JOBS, body_for(job, job["disk_gb"]))["request_id"]
        raise Conflict(f"{error}; {job['name']!r} was started as before, as job {again}") from error


def _stop(api: Api, job: str) -> None:
    """Returns when its workspace is saved and free."""
    api.call("POST", f"{path_of(job)}/stop", timeout=60)
    deadline = time.monotonic() + SAVE_WITHIN
    while api.call("GET", f"{path_of(job)}/status")["status"] not in FINAL:
        if time.monotonic() > deadline:
            raise Conflict(f"it is still being saved; try again when `roost status {job}` says completed")
        time.sleep(LOOK_AGAIN)
