"""The life cycle of persistent jobs: change how they sleep, put them to sleep, wake them, keep them awake."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import patch, post
from msgspec import UNSET, Meta, UnsetType

from roost.api.bodies import JsonBody
from roost.api.mags import Caller, Id, JobRecord, JobStatus, record_of, status_of
from roost.api.plane import Plane
from roost.api.submission import idle_seconds, startup_command
from roost.clock import rfc3339
from roost.errors import Conflict, Invalid
from roost.jobs import job as jobs

WAKE_WITHIN = 90.0  # seconds
SLEEP_WITHIN = 25.0  # seconds; clients wait 30 for an answer
MAX_LEASE = 3600  # seconds


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays as it is."""

    startup_command: Annotated[
        str | UnsetType | None, Meta(description="Runs when the sandbox wakes from cold; empty or null: nothing")
    ] = UNSET
    no_sleep: Annotated[bool | None, Meta(description="true: never sleeps by itself, and is started again")] = None
    idle_minutes: Annotated[float | None, Meta(description="Unused, until it falls asleep; up to 10080")] = None


class Sleep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    depth: Annotated[
        Literal["frozen", "cold"], Meta(description="frozen: stays in memory; cold: is saved and its sandbox goes")
    ] = "frozen"


class Lease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seconds: Annotated[float, Meta(description="More than 0, at most 3600; renew it before it is over")] = 600


class Leased(msgspec.Struct, frozen=True):
    success: bool
    awake_until: str


@patch(
    "/mags-jobs/{id:str}", dto=JsonBody, return_dto=None, summary="Change how a persistent job sleeps",
    description="no_sleep: true wakes a job that sleeps.",
)  # fmt: skip
async def change(request: Caller, plane: Plane, id: Id, data: Change) -> JobRecord:
    job = await jobs.find(plane.database, request.user.id, id)
    settings = changes_of(data)
    if settings and not job.persistent:
        raise Conflict(f"job {job.name!r} is not persistent: it ends with its script and never sleeps")
    job = await plane.live.change(job, **settings) if settings else plane.live.as_now(job)
    return await record_of(plane, job)


def changes_of(data: Change) -> dict[str, Any]:
    """As columns of a job. Raises Invalid."""
    settings: dict[str, Any] = {}
    if data.startup_command is not UNSET:
        settings["startup_command"] = startup_command(data.startup_command or None)
    if data.no_sleep is not None:
        settings["no_sleep"] = data.no_sleep
    if data.idle_minutes is not None:
        settings["idle_seconds"] = idle_seconds(data.idle_minutes)
    return settings


@post(
    "/mags-jobs/{id:str}/sleep", status_code=200, dto=JsonBody, return_dto=None, summary="Put a job to sleep",
    description="Though it may be in use. The next request, login or command wakes it.",
)  # fmt: skip
async def put_to_sleep(request: Caller, plane: Plane, id: Id, data: Sleep | None = None) -> JobStatus:
    job = await jobs.find(plane.database, request.user.id, id)
    return status_of(plane, await plane.live.sleep(job, (data or Sleep()).depth, SLEEP_WITHIN))


@post(
    "/mags-jobs/{id:str}/wake", status_code=200, summary="Wake a job",
    description="Answers when its sandbox can be entered, after at most 90 seconds.",
)  # fmt: skip
async def wake(request: Caller, plane: Plane, id: Id) -> JobStatus:
    job = await jobs.find(plane.database, request.user.id, id)
    await plane.live.awake(job, WAKE_WITHIN)
    return status_of(plane, plane.live.as_now(await jobs.reread(plane.database, job)))


@post(
    "/mags-jobs/{id:str}/keepalive", status_code=200, dto=JsonBody, return_dto=None, summary="Keep a job awake",
    description="A lease for background work: until it is over, the job does not fall asleep by itself. Wakes it too.",
)  # fmt: skip
async def keep_awake(request: Caller, plane: Plane, id: Id, data: Lease | None = None) -> Leased:
    seconds = (data or Lease()).seconds
    if not 0 < seconds <= MAX_LEASE:
        raise Invalid(f"seconds: {seconds:g} is out of range; give more than 0 and at most {MAX_LEASE}, and renew it")
    job = await jobs.find(plane.database, request.user.id, id)
    if not job.persistent:
        raise Conflict(f"job {job.name!r} is not persistent: it ends with its script and never sleeps")
    return Leased(True, rfc3339(await plane.live.keep_awake(job, seconds)))
