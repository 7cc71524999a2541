"""Waiting for the sandbox of a job that was just submitted."""

import time

from roost.cli.connection import Api, Json
from roost.cli.paths import path_of
from roost.errors import Conflict, RoostError

WITHIN = 60.0  # seconds
LOOK_AGAIN = 0.05  # seconds
FINAL = ("completed", "error")


def started(api: Api, job: str) -> Json:
    """The job's status once it runs, or sleeps. Conflict: it ended before, or there was no room in time."""
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        shown = api.call("GET", f"{path_of(job)}/status")
        if shown["status"] == "sleeping" or (shown["status"] == "running" and shown.get("vm_id")):
            return shown
        if shown["status"] in FINAL:
            raise Conflict(_why(shown))
        time.sleep(LOOK_AGAIN)
    raise RoostError(f"it still waits for room after {WITHIN:.0f} s; `roost status {job}` shows when it runs")


def _why(shown: Json) -> str:
    reason = shown.get("error") or f"status: {shown['status']}"
    return f"the sandbox ended at once ({reason}); `roost logs {shown['request_id']}` shows what it said"
