"""`python -m tests.supervised [--again] …`: pytest with these arguments, which ends, and whose processes end with it.

With --again, tests that failed are tried once more, one after the other: what a machine's other users made fail passes.

Whatever pytest and its workers leave, killed or not, becomes a child of this process (PR_SET_CHILD_SUBREAPER) and is
ended by it: first asked, for a `roost up` takes its mounts and rules along. Something that was left is a failure.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

from tests.processes import command, descendants

LIMIT = float(os.environ.get("ROOST_TEST_MINUTES", "75")) * 60  # seconds; CI allows 90 minutes for all that it does
ENDING = 30.0  # seconds that pytest has to name what failed, and what is left to end in good order
LEAVING = 5.0  # seconds from pytest's end until what is still there counts as left
PR_SET_CHILD_SUBREAPER = 36
TESTS_FAILED = 1  # pytest's exit status, where it came to the end


def run(arguments: list[str]) -> int:
    """Exit status of the run: pytest's, or 1 where only its processes stayed behind."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored, pytest too
    again, arguments = "--again" in arguments, [word for word in arguments if word != "--again"]
    status = _pytest(arguments)
    if again and status == TESTS_FAILED:
        print("what failed is tried once more, alone", flush=True)
        status = _pytest([*arguments, "-n", "0", "--last-failed", "--last-failed-no-failures", "none"])
    left = _left()
    if left:
        print("processes that the suite left:", *left, sep="\n  ", flush=True)
        _end_all()
    return status or (1 if left else 0)


def _pytest(arguments: list[str]) -> int:
    pytest = subprocess.Popen([sys.executable, "-m", "pytest", *arguments])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: pytest.send_signal(signal.SIGINT))  # then it names what has failed so far
    try:
        return pytest.wait(LIMIT)
    except subprocess.TimeoutExpired:
        print(f"the suite took longer than {LIMIT / 60:.0f} minutes and is ended", flush=True)
        return _interrupted(pytest) or 1


def _left() -> list[str]:
    """What is there when what was ending has had its time."""
    deadline = time.monotonic() + LEAVING
    while True:
        _reap()
        left = [command(pid) for pid in descendants(os.getpid())]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def _interrupted(pytest: "subprocess.Popen[bytes]") -> int:
    """As by Ctrl-C, when it names what has failed so far."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        pytest.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return pytest.wait(ENDING)
    return pytest.wait()


def _end_all() -> None:
    asked: set[int] = set()
    deadline = time.monotonic() + ENDING
    while left := descendants(os.getpid()):
        late = time.monotonic() > deadline
        for pid in left if late else set(left) - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked.update(left)
        _reap()
        time.sleep(0.05)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
