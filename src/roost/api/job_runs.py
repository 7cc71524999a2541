"""Runs as the Jobs API tells them. `magpie-cloud` reads them with strict models: what it wants never null is left out
when it is not known, its states are the six below, and a status holds its log as plain lines.
"""

from typing import Any, Literal, TypeAlias

import msgspec

from roost.api import output
from roost.api.plane import ControlPlane
from roost.clock import rfc3339
from roost.errors import NodeUnavailable
from roost.gateways.routes import prefix_of
from roost.jobs.job import Job
from roost.jobs.logs import Lines
from roost.jobs.saved import SavedRun

State: TypeAlias = Literal["not_started", "in_progress", "completed", "failed", "cancelled", "error"]

AGENT = "local"  # the one node there is
MAX_LINES = 10_000  # of a status; all are at /logs
MAX_BYTES = 4 * 1024 * 1024
ENDED_BY_SIGNAL = (None, 137, 143)  # exit codes of a script that a stop has ended


class JobRun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    request_id: str  # the same
    job_id: str
    job_name: str
    status: State
    agent_id: str
    started_at: str | None = None
    completed_at: str | None = None
    duration_ms: int | None = None
    exit_code: int | None = None
    error: str | None = None


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    request_id: str
    id: str
    job_id: str
    name: str
    status: State
    logs: list[str]
    persist: bool
    duration: int | msgspec.UnsetType = msgspec.UNSET  # milliseconds
    duration_ms: int | msgspec.UnsetType = msgspec.UNSET
    script_duration_ms: int | msgspec.UnsetType = msgspec.UNSET
    exit_code: int | msgspec.UnsetType = msgspec.UNSET
    started_at: str | msgspec.UnsetType = msgspec.UNSET
    completed_at: str | msgspec.UnsetType = msgspec.UNSET
    error_message: str | msgspec.UnsetType = msgspec.UNSET
    workspace_id: str | msgspec.UnsetType = msgspec.UNSET
    vm_info: "VmInfo | msgspec.UnsetType" = msgspec.UNSET
    ipv6_address: str | msgspec.UnsetType = msgspec.UNSET
    proxy_url: str | msgspec.UnsetType = msgspec.UNSET


class VmInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Empty until there is a sandbox. Addresses are told of those with `ip_lease`."""

    vm_id: str | None = None
    agent_id: str | None = None
    ip_address: str | None = None
    ipv6_address: str | None = None
    ipv4_address: str | None = None
    proxy_url: str | None = None


def state_of(job: Job) -> State:
    """A script that is over has its result, also while its sandbox stays."""
    over = job.final or (job.script_ended_ns is not None and not job.stop_requested)
    if not over:
        return "not_started" if job.status == "pending" else "in_progress"
    if job.stopped and job.exit_code in ENDED_BY_SIGNAL:
        return "cancelled"
    if job.exit_code is None:
        return "error"
    return "completed" if job.exit_code == 0 and job.status != "error" else "failed"


def run_view(job: Job, saved: SavedRun) -> JobRun:
    return JobRun(
        id=job.request_id,
        request_id=job.request_id,
        job_id=saved.job_id,
        job_name=job.name,
        status=state_of(job),
        agent_id=AGENT,
        started_at=_time(job.started_ns),
        completed_at=_time(_completed_ns(job)),
        duration_ms=_duration_ms(job),
        exit_code=job.exit_code,
        error=job.error,
    )


async def status_view(plane: ControlPlane, job: Job, saved: SavedRun) -> RunStatus:
    """Raises NodeUnavailable for one that is over: its log is part of its result."""
    told: dict[str, Any] = {
        "duration": _duration_ms(job),
        "duration_ms": _duration_ms(job),
        "script_duration_ms": job.script_duration_ms,
        "exit_code": job.exit_code,
        "started_at": _time(job.started_ns),
        "completed_at": _time(_completed_ns(job)),
        "error_message": job.error,
        "workspace_id": job.workspace,
    }
    info = vm_info(plane, job, saved)
    told |= {"ipv6_address": info.ipv6_address, "proxy_url": info.proxy_url, "vm_info": info if info.vm_id else None}
    return RunStatus(
        request_id=job.request_id,
        id=job.request_id,
        job_id=saved.job_id,
        name=job.name,
        status=state_of(job),
        logs=await _lines(plane, job),
        persist=job.persistent,
        **{name: value for name, value in told.items() if value is not None},
    )


def vm_info(plane: ControlPlane, job: Job, saved: SavedRun) -> VmInfo:
    run = plane.live.run_of(job)
    state = None if run is None or run.over else run.state
    if state is None or state.started_ns is None:
        return VmInfo()
    if not saved.ip_lease:
        return VmInfo(vm_id=job.vm_id, agent_id=AGENT)
    return VmInfo(
        vm_id=job.vm_id,
        agent_id=AGENT,
        ip_address=state.ipv6,
        ipv6_address=state.ipv6,
        ipv4_address=state.ipv4,
        proxy_url=plane.routes.hosts.url(prefix_of(job)) if job.persistent else None,
    )


async def _lines(plane: ControlPlane, job: Job) -> list[str]:
    """As many as a status holds."""
    lines, found, size = Lines(), list[str](), 0
    try:
        async for record in output.records(plane, job, 0, follow=False):
            found += [line.text for line in lines.feed(record)]
            size += len(record.data)
            if len(found) > MAX_LINES or size > MAX_BYTES:
                return [*found[:MAX_LINES], f"(there is more: GET /api/v1/jobs/{job.request_id}/logs)"]
    except NodeUnavailable:
        if job.final:
            raise
    return found + [line.text for line in lines.end()]


def _completed_ns(job: Job) -> int | None:
    return job.script_ended_ns if job.persistent and job.script_ended_ns is not None else job.ended_ns


def _duration_ms(job: Job) -> int | None:
    ended_ns = _completed_ns(job)
    return None if job.started_ns is None or ended_ns is None else max(0, ended_ns - job.started_ns) // 1_000_000


def _time(instant_ns: int | None) -> str | None:
    return None if instant_ns is None else rfc3339(instant_ns)
