"""What a call can fail with. All are `RoostError`, which programs written for `mags` know as `MagsError`."""

from collections.abc import Mapping


class RoostError(Exception):
    """`message` is the server's own words, or says how to reach it; `status_code` is None where no server answered."""

    def __init__(self, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code


MagsError = RoostError


class Invalid(RoostError):
    """The request cannot be honoured as written (400, 405, 422)."""


class Unauthenticated(RoostError):
    """No token, or one that the server does not know (401)."""


class Forbidden(RoostError):
    """The token may not do this (403)."""


class NotFound(RoostError):
    """Nothing of that name is yours (404)."""


class Conflict(RoostError):
    """The present state of the thing forbids it (409)."""


class TooLarge(RoostError):
    """A body is over the stated limit (413)."""


class RateLimited(RoostError):
    """A limit is reached (429); the same call may be made again after `retry_after` seconds, where that is known."""

    def __init__(self, message: str, status_code: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, status_code)
        self.retry_after = retry_after


class ServerError(RoostError):
    """The server failed (5xx)."""


class Unavailable(ServerError):
    """Not possible now: the server, its node or the sandbox is away (502, 503, 504)."""


class Unreachable(RoostError):
    """No server answered. `sent` says whether it may have got the request."""

    def __init__(self, message: str, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class TimedOut(RoostError):
    """What was waited for did not come in the time that the caller gave; it may still."""


class JobFailed(RoostError):
    """A job ended where one was wanted that goes on; the text says how."""


KINDS: dict[int, type[RoostError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def refusal(status: int, text: str, headers: Mapping[str, str]) -> RoostError:
    """The error that a status from 400 on stands for."""
    if status == 429:
        return RateLimited(text, status, _seconds(headers.get("retry-after")))
    return KINDS.get(status, ServerError if status >= 500 else Invalid)(text, status)


def _seconds(value: str | None) -> float | None:
    """Of Retry-After, which Roost writes as seconds."""
    return float(value) if value and value.isascii() and value.isdigit() else None
