"""The REST API as the tools call it: asynchronous, one token each, one session's connections for all.

Every way in which a call can fail is a `RoostError` with the API's own words, which name the cure.
"""

import codecs
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from roost.errors import Conflict, Forbidden, Invalid, NotFound, RoostError, Throttled, Unauthenticated

TIMEOUT = 30.0  # seconds, for one answer
CONNECT = 10.0  # seconds
SILENCE = 60.0  # seconds; a followed log has a comment more often than that
JOBS = "/api/v1/mags-jobs"
WORKSPACES = "/api/v1/mags-workspaces"
CONDITIONS = {401: Unauthenticated, 403: Forbidden, 404: NotFound, 409: Conflict}

# The API's answers are dictionaries whose keys are read one by one
Json = Any


class Away(RoostError):
    """The server does not answer, or broke off; the same call may be made again."""


def job_path(job: str) -> str:
    """By a job's id, name or workspace."""
    return f"{JOBS}/{quote(job, safe='')}"


def file_path(workspace: str, path: str) -> str:
    return f"{WORKSPACES}/{quote(workspace, safe='')}/files/{quote(path.lstrip('/'), safe='/')}"


def session() -> aiohttp.ClientSession:
    """Of all callers: it keeps no cookies, and each call carries its own token."""
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), headers={"User-Agent": "roost-mcp"})


@dataclass(frozen=True)
class Event:
    """A server-sent event; without name and data it is a comment, which says that the server is alive."""

    name: str
    id: str
    data: str


@dataclass(frozen=True, repr=False)
class Api:
    """A server as one caller sees it."""

    session: aiohttp.ClientSession
    url: str
    token: str

    async def call(self, method: str, path: str, body: Json = None, timeout: float = TIMEOUT) -> Json:
        async with self.answer(method, path, json_body=body, timeout=timeout) as answer:
            return await answer.json(content_type=None)

    @asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        *,
        json_body: Json = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = TIMEOUT,
        accept: tuple[int, ...] = (),
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """A successful answer, or one of the statuses `accept`, whose body is still to be read.

        timeout None: as long as it says something.
        """
        limits = aiohttp.ClientTimeout(total=timeout, connect=CONNECT, sock_read=SILENCE if timeout is None else None)
        known = {"Authorization": f"Bearer {self.token}"} | (headers or {})
        try:
            async with self.session.request(
                method, URL(self.url.rstrip("/") + path, encoded=True), json=json_body, data=data, headers=known,
                timeout=limits, allow_redirects=False,
            ) as answer:  # fmt: skip
                if answer.status >= 300 and answer.status not in accept:
                    raise await _refusal(answer)
                yield answer
        except TimeoutError as error:
            raise Away(f"{self.url} did not answer in time; try again") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cure = "is Roost running? `sudo roost up` starts it, MAGS_API_URL or --api-url name another"
            raise Away(f"cannot reach {self.url} ({error}); {cure}") from error

    async def events(self, path: str, last: str) -> AsyncGenerator[Event]:
        """The server-sent events behind the one with id `last` ("": all), up to where the stream ends."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        async with self.answer("GET", path, headers=headers, timeout=None) as answer:
            name, identity, data = "", "", list[str]()
            async for raw in _lines(answer):
                field, _, value = raw.partition(":")
                value = value.removeprefix(" ")
                if field == "event":
                    name = value
                elif field == "id":
                    identity = value
                elif field == "data":
                    data.append(value)
                elif raw:
                    yield Event("", "", "")
                else:
                    if data:
                        yield Event(name or "message", identity, "\n".join(data))
                    name, data = "", []


async def _lines(answer: aiohttp.ClientResponse) -> AsyncGenerator[str]:
    """Whole lines, however long."""
    rest = bytearray()
    async for chunk in answer.content.iter_any():
        rest += chunk
        *lines, last = rest.split(b"\n") if b"\n" in chunk else [rest]
        rest = bytearray(last)
        for line in lines:
            yield line.decode()


async def elements(answer: aiohttp.ClientResponse, key: str) -> AsyncGenerator[Json]:
    """Those of the array `key`, which is the last thing of the answer, as they come: it is never held whole."""
    decode, parse = codecs.getincrementaldecoder("utf-8")().decode, json.JSONDecoder().raw_decode
    text, at, begun = "", 0, f'"{key}":['
    async for chunk in answer.content.iter_any():
        text, at = text[at:] + decode(chunk), 0
        if begun:
            if begun not in text:
                continue
            at, begun = text.index(begun) + len(begun), ""
        while True:
            at += text.startswith(",", at)
            try:
                value, at = parse(text, at)
            except ValueError:  # the rest of it is still to come, or this is the array's end
                break
            yield value


async def _refusal(answer: aiohttp.ClientResponse) -> RoostError:
    """The server's `{"error": text}`, as the condition that its status stands for."""
    try:
        text = str(json.loads(await answer.content.read(65536))["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the server answered {answer.status} {answer.reason}"
    if answer.status in (502, 503, 504):
        return Away(text)
    if answer.status == 429:
        return Throttled(text, int(answer.headers.get("Retry-After", "1")))
    return CONDITIONS.get(answer.status, Invalid)(text)
