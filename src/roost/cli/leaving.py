"""Being told to go: Ctrl-C, TERM, the end of the terminal, a reader that has left. Each ends a command as `Left`.

Whoever waited for something stops it on the way out; the exit status is 128 and the signal's number, as a shell has it.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Generator
from types import FrameType

from roost.errors import RoostError

TELLING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_held: list[int] | None = None  # signals that came while nothing may be broken off; None: they are raised


class Left(KeyboardInterrupt):
    """Who started this command, or who read what it says, has gone."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def status(self) -> int:
        return 128 + self.number


@contextlib.contextmanager
def told() -> Generator[None]:
    """Signals raise Left, but for those that whoever started us had ignored, as `nohup` does."""
    before = {number: signal.getsignal(number) for number in TELLING}
    for number in TELLING:
        if before[number] in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: FrameType | None) -> None:
    if _held is None or _held:  # or the second one: whoever insists is not kept
        raise Left(number)
    _held.append(number)


@contextlib.contextmanager
def held() -> Generator[None]:
    """Signals wait until the block is over: what it begins is known then, and can be stopped."""
    global _held
    if _held is not None:
        yield
        return
    _held = came = list[int]()
    try:
        yield
    finally:
        _held = None
    if came:
        raise Left(came[0])


@contextlib.contextmanager
def ignored() -> Generator[None]:
    """Who is gone already is not told to go again; but a second Ctrl-C does not wait."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write(descriptor: int, data: bytes) -> None:
    """All of it, as it is. Raises Left where nobody reads any more, RoostError where it has no room."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except (BrokenPipeError, ConnectionResetError):
        raise Left(signal.SIGPIPE) from None
    except OSError as error:
        if error.errno == errno.EIO:
            raise Left(signal.SIGHUP) from None  # a terminal that has gone
        raise RoostError(f"cannot write what it said: {error.strerror}") from error


def mute() -> None:
    """Before the end: Python would flush what a reader that has gone never takes, and complain."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
