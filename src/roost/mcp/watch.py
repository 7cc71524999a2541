"""A script that somebody waits for: its lines are told as progress while it runs, and what it wrote in the end.

Waiting has an end of its own; the job goes on. A call that its caller cancels stops the job, as Ctrl-C does at a
terminal, unless the sandbox was to stay.
"""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from roost.errors import RoostError
from roost.mcp.api import Api, Away, Json, elements, job_path
from roost.mcp.excerpt import Excerpt, Window

INTERVAL = 0.1  # seconds between two reports, so that a flood of lines is few messages
LOOK_AGAIN = 0.2  # seconds
PATIENCE = 60.0  # seconds without a server; a restart takes a few
STOP_WITHIN = 25.0  # seconds
LONGEST = 2000  # characters of one report: its end

Tell = Callable[[float, str], Awaitable[None]]  # the number of lines up to now, and the newest of them


@dataclass
class Watch:
    """One job and who waits for it."""

    api: Api
    job: str
    tell: Tell
    _lines: int = 0
    _untold: list[str] = field(default_factory=list[str])
    _news: anyio.Event = field(default_factory=anyio.Event)

    async def end(self, within: float, stays: bool) -> None:
        """Returns when the script is over, or `within` seconds are. Raises RoostError."""
        failed: RoostError | None = None
        try:
            with anyio.move_on_after(within):
                async with anyio.create_task_group() as group:
                    group.start_soon(self._report)
                    if stays:
                        group.start_soon(self._follow)
                        await self._script_over()
                    else:
                        await self._follow()
                    group.cancel_scope.cancel()
            await self._tell()
        except* RoostError as several:
            failed = next(one for one in several.exceptions if isinstance(one, RoostError))
        if failed:
            raise failed

    async def _script_over(self) -> None:
        """Of a sandbox that stays."""
        while True:
            status = await self.api.call("GET", f"{job_path(self.job)}/status")
            if status.get("exit_code") is not None or status["status"] in ("completed", "error", "sleeping"):
                return
            await anyio.sleep(LOOK_AGAIN)

    async def _follow(self) -> None:
        """Until the job has ended. A connection that breaks is opened again behind the last line."""
        last, deadline = "", time.monotonic() + PATIENCE
        while True:
            try:
                async for event in self.api.events(f"{job_path(self.job)}/logs?follow=true", last):
                    deadline = time.monotonic() + PATIENCE
                    if event.name == "end":
                        return
                    if event.data:
                        last = event.id
                        self._add(json.loads(event.data)["message"])
            except Away:
                if time.monotonic() > deadline:
                    raise
            await anyio.sleep(LOOK_AGAIN)

    def _add(self, line: str) -> None:
        self._lines += 1
        self._untold = [*self._untold[-200:], line[-LONGEST:]]
        self._news.set()

    async def _report(self) -> None:
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await self._tell()
            await anyio.sleep(INTERVAL)

    async def _tell(self) -> None:
        if self._untold:
            lines, self._untold = self._untold, []
            await self.tell(self._lines, "\n".join(lines)[-LONGEST:])


async def stop_quietly(api: Api, job: str) -> None:
    """For whom nobody waits any more: whatever happens to the caller, and without an answer."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(STOP_WITHIN):
        try:
            await api.call("POST", f"{job_path(job)}/stop")
        except RoostError:
            return  # its time limit ends it


async def read_log(api: Api, job: str, into: Excerpt | Window) -> None:
    """All that it wrote up to now, line by line."""
    async with api.answer("GET", f"{job_path(job)}/logs", timeout=None) as answer:
        async for line in elements(answer, "logs"):
            into.add(_text(line))


def _text(line: Json) -> str:
    return f"{line['message']}\n"
