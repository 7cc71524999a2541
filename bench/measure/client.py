"""An HTTP client that costs little, so that two CPUs measure Roost and not it: asyncio streams, kept connections.

One job is two requests on one connection: the submission, then its log as server-sent events up to `end`. All times
are of this process's monotonic clock and count from the moment before the submission is written.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

JOB_SECONDS = 120  # the longest that one job may take; none comes near unless something is broken
JOBS = "/api/v1/mags-jobs"
FINAL = ("completed", "error")

MARKS = ("post_ms", "first_ms", "end_ms")


@dataclass(frozen=True)
class Timing:
    """One job, in milliseconds since its submission began; `error` tells what went wrong, None: nothing."""

    post_ms: float | None = None  # the 202 was read
    first_ms: float | None = None  # its first output line was read
    end_ms: float | None = None  # the end event was read
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Unexpected(Exception):
    """An answer other than the one that a working Roost gives."""


class Connection:
    """HTTP/1.1 on one connection, one request after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader, self._writer = reader, writer
        self._head = f"Host: roost\r\nAuthorization: Bearer {token}\r\n"

    def close(self) -> None:
        self._writer.close()

    @property
    def ended(self) -> bool:
        """Whether the server has closed it, as it does with those that idle."""
        return self._reader.at_eof()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded JSON answer. Raises Unexpected for any status but 2xx."""
        self._send(method, path, body)
        headers = await self._answer_head(path)
        return json.loads(await self._reader.readexactly(int(headers["content-length"])))

    async def events(self, path: str) -> AsyncIterator[dict[str, str]]:
        """Server-sent events, each as its fields, until the stream ends."""
        self._send("GET", path, None)
        headers = await self._answer_head(path)
        if headers.get("transfer-encoding") != "chunked":
            raise Unexpected(f"{path}: a stream without chunks")
        pending = b""
        while size := int(await self._reader.readline(), 16):
            pending += (await self._reader.readexactly(size + 2))[:-2]
            *whole, pending = pending.split(b"\n\n")
            for event in whole:
                yield dict(line.split(": ", 1) for line in event.decode().split("\n") if not line.startswith(":"))
        await self._reader.readline()

    def _send(self, method: str, path: str, body: Any) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        extra = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if method == "POST" else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{extra}\r\n".encode() + content)

    async def _answer_head(self, path: str) -> dict[str, str]:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        if not status.split()[1].startswith("2"):
            said = await self._reader.read(int(headers.get("content-length", 0)))
            raise Unexpected(f"{path}: {status}: {said.decode(errors='replace')}")
        return headers


class Client:
    """Takes an idle connection or opens one, as clients of a busy program do."""

    def __init__(self, api_url: str, token: str) -> None:
        where = urlsplit(api_url)
        self._host, self._port, self._token = where.hostname, where.port, token
        self._idle: deque[Connection] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._idle:
            connection.close()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        async with asyncio.timeout(JOB_SECONDS):
            connection = await self._take()
            answer = await connection.call(method, path, body)
            self._idle.append(connection)
            return answer

    async def run(self, script: str, **fields: Any) -> None:
        """To its end. Raises Unexpected unless it completes."""
        accepted = await self.call("POST", JOBS, {"script": script, **fields})
        async with asyncio.timeout(JOB_SECONDS):
            while (state := await self.call("GET", f"{JOBS}/{accepted['request_id']}/status"))["status"] not in FINAL:
                await asyncio.sleep(0.05)
        if state["status"] != "completed":
            raise Unexpected(f"{script!r} ended as {state!r}")

    async def pool(self) -> dict[str, int]:
        return await self.call("GET", f"{JOBS}/pool-status")

    async def hello(self, begun: float | None = None, **fields: Any) -> Timing:
        """Run `echo hello` and see it; `begun`: what its times count from, for those that begin together.

        `fields` go with the submission.
        """
        began = time.perf_counter() if begun is None else begun
        marks: dict[str, float] = {}
        try:
            async with asyncio.timeout(JOB_SECONDS):
                connection = await self._take()
                await self._hello(connection, began, marks, fields)
                self._idle.append(connection)
        except (Unexpected, OSError, EOFError, ValueError, KeyError, TimeoutError) as error:
            return _timing(marks, f"{type(error).__name__}: {error}")
        return _timing(marks)

    async def _hello(
        self, connection: Connection, began: float, marks: dict[str, float], fields: dict[str, Any]
    ) -> None:
        accepted = await connection.call("POST", JOBS, {"script": "echo hello", **fields})
        marks["post_ms"] = _since(began)
        said: list[str] = []
        ended = False
        async for event in connection.events(f"{JOBS}/{accepted['request_id']}/logs?follow=true"):
            if event.get("event") == "end":
                marks["end_ms"] = _since(began)
                _check(said, json.loads(event["data"]))
                ended = True
            elif "data" in event:
                marks.setdefault("first_ms", _since(began))
                said.append(json.loads(event["data"])["message"])
        if not ended:
            raise Unexpected(f"the log ended early, after {said!r}")

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.ended:
                return connection
            connection.close()
        return Connection(*await asyncio.open_connection(self._host, self._port), self._token)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _timing(marks: dict[str, float], error: str | None = None) -> Timing:
    return Timing(marks.get("post_ms"), marks.get("first_ms"), marks.get("end_ms"), error)


def _check(said: list[str], end: dict[str, Any]) -> None:
    if said != ["hello"] or end["status"] != "completed" or end["exit_code"] != 0:
        raise Unexpected(f"it said {said!r} and ended as {end!r}")
