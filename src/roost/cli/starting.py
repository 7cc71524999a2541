"""Submitting a job and waiting for it: for its sandbox, and that nobody who goes away leaves it behind."""

import contextlib
import signal
import time
from collections.abc import Generator

from roost.cli.connection import Api, Json
from roost.cli.leaving import Left, held, ignored
from roost.cli.paths import JOBS, path_of
from roost.cli.wording import note
from roost.errors import Conflict, RoostError

WITHIN = 60.0  # seconds
UNHEARD = (signal.SIGPIPE, signal.SIGHUP)  # of these nobody is told a word
LOOK_AGAIN = 0.05  # seconds
FINAL = ("completed", "error")


@contextlib.contextmanager
def waited_for(api: Api, leave: bool = False) -> Generator[list[str]]:
    """Gets ids of jobs that the block submits and waits for; who goes away meanwhile stops them, unless `leave`."""
    made = list[str]()
    try:
        yield made
    except Left as gone:
        for job in made:
            _left(job) if leave else _stop(api, job, quietly=gone.number in UNHEARD)
        raise


def submitted(api: Api, body: Json, made: list[str]) -> Json:
    """What the server answered; whoever goes away meanwhile does so when the job is known."""
    with held():
        accepted = api.call("POST", JOBS, body)
        made.append(str(accepted["request_id"]))
    if reason := accepted.get("pending_reason"):
        note(f"{accepted['request_id']} {reason}")
    return accepted


def _left(job: str) -> None:
    _say(f"job {job} goes on: `roost logs -f {job}`, `roost stop {job}`")


def _stop(api: Api, job: str, quietly: bool) -> None:
    """A second Ctrl-C leaves at once."""
    with ignored():
        try:
            if not quietly:
                _say(f"stopping {job}; Ctrl-C again to leave at once")
            api.call("POST", f"{path_of(job)}/stop")
        except KeyboardInterrupt:
            _say(f"left; `roost status {job}` says whether it has stopped")
        except RoostError as error:
            _say(f"{job} was not stopped: {error}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that has gone
        note(text)


def started(api: Api, job: str) -> Json:
    """The job's status once it runs, or sleeps. Conflict: it ended before, or there was no room in time."""
    deadline, shown = time.monotonic() + WITHIN, dict[str, Json]()
    while time.monotonic() < deadline:
        shown = api.call("GET", f"{path_of(job)}/status")
        if shown["status"] == "sleeping" or (shown["status"] == "running" and shown.get("vm_id")):
            return shown
        if shown["status"] in FINAL:
            raise Conflict(_why(shown))
        time.sleep(LOOK_AGAIN)
    reason = shown.get("pending_reason") or "waits for room"
    raise RoostError(f"after {WITHIN:.0f} s it still {reason}; `roost status {job}` shows when it runs")


def _why(shown: Json) -> str:
    reason = shown.get("error") or f"status: {shown['status']}"
    return f"the sandbox ended at once ({reason}); `roost logs {shown['request_id']}` shows what it said"
