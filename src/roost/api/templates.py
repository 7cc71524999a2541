"""Templates of jobs: saved definitions with a history, run by name as often as wanted.

`Template` must satisfy the strict models of `magpie-cloud` clients: no null where they declare none, ids as text. What
a template may say, and how it is run, is the Jobs API's (`saved_jobs.py`).
"""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post, put
from litestar.datastructures import State
from litestar.params import Parameter
from msgspec import Meta

from roost import ids
from roost.accounts.tokens import Account
from roost.api import cron, job_runs, saved_jobs
from roost.api.bodies import JsonBody
from roost.api.job_runs import JobRun
from roost.api.mags import Stopped
from roost.api.plane import ControlPlane, Plane
from roost.api.saved_jobs import MAX_PAGE, MAX_TEXT, NewJob
from roost.clock import now_ns, rfc3339
from roost.errors import Invalid
from roost.jobs import saved, schedules
from roost.jobs import templates as rows
from roost.jobs.saved import Definition, SavedJob
from roost.jobs.schedules import Wanted
from roost.jobs.templates import Revision, Template
from roost.workspaces import uploads

Caller = Request[Account, str, State]
TemplateId = Annotated[str, Parameter(description="Id of a template")]
Number = Annotated[int, Parameter(ge=1, le=MAX_PAGE, description="Number of a revision, from 1")]


def _note(text: str) -> Meta:
    return Meta(description=text)


class NewTemplate(NewJob, frozen=True, forbid_unknown_fields=True):
    """null counts as absent."""

    comment: Annotated[str | None, _note("Of the first revision")] = None


class TemplateChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is absent or null stays."""

    name: str | None = None
    description: str | None = None
    script: str | None = None
    vcpus: int | None = None
    memory_mb: int | None = None
    environment: Annotated[dict[str, str] | None, _note("In place of the whole one")] = None
    docker_image: str | None = None
    proxy_port: int | None = None
    comment: Annotated[str | None, _note("Why; kept with the new revision")] = None


class RestoreWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    comment: str | None = None


class TemplateRunWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    environment: Annotated[dict[str, str] | None, _note("For this run, over the template's own")] = None
    revision: Annotated[int | None, _note("Default the newest")] = None


class TemplateRevision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    template_id: str
    revision: int
    name: str
    script: str
    script_type: str
    vcpus: int
    memory_mb: int
    environment: dict[str, str]
    created_at: str
    created_by: str
    description: str | None = None
    docker_image: str | None = None
    comment: str | None = None


class TemplateRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    script_type: str
    default_vcpus: int
    default_memory_mb: int
    latest_revision: TemplateRevision
    stateful: bool
    persist: bool
    ip_lease: bool
    user_id: str
    created_at: str
    updated_at: str
    description: str | None = None
    docker_image: str | None = None
    workspace_id: str | None = None
    workspace_size_gb: int | None = None
    proxy_port: int | None = None


class TemplatePage(msgspec.Struct, frozen=True):
    templates: list[TemplateRecord]
    total: int
    page: int
    page_size: int


class TemplateRevisions(msgspec.Struct, frozen=True):
    revisions: list[TemplateRevision]
    total: int


@post("/job-templates", status_code=201, dto=JsonBody, return_dto=None, summary="Make a template")
async def create(request: Caller, plane: Plane, data: NewTemplate) -> TemplateRecord:
    if not data.name:
        raise Invalid("name: missing; give the template a name")
    id, now = ids.request_id(), now_ns()
    definition = await saved_jobs.definition_of(plane, data, id)
    first = Revision(
        template_id=id,
        number=1,
        name=data.name,
        definition=definition,
        comment=_comment(data.comment),
        created_ns=now,
        created_by=request.user.user_name or request.user.name,
    )
    template = Template(id=id, account_id=request.user.id, created_ns=now, latest=first)
    saved_jobs.order_for(plane, runnable(template, first), {})  # refuses what could not be run
    await uploads.require(plane.database, request.user.id, definition.file_ids)
    await rows.create(plane.database, plane.secret, template)
    return _record(template)


@get("/job-templates", summary="List templates, newest first")
async def list_templates(
    request: Caller,
    plane: Plane,
    page: Annotated[int, Parameter(ge=1, le=MAX_PAGE)] = 1,
    page_size: Annotated[int, Parameter(ge=1, le=100)] = 20,
) -> TemplatePage:
    found = await rows.newest(plane.database, plane.secret, request.user.id, page, page_size)
    return TemplatePage([_record(one) for one in found.templates], found.total, page, page_size)


@get("/job-templates/{id:str}", summary="Show a template with its newest revision")
async def show(request: Caller, plane: Plane, id: TemplateId) -> TemplateRecord:
    return _record(await _found(request, plane, id))


@put(
    "/job-templates/{id:str}",
    dto=JsonBody,
    return_dto=None,
    summary="Change a template: makes a new revision",
    description="The ones before stay as they are. At most 1000.",
)
async def change(request: Caller, plane: Plane, id: TemplateId, data: TemplateChange) -> TemplateRecord:
    template = await _found(request, plane, id)
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value is not None}
    comment, name = given.pop("comment", None), given.pop("name", template.latest.name)
    old = template.latest.definition
    saved_jobs.check_texts(data.description, old.kind, data.docker_image or old.docker_image)
    definition = msgspec.structs.replace(old, **given)
    return await _add(request, plane, template, name, definition, comment)


@delete(
    "/job-templates/{id:str}", status_code=200, summary="Delete a template with its revisions and schedules",
    description="Its runs go on.",
)  # fmt: skip
async def remove(request: Caller, plane: Plane, id: TemplateId) -> Stopped:
    template = await _found(request, plane, id)
    async with plane.scheduler.defining:
        await plane.database.write(schedules.removed_with(template.id), rows.removed(template))
    return Stopped(True, f"Template {template.latest.name!r} deleted")


@post("/job-templates/{id:str}/run", status_code=202, dto=JsonBody, return_dto=None, summary="Run a template")
async def run(request: Caller, plane: Plane, id: TemplateId, data: TemplateRunWish | None = None) -> JobRun:
    wish = data or TemplateRunWish()
    template = await _found(request, plane, id)
    chosen = template.latest
    if wish.revision is not None:
        chosen = await rows.revision(plane.database, plane.secret, template, wish.revision)
    request_id = ids.request_id()
    told = rows.begun(chosen, request_id)
    job = await saved_jobs.begin(plane, runnable(template, chosen), wish.environment or {}, request_id, told)
    return job_runs.run_view(job, await saved.run_of(plane.database, job))


@get("/job-templates/{id:str}/revisions", summary="List a template's revisions, newest first")
async def list_revisions(request: Caller, plane: Plane, id: TemplateId) -> TemplateRevisions:
    template = await _found(request, plane, id)
    found = await rows.revisions(plane.database, plane.secret, template)
    return TemplateRevisions([_revision(one) for one in found], len(found))


@get("/job-templates/{id:str}/revisions/{number:int}", summary="Show a revision of a template")
async def show_revision(request: Caller, plane: Plane, id: TemplateId, number: Number) -> TemplateRevision:
    template = await _found(request, plane, id)
    return _revision(await rows.revision(plane.database, plane.secret, template, number))


@post(
    "/job-templates/{id:str}/revisions/{number:int}/restore",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Make a new revision that says what this one does",
)
async def restore(
    request: Caller, plane: Plane, id: TemplateId, number: Number, data: RestoreWish | None = None
) -> TemplateRecord:
    template = await _found(request, plane, id)
    old = await rows.revision(plane.database, plane.secret, template, number)
    comment = (data and data.comment) or f"Restore revision {number}"
    return await _add(request, plane, template, old.name, old.definition, comment)


async def _found(request: Caller, plane: ControlPlane, id: str) -> Template:
    """Raises NotFound."""
    return await rows.find(plane.database, plane.secret, request.user.id, id)


async def _add(
    request: Caller, plane: ControlPlane, template: Template, name: str, definition: Definition, comment: str | None
) -> TemplateRecord:
    """A revision, which its schedules follow."""
    new = Revision(
        template_id=template.id,
        number=template.latest.number + 1,
        name=name,
        definition=definition,
        comment=_comment(comment),
        created_ns=now_ns(),
        created_by=request.user.user_name or request.user.name,
    )
    order = saved_jobs.order_for(plane, runnable(template, new), {})
    async with plane.scheduler.defining:
        wanted = Wanted(template.id, order, definition.ip_lease, new.number)
        followed = await schedules.follow(plane.database, plane.secret, template.account_id, wanted)
        if followed:
            cron.checked(order)
        await rows.add(plane.database, plane.secret, new, *followed)
    return _record(msgspec.structs.replace(template, latest=new))


def runnable(template: Template, revision: Revision) -> SavedJob:
    return SavedJob(
        id=template.id,
        account_id=template.account_id,
        name=revision.name,
        definition=revision.definition,
        created_ns=template.created_ns,
        updated_ns=revision.created_ns,
    )


def _comment(text: str | None) -> str | None:
    if text is not None and len(text) > MAX_TEXT:
        raise Invalid(f"comment: {len(text)} characters; at most {MAX_TEXT}")
    return text or None


def _record(template: Template) -> TemplateRecord:
    latest = template.latest
    definition = latest.definition
    return TemplateRecord(
        id=template.id,
        name=latest.name,
        script_type=definition.kind,
        default_vcpus=definition.vcpus,
        default_memory_mb=definition.memory_mb,
        latest_revision=_revision(latest),
        stateful=definition.stateful,
        persist=definition.persist,
        ip_lease=definition.ip_lease,
        user_id=str(template.account_id),
        created_at=rfc3339(template.created_ns),
        updated_at=rfc3339(latest.created_ns),
        description=definition.description,
        docker_image=definition.docker_image,
        workspace_id=definition.workspace,
        workspace_size_gb=definition.workspace_gb,
        proxy_port=definition.proxy_port,
    )


def _revision(revision: Revision) -> TemplateRevision:
    definition = revision.definition
    told: dict[str, Any] = {"description": definition.description, "docker_image": definition.docker_image}
    return TemplateRevision(
        id=f"{revision.template_id}-{revision.number}",
        template_id=revision.template_id,
        revision=revision.number,
        name=revision.name,
        script=definition.script,
        script_type=definition.kind,
        vcpus=definition.vcpus,
        memory_mb=definition.memory_mb,
        environment=definition.environment,
        created_at=rfc3339(revision.created_ns),
        created_by=revision.created_by,
        comment=revision.comment,
        **told,
    )
