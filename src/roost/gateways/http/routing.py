"""What the HTTP gateway needs to know about host names and sandboxes; `gateways/routes.py` and `jobs/run.py` are it.

The gateway resolves a host to a Route for every request, asks it for admission before anything is woken, and sends the
request to the Run that the route names at that moment, never to a later one without resolving again.
"""

import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from roost.gateways.http.request import Request


Headers: TypeAlias = Sequence[tuple[bytes, bytes]]  # of a request: names in lower case


class Sandboxed(Protocol):
    """Of a job (`jobs/job.py:Job`), what tells one sandbox from the next."""

    @property
    def vm_id(self) -> str: ...


class Run(Protocol):
    """A sandbox that lives (`jobs/run.py:Run`)."""

    @property
    def job(self) -> Sandboxed: ...
    @property
    def awake(self) -> bool:
        """Whether it can be entered right now. Once it went cold, never again."""
        ...

    @property
    def failed(self) -> str | None:
        """What it began with ended, and not well: then nothing that does not listen yet is about to."""
        ...

    def listens_by(self) -> float:
        """Until when (seconds of the wall clock) an application that does not listen yet may still be starting."""
        ...

    def use(self) -> AbstractContextManager[None]:
        """Counts as activity while it is open."""
        ...

    def begin_use(self) -> None:
        """The same in two calls."""
        ...

    def end_use(self) -> None: ...


@dataclass(frozen=True)
class Denial:
    """An answer in place of the sandbox's. With `status` 302, `headers` have Location and Set-Cookie.

    `text` is a plain sentence: the gateway makes a page of it for browsers and `{"error": text}` for everybody else.
    """

    status: int  # 302, 401, 403
    text: str = ""
    headers: Headers = ()


class Passed(NamedTuple):
    """The request as the sandbox may see it: without what was between the client and us."""

    target: bytes
    headers: Headers  # the request's own object where nothing was taken off


class Route(Protocol):
    """Where a host name leads to, as of now. Asked anew for every request, so it must be cheap."""

    @property
    def key(self) -> str:
        """The same for all requests of one host name: its limits are counted by it."""
        ...

    @property
    def account_id(self) -> int: ...
    @property
    def port(self) -> int: ...
    @property
    def run(self) -> Run | None:
        """The job's sandbox; None while there is none, as when it sleeps cold."""
        ...

    def admit(self, request: "Request") -> Passed | Denial:
        """Decides by the request's head alone (`method`, `target` in origin form, `headers`, `host`, `secure`), without
        waiting. It is called before anything is woken."""
        ...


class Routes(Protocol):
    def known(self, host: str) -> Route | None:
        """Without waiting: the route where it is known and fresh. None: ask `find`.

        `host` is lower-case, without port and without a dot at its end.
        """
        ...

    async def find(self, host: str) -> Route:
        """Raises NotFound (no such host), Forbidden (it is there and must not be reached by anybody now)."""
        ...

    async def awake(self, route: Any, within: float) -> Run:
        """Wakes it if it sleeps, once for all who ask, and returns when its sandbox can be entered.

        `route` is one of its own. Raises Conflict (the job ended), Asleep (not in time; it goes on), NoCapacity,
        NodeUnavailable, NotFound.
        """
        ...


class Dialer(Protocol):
    """`NodeClient`."""

    async def dial(self, sandbox: str, port: int, host: str | None = None) -> socket.socket:
        """A connected, non-blocking socket. Raises Refused, NotFound, Conflict, NodeUnavailable."""
        ...
