"""How long the API takes to answer, counted at every request: so a list of integers, not a library's histogram."""

import time
from bisect import bisect_left
from collections.abc import Iterator

from litestar.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
NO_ANSWER = 500  # what the server says when a handler fails before it has answered


class Durations:
    """Of requests by method and class of status, until the first byte of the answer: a log is followed for hours."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, int], list[int]] = {}  # by bucket, the last one without bound
        self.seconds: dict[tuple[str, int], float] = {}

    def add(self, method: str, status: int, seconds: float) -> None:
        key = (method if method in METHODS else "other", status // 100)
        counts = self.counts.get(key)
        if counts is None:
            counts = self.counts[key] = [0] * (len(BOUNDS) + 1)
            self.seconds[key] = 0.0
        counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds[key] += seconds

    def cumulative(self) -> Iterator[tuple[tuple[str, int], list[tuple[str, float]], float]]:
        """Method and class, how many took at most so long, the sum of all."""
        for key, counts in self.counts.items():
            total, buckets = 0, list[tuple[str, float]]()
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            yield key, buckets, self.seconds[key]


class Timed:
    """An application in front of which every HTTP request is timed; WebSockets pass."""

    def __init__(self, app: ASGIApp, durations: Durations) -> None:
        self._app = app
        self._durations = durations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, answered = time.perf_counter(), False

        async def counted(message: Message) -> None:
            nonlocal answered
            if not answered and message["type"] == "http.response.start":
                answered = True
                self._durations.add(scope["method"], message["status"], time.perf_counter() - begun)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            if not answered:
                self._durations.add(scope["method"], NO_ANSWER, time.perf_counter() - begun)
