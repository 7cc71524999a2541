"""The events that both programs write to standard error, named `noun.verb`: lines of JSON, or of text for people.

Whoever changes a state writes its event once. No event holds a script, an environment or a token.
"""

import contextlib
import os
import sys
from functools import partial
from typing import TextIO, cast

import structlog
from structlog.dev import plain_traceback
from structlog.typing import EventDict, Processor, WrappedLogger

from roost.settings import LogFormat


class Events:
    """Standard error that may fail: a full disk under the log must not turn an accepted job into an error."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def write_events(program: str, wanted: LogFormat = "json") -> None:
    """For the whole process. Tracebacks are plain: without the values of local variables, which may be secrets."""
    terminal = sys.stderr.isatty()
    as_text = wanted == "text" or (wanted == "auto" and terminal)
    structlog.configure(
        processors=[
            partial(_name_program, program),
            structlog.processors.add_log_level,
            *(_text(colors=terminal and "NO_COLOR" not in os.environ) if as_text else _json()),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Events())),
        cache_logger_on_first_use=True,
    )


def _name_program(program: str, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["program"] = program
    return event


def _json() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]


def _text(*, colors: bool) -> list[Processor]:
    """`23:58:27 [info     ] sandbox.state   id='…' program='node'`; the journal has the time itself."""
    timed: list[Processor] = [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        pad_event_to=24,
        repr_native_str=True,  # what guests choose, with its control characters made visible
        exception_formatter=plain_traceback,
    )
    journal = "JOURNAL_STREAM" in os.environ
    return [*([] if journal else timed), structlog.processors.format_exc_info, _visible, renderer]


def _visible(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A traceback may quote what a guest sent."""
    if isinstance(text := event.get("exception"), str):
        event["exception"] = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return event
