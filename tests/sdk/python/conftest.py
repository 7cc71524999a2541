"""A control plane with a node in memory, served on a real port by a thread of its own; and both clients of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from roost import AsyncRoost, Roost
from roost.api.timing import Timed
from roost.sdk import AsyncStream
from tests.jobs.memory_node import until
from tests.served import served
from tests.workspaces.conftest import TOKEN, Plane, control_plane


@dataclass
class World:
    """`do` runs a coroutine, or calls a function, where the control plane runs."""

    url: str
    plane: Plane
    loop: asyncio.AbstractEventLoop

    def begin(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def do(self, work: Coroutine[Any, Any, Any] | Callable[[], Any]) -> Any:
        async def called() -> Any:
            return work() if callable(work) else await work

        return self.begin(called()).result(20)

    async def _next(self, known: set[str]) -> str:
        await until(lambda: len(self.plane.node.requests) > len(known))
        (vm_id,) = set(self.plane.node.requests) - known
        return vm_id

    def next_job(self) -> Callable[[], str]:
        """Call it before a job is submitted, and what it gives afterwards: that job's sandbox."""
        work = self.begin(self._next(set(self.plane.node.requests)))
        return lambda: work.result(20)

    def ends_next(self, text: bytes = b"", exit_code: int = 0) -> None:
        """The script of the next job says this and ends."""

        async def end(known: set[str]) -> None:
            vm_id = await self._next(known)
            if text:
                self.plane.node.say(vm_id, text)
            self.plane.node.end(vm_id, exit_code=exit_code)

        self.begin(end(set(self.plane.node.requests)))


@asynccontextmanager
async def _serving(directory: Path) -> AsyncIterator[tuple[str, Plane]]:
    async with control_plane(directory) as plane:
        app = Timed(plane.app, plane.app.state.durations)  # type: ignore[arg-type]
        async with served(app, ws="websockets-sansio") as url:
            yield url, plane


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    found: Future[World] = Future()
    leave = threading.Event()

    async def live() -> None:
        async with _serving(tmp_path_factory.mktemp("world")) as (url, plane):
            found.set_result(World(url, plane, asyncio.get_running_loop()))
            while not leave.is_set():
                await asyncio.sleep(0.02)

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as it is really served
                runner.run(live())
        except BaseException as error:
            if not found.done():
                found.set_exception(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found.result(60)
    finally:
        leave.set()
        thread.join(30)


class Awaited:
    """An asynchronous client, whose every call is waited for; so that one test is of both."""

    def __init__(self, client: AsyncRoost) -> None:
        self.client, self._runner = client, asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        called = getattr(self.client, name)

        def wait(*args: Any, **kwargs: Any) -> Any:
            async def work() -> Any:
                made = called(*args, **kwargs)
                return made if isinstance(made, AsyncStream) else await made

            made = self._runner.run(work())
            return Items(made, self._runner) if isinstance(made, AsyncStream) else made

        return wait

    def end(self) -> None:
        self._runner.run(self.client.aclose())
        self._runner.close()


class Items:
    def __init__(self, stream: AsyncStream[Any], runner: asyncio.Runner) -> None:
        self.stream, self._runner = stream, runner

    def __iter__(self) -> "Items":
        return self

    def __next__(self) -> Any:
        async def following() -> Any:
            return await self.stream.__anext__()

        try:
            return self._runner.run(following())
        except StopAsyncIteration:
            raise StopIteration from None

    @property
    def end(self) -> Any:
        return self.stream.end

    def close(self) -> None:
        self._runner.run(self.stream.aclose())


@pytest.fixture(params=["Roost", "AsyncRoost"])
def roost(request: pytest.FixtureRequest, world: World) -> Iterator[Any]:
    """Either client, called in the same way."""
    if request.param == "Roost":
        with Roost(TOKEN, world.url) as client:
            yield client
        return
    client = Awaited(AsyncRoost(TOKEN, world.url))
    yield client
    client.end()
