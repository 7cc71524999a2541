"""How a command reaches the API: whose credentials it uses, and HTTP by the standard library, which starts fast.

Where the credentials come from is `credentials.py`'s. Every way in which a call can fail is a `RoostError` with the
cure in its text.
"""

import functools
import http.client
import json
import urllib.parse
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from roost.cli.screen import ServerOption
from roost.credentials import find_credentials
from roost.errors import Conflict, Invalid, NotFound, RoostError, Unauthenticated
from roost.instance import Credentials

TIMEOUT = 30.0  # seconds, to connect and for one answer
MAX_ANSWER = 64 * 1024 * 1024  # bytes of one JSON answer
RETRIED = (502, 503, 504)

# The API's answers are dictionaries whose keys this program reads one by one
Json = Any

T = TypeVar("T")


class Interrupted(Exception):
    """The connection broke, or the server is away for now; the same call may be made again."""


class Api:
    """One server and token. Each call opens a connection of its own."""

    def __init__(self, credentials: Credentials) -> None:
        url = urllib.parse.urlsplit(credentials.api_url.rstrip("/"))
        if url.scheme not in ("http", "https") or not url.hostname:
            raise Invalid(f"{credentials.api_url!r} is no URL; write it like http://127.0.0.1:8484")
        self.url = credentials.api_url
        self._secure = url.scheme == "https"
        self._host, self._port, self._prefix = url.hostname, url.port, url.path
        self._token = credentials.api_token

    def call(self, method: str, path: str, body: Json = None, timeout: float = TIMEOUT) -> Json:
        """The decoded answer; RoostError with the server's own words, or with how to reach it."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with self.stream(method, path, data, timeout=timeout) as answer:
                return json.loads(answer.read(MAX_ANSWER) or b"{}")
        except Interrupted as error:
            raise RoostError(str(error)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RoostError(f"the answer of {self.url} broke off ({error}); try again") from error

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = TIMEOUT,
    ) -> Generator[http.client.HTTPResponse]:
        """A successful answer whose body is still to be read; Interrupted where trying again may help."""
        connection = self._connection(timeout)
        known = {"Authorization": f"Bearer {self._token}", "User-Agent": "roost-cli"}
        known["Content-Type"] = "application/json" if isinstance(body, bytes) else "application/octet-stream"
        try:
            try:
                connection.request(method, self._prefix + path, body=body, headers=known | (headers or {}))
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise Interrupted(_unreachable(self.url, error)) from error
            if answer.status >= 400:
                raise _refusal(answer)
            yield answer
        finally:
            connection.close()

    def websocket(self, path: str) -> tuple[str, dict[str, str]]:
        """Address and headers of one."""
        host = f"[{self._host}]" if ":" in (self._host or "") else self._host
        port = f":{self._port}" if self._port else ""
        url = f"{'wss' if self._secure else 'ws'}://{host}{port}{self._prefix}{path}"
        return url, {"Authorization": f"Bearer {self._token}", "User-Agent": "roost-cli"}

    def _connection(self, timeout: float | None) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout)


def _unreachable(url: str, error: Exception) -> str:
    reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
    cure = "`sudo roost up` starts it, MAGS_API_URL or --api-url name another"
    return f"cannot reach {url} ({reason}); is Roost running? {cure}"


def _refusal(answer: http.client.HTTPResponse) -> Exception:
    """The server's `{"error": text}`, as the condition that its status stands for."""
    raw = answer.read(65536).decode("utf-8", "replace")
    try:
        text = str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the server answered {answer.status} {answer.reason}"
    if answer.status in RETRIED:
        return Interrupted(text)
    if answer.status == 401:
        cure = "`roost login`, or check MAGS_API_TOKEN and --token"
        return Unauthenticated(f"{text}; {cure}")
    if answer.status == 403 and "scope admin" in text:
        text += "; `roost login --scope admin` asks for it"
    return {404: NotFound, 409: Conflict}.get(answer.status, Invalid)(text)


def server_options(*names: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Options by which a command finds its server; the command is called with an `Api` as its first argument.

    `names` are those of the URL's option.
    """

    def decorated(command: Callable[..., T]) -> Callable[..., T]:
        @click.option(*names, "url", cls=ServerOption, metavar="URL", help="The API's address; also in MAGS_API_URL.")
        @click.option("--token", cls=ServerOption, help="An API token; also in MAGS_API_TOKEN.")
        @click.option(
            "--state", cls=ServerOption, type=click.Path(path_type=Path), metavar="DIR", help="Of a local instance."
        )
        @functools.wraps(command)
        def with_api(*args: Any, url: str | None, token: str | None, state: Path | None, **kwargs: Any) -> T:
            return command(Api(find_credentials(url, token, state)), *args, **kwargs)

        return with_api

    return decorated


api_options = server_options("--api-url", "--url")
