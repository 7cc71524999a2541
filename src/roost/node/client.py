"""The control plane's side of the node protocol: one method per call of `protocol.py`.

Every method may be called again after NodeUnavailable. Errors that the node tells arrive as the conditions they were.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from roost import errors
from roost.node.protocol import (
    HEADER,
    LENGTH,
    MAX_STREAM_MESSAGE,
    VERSION,
    BuildImage,
    Event,
    Exec,
    ExecResult,
    Fault,
    Image,
    LogRecord,
    NodeInfo,
    Progress,
    PullImage,
    SandboxState,
    StartSandbox,
    StopSandbox,
    Wire,
)

T = TypeVar("T")
ANSWER = aiohttp.ClientTimeout(total=120, sock_connect=5)  # seconds; a start may wait for a member to be made
STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5)
_encode = msgspec.msgpack.Encoder().encode


class NodeClient:
    """Enter it before use; leaving closes its connections."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(path=str(self._socket), limit=0)
        self._session = aiohttp.ClientSession(
            "http://node", connector=connector, headers={HEADER: str(VERSION)}, timeout=ANSWER
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def info(self) -> NodeInfo:
        return await self._call("GET", "/v1/node", NodeInfo)

    async def start(self, id: str, request: StartSandbox) -> SandboxState:
        """Returns when the script runs. Raises NoCapacity, NotFound (image)."""
        return await self._call("PUT", f"/v1/sandboxes/{id}", SandboxState, request)

    async def state(self, id: str) -> SandboxState:
        return await self._call("GET", f"/v1/sandboxes/{id}", SandboxState)

    async def stop(self, id: str, request: StopSandbox) -> SandboxState:
        """Returns when the sandbox is gone."""
        return await self._call("POST", f"/v1/sandboxes/{id}/stop", SandboxState, request)

    async def forget(self, id: str) -> None:
        await self._call("DELETE", f"/v1/sandboxes/{id}", None)

    async def exec(self, id: str, request: Exec) -> ExecResult:
        timeout = aiohttp.ClientTimeout(total=request.timeout_seconds + 30, sock_connect=5)
        return await self._call("POST", f"/v1/sandboxes/{id}/exec", ExecResult, request, timeout)

    async def log(self, id: str, after: int = 0, follow: bool = False) -> AsyncIterator[LogRecord]:
        """With `follow`, until the sandbox's log is complete. Close the iterator to stop earlier."""
        path = f"/v1/sandboxes/{id}/log?after={after}&follow={int(follow)}"
        async for record in self._stream("GET", path, LogRecord):
            yield record

    async def remove_log(self, id: str) -> None:
        await self._call("DELETE", f"/v1/sandboxes/{id}/log", None)

    async def events(self) -> AsyncIterator[Event]:
        """Every sandbox, Snapshot, then each change; ends when the node goes."""
        async for event in self._stream("GET", "/v1/events", Event):
            yield event

    async def images(self) -> list[Image]:
        return await self._call("GET", "/v1/images", list[Image])

    async def pull_image(self, name: str, request: PullImage) -> AsyncIterator[Progress]:
        async for progress in self._stream("POST", f"/v1/images/{name}/pull", Progress, _encode(request)):
            yield progress

    async def build_image(self, name: str, request: BuildImage) -> AsyncIterator[Progress]:
        async for progress in self._stream("POST", f"/v1/images/{name}/build", Progress, _encode(request)):
            yield progress

    async def import_image(self, name: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[Progress]:
        async for progress in self._stream("POST", f"/v1/images/{name}/import", Progress, chunks):
            yield progress

    async def remove_image(self, name: str) -> None:
        await self._call("DELETE", f"/v1/images/{name}", None)

    # transport

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[T] | None,
        body: Wire | None = None,
        timeout: aiohttp.ClientTimeout = ANSWER,
    ) -> T:
        data = None if body is None else _encode(body)
        async with self._requested(method, path, data, timeout) as response:
            content = await response.read()
        return msgspec.msgpack.decode(content, type=answer) if answer else None  # type: ignore[return-value]

    async def _stream(self, method: str, path: str, kind: type[T], body: Any = None) -> AsyncIterator[T]:
        decoder = msgspec.msgpack.Decoder(kind)
        async with self._requested(method, path, body, STREAM) as response:
            while True:
                try:
                    (length,) = LENGTH.unpack(await response.content.readexactly(LENGTH.size))
                except EOFError:
                    return
                if length > MAX_STREAM_MESSAGE:
                    raise errors.NodeUnavailable(f"the node sent a message of {length} bytes")
                yield decoder.decode(await response.content.readexactly(length))

    @asynccontextmanager
    async def _requested(
        self, method: str, path: str, body: Any, timeout: aiohttp.ClientTimeout
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        assert self._session
        try:
            async with self._session.request(method, path, data=body, timeout=timeout) as response:
                if response.status >= 400:
                    raise await _condition(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError, EOFError, msgspec.DecodeError) as error:
            raise errors.NodeUnavailable(f"the node does not answer: {error!r}") from error


async def _condition(response: aiohttp.ClientResponse) -> Exception:
    fault = msgspec.msgpack.decode(await response.read(), type=Fault)
    condition = getattr(errors, fault.kind, errors.RoostError)
    return condition(fault.message)
