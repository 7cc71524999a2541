"""MicroVMs: persistent jobs of the same id that never sleep by themselves, keep their files in a workspace of their
own, and have a user who logs in by keys of theirs and becomes root by sudo.

A row here goes with its job, in one transaction. A generated private key is sealed until it is told, and erased before
it is: it is told once or, if that very answer is lost, never. What was asked to be deleted is not there for its owner
from that moment; `MicroVMs` ends its job, then removes its files and its row, also after a crash.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, cast

import structlog
from sqlalchemy import ColumnElement, Row, Select, and_, delete, insert, or_, select, update
from structlog.typing import FilteringBoundLogger

from roost.clock import now_ns
from roost.db.database import Database, Statement
from roost.db.prefixes import whole_id
from roost.db.schema import jobs as job_rows
from roost.db.schema import microvm_keys, microvms
from roost.db.secret import Secret
from roost.errors import Conflict, NotFound, RoostError
from roost.jobs import job as jobs
from roost.jobs.job import Job, Keeping, Order, Work
from roost.jobs.live import LiveJobs
from roost.workspaces import workspace

USER = "ubuntu"  # documented
START = f"exec /run/roost/tools/microvm-start {USER}"  # node/guest/microvm.sh, which the node puts there
AGAIN = 5.0  # seconds until a removal that could not be finished is tried again
END_WITHIN = 60.0  # seconds that one try waits for a job's end

State: TypeAlias = Literal["creating", "starting", "running", "stopping", "stopped", "sleeping", "error"]

log: FilteringBoundLogger = structlog.get_logger()


@dataclass(frozen=True)
class MicroVM:
    account_id: int
    name: str
    key_generated: bool
    created_ns: int
    job: Job

    @property
    def id(self) -> str:
        return self.job.request_id

    @property
    def error(self) -> str | None:
        """Why it is in the state `error`."""
        job = self.job
        if job.final:
            return f"{job.error or 'its job was stopped'}; delete it, and create another one"
        if job.exit_code is not None and not job.wakes:
            failed = f"it could not be set up (exit status {job.exit_code})"
            return failed + f"; GET /api/v1/mags-jobs/{self.id}/logs says why" if job.exit_code else None
        return None

    @property
    def state(self) -> State:
        job = self.job
        if self.error is not None:
            return "error"
        if job.halted:
            return "stopped" if job.depth == "cold" else "stopping"
        if job.status == "running":
            return "running"
        if job.depth == "frozen":
            return "sleeping"  # somebody took no_sleep from its job
        if job.depth == "cooling":
            return "stopping"
        if job.depth == "cold" and not job.no_sleep:
            return "sleeping"
        return "creating" if job.depth is None else "starting"


@dataclass(frozen=True)
class Size:
    image: str
    image_source: str | None
    vcpus: float
    memory_mb: int
    disk_gb: int


@dataclass(frozen=True)
class Keys:
    """Who may log in: the public halves as on the wire; the private one where it was made here (OpenSSH PEM)."""

    public: tuple[bytes, ...]
    private: bytes | None = None


def workspace_of(id: str) -> str:
    return f"microvm-{id}"


def order_of(id: str, name: str, size: Size) -> Order:
    keeping = Keeping(workspace_of(id), persistent=True, no_sleep=True, startup_command=START, login=USER)
    return Order(
        work=Work(START.encode(), {}),
        name=name,
        image=size.image,
        image_source=size.image_source,
        vcpus=size.vcpus,
        memory_mb=size.memory_mb,
        disk_gb=size.disk_gb,
        timeout_seconds=0,
        keeping=keeping,
    )


def _rows(secret: Secret, account_id: int, id: str, name: str, keys: Keys) -> tuple[Statement, ...]:
    generated = keys.private is not None
    row = insert(microvms).values(
        id=id,
        account_id=account_id,
        name=name,
        key_generated=generated,
        private_key=None if keys.private is None else secret.seal(keys.private, id),
        created_ns=now_ns(),
    )
    opening = [insert(microvm_keys).values(microvm_id=id, public_key=one, generated=generated) for one in keys.public]
    return row, *opening


def _there(account_id: int) -> ColumnElement[bool]:
    return and_(microvms.c.account_id == account_id, microvms.c.removed_ns.is_(None))


def _mine(account_id: int) -> Select[Any]:
    return select(microvms).where(_there(account_id)).order_by(microvms.c.created_ns.desc())


async def of_account(database: Database, live: LiveJobs, account_id: int) -> list[MicroVM]:
    """The newest first."""
    return await _with_jobs(database, live, account_id, await database.read(_mine(account_id)))


async def find(database: Database, live: LiveJobs, account_id: int, reference: str) -> MicroVM:
    """By id or name. Raises NotFound."""
    named = or_(microvms.c.id == reference, microvms.c.name == reference)
    found = await _with_jobs(database, live, account_id, await database.read(_mine(account_id).where(named)))
    if not found and (whole := await whole_id(database, microvms.c.id, _there(account_id), reference)):
        return await find(database, live, account_id, whole)
    if not found:
        raise NotFound(f"there is no microVM {reference[:80]!r}; GET /api/v1/microvms lists yours")
    return next((one for one in found if one.id == reference), found[0])


async def _with_jobs(database: Database, live: LiveJobs, account_id: int, rows: Sequence[Row[Any]]) -> list[MicroVM]:
    found = [(row, live.as_now(await jobs.find(database, account_id, row.id))) for row in rows]
    return [MicroVM(row.account_id, row.name, row.key_generated, row.created_ns, job) for row, job in found]


async def tell_key(database: Database, secret: Secret, microvm: MicroVM) -> bytes:
    """The generated private key. It is erased, durably, before it is returned. Raises NotFound, and the second time."""
    cure = f"`roost vm ssh {microvm.name}` needs none, nor does POST /api/v1/mags-jobs/{microvm.id}/access"
    rows = await database.read(select(microvms.c.private_key).where(microvms.c.id == microvm.id))
    sealed = cast("bytes | None", rows[0].private_key) if rows else None
    if not microvm.key_generated:
        raise NotFound(f"no key was generated for {microvm.name!r}: it has the public keys that you gave; {cure}")
    if sealed is not None:
        held = (microvms.c.id == microvm.id, microvms.c.private_key.is_not(None))
        (erased,) = await database.write(update(microvms).where(*held).values(private_key=None))
        if erased.rows:
            return secret.open(sealed, microvm.id)
    raise NotFound(f"the private key of {microvm.name!r} was downloaded already, and is kept nowhere here; {cure}")


class MicroVMs:
    """Creates and removes them. Enter it to finish what was asked to be removed, now and before."""

    def __init__(self, database: Database, secret: Secret, live: LiveJobs) -> None:
        self._database = database
        self._secret = secret
        self._live = live
        self._naming = asyncio.Lock()  # between the look for a name and the row that takes it
        self._asked = asyncio.Event()
        self._rounds = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._asked.set()
        self._task = asyncio.create_task(self._go_on(), name="microvms")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def create(self, account_id: int, id: str, name: str, size: Size, keys: Keys) -> MicroVM:
        """Durable on return. Raises Conflict when the name is taken, and what `LiveJobs.submit` does."""
        rows = _rows(self._secret, account_id, id, name, keys)
        async with self._naming:
            if await self._database.read(_mine(account_id).where(microvms.c.name == name)):
                raise Conflict(f"there is a microVM {name!r} already; delete it first, or choose another name")
            job = await self._live.submit(account_id, order_of(id, name, size), lambda _: rows, id)
        return MicroVM(account_id, name, keys.private is not None, job.created_ns, job)

    async def remove(self, microvm: MicroVM, within: float) -> bool:
        """Whether all of it was removed after at most `within` seconds; durable at once, whatever becomes of us."""
        here = (microvms.c.id == microvm.id, microvms.c.removed_ns.is_(None))
        await self._database.write(
            update(microvms).where(*here).values(removed_ns=now_ns(), private_key=None),
            delete(microvm_keys).where(microvm_keys.c.microvm_id == microvm.id),
        )
        self._asked.set()
        try:
            async with asyncio.timeout(within), self._rounds:
                while await self._database.read(select(microvms.c.id).where(microvms.c.id == microvm.id)):
                    await self._rounds.wait()
        except TimeoutError:
            return False
        return True

    async def _go_on(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            query = select(microvms.c.id, microvms.c.account_id).where(microvms.c.removed_ns.is_not(None))
            left = await self._database.read(query)
            done = await asyncio.gather(*(self._remove(row.account_id, row.id) for row in left))
            async with self._rounds:
                self._rounds.notify_all()
            if not all(done):
                asyncio.get_running_loop().call_later(AGAIN, self._asked.set)

    async def _remove(self, account_id: int, id: str) -> bool:
        """Safe to repeat. Its job stays as a record, as every other."""
        try:
            job = await jobs.find(self._database, account_id, id)
            if not job.final and not await self._live.stop(job, END_WITHIN):
                return False
            with contextlib.suppress(NotFound):
                await workspace.remove(self._database, account_id, workspace_of(id))
            await self._database.write(delete(microvms).where(microvms.c.id == id))
        except RoostError as error:
            log.warning("microvm.unremoved", id=id, error=str(error))
            return False
        except Exception:
            log.exception("microvm.fault", id=id)
            return False
        log.info("microvm.removed", id=id)
        return True


def opened_by(blob: bytes, user: str, own_job: int | None) -> Select[Any, Any, Any]:
    """Rows (account_id, seq, login) of the microVMs that a login as `user` with the key leads to; at most one counts.

    USER alone is enough where the key was generated here, which is of one microVM, and on a port of the job's own. A
    key that people brought may be of several, also of other accounts, so the id has to be said: USER+ID.
    """
    name, _, id = user.partition("+")
    query = (
        select(job_rows.c.account_id, job_rows.c.seq, job_rows.c.login)
        .join(microvms, microvms.c.id == job_rows.c.request_id)
        .join(microvm_keys, microvm_keys.c.microvm_id == microvms.c.id)
        .where(microvm_keys.c.public_key == blob, microvms.c.removed_ns.is_(None), job_rows.c.ended_ns.is_(None))
        .where(job_rows.c.login == name)
    )
    if own_job is not None:
        query = query.where(job_rows.c.seq == own_job)
    elif not id:
        query = query.where(microvm_keys.c.generated)
    return query.where(microvms.c.id == id) if id else query
