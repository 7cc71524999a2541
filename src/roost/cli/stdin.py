"""This command's standard input on its way to a script: as it comes, while the script runs, and no longer.

It is sent by position, so a connection that breaks loses nothing. Nobody waits for it: a pipe that nobody writes holds
up only a script that reads it, as it would here.
"""

import contextlib
import json
import os
import stat
import threading
import time

from roost.cli.connection import Api, Interrupted
from roost.cli.paths import path_of
from roost.errors import RoostError

STEP = 256 * 1024  # bytes
ANSWERED = 60.0  # seconds; the server answers what was taken after 25
AGAIN = 0.5  # seconds
PATIENCE = 60.0  # seconds without a server; a restart takes a few
BYTES = {"Content-Type": "application/octet-stream"}


def is_given() -> bool:
    """Whether there is, or may come, something to read: a pipe, a socket, a file that holds something."""
    try:
        found = os.fstat(0)
    except OSError:
        return False
    if stat.S_ISREG(found.st_mode):
        return found.st_size > os.lseek(0, 0, os.SEEK_CUR)
    return stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)


def feed(api: Api, job: str) -> threading.Thread:
    """Begins to; the thread ends with the input, or with the script."""
    thread = threading.Thread(target=_feed, args=(api, f"{path_of(job)}/input"), daemon=True)
    thread.start()
    return thread


def _feed(api: Api, path: str) -> None:
    at, data = 0, b" "
    with contextlib.suppress(RoostError, OSError):  # it is over, and reads no more
        while data:
            data = os.read(0, STEP)
            at = send(api, path, at, data)


def send(api: Api, path: str, at: int, data: bytes) -> int:
    """The position behind it, when all was taken; of no data, when the input is closed."""
    last, end = at + len(data), "false" if data else "true"
    deadline = time.monotonic() + PATIENCE
    while True:
        rest = data[len(data) - (last - at) :]
        try:
            with api.stream("POST", f"{path}?at={at}&end={end}", rest, BYTES, ANSWERED) as answer:
                taken = json.loads(answer.read(65536))
        except Interrupted as error:
            if time.monotonic() > deadline:
                raise RoostError(str(error)) from error
            time.sleep(AGAIN)
            continue
        deadline = time.monotonic() + PATIENCE
        at = int(taken["position"])
        if at == last and (data or taken["closed"]):
            return at
