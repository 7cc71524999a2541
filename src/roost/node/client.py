"""The control plane's side of the node protocol: one method per call of `protocol.py`.

Every method may be called again after NodeUnavailable. Errors that the node tells arrive as the conditions they were.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socket as Socket
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import yarl

from roost import errors
from roost.node.dialing import Dialling
from roost.node.protocol import (
    HEADER,
    LENGTH,
    MAX_STREAM_MESSAGE,
    VERSION,
    BuildImage,
    ChangeProcess,
    Check,
    Checked,
    Collect,
    Collected,
    Entry,
    Event,
    Exec,
    ExecResult,
    Fault,
    Freeze,
    Image,
    LogRecord,
    NodeInfo,
    ProcessState,
    Progress,
    PullImage,
    Revision,
    SandboxState,
    SaveRequest,
    StartProcess,
    StartSandbox,
    StopSandbox,
    Stored,
    Taken,
    Usage,
    Wire,
)
from roost.node.session_client import Session

T = TypeVar("T")
ANSWER = aiohttp.ClientTimeout(total=120, sock_connect=5)  # seconds; a start may wait for a member to be made
SAVE = aiohttp.ClientTimeout(total=3600, sock_connect=5)  # seconds; a first save may be many gigabytes
CHUNK = 256 * 1024  # bytes of a file's content passed on at a time
STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5)
REVISION_ID = 16  # characters
_encode = msgspec.msgpack.Encoder().encode


class NodeClient:
    """Enter it before use; leaving closes its connections."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None
        self._dialling = Dialling(socket.with_name("dial.sock"))

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(path=str(self._socket), limit=0)
        self._session = aiohttp.ClientSession(
            "http://node", connector=connector, headers={HEADER: str(VERSION)}, timeout=ANSWER
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dialling.close()
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

    async def freeze(self, id: str, request: Freeze) -> SandboxState:
        """Returns when every process stands still. Raises Conflict when it is not running."""
        return await self._call("POST", f"/v1/sandboxes/{id}/freeze", SandboxState, request)

    async def thaw(self, id: str) -> SandboxState:
        return await self._call("POST", f"/v1/sandboxes/{id}/thaw", SandboxState)

    async def dial(self, sandbox: str, port: int, host: str | None = None) -> Socket:
        """Connected from inside the sandbox, non-blocking; the caller closes it. `host` None: the sandbox itself.

        Raises Refused (nobody listens, or nothing came of it in the node's time), Conflict (not running, frozen),
        Invalid, NotFound.
        """
        return await self._dialling.ask(sandbox, port, host, listen=False)

    async def listen(self, sandbox: str, port: int, host: str) -> Socket:
        """Listening on 127.0.0.1, ::1, 0.0.0.0 or :: in the sandbox, non-blocking. Port 0: any free one.

        The caller closes it. Raises Conflict (the port is taken, not running, frozen), Invalid, NotFound.
        """
        return await self._dialling.ask(sandbox, port, host, listen=True)

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

    async def usage(self) -> list[Usage]:
        """Of every sandbox that the node knows, also of those that have ended."""
        return await self._call("GET", "/v1/usage", list[Usage])

    async def images(self) -> list[Image]:
        return await self._call("GET", "/v1/images", list[Image])

    async def pull_image(self, name: str, request: PullImage) -> AsyncIterator[Progress]:
        async for progress in self._stream("POST", _image(name) + "/pull", Progress, _encode(request)):
            yield progress

    async def build_image(self, name: str, request: BuildImage) -> AsyncIterator[Progress]:
        async for progress in self._stream("POST", _image(name) + "/build", Progress, _encode(request)):
            yield progress

    async def import_image(self, name: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[Progress]:
        async for progress in self._stream("POST", _image(name) + "/import", Progress, chunks):
            yield progress

    async def remove_image(self, name: str, unlisted: str = "") -> None:
        """unlisted: a content that no listed revision stands on. Raises Conflict while it is in use, NotFound."""
        await self._call("DELETE", f"{_image(name)}?unlisted={unlisted}", None)

    # processes

    async def start_process(self, id: str, number: int, request: StartProcess) -> ProcessState:
        """A kept one. The number is the caller's; the same again answers what became of it. Raises Conflict."""
        return await self._call("PUT", _process(id, number), ProcessState, request)

    async def processes(self, id: str) -> list[ProcessState]:
        """Those that run, and those that have ended and are not forgotten."""
        return await self._call("GET", f"/v1/sandboxes/{id}/processes", list[ProcessState])

    async def process(self, id: str, number: int) -> ProcessState:
        """Raises NotFound."""
        return await self._call("GET", _process(id, number), ProcessState)

    async def write_input(self, id: str, number: int, at: int, data: bytes) -> int:
        """The position behind what has been taken by now: perhaps less than all. Raises Conflict (a gap, ended)."""
        path = f"{_process(id, number)}/input?at={at}"
        async with self._requested("POST", path, data, ANSWER) as response:
            return msgspec.msgpack.decode(await response.read(), type=Taken).position

    async def write_to_script(self, id: str, at: int, data: bytes, end: bool) -> int:
        """As `write_input`, of the sandbox's script. Raises Conflict."""
        path = f"/v1/sandboxes/{id}/input?at={at}&end={int(end)}"
        async with self._requested("POST", path, data, ANSWER) as response:
            return msgspec.msgpack.decode(await response.read(), type=Taken).position

    async def change_process(self, id: str, number: int, change: ChangeProcess) -> ProcessState:
        return await self._call("POST", f"{_process(id, number)}/change", ProcessState, change)

    async def process_output(
        self, id: str, number: int, after: int = 0, follow: bool = False
    ) -> AsyncIterator[LogRecord]:
        """With `follow`, until the process has ended. Close the iterator to stop earlier."""
        path = f"{_process(id, number)}/output?after={after}&follow={int(follow)}"
        async for record in self._stream("GET", path, LogRecord):
            yield record

    async def remove_process(self, id: str, number: int) -> None:
        """Killed if it runs, and forgotten with its output."""
        await self._call("DELETE", _process(id, number), None)

    @asynccontextmanager
    async def session(self, id: str, process: StartProcess) -> AsyncGenerator[Session]:
        """One process that lives as long as the block. Raises Conflict (not running, frozen, not executable)."""
        assert self._session
        path, limit = f"/v1/sandboxes/{id}/session", aiohttp.ClientWSTimeout(ws_close=1.0)  # pyright: ignore[reportCallIssue]
        try:
            connection = await self._session.ws_connect(path, timeout=limit, max_msg_size=MAX_STREAM_MESSAGE)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise errors.NodeUnavailable(f"the node does not answer: {errors.said(error)}") from error
        session = Session(connection)
        try:
            await session.start(process)
            yield session
        finally:
            await session.close()

    # revisions and files

    async def save(self, id: str, request: SaveRequest) -> Revision:
        """Saves the sandbox as it is now; returns when that is durable."""
        return await self._call("POST", f"/v1/sandboxes/{id}/save", Revision, request, SAVE)

    async def revision(self, id: str, account: int) -> Revision:
        """Raises NotFound."""
        return await self._call("GET", f"/v1/revisions/{id}?account={account}", Revision)

    async def check(self, request: Check) -> Checked:
        """Looks at every byte if asked to, which takes as long as reading them."""
        return await self._call("POST", "/v1/revisions/check", Checked, request, SAVE)

    async def unsaved(self) -> list[Revision]:
        """What could not be saved yet, of all accounts."""
        return await self._call("GET", "/v1/unsaved", list[Revision])

    async def recover(self, id: str) -> Revision:
        """Saves now what could not be saved before. Raises Unsaved with why it still cannot, NotFound."""
        return await self._call("POST", f"/v1/revisions/{id}/recover", Revision, None, SAVE)

    async def collect(
        self, live: dict[int, list[str]], reserved: list[str], before_ns: int, images: list[str] | None = None
    ) -> Collected:
        """`live` must hold, by account, every revision made before `before_ns` that anybody may still want.

        images: ids of the contents that they stand on; None where not all are known.
        """
        wanted = Collect(live=live, before_ns=before_ns, reserved=reserved, images=images)
        return await self._call("POST", "/v1/revisions/collect", Collected, wanted, SAVE)

    async def put_file(self, id: str, chunks: AsyncIterator[bytes], limit: int) -> int:
        """Keeps an upload; its size. Raises TooLarge, and whatever `chunks` raises; nothing is kept then."""
        return (await self._send(f"/v1/files/{id}?limit={limit}", chunks, Stored)).size

    async def remove_file(self, id: str) -> None:
        """Removing what is not there is no error."""
        await self._call("DELETE", f"/v1/files/{id}", None)

    async def list_files(self, where: str, account: int, path: str) -> AsyncIterator[Entry]:
        """What `path` leads to, then, if that is a directory, what is in it. Raises NotFound.

        `where` is a sandbox's id or a revision's; `path` is relative to the root, its bytes as `os.fsdecode` has them.
        """
        async for entry in self._stream("GET", _file(where, path, f"view=list&account={account}"), Entry):
            yield entry

    async def read_file(self, where: str, account: int, path: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`. Raises NotFound, Invalid for what is no file."""
        asked = f"view=content&start={start}&end={end}&account={account}"
        async for chunk in self._content(_file(where, path, asked)):
            yield chunk

    async def tar(self, where: str, account: int, path: str) -> AsyncIterator[bytes]:
        async for chunk in self._content(_file(where, path, f"view=tar&account={account}")):
            yield chunk

    async def write_file(self, sandbox: str, path: str, chunks: AsyncIterator[bytes], mode: int | None) -> None:
        """Replaces a file whole or not at all; without `mode` it keeps its own, or gets 0644.

        Raises Invalid for a directory, or a path through a file.
        """
        await self._send(_file(sandbox, path, _mode(mode)), chunks, None)

    async def delete_file(self, sandbox: str, path: str) -> None:
        await self._call("DELETE", _file(sandbox, path, ""), None)

    async def edit(
        self, revision: str, save: SaveRequest, path: str, chunks: AsyncIterator[bytes] | None, mode: int | None = None
    ) -> Revision:
        """A new revision, in which the file has these bytes or, without any, is gone. Raises NotFound, Invalid."""
        asked = f"revision={save.revision}&account={save.account}&upload={int(save.upload)}"
        if chunks is None:
            return await self._call("DELETE", _file(revision, path, asked), Revision, timeout=SAVE)
        return await self._send(_file(revision, path, "&".join(filter(None, (_mode(mode), asked)))), chunks, Revision)

    # transport

    async def _send(self, path: str, chunks: AsyncIterator[bytes], answer: type[T] | None) -> T:
        """PUTs a stream of bytes. What the stream itself raises is raised here as it is."""
        outgoing = _Outgoing(chunks)
        try:
            async with self._requested("PUT", path, outgoing.chunks(), SAVE) as response:
                content = await response.read()
        except errors.NodeUnavailable:
            if outgoing.error is not None:
                raise outgoing.error from None
            raise
        return msgspec.msgpack.decode(content, type=answer) if answer else None  # type: ignore[return-value]

    async def _content(self, path: str) -> AsyncIterator[bytes]:
        async with self._requested("GET", path, None, STREAM) as response:
            async for chunk in response.content.iter_chunked(CHUNK):
                yield chunk

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
            url = yarl.URL(path, encoded=True)  # a path in a guest may hold any bytes, and is quoted already
            async with self._session.request(method, url, data=body, timeout=timeout) as response:
                if response.status >= 400:
                    raise await _condition(response)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError, EOFError, msgspec.DecodeError) as error:
            raise errors.NodeUnavailable(f"the node does not answer: {errors.said(error)}") from error


class _Outgoing:
    """A stream on its way to the node that remembers how it failed, which the HTTP client would only paraphrase."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.error: Exception | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield chunk
        except Exception as error:
            self.error = error
            raise


def _image(name: str) -> str:
    return f"/v1/images/{quote(name, safe='')}"


def _process(id: str, number: int) -> str:
    return f"/v1/sandboxes/{id}/processes/{number}"


def _mode(mode: int | None) -> str:
    return "" if mode is None else f"mode={mode}"


def _file(where: str, path: str, query: str) -> str:
    """The call's path. Ids of sandboxes have 8 characters, those of revisions 16."""
    place = "revisions" if len(where) == REVISION_ID else "sandboxes"
    parts = quote(path, safe="/", errors="surrogateescape").split("/")
    quoted = "/".join(part.replace(".", "%2E") if part in (".", "..") else part for part in parts)  # yarl would resolve
    return f"/v1/{place}/{where}/files/{quoted}?{query}"


async def _condition(response: aiohttp.ClientResponse) -> Exception:
    fault = msgspec.msgpack.decode(await response.read(), type=Fault)
    condition = getattr(errors, fault.kind, errors.RoostError)
    return condition(fault.message)
