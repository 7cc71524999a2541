"""Which certificates are ordered, when, and how often: for hosts that lead somewhere, one order each, within limits.

Authorities limit orders for a week at a time, so strangers must never cause one: only a name that the gateway serves
does. Failures are remembered with growing pauses, on disk, as is what was issued. Renewal begins at two thirds of a
certificate's life and nobody waits for it.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol, Self

import structlog
from structlog.typing import FilteringBoundLogger

from roost.errors import RoostError
from roost.gateways.tls.certificates import Certificate
from roost.gateways.tls.kept import Failure, Kept, Term, is_host
from roost.node.threads import Threads

ORDERS_AT_ONCE = 4
ORDERS_PER_HOUR = 30  # Let's Encrypt allows 300 in three hours for an account
HOUR = 3600.0
FIRST_PAUSE = 120.0  # seconds after a failure; three times as long after each further one …
LAST_PAUSE = 12 * HOUR  # … up to this: four tries in the first hour, where Let's Encrypt allows five
RATE_LIMIT_PAUSE = HOUR
RENEWAL_SECONDS = 600  # between looks at what is due
IN_MEMORY = 1000  # certificates ready to serve; each takes about 60 KB

log: FilteringBoundLogger = structlog.get_logger()

Known = Callable[[str], Awaitable[bool]]


class OrderFailed(RoostError):
    """The authority gave no certificate; the text says why as far as the authority does."""

    def __init__(self, text: str, *, rate_limited: bool = False) -> None:
        super().__init__(text)
        self.rate_limited = rate_limited


class Source(Protocol):
    """`acme.Authority`."""

    async def certificate(self, host: str) -> tuple[bytes, bytes]:
        """Key and chain in PEM. Raises OrderFailed."""
        ...


class Issuing:
    """Belongs to the event loop's thread. `known` says whether a host leads to a sandbox of ours."""

    def __init__(self, source: Source, kept: Kept, known: Known, now: Callable[[], float] = time.time) -> None:
        self._source = source
        self._kept = kept
        self._known = known
        self._now = now
        self._threads = Threads(1, "certificates")
        self._ready: OrderedDict[str, Certificate] = OrderedDict()  # least recently used first
        self._terms: dict[str, Term] = {}  # of everything on disk
        self._failures: dict[str, Failure] = {}
        self._ordered: list[float] = []  # instants of the last hour
        self._orders: dict[str, asyncio.Task[Certificate | None]] = {}
        self._places = asyncio.Semaphore(ORDERS_AT_ONCE)
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Reads what is on disk. OSError where it cannot."""
        await self._threads.run(self._kept.prepare)
        self._terms = await self._threads.run(self._kept.terms)
        self._failures = await self._threads.run(self._kept.failures)
        self._ordered = [term.ordered for term in self._terms.values()]
        self._ordered += [failure.last for failure in self._failures.values()]
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._orders.values(), *filter(None, [self._renewing])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.close()

    async def certificate(self, host: str, within: float) -> Certificate | None:
        """Orders one if need be and waits `within` seconds for it; None: there is none, now."""
        found = await self._at_hand(host)
        if found is not None:
            term = self._terms.get(host)
            if term and self._is_due(term):
                self._order(host)  # in its own time; the old one is good until then
            return found
        if not is_host(host):
            return None
        order = self._orders.get(host)
        if order is None:
            if not self._may_order(host) or not await self._known(host):
                return None
            order = self._order(host)
        if order is not None:
            await asyncio.wait({order}, timeout=within)
        return self._ready.get(host)

    async def renew_due(self) -> None:
        """Orders what is due among the names that still lead somewhere, and forgets what has ended."""
        for host, term in list(self._terms.items()):
            if not self._is_due(term):
                continue
            if self._may_order(host) and await self._known(host):
                self._order(host)
            elif term.ends <= self._instant():
                self._ready.pop(host, None)
                self._terms.pop(host, None)
                await self._threads.run(lambda host=host: self._kept.remove(host))

    def _instant(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    def _is_due(self, term: Term) -> bool:
        return self._instant() >= term.begins + (term.ends - term.begins) * 2 / 3

    async def _at_hand(self, host: str) -> Certificate | None:
        term = self._terms.get(host)
        if term is None or term.ends <= self._instant():
            return None
        found = self._ready.get(host) or await self._threads.run(lambda: self._kept.load(host))
        if found is None:
            self._terms.pop(host, None)
        else:
            self._remember(host, found)
        return found

    def _remember(self, host: str, certificate: Certificate) -> None:
        self._ready[host] = certificate
        self._ready.move_to_end(host)
        while len(self._ready) > IN_MEMORY:
            self._ready.popitem(last=False)

    def _may_order(self, host: str) -> bool:
        """Not while the last failure is fresh, nor when the hour's orders are used up."""
        now = self._now()
        failure = self._failures.get(host)
        if failure is not None and now < failure.not_before:
            return False
        self._ordered = [instant for instant in self._ordered if now - HOUR < instant <= now]
        if len(self._ordered) >= ORDERS_PER_HOUR:
            log.warning("certificate.order_limit", host=host, orders_per_hour=ORDERS_PER_HOUR)
            return False
        return True

    def _order(self, host: str) -> asyncio.Task[Certificate | None] | None:
        """The one order for the host; None where there may be none now."""
        if host not in self._orders:
            if not self._may_order(host):
                return None
            self._ordered.append(self._now())
            task = self._orders[host] = asyncio.create_task(self._carry_out(host))
            task.add_done_callback(lambda done: self._ended(host, done))
        return self._orders[host]

    def _ended(self, host: str, order: asyncio.Task[Certificate | None]) -> None:
        self._orders.pop(host, None)
        if not order.cancelled() and (error := order.exception()):
            log.error("certificate.order_broken", host=host, exc_info=error)

    async def _carry_out(self, host: str) -> Certificate | None:
        async with self._places:
            log.info("certificate.ordering", host=host)
            try:
                key, chain = await self._source.certificate(host)
                ordered = self._now()
                certificate = await self._threads.run(lambda: self._kept.keep(host, key, chain, ordered))
            except (RoostError, OSError) as error:
                await self._failed(host, error)
                return None
        self._terms[host] = Term(certificate.begins, certificate.ends, ordered)
        self._failures.pop(host, None)
        self._remember(host, certificate)
        log.info("certificate.issued", host=host, ends=certificate.ends.isoformat())
        return certificate

    async def _failed(self, host: str, error: Exception) -> None:
        before = self._failures.get(host)
        count = before.count + 1 if before else 1
        pause = min(LAST_PAUSE, FIRST_PAUSE * 3 ** min(count - 1, 10))
        if isinstance(error, OrderFailed) and error.rate_limited:
            pause = max(pause, RATE_LIMIT_PAUSE)
        now = self._now()
        failure = Failure(count, now, now + pause, str(error)[:1000])
        self._failures[host] = failure
        log.warning("certificate.order_failed", host=host, reason=failure.reason, next_try_in=pause)
        with contextlib.suppress(OSError):  # a full disk: remembered in memory
            await self._threads.run(lambda: self._kept.keep_failure(host, failure))

    async def _renew(self) -> None:
        while True:
            try:
                await self.renew_due()
            except Exception as error:  # whatever it was: without this task certificates would end one day
                log.error("certificate.renewal_failed", exc_info=error)
            await asyncio.sleep(RENEWAL_SECONDS)
