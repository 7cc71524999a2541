"""Blocking work beside the event loop, in threads of its own: a slow disk or store delays nobody else.

Whoever is cancelled waits for the call under way, so that what it works on can be closed right after. A stream holds a
thread for one step at a time, never while its reader is slow.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Self, TypeVar
from weakref import WeakValueDictionary

from roost.errors import NoCapacity

T = TypeVar("T")
PATIENCE = 60.0  # seconds that a thread waits for the next bytes of a request


class Threads:
    def __init__(self, count: int, name: str) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, call: Callable[[], T]) -> T:
        """Cancelled only after the call has returned, whatever it returned or raised."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):  # asked once more, but the thread is still at it
                    await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # nobody is left to be told
            raise

    async def steps(self, iterator: Iterator[T]) -> AsyncGenerator[T]:
        """Each item is made in a thread. Close it, and a generator below it is closed."""

        def step() -> tuple[T] | None:
            for item in iterator:
                return (item,)
            return None

        try:
            while (made := await self.run(step)) is not None:
                yield made[0]
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Turns:
    """So many at once of each account, so that none of them can hold all threads."""

    def __init__(self, each: int, patience: float = PATIENCE) -> None:
        self._each = each
        self._patience = patience
        self._accounts: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, account: int) -> AsyncGenerator[None]:
        """Raises NoCapacity when none of the account's comes free in time."""
        places = self._accounts.setdefault(account, asyncio.Semaphore(self._each))
        try:
            async with asyncio.timeout(self._patience):
                await places.acquire()
        except TimeoutError:
            raise NoCapacity(
                f"{self._each} changes of this account's files are under way; try again when one has ended"
            ) from None
        try:
            yield
        finally:
            places.release()


class Incoming:
    """A stream of the event loop that a thread iterates over. Make it on the loop.

    Raises what the stream raises; ConnectionAbortedError once stopped, or when nothing comes for PATIENCE seconds.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._stopped = False
        self._coming: concurrent.futures.Future[bytes | None] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            if self._stopped:
                raise ConnectionAbortedError("the request was given up")
            coming = self._coming = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        try:
            chunk = coming.result(PATIENCE)
        except (concurrent.futures.CancelledError, TimeoutError) as error:
            self.stop()
            raise ConnectionAbortedError("the request was given up") from error
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)

    def stop(self) -> None:
        """From any thread: whoever iterates is freed at once."""
        with self._lock:
            self._stopped = True
            if self._coming is not None:
                self._coming.cancel()
