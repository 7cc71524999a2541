"""One request and its answer, from whatever connection it came: routed, admitted, woken, sent, retried, relayed.

The seam between client connections (`connection.py`: HTTP/1; HTTP/2 streams drive the same) and sandboxes:

    request = Request.of(method, target, authority, headers, framing, origin)       raises Refusal(status, text)
    exchange = Exchange(gateway, request, answer)        `answer` is yours: see Answer for what is called on it
    exchange.begin()

then, as the client's bytes come and go:

    exchange.body(data)      a piece of the request's body. After answer.pause_body() at most what was on its way
    exchange.body_end()      the request is complete (call it for requests without a body too)
    exchange.pause(), exchange.resume()      the client does not take more of the answer just now; it does again
    exchange.abandon()       the client is gone: whatever is under way ends, nothing is called on `answer` any more

The framing of a body: `NONE`; `LENGTH` with its Content-Length; `CHUNKED`: `data` is the chunks as they were on the
wire, checked; `STREAM`: `data` is content without any framing, its end told by body_end() (HTTP/2 without a length).
`begin`, `body` and `body_end` may call `answer` before they return.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from roost.errors import RoostError
from roost.gateways.http import pages, reaching, traces
from roost.gateways.http.forwarding import request_head
from roost.gateways.http.framing import chunk, last_chunk
from roost.gateways.http.request import Framing, Request
from roost.gateways.http.response import Response, lines
from roost.gateways.http.routing import Denial, Passed, Route, Run
from roost.gateways.http.upstream import Upstream

if TYPE_CHECKING:
    from roost.gateways.http.server import Gateway

WITHIN = 90.0  # seconds that a request is held while its sandbox wakes; documented
PATIENCE = 2.0  # seconds that a browser is held before it gets the page that reloads itself; documented
ANSWER = 600.0  # seconds from a complete request to the head of its answer
HEAD = 10.0  # seconds for that head to come whole once it has begun
REUSE = 15.0  # seconds that a connection may have been unused, for a request that can be sent again
REUSE_ONCE = 1.0  # … for one that cannot: fewer than servers wait before they close an idle connection
MOST_KEPT = 64 * 1024  # bytes of a body that are kept to send them again
TRIES = 4


class Answer(Protocol):
    """The client's side. Calls come in this order: interim*, head, data*, end; or head is followed by `broken`."""

    takes_chunks: bool  # the framing of `head` may be CHUNKED; otherwise it comes as STREAM, with trailers in `end`

    def interim(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    def head(self, response: Response) -> None:
        """With status 101, what follows are bytes both ways, `end` is the end of the sandbox's side alone."""
        ...

    def data(self, data: bytes) -> None: ...

    def end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """The exchange is over, but for a tunnel; with CHUNKED the trailers have gone by as data already."""
        ...

    def broken(self) -> None:
        """The rest of the answer does not come: the client must not take it for complete."""
        ...

    def flush(self) -> None:
        """After `head`, where no `data` or `end` follows at once: what was kept to go with it should go."""
        ...

    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...


class Exchange:
    __slots__ = (
        "_answer",
        "_answered",
        "_complete",
        "_entered",
        "_gateway",
        "_keeps",
        "_kept",
        "_over",
        "_passed",
        "_paused",
        "_request",
        "_route",
        "_run",
        "_sandbox_ended",
        "_shown",
        "_task",
        "_tries",
        "_upstream",
        "deadline",
        "relayed",
        "takes_chunks",
        "tunnel",
    )

    def __init__(self, gateway: "Gateway", request: Request, answer: Answer) -> None:
        self.takes_chunks = answer.takes_chunks
        self.deadline = float("inf")  # monotonic; looked at by the gateway once a second
        self._gateway = gateway
        self._request = request
        self._answer = answer
        self._passed: Passed | None = None
        self._route: Route | None = None
        self._entered: Route | None = None  # by which it is counted
        self._run: Run | None = None
        self._upstream: Upstream | None = None
        self._task: asyncio.Task[None] | None = None  # on the way to an upstream
        self._kept: list[bytes] = []  # of the body: what waits for an upstream, or may be sent again
        self._keeps = request.idempotent and (
            request.framing is Framing.NONE or (request.framing is Framing.LENGTH and request.length <= MOST_KEPT)
        )
        self._complete = False  # the request's body has come
        self._answered = False  # something of the sandbox's answer has come
        self.relayed = False  # a head went to the client
        self.tunnel = False
        self._sandbox_ended = False
        self._over = False
        self._tries = 0
        self._paused = False
        self._shown = ""  # of a head that has not come whole

    # -- the client's side ----------------------------------------------------------------------------------

    def begin(self) -> None:
        self._gateway.exchanges.add(self)
        self._gateway.requests += 1
        challenges = self._gateway.challenges
        if challenges and (proof := challenges.answer(self._request.host, self._request.target)):
            self._give(200, [(b"Content-Type", b"application/octet-stream")], proof)
            return
        route = self._gateway.routes.known(self._request.host)
        if route is not None and self._admit(route):
            self._go(route)
        elif route is None:
            self._start(self._find())

    def body(self, data: bytes) -> None:
        if self._over:
            return
        if self.tunnel:
            if self._upstream is not None:
                self._upstream.write(data)
            return
        self._pass_on(chunk(data) if self._request.framing is Framing.STREAM else data)

    def body_end(self) -> None:
        if self._over:
            return
        if self.tunnel:
            if self._upstream is not None:
                self._upstream.write_eof()
            self._close_tunnel(client=True)
            return
        self._complete = True
        if self._request.framing is Framing.STREAM:
            self._pass_on(last_chunk([]))
        if self._upstream is not None and not self._shown:
            self.deadline = time.monotonic() + ANSWER

    def _pass_on(self, data: bytes) -> None:
        if self._upstream is None or self._keeps:
            self._kept.append(data)
        if self._upstream is not None:
            self._upstream.write(data)

    def pause(self) -> None:
        self._paused = True
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        self._paused = False
        if self._upstream is not None:
            self._upstream.resume()

    def abandon(self) -> None:
        if not self._over:
            upstream, self._upstream = self._upstream, None
            if upstream is not None:
                upstream.close()
            if self._task is not None:
                self._task.cancel()
            self._leave()

    # -- on the way to a sandbox ----------------------------------------------------------------------------

    def _admit(self, route: Route) -> bool:
        """Whether it may go on; otherwise it was answered."""
        gateway = self._gateway
        if self._entered is None:
            wait = gateway.quotas.enter(route)
            if wait is not None:
                self._refuse(429, wait.text, [(b"Retry-After", b"%d" % wait.seconds)])
                return False
            self._entered = route
        self._route = route
        passed = route.admit(self._request)
        if isinstance(passed, Denial):
            self._refuse(passed.status, passed.text, list(passed.headers))
            return False
        self._passed = passed
        return True

    def _go(self, route: Route) -> None:
        """Without waiting, where the sandbox is awake and a connection into it is idle."""
        run = route.run
        if run is not None and run.awake:
            upstream = self._gateway.pool.take((run.job.vm_id, route.port), self._unused)
            if upstream is not None:
                self._enter(run)
                self._send(upstream)
                return
        self._start(self._reach(route))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._gateway.spawn(work)
        self._task.add_done_callback(self._on_fault)
        if self._request.framing is not Framing.NONE:
            self._answer.pause_body()

    def _on_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._refuse(500, "internal error")

    async def _find(self) -> None:
        try:
            route = await self._gateway.routes.find(self._request.host)
        except RoostError as error:
            self._refuse_for(error)
            return
        if not self._over and self._admit(route):
            await self._reach(route)

    async def _reach(self, route: Route) -> None:
        deadline, host, timer = time.monotonic() + WITHIN, self._request.host, None
        if self._request.navigates:
            timer = asyncio.get_running_loop().call_later(PATIENCE, self._show_page)
        try:
            async with asyncio.timeout(WITHIN):
                with traces.of_wake(self._gateway.tracer, self._request, route):
                    run, upstream = await reaching.connection(self._gateway, host, route, self._unused, deadline)
        except TimeoutError:
            self._refuse(504, self._late(route))
        except RoostError as error:
            self._refuse_for(error)
        else:
            if self._over:
                self._gateway.pool.give(upstream)  # the page reloads itself, and finds it
            else:
                self._enter(run)
                self._send(upstream)
        finally:
            if timer is not None:
                timer.cancel()

    def _late(self, route: Route) -> str:
        if route.run is not None and route.run.awake:
            return f"the application on port {route.port} took no further connection for {WITHIN:.0f} s: it is busy"
        return f"the sandbox could not be reached within {WITHIN:.0f} s; try again"

    @property
    def _unused(self) -> float:
        """Seconds for which the connection that it goes on may have been idle."""
        return REUSE if self._keeps else REUSE_ONCE

    def _show_page(self) -> None:
        """The wake goes on; the client has its answer."""
        if not self._over:
            headers, body = pages.waking()
            self._request.keep = False
            self._give(503, headers, body)

    def _enter(self, run: Run) -> None:
        self._run = run
        run.begin_use()

    def _send(self, upstream: Upstream) -> None:
        request, passed = self._request, self._passed
        assert passed is not None
        self._task = None
        self._tries += 1
        self._shown = ""
        self._upstream = upstream
        upstream.send(self, request.method, request_head(request, passed), request.upgrade is not None)
        if self._paused:
            upstream.pause()
        for data in self._kept:
            upstream.write(data)
        if not self._keeps:
            self._kept = []
        if self._complete:
            self.deadline = time.monotonic() + ANSWER
        elif request.framing is not Framing.NONE:
            self._answer.resume_body()

    # -- the sandbox's side ---------------------------------------------------------------------------------

    def interim(self, response: Response) -> None:
        self._answered = True
        self._shown = ""
        self.deadline = time.monotonic() + ANSWER if self._complete else float("inf")
        if not self._request.old:
            self._answer.interim(response.status, response.headers)

    def answered(self, response: Response) -> None:
        self._answered = self.relayed = True
        self.deadline = float("inf")
        self._kept = []
        self._keeps = False
        if response.status == 101:
            self.tunnel = True
        elif response.framing is Framing.CHUNKED and not self.takes_chunks:
            response = replace(response, framing=Framing.STREAM)
        self._answer.head(response)

    def head_begun(self, shown: str) -> None:
        self._shown = shown
        self.deadline = time.monotonic() + HEAD

    def data(self, data: bytes) -> None:
        self._answer.data(data)

    def flush(self) -> None:
        self._answer.flush()

    def ended(self, trailers: list[tuple[bytes, bytes]]) -> None:
        if self.tunnel:
            self._answer.end([])
            self._close_tunnel(client=False)
            return
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if self._complete:
                upstream.resume() if self._paused else None
                upstream.release()
            else:
                upstream.close()
        self._leave()
        self._answer.end(trailers)

    def failed(self, why: str) -> None:
        upstream, self._upstream = self._upstream, None
        if self.relayed:
            self._leave()
            self._answer.broken()
        elif self._may_send_again(upstream):
            self._exit_run()
            assert self._route is not None
            self._start(self._send_again())
        else:
            self._refuse(502, f"the application on port {self._port} failed to answer: {why}")

    def sandbox_full(self) -> None:
        self._answer.pause_body()

    def sandbox_free(self) -> None:
        self._answer.resume_body()

    def expire(self) -> None:
        """Its deadline has passed."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()
        if self._shown:
            began = f"it began with {self._shown} and did not go on within {HEAD:.0f} s"
            self._refuse(502, f"the application on port {self._port} failed to answer: {began}")
        else:
            self._refuse(504, f"the application did not answer within {ANSWER:.0f} s")

    @property
    def _port(self) -> int:
        return self._route.port if self._route else 0

    def _may_send_again(self, upstream: Upstream | None) -> bool:
        """RFC 9110, 9.2.2: only what may happen twice; and only where the connection, not the application, failed.

        A reset counts as the former: a server that starts with a short backlog resets what it has no room for.
        """
        if not self._keeps or self._answered or upstream is None or self._tries >= TRIES:
            return False
        gone = self._run is None or not self._run.awake or self._run.job.vm_id != upstream.key[0]
        return upstream.reused or upstream.reset or gone

    async def _send_again(self) -> None:
        try:
            route = await self._gateway.routes.find(self._request.host)
        except RoostError as error:
            self._refuse_for(error)
            return
        if not self._over and self._admit(route):
            await self._reach(route)

    # -- the end --------------------------------------------------------------------------------------------

    def _refuse_for(self, error: RoostError) -> None:
        status, text = pages.told(error)
        self._refuse(status, text, [(b"Retry-After", b"5")] if status in (503, 504) else [])

    def _refuse(self, status: int, text: str, more: list[tuple[bytes, bytes]] | None = None) -> None:
        if not self._over:
            headers, body = pages.answer(self._request, status, text)
            self._give(status, headers + (more or []), b"" if status == 302 else body)

    def _give(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        framing = Framing.NONE if self._request.method == b"HEAD" or not body else Framing.LENGTH
        headers = [*headers, (b"Content-Length", b"%d" % len(body))]
        self._leave()
        self.relayed = True
        self._answer.head(Response(status, pages.reason(status), lines(headers), framing, len(body), keep=True))
        if framing is Framing.LENGTH:
            self._answer.data(body)
        self._answer.end([])

    def _close_tunnel(self, client: bool) -> None:
        """When both sides have ended, or the client's has and nothing more can come."""
        if client:
            self._complete = True
        else:
            self._sandbox_ended = True
        if self._complete and self._sandbox_ended:
            upstream, self._upstream = self._upstream, None
            if upstream is not None:
                upstream.close()
            self._leave()

    def _exit_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.end_use()

    def _leave(self) -> None:
        self._over = True
        self.deadline = float("inf")
        self._exit_run()
        self._gateway.exchanges.discard(self)
        entered, self._entered = self._entered, None
        if entered is not None:
            self._gateway.quotas.leave(entered)
