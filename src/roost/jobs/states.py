"""One job on its way: each state is a small function that returns the next one.

    (queued) -> starting -> running -> [stopping] -> finishing -> leaving
                               v ^
                            sleep.py: frozen, or gone until it is woken by a later run

Every step is safe to run again after a crash: the node knows a sandbox by the id that was chosen at submission, and
is told to forget it only after its result is durable. `live.py` decides when a run begins and tells it the news.
"""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog
from structlog.typing import FilteringBoundLogger

from roost.clock import now_ns
from roost.errors import NoCapacity, NodeUnavailable, NotFound, RoostError, StateUnwritable
from roost.jobs import job as jobs
from roost.jobs import sleep, spans
from roost.jobs.job import Job, Result, Work
from roost.jobs.result import lost, result_of, script_ended
from roost.jobs.run import Means, Run
from roost.node.protocol import PIDS, File, Limits, SaveRequest, StartSandbox, StopSandbox
from roost.workspaces import revisions, uploads
from roost.workspaces.revisions import Start
from roost.workspaces.uploads import Upload

STOPPED = "stopped by its owner"
SHUT_DOWN = "Roost was shut down"
SHUT_DOWN_GRACE = 2.0  # seconds between TERM and KILL when Roost itself is stopping
SYNC_SECONDS = 30  # between the saves of a persistent job; documented
SHORT = 0.1  # seconds that a script runs before the database is told that it does
WRITE_AGAIN = 1.0  # seconds until a result that could not be written is tried again

log: FilteringBoundLogger = structlog.get_logger()

Move: TypeAlias = Callable[[Run, Means], Awaitable["Move | None"]]


async def starting(run: Run, means: Means) -> Move | None:
    if run.state is not None:
        return running
    if run.shutting_down:
        return None  # it stays pending, for the next start
    if run.stop_requested and not run.asked:
        return finishing
    try:
        work = run.work or await jobs.work_of(means.database, means.secret, run.job)
        start, files = await _files_of(run.job, means)
        if run.job.image_source is not None and start.revision is None:
            await means.pulls.ensure(run.job.image_source)
        if run.stop_requested:
            return finishing
        run.asked, asked_ns = True, now_ns()
        work = dataclasses.replace(work, environment=spans.environment(means.tracer, run.job, work.environment))
        state = await means.node.start(run.job.vm_id, start_sandbox(run.job, work, start, files))
    except NoCapacity:
        return _refused(run, means)
    except NodeUnavailable:
        await means.link.again()
        return starting
    except StateUnwritable as error:
        log.warning("job.unpinned", request_id=run.job.request_id, error=str(error))
        await asyncio.sleep(WRITE_AGAIN)
        return starting
    except RoostError as refusal:
        if run.job.wakes and not run.stop_requested:
            await sleep.stay_cold(run, means, refusal)
            return None
        run.result = Result("error", error=str(refusal))
        return finishing
    run.work = None
    spans.started(means.tracer, run, asked_ns, state)
    run.hear(state)
    return running


def _refused(run: Run, means: Means) -> None:
    run.asked = False
    run.work = None  # read again when it is its turn: a long queue must not fill our memory
    if run.lease is not None:
        means.placement.refuse(run.lease)
        run.lease = None
    means.requeue(run)


async def _files_of(job: Job, means: Means) -> tuple[Start, list[Upload]]:
    """What its file system begins with; most jobs begin with nothing, which nobody needs to be asked for."""
    start, files = Start(None, upload=False), list[Upload]()
    if job.workspace is not None or job.base_workspace is not None or job.wakes:
        start = await revisions.pin(means.database, job)
    if job.file_ids and not job.wakes:
        files = await uploads.of_job(means.database, job.account_id, job.file_ids)
    return start, files


def hostname_of(job: Job) -> str:
    """Its name, or where it was given none that of its workspace: the same for all of its sandboxes."""
    name = job.workspace if job.workspace is not None and job.name == job.default_name else job.name
    return "-".join(re.findall("[a-z0-9]+", name.lower()))[:63].strip("-") or job.default_name


def start_sandbox(job: Job, work: Work, start: Start, files: list[Upload]) -> StartSandbox:
    """After a wake from cold, the startup command takes the script's place; what the script left is in its files."""
    save = None
    if job.workspace is not None and job.save_revision is not None:
        save = SaveRequest(revision=job.save_revision, account=job.account_id, upload=start.upload)
    return StartSandbox(
        image=job.image,
        script=(job.startup_command or "").encode() if job.wakes else work.script,
        environment=work.environment,
        hostname=hostname_of(job),
        reboots=job.wakes > 0,
        limits=Limits(
            vcpus=job.vcpus,
            memory_mb=job.memory_mb,
            disk_gb=job.disk_gb,
            pids=PIDS,
            timeout_seconds=0 if job.wakes else job.timeout_seconds,
        ),
        account=job.account_id,
        linger=job.persistent,
        start_from=start.revision,
        log=job.log_id,
        save=save,
        sync_seconds=SYNC_SECONDS if job.persistent and save is not None and save.upload else 0,
        files=[File(id=file.id, name=file.name, size=file.size) for file in files],
        directories=["workspace"] if job.stateful else [],
        tools=[] if job.login is None else ["microvm"],
        input=job.input and not job.wakes,
    )


async def running(run: Run, means: Means) -> Move:
    """Waits for the node to say how the job ended, or for somebody to stop it; records what is saved meanwhile."""
    if run.job.status == "pending" and not await _ends_at_once(run) and run.state is not None:
        jobs.record_running(means.database, run.job, run.state.started_ns or run.job.created_ns)
        run.become(status="running", started_ns=run.state.started_ns)
    while True:
        run.news.clear()
        if run.over:
            return leaving if await sleep.recovered(run, means) else finishing
        if run.stop_requested or (run.shutting_down and not run.job.persistent):
            return stopping
        await _record_news(run, means)
        if sleep.is_due(run):
            if await sleep.nap(run, means):
                return leaving
            continue
        sleep.settle_awake(run, means)
        await run.news.wait()


async def _record_news(run: Run, means: Means) -> None:
    """What a sandbox that lives on has come to: its script's exit, and its saves."""
    state = run.state
    if state is None:
        return
    if run.job.persistent and not run.job.wakes and script_ended(state) and run.job.script_ended_ns is None:
        jobs.record_script_end(means.database, run.job, state.exit_code, state.script_ended_ns)
        run.become(exit_code=state.exit_code, script_ended_ns=state.script_ended_ns)
    newest = state.revision
    if newest is None or newest.id in (run.recorded, run.job.save_revision):
        return  # the last save goes with the result
    try:
        await jobs.record_save(means.database, run.job, newest)
        run.recorded = newest.id
    except StateUnwritable as error:  # the next save, or the end, makes up for it
        log.warning("save.unrecorded", request_id=run.job.request_id, revision=newest.id, error=str(error))


async def _ends_at_once(run: Run) -> bool:
    """Most scripts are over within milliseconds: their one write is the result."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SHORT):
            while not run.over:
                if run.stop_requested or run.shutting_down:
                    return False
                run.news.clear()
                await run.news.wait()
            return True
    return False


async def stopping(run: Run, means: Means) -> Move:
    by_owner = StopSandbox(reason=STOPPED)
    stop = by_owner if run.stop_requested else StopSandbox(reason=SHUT_DOWN, grace_seconds=SHUT_DOWN_GRACE)
    try:
        run.hear(await means.node.stop(run.job.vm_id, stop))
    except NodeUnavailable:
        await means.link.again()
    except NotFound:
        run.hear(lost(run.job))
    return finishing if run.over else stopping


async def finishing(run: Run, means: Means) -> Move | None:
    """Makes the result durable; a full disk delays it and loses nothing, for the node still knows it."""
    result = run.result or result_of(run.job, run.state, run.stop_requested)
    revision = None if run.state is None else run.state.revision
    try:
        result = run.result = await jobs.record_end(means.database, run.job, result, revision)
    except StateUnwritable as error:
        log.warning("job.unrecorded", request_id=run.job.request_id, error=str(error))
        await asyncio.sleep(WRITE_AGAIN)
        return finishing
    means.ended(run.job)
    means.tally.ended[result.status] += 1
    spans.ended(means.tracer, run.job, result)
    log.info(
        "job.end",
        request_id=run.job.request_id,
        vm_id=run.job.vm_id,
        status=result.status,
        exit_code=result.exit_code,
        error=result.error,
    )
    run.attached.set()
    run.done.set()
    run.left.set()
    return leaving


async def leaving(run: Run, means: Means) -> Move | None:
    """The sandbox goes, its memory is free for another, what it used is written down; the node need not remember it."""
    while run.state is not None and run.state.phase != "ended":
        await run.news.wait()
        run.news.clear()
    if run.lease is not None:
        means.placement.release(run.lease)
    if run.state is None:
        return None
    try:
        if not run.metered:
            await means.metering.record_end(run.state, run.job)
            run.metered = True
        await means.node.forget(run.job.vm_id)
    except NotFound:
        pass
    except StateUnwritable as error:
        log.warning("usage.unrecorded", request_id=run.job.request_id, error=str(error))
        await asyncio.sleep(WRITE_AGAIN)
        return leaving
    except NodeUnavailable:
        await means.link.again()
        return leaving
    return None
