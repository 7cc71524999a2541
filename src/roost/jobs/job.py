"""A job: the record of a submitted script run. It outlives its sandbox, its node and every restart.

`submit` writes the row that a 202 answers for; `run.py` moves it on; what is read here is always what is durable.
`pending` means that nobody has seen its sandbox start yet, `running` that it has one, the other two are final.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import msgspec
from sqlalchemy import (
    Executable,
    Integer,
    Row,
    Select,
    String,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.clock import now_ns
from roost.db.database import Bound, Database, Outcome, Statement
from roost.db.prefixes import whole_id
from roost.db.schema import accounts, jobs
from roost.db.secret import Secret
from roost.errors import NotFound
from roost.node import protocol
from roost.workspaces import revisions, workspace

Status = Literal["pending", "running", "sleeping", "completed", "error"]
Depth = Literal["frozen", "cooling", "cold", "waking"]
FINAL = ("completed", "error")
IDLE_SECONDS = 600.0  # documented: ten minutes
HEAD_MOVED = "the workspace was changed by somebody else meanwhile; this job's files are its revision {}"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a job but its script and environment. Instants are nanoseconds since the epoch."""

    seq: int  # order of acceptance
    request_id: str
    account_id: int
    name: str
    vm_id: str  # of the sandbox it has, had or will have
    subdomain: str
    status: Status
    image: str
    vcpus: float
    memory_mb: int
    disk_gb: int
    timeout_seconds: int
    created_ns: int
    started_ns: int | None = None  # None while no sandbox is attached
    script_ended_ns: int | None = None
    ended_ns: int | None = None
    exit_code: int | None = None  # None: not ended, never started, or lost (`error` says so)
    error: str | None = None
    stop_requested: bool = False
    stopped: bool = False  # ended because its owner said so
    workspace: str | None = None  # that its end state is saved to; it is the only writer, but while it waits
    base_workspace: str | None = None  # that it began from, if its workspace was empty
    base_revision: str | None = None  # of the base; None: its head at the start
    save_revision: str | None = None  # the id of its final save
    persistent: bool = False  # its sandbox stays until it is stopped
    no_sync: bool = False  # saved on the node alone
    no_sleep: bool = False
    startup_command: str | None = None
    file_ids: list[str] | None = None
    idle_seconds: float = IDLE_SECONDS  # without use, until it falls asleep
    keepalive_ns: int | None = None  # until then it does not
    depth: Depth | None = None  # while it sleeps
    asleep_ns: int | None = None
    wakes: int = 0  # from cold; each has a sandbox, and a vm_id, of its own
    log_id: str | None = None  # the first sandbox's id, whose log all of them continue; None before the first wake
    stateful: bool = False  # it has a directory /workspace
    image_source: str | None = None  # a registry's reference: the node pulls the image if it does not have it
    trace: str | None = None  # `traceparent` of what submitted it; None: nothing was traced then
    login: str | None = None  # of a microVM: the user that its sandbox has besides root
    halted: bool = False  # cold, or on its way there, and nobody's use wakes it
    waits: bool = False  # for its workspace: another job writes to it, and this one is in line
    input: bool = False  # its script is given some, while it runs

    @property
    def log(self) -> str:
        """The id under which the node keeps its output."""
        return self.log_id or self.vm_id

    @property
    def default_name(self) -> str:
        return default_name(self.request_id)

    @property
    def settles_with_sandbox(self) -> bool:
        """Whether its result is known only when its sandbox has ended, not when its script has."""
        return self.persistent or self.workspace is not None

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def script_duration_ms(self) -> int | None:
        if self.started_ns is None or self.script_ended_ns is None:
            return None
        return max(0, self.script_ended_ns - self.started_ns) // 1_000_000


def default_name(request_id: str) -> str:
    """Of a job that was given none."""
    return f"job-{request_id[:8]}"


@dataclass(frozen=True)
class Work:
    """What is to be run."""

    script: bytes
    environment: dict[str, str]

    @property
    def size(self) -> int:
        return len(self.script) + sum(len(name) + len(value) for name, value in self.environment.items())


@dataclass(frozen=True)
class Keeping:
    """What its files begin as, and what becomes of them and of its sandbox."""

    workspace: str | None = None
    base_workspace: str | None = None
    base_revision: str | None = None
    persistent: bool = False
    no_sync: bool = False
    no_sleep: bool = False
    startup_command: str | None = None
    idle_seconds: float | None = None  # None: the installation's
    stateful: bool = False  # it has a directory /workspace
    login: str | None = None  # of a microVM: the user that its sandbox has besides root


@dataclass(frozen=True)
class Order:
    """A request for a job, checked and complete."""

    work: Work
    name: str | None
    image: str
    vcpus: float
    memory_mb: int
    disk_gb: int
    timeout_seconds: int  # 0: none
    keeping: Keeping = Keeping()
    file_ids: tuple[str, ...] = ()
    image_source: str | None = None  # a registry's reference, which `image` was derived from
    input: bool = False  # its script's follows, by `POST …/input`


@dataclass(frozen=True)
class Result:
    """How a job ended."""

    status: Status
    exit_code: int | None = None
    error: str | None = None
    stopped: bool = False
    started_ns: int | None = None
    script_ended_ns: int | None = None


@dataclass(frozen=True)
class Page:
    jobs: list[Job]
    total: int


_COLUMNS = [jobs.c[name] for name in Job.__struct_fields__]


def _jobs() -> Select[Any]:
    return select(*_COLUMNS)


def _job(row: Row[Any]) -> Job:
    return Job(**cast("dict[str, Any]", row._mapping))  # pyright: ignore[reportPrivateUsage]


Also: TypeAlias = Callable[
    [str], tuple[Statement, ...]
]  # what takes effect with a job that has this request id, or not at all


_INSERT = insert(jobs)
_LINE_UP = insert(jobs).values(
    waits=workspace.place_in_line(bindparam("its_account", type_=Integer), bindparam("its_workspace", type_=String))
)
_COUNT = update(accounts).where(accounts.c.id == bindparam("account", type_=Integer)).values(jobs=accounts.c.jobs + 1)


async def submit(
    database: Database,
    secret: Secret,
    account_id: int,
    order: Order,
    also: Also | None = None,
    request_id: str | None = None,
    trace: str | None = None,
    in_line: bool = True,
) -> Job:
    """Durable on return: the job will end finished, whatever happens to us. `request_id` is for who has chosen it.

    While another job writes to its workspace it waits, `in_line`, as what is returned says by `waits`. Raises
    StateUnwritable; Conflict where it may not wait: that job stays; NoCapacity: too many do.
    """
    request_id = request_id or ids.request_id()
    keeping = order.keeping
    told: dict[str, Any] = {
        "request_id": request_id,
        "account_id": account_id,
        "name": order.name or default_name(request_id),
        "vm_id": ids.vm_id(),
        "subdomain": ids.subdomain(),
        "status": "pending",
        "image": order.image,
        "vcpus": order.vcpus,
        "memory_mb": order.memory_mb,
        "disk_gb": order.disk_gb,
        "timeout_seconds": order.timeout_seconds,
        "created_ns": now_ns(),
        **dataclasses.asdict(keeping),
        "save_revision": ids.revision_id() if keeping.workspace or keeping.persistent else None,
        "file_ids": list(order.file_ids) or None,
        "image_source": order.image_source,
        "input": order.input,
        "trace": trace,
    }
    told["idle_seconds"] = IDLE_SECONDS if keeping.idle_seconds is None else keeping.idle_seconds
    sealed = _seal(secret, order.work.environment, request_id)
    row = Bound(_INSERT, {**told, "script": order.work.script, "environment": sealed})
    counted = Bound(_COUNT, {"account": account_id})
    more = (counted,) if also is None else (counted, *also(request_id))
    if keeping.workspace is None:
        outcome = (await database.write(*more, row))[-1]
    else:
        more = (*more, workspace.used(account_id, keeping.workspace, keeping.persistent))
        try:
            outcome = (await database.write(*more, row))[-1]
        except IntegrityError:  # of several at once, one gets in
            if in_line:
                row = Bound(_LINE_UP, row.values | {"its_account": account_id, "its_workspace": keeping.workspace})
            outcome = await _line_up(database, account_id, keeping.workspace, (*more, row), in_line)
            told["waits"] = in_line  # or it was its turn at once, which whoever looks finds
    return Job(seq=outcome.row_id, **told)


async def _line_up(
    database: Database, account_id: int, name: str, statements: tuple[Statement, ...], in_line: bool
) -> Outcome:
    """The row, the last of them, and what goes with it."""
    while True:
        try:
            return (await database.write(*statements))[-1]
        except IntegrityError:
            await workspace.refuse_writer(database, account_id, name, in_line)
            # whoever was in the way ended between our attempt and our look


def _seal(secret: Secret, environment: dict[str, str], request_id: str) -> bytes | None:
    return secret.seal(msgspec.msgpack.encode(environment), request_id) if environment else None


async def work_of(database: Database, secret: Secret, job: Job) -> Work:
    """The script and environment of a job that has not ended. Raises Conflict if they cannot be decrypted."""
    query = select(jobs.c.script, jobs.c.environment).where(jobs.c.seq == job.seq)
    (row,) = await database.read(query)
    if row.environment is None:
        return Work(row.script, {})
    opened = secret.open(row.environment, job.request_id)
    return Work(row.script, msgspec.msgpack.decode(opened, type=dict[str, str]))


async def script_of(database: Database, job: Job) -> bytes:
    (row,) = await database.read(select(jobs.c.script).where(jobs.c.seq == job.seq))
    return row.script


def _find() -> Select[Any]:
    account, reference = bindparam("account", type_=Integer), bindparam("reference", type_=String)
    live, pending = jobs.c.status.in_(("running", "sleeping")), jobs.c.status == "pending"
    liveness = case((live, 0), (and_(pending, ~jobs.c.waits), 1), (pending, 2), else_=3)
    ways = (jobs.c.request_id, jobs.c.name, jobs.c.workspace)  # each with the account, so that each uses its index
    return (
        _jobs()
        .where(or_(*(and_(jobs.c.account_id == account, column == reference) for column in ways)))
        .order_by(
            case((jobs.c.request_id == reference, 0), else_=1),
            liveness,
            case((jobs.c.name == reference, 0), else_=1),
            jobs.c.seq.desc(),
        )
        .limit(1)
    )


_FIND = _find()


async def find(database: Database, account_id: int, reference: str) -> Job:
    """By request id, else by name or workspace: one that runs or sleeps first, then one that waits, then the newest.

    Among equals a name counts before a workspace; what is none of these may be how one id begins. Raises NotFound,
    Conflict when several ids begin so.
    """
    rows = await database.read(_FIND, account=account_id, reference=reference)
    if not rows and (whole := await whole_id(database, jobs.c.request_id, jobs.c.account_id == account_id, reference)):
        rows = await database.read(_FIND, account=account_id, reference=whole)
    if not rows:
        raise NotFound(f"no job has the id, name or workspace {reference!r}")
    return _job(rows[0])


async def reread(database: Database, job: Job) -> Job:
    """As it is by now."""
    rows = await database.read(_jobs().where(jobs.c.seq == job.seq))
    return _job(rows[0])


async def find_by_seq(database: Database, account_id: int, seq: int) -> Job:
    """Raises NotFound."""
    rows = await database.read(_jobs().where(jobs.c.seq == seq, jobs.c.account_id == account_id))
    if not rows:
        raise NotFound("there is no such job")
    return _job(rows[0])


async def find_by_vm(database: Database, vm_id: str) -> Job | None:
    rows = await database.read(_jobs().where(jobs.c.vm_id == vm_id))
    return _job(rows[0]) if rows else None


_NEWEST = (
    _jobs()
    .where(jobs.c.account_id == bindparam("account"))
    .order_by(jobs.c.seq.desc())
    .limit(bindparam("count"))
    .offset(bindparam("skipped"))
)
_TOTAL = select(accounts.c.jobs).where(accounts.c.id == bindparam("account"))


async def with_result(database: Database, account_id: int, status: Status, page: int, page_size: int) -> Page:
    """Those that have ended so, the newest first."""
    mine = and_(jobs.c.account_id == account_id, jobs.c.status == status)
    query = _jobs().where(mine).order_by(jobs.c.seq.desc()).limit(page_size).offset((page - 1) * page_size)
    ((total,),) = await database.read(select(func.count()).select_from(jobs).where(mine))
    return Page([_job(row) for row in await database.read(query)], total)


async def unended(database: Database, account_id: int) -> list[Job]:
    """Of an account, the newest first; what of them runs, `LiveJobs.as_now` knows better."""
    query = _jobs().where(jobs.c.account_id == account_id, workspace.UNFINISHED).order_by(jobs.c.seq.desc())
    return [_job(row) for row in await database.read(query)]


async def newest(database: Database, account_id: int, page: int, page_size: int) -> Page:
    """Newest first; `page` counts from 1, one beyond the end is empty."""
    found = await database.read(_NEWEST, account=account_id, count=page_size, skipped=(page - 1) * page_size)
    ((total,),) = await database.read(_TOTAL, account=account_id)
    return Page([_job(row) for row in found], total)


async def unfinished(database: Database) -> list[Job]:
    """In the order in which they were accepted; those that sleep cold are not among them, unless they should not."""
    wakeful = and_(jobs.c.no_sleep, ~jobs.c.halted)
    sleeping = jobs.c.status == "sleeping"
    stirring = and_(sleeping, or_(jobs.c.depth != "cold", wakeful))
    query = _jobs().where(or_(jobs.c.status.in_(("pending", "running")), stirring)).order_by(jobs.c.seq)
    return [_job(row) for row in await database.read(query)]


async def request_stop(database: Database, job: Job) -> None:
    """From here on the job will be stopped, even if we are killed before it is."""
    await database.write(update(jobs).where(jobs.c.seq == job.seq).values(stop_requested=True))


def record_running(database: Database, job: Job, started_ns: int) -> None:
    """Not waited for: after a crash the node tells it again."""
    row = jobs.c.seq == job.seq
    pending = jobs.c.status == "pending"
    database.write_soon(update(jobs).where(row, pending).values(status="running", started_ns=started_ns))


def record_script_end(database: Database, job: Job, exit_code: int | None, script_ended_ns: int | None) -> None:
    """Of a job that stays when its script has ended. Not waited for: after a crash the node tells it again."""
    unended = jobs.c.ended_ns.is_(None)
    row = update(jobs).where(jobs.c.seq == job.seq, unended)
    database.write_soon(row.values(exit_code=exit_code, script_ended_ns=script_ended_ns))


def record_frozen(database: Database, job: Job) -> None:
    """Not waited for, as little as the next: after a crash the node tells whether it stands still."""
    row = update(jobs).where(jobs.c.seq == job.seq, jobs.c.ended_ns.is_(None))
    database.write_soon(row.values(status="sleeping", depth="frozen", asleep_ns=job.asleep_ns))


def record_awake(database: Database, job: Job) -> None:
    row = update(jobs).where(jobs.c.seq == job.seq, jobs.c.vm_id == job.vm_id, jobs.c.ended_ns.is_(None))
    database.write_soon(row.values(status="running", depth=None, asleep_ns=None))


async def record_cooling(database: Database, job: Job, asleep_ns: int) -> None:
    """Raises StateUnwritable."""
    row = update(jobs).where(jobs.c.seq == job.seq, jobs.c.ended_ns.is_(None))
    await database.write(row.values(status="sleeping", depth="cooling", asleep_ns=asleep_ns))


async def record_cold(database: Database, job: Job, revision: protocol.Revision | None, note: str | None) -> Job:
    """The sandbox is gone, its files are `revision`, and the next one is chosen; the job as it is now.

    Without a revision it will begin from its workspace's head, or as before. Raises StateUnwritable.
    """
    saves = revisions.saved(job, revision, final=True) if revision is not None and job.workspace is not None else ()
    start = revision.id if revision is not None else func.coalesce(revisions.head_of(job), jobs.c.start_revision)
    changes: dict[str, Any] = {
        "status": "sleeping",
        "depth": "cold",
        "asleep_ns": job.asleep_ns or now_ns(),
        "vm_id": ids.vm_id(),
        "save_revision": ids.revision_id(),
        "wakes": job.wakes + 1,
        "log_id": job.log,
        "exit_code": job.exit_code,
        "script_ended_ns": job.script_ended_ns,
        "error": note,
    }
    row = update(jobs).where(jobs.c.seq == job.seq, jobs.c.vm_id == job.vm_id, jobs.c.ended_ns.is_(None))
    await database.write(*saves, row.values(**changes, start_revision=start))
    return await reread(database, job)


def record_waking(database: Database, job: Job) -> None:
    row = update(jobs).where(jobs.c.seq == job.seq, jobs.c.vm_id == job.vm_id, jobs.c.depth == "cold")
    database.write_soon(row.values(depth="waking"))


async def record_still_cold(database: Database, job: Job, note: str) -> Job:
    """It was to be woken, and could not be; the job as it is now. Raises StateUnwritable."""
    row = update(jobs).where(jobs.c.seq == job.seq, jobs.c.vm_id == job.vm_id, jobs.c.ended_ns.is_(None))
    await database.write(row.values(status="sleeping", depth="cold", error=note))
    return await reread(database, job)


async def keep_awake(database: Database, job: Job, until_ns: int) -> None:
    await database.write(update(jobs).where(jobs.c.seq == job.seq).values(keepalive_ns=until_ns))


async def change(database: Database, job: Job, **settings: Any) -> None:
    """Of a job that has not ended; what is not named stays."""
    await database.write(update(jobs).where(jobs.c.seq == job.seq, jobs.c.ended_ns.is_(None)).values(**settings))


async def record_save(database: Database, job: Job, revision: protocol.Revision, wished: bool = False) -> None:
    """A save of a sandbox that lives on; `wished` ones stay listed. Raises StateUnwritable."""
    more = (revisions.asked_for(revision),) if wished else ()
    await database.write(*revisions.saved(job, revision, final=False), *more)


async def record_end(database: Database, job: Job, result: Result, revision: protocol.Revision | None = None) -> Result:
    """The result as it was recorded. Final: a second result for the same job changes nothing. Raises StateUnwritable.

    With `revision`, the workspace's head moves in the same transaction. If it cannot, because somebody else has moved
    it, the job ends as an error and the head stays theirs.
    """
    status: Any = result.status
    error: Any = result.error
    moved_error = "" if revision is None else HEAD_MOVED.format(revision.id)
    saves: tuple[Executable, ...] = ()
    if revision is not None and job.workspace is not None:
        saves = revisions.saved(job, revision, final=True)
        moved = revisions.is_head(job, revision)
        status = case((moved, result.status), else_="error")
        error = case((moved, result.error), else_=moved_error)
    unended = jobs.c.ended_ns.is_(None)
    end = update(jobs).where(jobs.c.seq == job.seq, unended)
    outcomes = await database.write(
        *saves,
        end.values(
            status=status,
            exit_code=result.exit_code,
            error=error,
            stopped=result.stopped,
            started_ns=func.coalesce(result.started_ns, jobs.c.started_ns),
            script_ended_ns=result.script_ended_ns,
            ended_ns=now_ns(),
            depth=None,
            environment=None,
            waits=False,
        ),
        *(() if job.workspace is None else (workspace.handed_on(job.account_id, job.workspace),)),
    )
    refused = bool(saves) and outcomes[len(saves)].rows > 0 and outcomes[len(saves) - 1].rows == 0
    return dataclasses.replace(result, status="error", error=moved_error) if refused else result
