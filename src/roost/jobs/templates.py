"""Templates: definitions of jobs whose every change is kept as a revision, and their runs, which are ordinary jobs.

A revision is never changed: restoring one makes a new one that says the same. Deleting a template leaves its runs.
"""

from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import Executable, Row, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from roost.clock import now_ns
from roost.db.database import Database, Statement
from roost.db.prefixes import whole_id
from roost.db.schema import jobs, template_revisions, template_runs, templates
from roost.db.secret import Secret
from roost.errors import Conflict, NotFound
from roost.jobs.job import Job
from roost.jobs.saved import Definition

MAX_REVISIONS = 1000  # of one template


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    template_id: str
    number: int  # from 1
    name: str
    definition: Definition
    comment: str | None
    created_ns: int
    created_by: str  # the name of a user, or else of the account


class Template(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    account_id: int
    created_ns: int
    latest: Revision


@dataclass(frozen=True)
class Page:
    templates: list[Template]
    total: int


_REVISION = (
    template_revisions.c.template_id,
    template_revisions.c.number,
    template_revisions.c.name,
    template_revisions.c.work,
    template_revisions.c.comment,
    template_revisions.c.created_ns,
    template_revisions.c.created_by,
)
_NEWEST = and_(
    template_revisions.c.template_id == templates.c.id, template_revisions.c.number == templates.c.latest_revision
)
_TEMPLATE = select(
    templates.c.account_id, templates.c.created_ns.label("template_created_ns"), *_REVISION
).join(template_revisions, _NEWEST)  # fmt: skip


async def create(database: Database, secret: Secret, template: Template) -> None:
    first = template.latest
    made = insert(templates).values(
        id=template.id, account_id=template.account_id, latest_revision=first.number, created_ns=template.created_ns
    )
    await database.write(made, _inserted(secret, first))


async def find(database: Database, secret: Secret, account_id: int, template_id: str) -> Template:
    """Raises NotFound."""
    mine = templates.c.account_id == account_id
    found = await database.read(_TEMPLATE.where(mine, templates.c.id == template_id))
    if not found and (whole := await whole_id(database, templates.c.id, mine, template_id)):
        return await find(database, secret, account_id, whole)
    if not found:
        raise NotFound(f"there is no template {template_id[:80]!r}; GET /api/v1/job-templates lists yours")
    return _template(secret, found[0])


async def newest(database: Database, secret: Secret, account_id: int, page: int, page_size: int) -> Page:
    """Newest first; `page` counts from 1, one beyond the end is empty."""
    mine = templates.c.account_id == account_id
    query = _TEMPLATE.where(mine).order_by(templates.c.created_ns.desc(), templates.c.id)
    found = await database.read(query.limit(page_size).offset((page - 1) * page_size))
    ((total,),) = await database.read(select(func.count()).select_from(templates).where(mine))
    return Page([_template(secret, row) for row in found], total)


async def add(database: Database, secret: Secret, revision: Revision, *also: Executable) -> None:
    """Becomes the newest. Raises Conflict when somebody else's change came first, or there are too many."""
    if revision.number > MAX_REVISIONS:
        raise Conflict(f"this template has {MAX_REVISIONS} revisions, the most there can be; create another one")
    row = update(templates).where(templates.c.id == revision.template_id)
    try:
        await database.write(_inserted(secret, revision), row.values(latest_revision=revision.number), *also)
    except IntegrityError:
        raise Conflict("the template was changed or deleted meanwhile; look at it and change it again") from None


async def revisions(database: Database, secret: Secret, template: Template) -> list[Revision]:
    """The newest first."""
    its = select(*_REVISION).where(template_revisions.c.template_id == template.id)
    found = await database.read(its.order_by(template_revisions.c.number.desc()))
    return [_revision(secret, row) for row in found]


async def revision(database: Database, secret: Secret, template: Template, number: int) -> Revision:
    """Raises NotFound."""
    its = template_revisions.c.template_id == template.id
    found = await database.read(select(*_REVISION).where(its, template_revisions.c.number == number))
    if not found:
        raise NotFound(
            f"template '{template.latest.name}' has no revision {number}; its newest is {template.latest.number}"
        )
    return _revision(secret, found[0])


def removed(template: Template) -> Executable:
    """With its revisions."""
    return delete(templates).where(templates.c.id == template.id)


def begun(revision: Revision, request_id: str) -> Statement:
    """Goes with the insertion of a run."""
    return insert(template_runs).values(
        request_id=request_id, template_id=revision.template_id, revision=revision.number, created_ns=now_ns()
    )


@dataclass(frozen=True)
class RunPage:
    runs: list[tuple[Job, int]]  # with the revision that each is of
    total: int


async def runs(database: Database, template: Template, page: int, page_size: int) -> RunPage:
    """Newest first."""
    its = template_runs.c.template_id == template.id
    columns = [jobs.c[name] for name in Job.__struct_fields__]
    query = select(*columns, template_runs.c.revision.label("of_revision"))
    query = query.join(template_runs, template_runs.c.request_id == jobs.c.request_id).where(its)
    found = await database.read(query.order_by(jobs.c.seq.desc()).limit(page_size).offset((page - 1) * page_size))
    ((total,),) = await database.read(select(func.count()).select_from(template_runs).where(its))
    told = [dict(cast("dict[str, Any]", row._mapping)) for row in found]  # pyright: ignore[reportPrivateUsage]
    return RunPage([(Job(**one), number) for one in told for number in [one.pop("of_revision")]], total)


def _inserted(secret: Secret, revision: Revision) -> Executable:
    sealed = secret.seal(msgspec.msgpack.encode(revision.definition), _place(revision.template_id, revision.number))
    return insert(template_revisions).values(
        template_id=revision.template_id,
        number=revision.number,
        name=revision.name,
        work=sealed,
        comment=revision.comment,
        created_ns=revision.created_ns,
        created_by=revision.created_by,
    )


def _place(template_id: str, number: int) -> str:
    return f"{template_id}/{number}"


def _revision(secret: Secret, row: Row[Any]) -> Revision:
    opened = secret.open(row.work, _place(row.template_id, row.number))
    return Revision(
        template_id=row.template_id,
        number=row.number,
        name=row.name,
        definition=msgspec.msgpack.decode(opened, type=Definition),
        comment=row.comment,
        created_ns=row.created_ns,
        created_by=row.created_by,
    )


def _template(secret: Secret, row: Row[Any]) -> Template:
    latest = _revision(secret, row)
    return Template(id=row.template_id, account_id=row.account_id, created_ns=row.template_created_ns, latest=latest)
