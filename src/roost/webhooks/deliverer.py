"""Sends what webhooks are to be told: at least once, each webhook's messages one at a time and in their order.

A message that fails is tried again after ever longer pauses, and does not hold up those after it; `sequence` tells the
receiver. It is marked as delivered only after it was answered, so a crash in between sends it again, with the same id.
Nothing polls: it looks after commits while there is a webhook, and when something is due.
"""

import asyncio
import random
from types import TracebackType
from typing import Self

import aiohttp
import structlog
import yarl
from structlog.typing import FilteringBoundLogger

from roost.clock import Clock, SystemClock
from roost.db.database import Database
from roost.db.secret import Secret
from roost.errors import RoostError, StateUnwritable
from roost.outward import Allowed
from roost.webhooks import delivery as deliveries
from roost.webhooks import signing
from roost.webhooks import webhook as webhooks
from roost.webhooks.delivery import SECOND, Attempt, Delivery
from roost.webhooks.webhook import Webhook

AT_ONCE = 32  # messages under way, of all webhooks together
LIMIT = 10.0  # seconds for one attempt, connecting and the answer's head included
MAX_READ = 64 * 1024  # bytes of an answer's body, which nobody looks at
FIRST_PAUSE = 5.0  # seconds after the first failure; four times as long after each further one
LONGEST_PAUSE = 4 * 3600.0
GATHER = 0.02  # seconds; a burst of commits is looked at once
SWEEP = 3600  # seconds between looks for what is old
AGAIN = 1.0  # seconds after a fault of ours

log: FilteringBoundLogger = structlog.get_logger()


class Deliverer:
    """Enter it to begin. `changed` is for whoever changes a webhook or asks for a message."""

    def __init__(self, database: Database, secret: Secret, may: Allowed, clock: Clock | None = None) -> None:
        self.may = may
        self.clock = clock or SystemClock()
        self._database = database
        self._secret = secret
        self._news = asyncio.Event()
        self._wanted = True  # whether there is a webhook at all
        self._swept_ns = 0
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._sending: dict[str, asyncio.Task[None]] = {}  # by webhook
        self._loop: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._public = _session(aiohttp.TCPConnector(limit=AT_ONCE, socket_factory=self.may.socket))
        self._anywhere = _session(aiohttp.TCPConnector(limit=AT_ONCE))  # for hosts that are allowed by name
        self._database.after_commit.append(self._committed)
        self._loop = asyncio.create_task(self._go_on(), name="webhooks")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._database.after_commit.remove(self._committed)
        tasks = [*self._sending.values(), *([] if self._loop is None else [self._loop])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._public.close()
        await self._anywhere.close()

    def changed(self) -> None:
        self._wanted = True
        self._news.set()

    def _committed(self) -> None:
        if self._wanted:
            self._news.set()

    async def _go_on(self) -> None:
        while True:
            self._news.clear()
            try:
                due_ns = await self._look()
                await self.clock.wait(self._news, max(0.0, (due_ns - self.clock.now_ns()) / SECOND))
                await asyncio.sleep(GATHER)
            except Exception:
                log.exception("webhooks.fault")
                await asyncio.sleep(AGAIN)

    async def _look(self) -> int:
        """Begins what is due; when to look again at the latest."""
        now_ns = self.clock.now_ns()
        if now_ns >= self._swept_ns + SWEEP * SECOND:
            await deliveries.forget_old(self._database, now_ns)
            self._swept_ns = now_ns
        self._wanted = await webhooks.any_enabled(self._database)
        next_ns = self._swept_ns + SWEEP * SECOND
        for webhook_id, due_ns in await deliveries.waiting(self._database) if self._wanted else ():
            if webhook_id in self._sending:
                continue  # it looks itself before it ends
            if due_ns <= now_ns:
                self._begin(webhook_id)
            else:
                next_ns = min(next_ns, due_ns)
        return next_ns

    def _begin(self, webhook_id: str) -> None:
        def ended(_: asyncio.Task[None]) -> None:
            self._sending.pop(webhook_id, None)
            self._news.set()

        self._sending[webhook_id] = asyncio.create_task(self._send_all(webhook_id), name=f"webhook {webhook_id}")
        self._sending[webhook_id].add_done_callback(ended)

    async def _send_all(self, webhook_id: str) -> None:
        """What is due for one webhook, the oldest first."""
        try:
            while delivery := await deliveries.first_due(self._database, webhook_id, self.clock.now_ns()):
                webhook = await webhooks.read(self._database, webhook_id)
                if webhook is None or not webhook.enabled:
                    return
                async with self._at_once:
                    attempt = await self._attempt(webhook, delivery)
                await self._record(delivery, attempt)
        except Exception:
            log.exception("webhook.fault", webhook=webhook_id)
            await asyncio.sleep(AGAIN)

    async def _attempt(self, webhook: Webhook, delivery: Delivery) -> Attempt:
        now_ns, body = self.clock.now_ns(), deliveries.body(delivery)
        try:
            keys = webhooks.secrets_of(self._secret, webhook, now_ns)
        except RoostError:
            return Attempt(now_ns, None, "its secret cannot be decrypted; rotate it")
        headers = signing.headers(delivery.message_id, now_ns // SECOND, body, keys)
        url = yarl.URL(webhook.url)
        session = self._anywhere if self.may.name(url.host or "") else self._public
        try:
            async with (
                asyncio.timeout(LIMIT),
                session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                await answer.content.read(MAX_READ)
                status = answer.status
        except TimeoutError:
            return Attempt(self.clock.now_ns(), None, f"no answer within {LIMIT:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Attempt(self.clock.now_ns(), None, str(error)[:300] or type(error).__name__)
        failure = None if 200 <= status < 300 else f"it answered {status}; expected 200 to 299"
        return Attempt(self.clock.now_ns(), status, failure)

    async def _record(self, delivery: Delivery, attempt: Attempt) -> None:
        log.info(
            "webhook.sent" if attempt.error is None else "webhook.unsent",
            webhook=delivery.webhook_id,
            message=delivery.message_id,
            attempts=delivery.attempts + 1,
            status=attempt.response_status,
        )
        while True:
            try:
                return await deliveries.record(self._database, delivery, attempt, pause_after(delivery.attempts + 1))
            except StateUnwritable as error:  # rather than sending it again and again
                log.warning("webhook.unrecorded", message=delivery.message_id, error=str(error))
                await asyncio.sleep(AGAIN)


def pause_after(attempts: int) -> float:
    """Seconds, a fifth more or less: what failed together is not tried again together."""
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 4.0 ** min(attempts - 1, 8))
    return pause * random.uniform(0.8, 1.2)  # noqa: S311


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "Roost-Webhooks", "Content-Type": "application/json"},
        auto_decompress=False,
    )
