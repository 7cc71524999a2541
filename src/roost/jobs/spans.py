"""A job's part of a trace, made from the instants that are recorded anyway, once they are known.

    job                     accepted -> its end is durable; below the request that submitted it
      job.queue             accepted -> the node is asked
      node.start_sandbox    the call, as the control plane sees it; after a wake below what woke it
      script                in the guest, by the node's clock; the script knows it as TRACEPARENT

The ids of `job` and `script` follow from the job's own, so that they are the same after a restart of Roost.
"""

from roost.clock import now_ns
from roost.jobs.job import Job, Result
from roost.jobs.run import Run
from roost.node.protocol import SandboxState
from roost.tracing import GUEST_VARIABLE, Tracer, child


def environment(tracer: Tracer, job: Job, given: dict[str, str]) -> dict[str, str]:
    """What the script gets; its own TRACEPARENT, if it was submitted with one, stays."""
    if job.trace is None or not tracer.on or GUEST_VARIABLE in given:
        return given
    return {**given, GUEST_VARIABLE: _job(job, job.trace) if job.wakes else _script(job, job.trace)}


def started(tracer: Tracer, run: Run, asked_ns: int, state: SandboxState) -> None:
    """The node has answered: its sandbox runs."""
    job = run.job
    if job.trace is None or not tracer.on:
        return
    own, told = _job(job, job.trace), {"request_id": job.request_id, "vm_id": job.vm_id, "image": job.image}
    if not job.wakes:
        tracer.record("job.queue", job.created_ns, asked_ns, own, told)
    parent = run.woken_by or own
    times = {**told, "started_ns": state.started_ns}
    tracer.record("node.start_sandbox", asked_ns, now_ns(), parent, times, kind="client")


def ended(tracer: Tracer, job: Job, result: Result) -> None:
    """Its end is durable."""
    if job.trace is None or not tracer.on:
        return
    end_ns, own = now_ns(), _job(job, job.trace)
    told = {"request_id": job.request_id, "image": job.image, "exit_code": result.exit_code}
    started_ns = result.started_ns or job.started_ns
    if started_ns is not None:
        script, wrong = {**told, "vm_id": job.log}, f"exit code {result.exit_code}" if result.exit_code else None
        script_end = result.script_ended_ns or end_ns
        tracer.record("script", started_ns, script_end, own, script, own=_script(job, job.trace), error=wrong)
    whole = {**told, "vm_id": job.vm_id, "status": result.status, "stopped": result.stopped}
    error = (result.error or f"exit code {result.exit_code}") if result.status == "error" else None
    tracer.record("job", job.created_ns, end_ns, job.trace, whole, own=own, error=error)


def _job(job: Job, trace: str) -> str:
    return child(trace, f"job {job.request_id}")


def _script(job: Job, trace: str) -> str:
    return child(trace, f"script {job.log}")
