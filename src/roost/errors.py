"""The conditions that Roost reports, named after what is the case.

Code raises a condition; each API dialect translates it once (see `api/errors.py`). The text is for the user and names
the cure. Anything that is not one of these is a fault of ours: logged whole, shown as "internal error".
"""

import os
from collections.abc import Generator
from contextlib import contextmanager


class RoostError(Exception):
    """A condition with a text that may be shown to the user."""


class Invalid(RoostError):
    """The request cannot be honoured as written; the text says what to change."""


class Unauthenticated(RoostError):
    """The credentials are missing, unknown or expired."""


class NotFound(RoostError):
    """Nothing of that id or name belongs to the caller."""


class Conflict(RoostError):
    """The present state of the thing forbids this; the text says what to do first."""


class Unsaved(Conflict):
    """The files of a sandbox could not be made a revision; they are kept on their node, and saving is tried again."""


class TooLarge(RoostError):
    """The request is larger than the stated limit."""


class Refused(RoostError):
    """Nothing in the sandbox accepts connections there; the text says on which port and addresses."""


class Busy(Refused):
    """Something listens there, and takes no more connections for now; the same dial may succeed in a moment."""


class Asleep(RoostError):
    """The sandbox did not wake in the time that the caller gave; it may still."""


class Forbidden(RoostError):
    """The caller is known, or need not be, and may not do this."""


class Throttled(RoostError):
    """The caller asks too often; the same request may be made again in `seconds`."""

    def __init__(self, text: str, seconds: int) -> None:
        super().__init__(text)
        self.seconds = seconds


class NoCapacity(RoostError):
    """The machine is full for now; the same request may succeed later."""


class NodeUnavailable(RoostError):
    """The node does not answer. What it was asked may or may not have happened; the same call may be made again."""


class SetupMissing(RoostError):
    """This machine lacks something that Roost needs; the text names what to install."""


class MachineFault(RoostError):
    """The machine did not do what the node needs of it; the text says what, and on which path."""

    @classmethod
    def of(cls, what: str, error: OSError) -> "MachineFault":
        return cls(f"{what}: {reason(error)}; `sudo roost doctor` does what a sandbox needs and names the cure")


class StateUnwritable(RoostError):
    """Roost's own files cannot be written (disk full, read-only, damaged); nothing was acknowledged."""


class StoreUnavailable(RoostError):
    """The object store does not answer as it should; nothing was lost, and the same call may be made again."""


class ProviderUnavailable(RoostError):
    """The OpenID provider does not answer as one should; the text says what it did."""


class Damaged(RoostError):
    """What the store returned is not what was written, or was written with another key: run `roost workspace check`."""


@contextmanager
def about(path: str | os.PathLike[str]) -> Generator[None]:
    """Names the path in an OSError that lacks it, as one of write(2) does."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def reason(error: OSError) -> str:
    """What the system said, and of which path, without Python's words; never empty."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    if said := error.strerror or str(error):
        return f"{where}{said}"
    return "it took too long" if isinstance(error, TimeoutError) else type(error).__name__


def said(error: Exception) -> str:
    """By a connection that failed; never empty, and no class's name where there are words."""
    return reason(error) if isinstance(error, OSError) else str(error) or "it broke off"


def condition_of(error: Exception, what: str) -> RoostError:
    """Of what nobody expected: the machine's words where it was the machine, else where the details are."""
    if isinstance(error, RoostError):
        return error
    if isinstance(error, OSError):
        return MachineFault.of(what, error)
    return RoostError(f"{what}: internal error of the node, whose log has the details")
