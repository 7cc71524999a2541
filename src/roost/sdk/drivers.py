"""Does what the calls of `wire.py` ask for, by httpx2: `SyncClient` in the caller's thread, `AsyncClient` by asyncio.

`method` and `streamed` make a call a method of both: on the first it returns the result, on the second a coroutine.
"""

import asyncio
import functools
import inspect
import time
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

import httpx2

from roost import __version__
from roost.sdk.access import find_access
from roost.sdk.errors import Invalid, RoostError, Unreachable
from roost.sdk.wire import Answer, Call, Effect, Emit, Flow, Json, Left, Open, Read, Request, Send, Tries, Wait

P = ParamSpec("P")
T = TypeVar("T")

UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Server:
    """Whose server it is, and how a request looks to httpx2."""

    def __init__(self, api_token: str | None, api_url: str | None, timeout: float, retries: int) -> None:
        self.url, self.token = find_access(api_url, api_token)
        self.timeout, self.retries = timeout, retries

    def options(self) -> dict[str, Any]:
        headers = {"User-Agent": f"roost-python/{__version__}"}
        return {"base_url": self.url, "headers": headers, "timeout": self.timeout}

    def arguments(self, request: Request) -> dict[str, Any]:
        """All but a body that is made of pieces."""
        headers = dict(request.headers)
        if request.origin is None:
            headers["Authorization"] = f"Bearer {self.token}"
        found: dict[str, Any] = {"method": request.method, "url": request.url, "headers": headers}
        if request.body is not None:
            headers |= {"Content-Type": request.body.kind, "Content-Length": str(request.body.size)}
        elif request.json is not None:
            found["json"] = request.json
        if request.timeout is not None:
            least = 0 if request.origin else self.timeout  # other servers are asked for as long as the call says
            found["timeout"] = httpx2.Timeout(self.timeout, read=max(request.timeout, least))
        return found

    @contextmanager
    def errors(self) -> Generator[None]:
        """Those of httpx2, as ours."""
        try:
            yield
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise Invalid(f"{self.url!r} is no URL ({error}); write it like http://127.0.0.1:8484") from error
        except httpx2.RequestError as error:
            reason = "no answer in time" if isinstance(error, httpx2.TimeoutException) else str(error) or repr(error)
            text = f"cannot reach {self.url} ({reason}); is Roost running, and MAGS_API_URL its address?"
            raise Unreachable(text, sent=not isinstance(error, UNSENT)) from error


class Client:
    """What the clients share.

    Without arguments the token and URL are those of the environment (MAGS_API_TOKEN, MAGS_API_URL and the like), else
    of `roost login`, else of the instance on this machine. `timeout` is in seconds without a byte from the server;
    `retries` is how often a call is made again where that is safe.
    """

    def __init__(
        self, api_token: str | None = None, api_url: str | None = None, timeout: float = 30, *, retries: int = 3
    ) -> None:
        self._server = Server(api_token, api_url, timeout, retries)

    @property
    def api_url(self) -> str:
        return self._server.url

    @property
    def api_token(self) -> str:
        return self._server.token

    @property
    def timeout(self) -> float:
        return self._server.timeout

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.api_url!r})"


class SyncClient(Client):
    """Safe to share between threads. Close it, or use it in `with`."""

    def __init__(
        self, api_token: str | None = None, api_url: str | None = None, timeout: float = 30, *, retries: int = 3
    ) -> None:
        super().__init__(api_token, api_url, timeout, retries=retries)
        with self._server.errors():
            self._http = httpx2.Client(**self._server.options())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def line(self) -> "SyncLine":
        return SyncLine(self._server, self._http)

    def do(self, call: Call[T]) -> T:
        """Drive a call to its result."""
        with self.line() as line:
            answer, failure = None, None
            while True:
                try:
                    effect = call.throw(failure) if failure else call.send(answer)
                except StopIteration as end:
                    return cast(T, end.value)
                except Left as left:
                    raise left.__cause__ or left from None
                answer, failure = _outcome(line, effect)


def _outcome(line: "SyncLine", effect: Effect) -> tuple[Any, RoostError | Left | None]:
    try:
        return line.perform(effect), None
    except RoostError as error:
        return None, error
    except KeyboardInterrupt as interrupt:
        return None, _left(interrupt)


def _left(cause: BaseException) -> Left:
    left = Left()
    left.__cause__ = cause
    return left


class SyncLine:
    """One call's connection: at most one answer is open."""

    def __init__(self, server: Server, http: httpx2.Client) -> None:
        self._server, self._http = server, http
        self._answer: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._answer is not None:
            self._answer.close()

    def perform(self, effect: Effect) -> Any:
        if isinstance(effect, Wait):
            return time.sleep(effect.seconds)
        if isinstance(effect, Tries):
            return self._server.retries
        with self._server.errors():
            return next(self._pieces, b"") if isinstance(effect, Read) else self._exchange(effect)

    def _exchange(self, effect: Send | Open) -> Answer:
        self._close()
        arguments = self._server.arguments(effect.request)
        if effect.request.body is not None:
            arguments["content"] = effect.request.body.pieces()
        answer = self._answer = self._http.send(self._http.build_request(**arguments), stream=True)
        if isinstance(effect, Open) and answer.is_success:
            self._pieces = answer.iter_bytes()
            return Answer(answer.status_code, answer.headers, b"")
        return Answer(answer.status_code, answer.headers, answer.read())


class Stream(Iterator[T]):
    """Items as they come. `end` is what the server said last, None before that. Close it, or use it in `with`."""

    def __init__(self, line: SyncLine, flow: Flow[T]) -> None:
        self.end: Json = None
        self._items = self._iterate(line, flow)

    def _iterate(self, open_line: SyncLine, flow: Flow[T]) -> Generator[T]:
        with open_line as line:
            answer, failure = None, None
            while True:
                try:
                    effect = flow.throw(failure) if failure else flow.send(answer)
                except StopIteration as end:
                    self.end = end.value
                    return
                if isinstance(effect, Emit):
                    yield effect.value
                    answer, failure = None, None
                else:
                    answer, failure = _outcome(line, effect)

    def __next__(self) -> T:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._items.close()


class AsyncClient(Client):
    """Close it, or use it in `async with`."""

    def __init__(
        self, api_token: str | None = None, api_url: str | None = None, timeout: float = 30, *, retries: int = 3
    ) -> None:
        super().__init__(api_token, api_url, timeout, retries=retries)
        with self._server.errors():
            self._http = httpx2.AsyncClient(**self._server.options())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    def line(self) -> "AsyncLine":
        return AsyncLine(self._server, self._http)

    async def do(self, call: Call[T]) -> T:
        """Drive a call to its result."""
        async with self.line() as line:
            answer, failure = None, None
            while True:
                try:
                    effect = call.throw(failure) if failure else call.send(answer)
                except StopIteration as end:
                    return cast(T, end.value)
                except Left as left:
                    raise left.__cause__ or left from None
                answer, failure = await _async_outcome(line, effect)


async def _async_outcome(line: "AsyncLine", effect: Effect) -> tuple[Any, RoostError | Left | None]:
    try:
        return await line.perform(effect), None
    except RoostError as error:
        return None, error
    except (asyncio.CancelledError, KeyboardInterrupt) as cancelled:
        return None, _left(cancelled)


class AsyncLine:
    """As SyncLine."""

    def __init__(self, server: Server, http: httpx2.AsyncClient) -> None:
        self._server, self._http = server, http
        self._answer: httpx2.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _close(self) -> None:
        if self._answer is not None:
            await self._answer.aclose()

    async def perform(self, effect: Effect) -> Any:
        if isinstance(effect, Wait):
            return await asyncio.sleep(effect.seconds)
        if isinstance(effect, Tries):
            return self._server.retries
        with self._server.errors():
            if isinstance(effect, Read):
                return b"" if self._pieces is None else await anext(self._pieces, b"")
            return await self._exchange(effect)

    async def _exchange(self, effect: Send | Open) -> Answer:
        await self._close()
        arguments = self._server.arguments(effect.request)
        if effect.request.body is not None:
            arguments["content"] = _aside(effect.request.body.pieces())
        answer = self._answer = await self._http.send(self._http.build_request(**arguments), stream=True)
        if isinstance(effect, Open) and answer.is_success:
            self._pieces = answer.aiter_bytes()
            return Answer(answer.status_code, answer.headers, b"")
        return Answer(answer.status_code, answer.headers, await answer.aread())


async def _aside(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Read in a thread: they may come from a file."""
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


class AsyncStream(AsyncIterator[T]):
    """As Stream, by `async for` and `async with`."""

    def __init__(self, line: AsyncLine, flow: Flow[T]) -> None:
        self.end: Json = None
        self._items = self._iterate(line, flow)

    async def _iterate(self, open_line: AsyncLine, flow: Flow[T]) -> AsyncGenerator[T]:
        async with open_line as line:
            answer, failure = None, None
            while True:
                try:
                    effect = flow.throw(failure) if failure else flow.send(answer)
                except StopIteration as end:
                    self.end = end.value
                    return
                if isinstance(effect, Emit):
                    yield effect.value
                    answer, failure = None, None
                else:
                    answer, failure = await _async_outcome(line, effect)

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._items.aclose()


# ---- calls as methods --------------------------------------------------------------------------------------------


class method(Generic[P, T]):
    """A call as a method. On a client it returns the result, on an asynchronous one a coroutine."""

    def __init__(self, call: Callable[P, Call[T]]) -> None:
        self._call = call

    @overload
    def __get__(self, client: SyncClient, owner: type | None = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type | None = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, owner: type | None = None) -> Callable[..., Any]: ...
    def __get__(self, client: SyncClient | AsyncClient | None, owner: type | None = None) -> Callable[..., Any]:
        call = cast("Callable[..., Call[T]]", self._call)

        def synchronous(client: SyncClient, /, *args: Any, **kwargs: Any) -> T:
            return client.do(call(*args, **kwargs))

        async def asynchronous(client: AsyncClient, /, *args: Any, **kwargs: Any) -> T:
            return await client.do(call(*args, **kwargs))

        kind = type(client) if client is not None else owner
        function = asynchronous if kind is not None and issubclass(kind, AsyncClient) else synchronous
        return _bound(function, call, client)


class streamed(Generic[P, T]):
    """A flow as a method, which returns a Stream or an AsyncStream."""

    def __init__(self, flow: Callable[P, Flow[T]]) -> None:
        self._flow = flow

    @overload
    def __get__(self, client: SyncClient, owner: type | None = None) -> Callable[P, Stream[T]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type | None = None) -> Callable[P, AsyncStream[T]]: ...
    @overload
    def __get__(self, client: None, owner: type | None = None) -> Callable[..., Any]: ...
    def __get__(self, client: SyncClient | AsyncClient | None, owner: type | None = None) -> Callable[..., Any]:
        flow = cast("Callable[..., Flow[T]]", self._flow)

        def stream(client: SyncClient | AsyncClient, /, *args: Any, **kwargs: Any) -> Stream[T] | AsyncStream[T]:
            kind = AsyncStream if isinstance(client, AsyncClient) else Stream
            return cast(Any, kind)(client.line(), flow(*args, **kwargs))

        return _bound(stream, flow, client)


def _bound(function: Callable[..., Any], call: Callable[..., Any], client: object) -> Callable[..., Any]:
    """With the name, words and parameters of the call."""
    functools.update_wrapper(function, call)
    shown = inspect.signature(call)
    arguments = typing.get_args(shown.return_annotation)
    shown = shown.replace(return_annotation=arguments[-1] if arguments else shown.empty)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    function.__signature__ = shown.replace(parameters=[itself, *shown.parameters.values()])  # type: ignore[attr-defined]
    return function if client is None else cast("Callable[..., Any]", function.__get__(client))
