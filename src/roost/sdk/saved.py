"""Saved jobs with their runs, templates with their revisions, and schedules of both."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, Unpack

from roost.sdk import wire
from roost.sdk.results import (
    BegunRun,
    Details,
    JobRun,
    Runs,
    RunStatus,
    SavedJobPage,
    SavedJobRecord,
    ScheduleRecord,
    Schedules,
    Stopped,
    TemplatePage,
    TemplateRecord,
    TemplateRevision,
    TemplateRevisions,
    VmInfo,
)
from roost.sdk.wire import Call, given, quoted

SAVED = "/jobs"
TEMPLATES = "/job-templates"
SCHEDULES = "/schedules"


class SavedOptions(TypedDict, total=False):
    """What a saved job or template says besides its script; see docs/jobs-api.md."""

    name: str
    type: Literal["inline", "python", "docker", "url"]
    description: str
    docker_image: str
    vcpus: int
    memory_mb: int
    environment: Mapping[str, str]
    stateful: bool
    workspace_id: str
    workspace_size_gb: int
    persist: bool
    ip_lease: bool
    proxy_port: int
    file_ids: Sequence[str]


class SavedChange(TypedDict, total=False):
    name: str
    description: str
    script: str
    vcpus: int
    memory_mb: int
    environment: Mapping[str, str]
    docker_image: str
    proxy_port: int


class Timing(TypedDict, total=False):
    """When a schedule runs."""

    enabled: bool
    timezone: str
    missed: Literal["none", "latest", "all"]
    overlap: Literal["skip", "queue", "parallel"]


def saved_job_create(script: str, **options: Unpack[SavedOptions]) -> Call[BegunRun]:
    """Save a job and run it."""
    return (yield from wire.call("POST", SAVED, {"script": script, **options}))


def saved_job_list(*, page: int = 1, page_size: int = 20, template_id: str | None = None) -> Call[SavedJobPage]:
    """List saved jobs, newest first."""
    query = {"page": page, "page_size": page_size, "template_id": template_id}
    return (yield from wire.call("GET", SAVED, query=query))


def saved_job_get(job_id: str) -> Call[SavedJobRecord]:
    """Show a saved job."""
    return (yield from wire.call("GET", SAVED + quoted(job_id)))


def saved_job_update(job_id: str, **changes: Unpack[SavedChange]) -> Call[SavedJobRecord]:
    """Change a saved job."""
    return (yield from wire.call("PUT", SAVED + quoted(job_id), dict(changes)))


def saved_job_delete(job_id: str) -> Call[Stopped]:
    """Delete a saved job; runs of it that have not ended are cancelled."""
    return (yield from wire.call("DELETE", SAVED + quoted(job_id)))


def saved_job_run(job_id: str, *, environment: Mapping[str, str] | None = None) -> Call[JobRun]:
    """Run a saved job again, with variables over its own."""
    return (yield from wire.call("POST", f"{SAVED}{quoted(job_id)}/run", given(environment=environment)))


def saved_job_cancel(run_id: str) -> Call[Stopped]:
    """Cancel a run."""
    return (yield from wire.call("POST", f"{SAVED}{quoted(run_id)}/cancel", repeatable=True))


def saved_job_status(run_id: str) -> Call[RunStatus]:
    """Show how far a run is, with its output."""
    return (yield from wire.call("GET", f"{SAVED}{quoted(run_id)}/status"))


def saved_job_details(run_id: str) -> Call[Details]:
    """Show a run, its job and that job's newest runs."""
    return (yield from wire.call("GET", f"{SAVED}{quoted(run_id)}/details"))


def saved_job_vm_info(run_id: str) -> Call[VmInfo]:
    """Show a run's sandbox."""
    return (yield from wire.call("GET", f"{SAVED}{quoted(run_id)}/vm-info"))


def template_create(
    script: str, *, comment: str | None = None, **options: Unpack[SavedOptions]
) -> Call[TemplateRecord]:
    """Make a template."""
    return (yield from wire.call("POST", TEMPLATES, {"script": script, **options} | given(comment=comment)))


def template_list(*, page: int = 1, page_size: int = 20) -> Call[TemplatePage]:
    """List templates, newest first."""
    return (yield from wire.call("GET", TEMPLATES, query={"page": page, "page_size": page_size}))


def template_get(template_id: str) -> Call[TemplateRecord]:
    """Show a template with its newest revision."""
    return (yield from wire.call("GET", TEMPLATES + quoted(template_id)))


def template_update(
    template_id: str, *, comment: str | None = None, **changes: Unpack[SavedChange]
) -> Call[TemplateRecord]:
    """Change a template, which makes a new revision. It is not sent twice."""
    body = dict(changes) | given(comment=comment)
    # the second of two would make another revision
    return (yield from wire.call("PUT", TEMPLATES + quoted(template_id), body, repeatable=False))


def template_delete(template_id: str) -> Call[Stopped]:
    """Delete a template with its revisions and schedules; its runs go on."""
    return (yield from wire.call("DELETE", TEMPLATES + quoted(template_id)))


def template_revisions(template_id: str) -> Call[TemplateRevisions]:
    """List a template's revisions, newest first."""
    return (yield from wire.call("GET", f"{TEMPLATES}{quoted(template_id)}/revisions"))


def template_revision(template_id: str, number: int) -> Call[TemplateRevision]:
    """Show a revision of a template."""
    return (yield from wire.call("GET", f"{TEMPLATES}{quoted(template_id)}/revisions/{number}"))


def template_restore(template_id: str, number: int, *, comment: str | None = None) -> Call[TemplateRecord]:
    """Make a new revision that says what this one does."""
    path = f"{TEMPLATES}{quoted(template_id)}/revisions/{number}/restore"
    return (yield from wire.call("POST", path, given(comment=comment)))


def template_run(
    template_id: str, *, environment: Mapping[str, str] | None = None, revision: int | None = None
) -> Call[JobRun]:
    """Run a template, with variables over its own."""
    body = given(environment=environment, revision=revision)
    return (yield from wire.call("POST", f"{TEMPLATES}{quoted(template_id)}/run", body))


def schedule_create(
    job_id: str, cron: str, *, revision: int | None = None, **timing: Unpack[Timing]
) -> Call[ScheduleRecord]:
    """Run a saved job or a template on a schedule of five fields."""
    body = {"job_id": job_id, "cron": cron, **timing} | given(revision=revision)
    return (yield from wire.call("POST", SCHEDULES, body))


def schedule_list(*, job_id: str | None = None) -> Call[Schedules]:
    """List schedules, the newest first."""
    return (yield from wire.call("GET", SCHEDULES, query={"job_id": job_id}))


def schedule_get(schedule_id: str) -> Call[ScheduleRecord]:
    """Show a schedule."""
    return (yield from wire.call("GET", SCHEDULES + quoted(schedule_id)))


def schedule_update(schedule_id: str, *, cron: str | None = None, **timing: Unpack[Timing]) -> Call[ScheduleRecord]:
    """Change when a schedule runs, enable or disable it."""
    return (yield from wire.call("PUT", SCHEDULES + quoted(schedule_id), dict(timing) | given(cron=cron)))


def schedule_delete(schedule_id: str) -> Call[Stopped]:
    """Delete a schedule; what it started goes on."""
    return (yield from wire.call("DELETE", SCHEDULES + quoted(schedule_id)))


def schedule_runs(schedule_id: str, *, limit: int = 100) -> Call[Runs]:
    """List what became of its runs, the newest first."""
    return (yield from wire.call("GET", f"{SCHEDULES}{quoted(schedule_id)}/runs", query={"limit": limit}))
