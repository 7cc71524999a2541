"""From a host name to the job, port and terms of access that it means at this moment.

`known` answers from memory and is what the hot path asks; `find` reads the database, and remembers names of jobs that
have a sandbox. Nothing remembered outlives what it was read from: it holds while the very run that it was read with
lives, and every change by the API drops what it touches. A look-up that was under way during such a change is not
remembered, since it may have read what was there before.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from sqlalchemy import Row, and_, case, select

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import aliases, jobs, proxy_targets, routes
from roost.errors import NotFound
from roost.gateways import aliases as alias_rows
from roost.gateways import hosts as host_names
from roost.gateways.admission import Access, Admission
from roost.gateways.aliases import Alias
from roost.gateways.hosts import Hosts, Name
from roost.gateways.http.routing import Denial, Passed
from roost.jobs.job import FINAL, Job
from roost.workspaces.workspace import WRITES

if TYPE_CHECKING:
    from roost.gateways.http.request import Request
    from roost.jobs.live import LiveJobs
    from roost.jobs.run import Run

REMEMBERED = 20_000  # names; each costs about 1 KB
HANDOVER = (
    5.0  # seconds after a job's end that its aliases wait for the next; clients resize by stopping and submitting
)
HANDOVER_PAUSE = 0.05  # seconds
SIGNED_LINKS = "signed links"  # what the key for them is derived for

CLOSED = (
    "this sandbox has no port open to the web; its owner opens one with `roost url JOB PORT` "
    '(POST /api/v1/mags-jobs/JOB/access {"port": PORT})'
)
ENDED = "the job behind this address has ended; its owner runs it again, or uses an alias, which follows a workspace"
IDLE_ALIAS = "no job has the workspace behind this address at the moment; its owner submits one, and it is here"


@dataclass(frozen=True)
class Route:
    """What a host name means now (`http/routing.py:Route`). `job` is as it was when this was read."""

    key: str  # the host
    job: Job
    port: int
    access: Access
    admission: Admission
    run: "Run | None" = None

    @property
    def account_id(self) -> int:
        return self.job.account_id

    def admit(self, request: "Request") -> Passed | Denial:
        return self.admission.decide(self.access, self.key, request)

    @property
    def holds(self) -> bool:
        """A run is one sandbox of one job; when either is gone, so is what was read."""
        run = self.run
        return run is not None and not run.left.is_set() and not run.over and run.job.vm_id == self.job.vm_id


class Routes:
    """One for each control plane. Safe for any number of concurrent look-ups; belongs to the event loop's thread."""

    def __init__(self, database: Database, live: "LiveJobs", hosts: Hosts, admission: Admission) -> None:
        self.hosts = hosts
        self.admission = admission
        self._database = database
        self._live = live
        self._remembered: dict[str, Route] = {}  # by host
        self._changes = 0  # fence between look-ups and what changes under them

    def known(self, host: str) -> Route | None:
        """`host` is in lower case, without port and final dot. None: ask `find`."""
        route = self._remembered.get(host)
        if route is None or route.holds:
            return route
        del self._remembered[host]
        return None

    async def find(self, host: str) -> Route:
        """Raises NotFound, whose text says what its owner can do."""
        name = self.hosts.name(host)
        if name is None:
            domains = ", ".join(self.hosts.domains)
            raise NotFound(f"{host[:80]!r} is none of the names that are served here; they end in {domains}")
        changes = self._changes
        route = await self._read(name)
        route = replace(route, run=self._live.run_of(route.job))
        if route.holds and self._changes == changes:
            if len(self._remembered) >= REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[name.host] = route
        return route

    async def awake(self, route: Route, within: float) -> "Run":
        """As `LiveJobs.awake`."""
        return await self._live.awake(route.job, within)

    def job_changed(self, job: Job) -> None:
        """What its own names mean may have changed."""
        self._changes += 1
        for domain in self.hosts.domains:
            for label in (job.subdomain, prefix_of(job)):
                self._remembered.pop(f"{label}.{domain}", None)

    def name_changed(self, label: str) -> None:
        """An alias or proxy target was made, changed or removed."""
        self._changes += 1
        for domain in self.hosts.domains:
            self._remembered.pop(f"{label}.{domain}", None)

    # -- what the rows say ---------------------------------------------------------------------------------

    async def _read(self, name: Name) -> Route:
        if host_names.is_subdomain(name.label):
            return await self._of_job(name, jobs.c.subdomain == name.label)
        if host_names.is_prefix(name.label):
            return await self._of_job(name, _begins(name.label))
        return await self._of_alias(name) or await self._of_target(name) or _nothing(name)

    async def _of_job(self, name: Name, condition: Any) -> Route:
        query = (
            select(*_JOB, routes.c.port.label("opened"), routes.c.access, routes.c.token_hash, routes.c.created_ns)
            .outerjoin(routes, routes.c.job_seq == jobs.c.seq)
            .where(condition)
            .order_by(case((jobs.c.status.in_(FINAL), 1), else_=0), jobs.c.seq.desc())
            .limit(1)
        )
        rows = await self._database.read(query)
        if not rows:
            _nothing(name)
        (row,) = rows
        job = _job(row)
        _require_live(job)
        if row.opened is None:
            raise NotFound(CLOSED)
        columns = cast("Any", row)._mapping
        access = Access(columns[routes.c.access], columns[routes.c.token_hash], columns[routes.c.created_ns])
        return self._route(name, job, row.opened, access)

    async def _of_alias(self, name: Name) -> Route | None:
        follows = and_(jobs.c.account_id == aliases.c.account_id, jobs.c.workspace == aliases.c.workspace, WRITES)
        query = (
            select(*alias_rows.COLUMNS, *_JOB)
            .outerjoin(jobs, follows)
            .where(aliases.c.subdomain == name.label, aliases.c.domain == name.domain)
        )
        while True:
            rows = await self._database.read(query)
            if not rows:
                return None
            columns = cast("Any", rows[0])._mapping
            alias = alias_rows.alias_of(columns)
            if columns[jobs.c.seq] is not None:
                return self._route(name, _job(rows[0]), alias.port, alias.terms)
            if not await self._is_succeeded(alias):
                raise NotFound(IDLE_ALIAS)

    async def _is_succeeded(self, alias: Alias) -> bool:
        """Whether another job takes the workspace over just after its last one: visitors wait for that a little."""
        of_it = (jobs.c.account_id == alias.account_id) & (jobs.c.workspace == alias.workspace)
        rows = await self._database.read(select(jobs.c.ended_ns).where(of_it).order_by(jobs.c.seq.desc()).limit(1))
        since = (now_ns() - rows[0].ended_ns) / 1e9 if rows and rows[0].ended_ns is not None else HANDOVER
        until = time.monotonic() + min(HANDOVER, HANDOVER - since)
        while time.monotonic() < until:
            if any(_has(run, alias) for run in self._live.runs()):
                return True
            await asyncio.sleep(HANDOVER_PAUSE)
        return False

    async def _of_target(self, name: Name) -> Route | None:
        query = (
            select(*_JOB, proxy_targets.c.port)
            .join(jobs, jobs.c.request_id == proxy_targets.c.request_id)
            .where(proxy_targets.c.subdomain == name.label)
        )
        rows = await self._database.read(query)
        if not rows:
            return None
        job = _job(rows[0])
        _require_live(job)
        return self._route(name, job, rows[0].port, Access())

    def _route(self, name: Name, job: Job, port: int, access: Access) -> Route:
        return Route(name.host, job, port, access, self.admission)


_JOB = [jobs.c[name] for name in Job.__struct_fields__]


def _job(row: Row[Any]) -> Job:
    columns = cast("Any", row)._mapping
    return Job(**{name: columns[jobs.c[name]] for name in Job.__struct_fields__})


def _has(run: "Run", alias: Alias) -> bool:
    own = run.job.account_id == alias.account_id and run.job.workspace == alias.workspace
    return own and not run.job.waits and not run.left.is_set() and not run.over


def prefix_of(job: Job) -> str:
    """The label that clients of the Jobs API compute from a request id."""
    return job.request_id[: host_names.PREFIX_LENGTH].lower().replace("_", "-")


def _begins(label: str) -> Any:
    """A range of the index over request ids: those of persistent jobs that begin so."""
    return and_(jobs.c.request_id >= label, jobs.c.request_id < label + "\x7f", jobs.c.persistent)


def _require_live(job: Job) -> None:
    if job.final:
        raise NotFound(ENDED)


def _nothing(name: Name) -> NoReturn:
    raise NotFound(
        f"there is no sandbox at {name.host}; `roost url JOB` tells a job's address, `roost url alias list` your names"
    )
