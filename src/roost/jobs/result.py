"""What an ended sandbox means for its job. Nothing is invented: a status that was lost is an error that says so."""

from roost.jobs.job import Job, Result, Status
from roost.node.protocol import SandboxState

LOST = "lost: the node no longer knows this sandbox, so its exit status is unknown"
ENDED_ALONE = "the sandbox of this persistent job ended by itself"
UNSAVED = "the node told of no save of the workspace"
STAYS = "{}; the workspace stays as it was"


def script_ended(state: SandboxState) -> bool:
    """Whether the result is known; the sandbox itself may still be on its way out."""
    return state.phase == "ended" or (state.script_ended_ns is not None and state.cause is not None)


def lost(job: Job) -> SandboxState:
    return SandboxState(id=job.vm_id, phase="ended", started_ns=job.started_ns, cause="lost", reason=LOST)


def result_of(job: Job, state: SandboxState | None, stop_requested: bool) -> Result:
    """What an ended sandbox means for its job; no state: it was stopped before it had one."""
    if state is None:
        return Result("completed", job.exit_code, None, True, job.started_ns, job.script_ended_ns)
    status, error, stopped = _verdict(job, state, stop_requested)
    unsaved = _unsaved(job, state)
    if unsaved is not None and (status == "completed" or state.save_error is not None):
        status, error = "error", f"{error}; {unsaved}" if error else unsaved
    if job.wakes:  # the script was a sandbox before this one
        return Result(status, job.exit_code, error, stopped, job.started_ns, job.script_ended_ns)
    return Result(status, state.exit_code, error, stopped, state.started_ns, state.script_ended_ns)


def _verdict(job: Job, state: SandboxState, stop_requested: bool) -> tuple[Status, str | None, bool]:
    if stop_requested and (job.persistent or state.cause == "stopped") and _known(job, state):
        return "completed", None, True
    if job.persistent and state.cause in ("exited", None):
        return "error", state.reason or ENDED_ALONE, False
    if state.cause in ("exited", None) and state.exit_code is not None:
        return ("completed" if state.exit_code == 0 else "error"), state.reason, False
    return "error", state.reason or _UNSAID.get(state.cause or "lost", LOST), False


def _known(job: Job, state: SandboxState) -> bool:
    """Whether its end is the one that was asked for, with nothing lost."""
    if job.wakes:
        return state.cause in ("stopped", "exited")
    return state.exit_code is not None and (not job.persistent or state.cause in ("stopped", "exited"))


def _unsaved(job: Job, state: SandboxState) -> str | None:
    """Why the end state of its files is not the workspace's."""
    if state.save_error is not None:
        return state.save_error if kept(job, state) else STAYS.format(state.save_error)
    if job.workspace is None or kept(job, state):
        return None
    return STAYS.format(UNSAVED)


def kept(job: Job, state: SandboxState) -> bool:
    """Whether its last files are the job's final save, usable already or not yet."""
    return state.revision is not None and state.revision.id == job.save_revision


_UNSAID = {
    "timeout": "the script ran into its timeout",
    "oom": "the script ran out of memory; give it more with memory_mb",
    "disk": "the disk of the sandbox failed",
    "excess": "the sandbox took what others need",
    "stopped": "stopped",
    "failed": "the sandbox failed",
}
