"""The events that both programs write: JSON lines on standard error, named `noun.verb`.

Whoever changes a state writes its event once. No event holds a script, an environment or a token.
"""

import contextlib
import sys
from functools import partial
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger


class Events:
    """Standard error that may fail: a full disk under the log must not turn an accepted job into an error."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def write_events(program: str) -> None:
    """For the whole process. Tracebacks are plain: without the values of local variables, which may be secrets."""
    structlog.configure(
        processors=[
            partial(_name_program, program),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Events())),
        cache_logger_on_first_use=True,
    )


def _name_program(program: str, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["program"] = program
    return event
