"""How a persistent job sleeps: first frozen in memory, later cold, as files only.

`nap` is what `states.running` does while its sandbox is drowsy or asleep: it freezes it, waits, and thaws it or lets it
go cold. Going cold is: stopped and saved by the node, then one transaction that records the save, and the id and start
of the next sandbox. Whatever dies in between, the row says which of the two is meant, and repeating a step is safe.
"""

import asyncio
import time

import structlog
from structlog.typing import FilteringBoundLogger

from roost.clock import now_ns
from roost.errors import NodeUnavailable, NotFound, RoostError, StateUnwritable
from roost.jobs import job as jobs
from roost.jobs.result import LOST, lost
from roost.jobs.run import Means, Run
from roost.node.protocol import Freeze, Revision, SaveRequest, StopSandbox

PUT_TO_SLEEP = "put to sleep"
GRACE = 5.0  # seconds between TERM and KILL when it goes cold
SHUT_DOWN_GRACE = 2.0  # … because Roost is stopping
LAST_USES = 2.0  # seconds that open requests and commands have to end, of a sandbox that somebody puts to sleep
LOOK = 0.005  # seconds
WRITE_AGAIN = 1.0  # seconds
LIVED = 600.0  # seconds after which the end of a sandbox that was recovered counts as its first
LONGEST_PAUSE = 60.0  # seconds before one that ends again and again is started again

log: FilteringBoundLogger = structlog.get_logger()


def is_due(run: Run) -> bool:
    """Whether it is to sleep, or does."""
    frozen = run.state is not None and run.state.frozen
    stopped = (run.shutting_down and run.job.persistent) or run.job.depth == "cooling" or run.job.halted
    return frozen or stopped or run.sleep_wanted is not None


async def nap(run: Run, means: Means) -> bool:
    """From the wish to sleep until it is awake again or something else is to be done; True when it has gone cold."""
    if not _frozen(run) and _wants_cold(run):
        return await _cool(run, means)
    if not _frozen(run) and not await _freeze(run, means):
        return False
    await _rest(run, means)
    if run.over or run.stop_requested:
        return False
    if run.wake_wanted:
        await _thaw(run, means)
        return False
    return await _cool(run, means) if _wants_cold(run) else False


def settle_awake(run: Run, means: Means) -> None:
    """It runs: if its row says that it sleeps, that is over."""
    if run.job.status != "sleeping" or run.state is None or _frozen(run):
        return
    means.tally.wakes["frozen" if run.job.depth == "frozen" else "cold"] += 1
    run.become(status="running", depth=None, asleep_ns=None)
    run.used = time.monotonic()
    jobs.record_awake(means.database, run.job)
    log.info("job.awake", request_id=run.job.request_id, vm_id=run.job.vm_id, wakes=run.job.wakes)
    run.note()


def _frozen(run: Run) -> bool:
    return run.state is not None and run.state.frozen


def _wants_cold(run: Run) -> bool:
    return run.sleep_wanted == "cold" or run.shutting_down or run.job.depth == "cooling" or run.job.halted


# ---- frozen ------------------------------------------------------------------------------------------------


async def _freeze(run: Run, means: Means) -> bool:
    """False when somebody came, or it could not be done now."""
    await _save_first(run, means)
    if not run.over and not _disturbed(run):
        run.drowsy = True
        run.note()
        await _let_uses_end(run)
        try:
            run.hear(await means.node.freeze(run.job.vm_id, Freeze()))
        except NodeUnavailable:
            await means.link.again()
        except RoostError as refusal:
            log.warning("job.unfrozen", request_id=run.job.request_id, error=str(refusal))
            run.sleep_wanted = None
            run.used = time.monotonic()  # tried again when it has been idle for as long once more
        finally:
            run.drowsy = False
            run.note()
    if _frozen(run):
        if _disturbed(run):
            run.wake_wanted = True
        return True
    if _disturbed(run):
        run.sleep_wanted = None
    return False


def _disturbed(run: Run) -> bool:
    """Access cancels a sleep that nobody asked for."""
    return run.sleep_automatic and (run.wake_wanted or run.uses > 0)


async def _let_uses_end(run: Run) -> None:
    """What was begun just before is answered; who comes now waits, and wakes it again. Long ones stop with it."""
    until = time.monotonic() + LAST_USES
    while run.uses and time.monotonic() < until and not (_frozen(run) or run.over or run.stop_requested):
        if run.shutting_down:
            return
        await asyncio.sleep(LOOK)


async def _save_first(run: Run, means: Means) -> None:
    """A persistent workspace is in the object store before it sleeps; a store that is away delays nothing."""
    try:
        await means.save_before_sleep(run)
    except RoostError as error:
        log.warning("save.failed", request_id=run.job.request_id, error=str(error))


async def _rest(run: Run, means: Means) -> None:
    """While it stands still it holds no memory of the placement's: what it really takes is the node's to reclaim."""
    if run.job.status != "sleeping":
        run.become(status="sleeping", depth="frozen", asleep_ns=now_ns())
        jobs.record_frozen(means.database, run.job)
        log.info("job.asleep", request_id=run.job.request_id, vm_id=run.job.vm_id, depth="frozen")
    if run.sleep_wanted == "frozen":
        run.sleep_wanted = None
    if run.lease is not None:
        means.placement.release(run.lease)
        run.lease = None
    run.rests.set()
    try:
        while _frozen(run) and not (run.over or run.stop_requested or run.wake_wanted or _wants_cold(run)):
            await run.news.wait()
            run.news.clear()
    finally:
        run.rests.clear()


async def _thaw(run: Run, means: Means) -> None:
    if run.lease is None:
        run.lease = means.placement.adopt(run.need)
    while _frozen(run) and not run.over:
        try:
            run.hear(await means.node.thaw(run.job.vm_id))
        except NodeUnavailable:
            await means.link.again()
        except NotFound:
            run.hear(lost(run.job))
    run.wake_wanted, run.sleep_wanted = False, None
    settle_awake(run, means)


# ---- cold --------------------------------------------------------------------------------------------------


async def _cool(run: Run, means: Means) -> bool:
    run.drowsy = True
    run.note()
    await _let_uses_end(run)
    await _write_cooling(run, means)
    grace = SHUT_DOWN_GRACE if run.shutting_down else GRACE
    stop = StopSandbox(reason=PUT_TO_SLEEP, grace_seconds=grace, save=_save_of(run))
    while not run.over:
        try:
            run.hear(await means.node.stop(run.job.vm_id, stop))
        except NodeUnavailable:
            await means.link.again()
        except NotFound:
            run.hear(lost(run.job))
    if run.stop_requested or _lost_files(run):
        return False
    return await _go_cold(run, means, _save_error(run))


def _save_of(run: Run) -> SaveRequest | None:
    """A job with a workspace asked for its save when it started; the files of any other are kept on the node."""
    if run.job.workspace is not None or run.job.save_revision is None:
        return None
    return SaveRequest(revision=run.job.save_revision, account=run.job.account_id, upload=False)


async def _write_cooling(run: Run, means: Means) -> None:
    """Before the sandbox is touched, so that whoever finds it ended knows why; told only when it is durable."""
    if run.job.depth == "cooling":
        return
    asleep_ns = run.job.asleep_ns or now_ns()
    while True:
        try:
            await jobs.record_cooling(means.database, run.job, asleep_ns)
            break
        except StateUnwritable as error:
            log.warning("job.unrecorded", request_id=run.job.request_id, error=str(error))
            await asyncio.sleep(WRITE_AGAIN)
    run.become(status="sleeping", depth="cooling", asleep_ns=asleep_ns)


async def _go_cold(run: Run, means: Means, note: str | None) -> bool:
    """The row now means the next sandbox. The old one's memory is free, and it can be forgotten."""
    revision, state = _final_save(run), run.state
    if not run.job.wakes and run.job.script_ended_ns is None and state is not None and state.cause == "exited":
        run.become(exit_code=state.exit_code, script_ended_ns=state.script_ended_ns)
    while True:
        try:
            if state is not None and not run.metered:  # while the sandbox's id still leads to its job
                await means.metering.record_end(state, run.job)
                run.metered = True
            next_life = await jobs.record_cold(means.database, run.job, revision, note)
            break
        except StateUnwritable as error:
            log.warning("job.unrecorded", request_id=run.job.request_id, error=str(error))
            await asyncio.sleep(WRITE_AGAIN)
    log.info("job.asleep", request_id=run.job.request_id, vm_id=run.job.vm_id, depth="cold", note=note)
    means.went_cold(run, next_life)
    run.attached.set()
    run.left.set()
    return True


def _save_error(run: Run) -> str | None:
    return None if run.state is None else run.state.save_error


def _lost_files(run: Run) -> bool:
    """Whether its files were neither saved nor kept as they are."""
    return _save_error(run) is not None and _final_save(run) is None


async def stay_cold(run: Run, means: Means, refusal: RoostError) -> None:
    """Its next sandbox could not be started. The job sleeps on with its files, and says why; who waits for it is told.

    Ended, it would leave files without a workspace to nobody.
    """
    note = f"it could not be woken: {refusal}"
    while True:
        try:
            job = await jobs.record_still_cold(means.database, run.job, note)
            break
        except StateUnwritable as error:
            log.warning("job.unrecorded", request_id=run.job.request_id, error=str(error))
            await asyncio.sleep(WRITE_AGAIN)
    log.warning("job.unwoken", request_id=run.job.request_id, vm_id=run.job.vm_id, error=str(refusal))
    run.refusal, run.wake_wanted = refusal, False
    if run.lease is not None:
        means.placement.release(run.lease)
        run.lease = None
    means.went_cold(run, job)
    run.attached.set()
    run.left.set()


def _final_save(run: Run) -> Revision | None:
    revision = None if run.state is None else run.state.revision
    return revision if revision is not None and revision.id == run.job.save_revision else None


# ---- ended without having been asked to --------------------------------------------------------------------


async def recovered(run: Run, means: Means) -> bool:
    """Of a sandbox that has ended: whether its job goes on in another one, now or when it is woken."""
    if not run.job.persistent or run.stop_requested or run.state is None or run.state.phase != "ended":
        return False
    if run.job.depth == "cooling" and not _lost_files(run):
        return await _go_cold(run, means, _save_error(run))
    why = run.state.reason or (LOST if run.state.cause == "lost" else "the sandbox ended by itself")
    if not run.job.no_sleep:
        if run.state.cause != "lost" or run.job.workspace is None:
            return False
        return await _go_cold(run, means, f"{why}; it goes on from its last save when it is used again")
    if run.state.cause == "timeout":
        return False
    run.wake_wanted = True
    return await _go_cold(run, means, f"{why}; it was started again from its last save")


def pause_before_restart(run: Run, restarts: int) -> float:
    """Seconds; `restarts` counts those of a sandbox that each time did not live long."""
    return 0.0 if run.lived > LIVED else min(LONGEST_PAUSE, 2.0**restarts - 1)
