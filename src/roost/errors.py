"""The conditions that Roost reports, named after what is the case.

Code raises a condition; each API dialect translates it once (see `api/errors.py`). The text is for the user and names
the cure. Anything that is not one of these is a fault of ours: logged whole, shown as "internal error".
"""


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


class TooLarge(RoostError):
    """The request is larger than the stated limit."""


class Refused(RoostError):
    """Nothing in the sandbox accepts connections there; the text says on which port and addresses."""


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


class StateUnwritable(RoostError):
    """Roost's own files cannot be written (disk full, read-only, damaged); nothing was acknowledged."""


class StoreUnavailable(RoostError):
    """The object store does not answer as it should; nothing was lost, and the same call may be made again."""


class ProviderUnavailable(RoostError):
    """The OpenID provider does not answer as one should; the text says what it did."""


class Damaged(RoostError):
    """What the store returned is not what was written, or was written with another key: run `roost workspace check`."""
