"""A job's output as it comes, byte for byte: reads the server-sent events of `:id/logs?follow=true&raw=true`.

A connection that breaks is opened again with the last event's id, so nothing is shown twice or left out. The
reader is bounded: a line or event longer than the server ever sends ends the command with an error.
"""

import base64
import http.client
import json
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from roost.cli.connection import Api, Interrupted, Json
from roost.errors import RoostError

MAX_LINE = 4 * 1024 * 1024  # bytes; a log record is at most 1 MiB before base64
PATIENCE = 60.0  # seconds without a server before giving up; a restart takes a few
SILENCE = 60.0  # seconds; the server sends a comment more often than that


@dataclass(frozen=True)
class Ending:
    """How a job ended. exit_code None: it was lost, `error` says how."""

    status: str
    exit_code: int | None
    error: str | None


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    name: str
    id: str
    data: str


def follow(api: Api, path: str, show: Callable[[str, bytes], None], last: int = 0) -> Ending:
    """Give every record behind `last` to `show(source, data)`, and return when the job has ended."""
    deadline = time.monotonic() + PATIENCE
    pause = 0.05
    while True:
        try:
            for message in _messages(api, path, last):
                deadline, pause = time.monotonic() + PATIENCE, 0.05
                if message.name == "comment":
                    continue
                if message.name == "end":
                    return _ending(json.loads(message.data))
                record = json.loads(message.data)
                if int(record["seq"]) > last:
                    last = int(record["seq"])
                    show(_source(record), base64.b64decode(record["data"]))
        except (Interrupted, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                raise RoostError(f"lost sight of the job, which may go on: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            text = f"{api.url} sent an event that is not understood ({error!r}); is it a Roost of this version?"
            raise RoostError(text) from error
        time.sleep(pause)
        pause = min(1.0, pause * 2)


def _messages(api: Api, path: str, last: int) -> Generator[Message]:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last)} if last else {})
    with api.stream("GET", f"{path}?follow=true&raw=true", headers=headers, timeout=SILENCE) as answer:
        yield from parse(answer)


def parse(lines: http.client.HTTPResponse) -> Generator[Message]:
    """The events of a stream, up to where it ends or breaks off; an unfinished one is dropped.

    A comment is a Message of that name: it says that the server is alive.
    """
    name, identity, data = "", "", list[str]()
    while line := lines.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
        field, _, value = line.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "id":
            identity = value
        elif field == "data":
            data.append(value)
        elif line.startswith(b":"):
            yield Message("comment", "", value)
        elif line in (b"\n", b"\r\n"):
            if data:
                yield Message(name or "message", identity, "\n".join(data))
            name, data = "", []


def _source(record: Json) -> str:
    """Roost's own remarks go where the script's errors go."""
    return "stdout" if record["source"] == "stdout" else "stderr"


def _ending(values: Json) -> Ending:
    code = values.get("exit_code")
    error = values.get("error")
    if not isinstance(code, int) and not error:
        error = "the script's exit status was lost"
    return Ending(str(values["status"]), code if isinstance(code, int) else None, error)
