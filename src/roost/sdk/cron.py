"""Cron jobs: scripts on a schedule."""

from collections.abc import Mapping
from typing import Literal

from roost.sdk import wire
from roost.sdk.results import CronJob, CronJobs, Runs, Stopped
from roost.sdk.wire import Call, given, quoted

CRON = "/mags-cron"


def cron_create(
    *,
    name: str,
    cron_expression: str,
    script: str,
    workspace_id: str | None = None,
    environment: Mapping[str, str] | None = None,
    persistent: bool = False,
    enabled: bool | None = None,
    timezone: str | None = None,
    missed: Literal["none", "latest", "all"] | None = None,
    overlap: Literal["skip", "queue", "parallel"] | None = None,
    timeout_seconds: int | None = None,
    rootfs_type: str | None = None,
    vcpus: float | None = None,
    memory_mb: int | None = None,
    disk_gb: int | None = None,
) -> Call[CronJob]:
    """Run a script on a schedule of five fields; `timezone` is an IANA name, UTC by default."""
    body = {"name": name, "cron_expression": cron_expression, "script": script, "persistent": persistent}
    body |= given(
        workspace_id=workspace_id or None,
        environment=None if environment is None else dict(environment),
        enabled=enabled,
        timezone=timezone,
        missed=missed,
        overlap=overlap,
        timeout=timeout_seconds,
        rootfs_type=rootfs_type,
        vcpus=vcpus,
        memory_mb=memory_mb,
        disk_gb=disk_gb,
    )
    return (yield from wire.call("POST", CRON, body))


def cron_list() -> Call[CronJobs]:
    """List cron jobs, the newest first."""
    return (yield from wire.call("GET", CRON))


def cron_get(cron_id: str) -> Call[CronJob]:
    """Show a cron job."""
    return (yield from wire.call("GET", CRON + quoted(cron_id)))


def cron_update(cron_id: str, **updates: object) -> Call[CronJob]:
    """Change a cron job; the fields are those of cron_create, and `enabled`."""
    return (yield from wire.call("PATCH", CRON + quoted(cron_id), updates, repeatable=True))


def cron_delete(cron_id: str) -> Call[Stopped]:
    """Delete a cron job with its history; jobs that it started go on."""
    return (yield from wire.call("DELETE", CRON + quoted(cron_id)))


def cron_runs(cron_id: str, *, limit: int = 100) -> Call[Runs]:
    """List what became of its runs, the newest first."""
    return (yield from wire.call("GET", f"{CRON}{quoted(cron_id)}/runs", query={"limit": limit}))
