"""How much one host name and one account may use the gateway: requests a second, and exchanges at a time."""

from dataclasses import dataclass
from typing import TypeVar

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from roost.gateways.http.routing import Route
from roost.settings import ServeSettings

K = TypeVar("K")


@dataclass(frozen=True)
class Exceeded:
    seconds: int  # until another try makes sense
    text: str


class Quotas:
    """Counts in memory: a restart begins anew. A hit of a rate takes about 2 µs, and none where there is no limit."""

    def __init__(self, settings: ServeSettings) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._route_rate = RateLimitItemPerSecond(settings.route_rate) if settings.route_rate else None
        self._account_rate = RateLimitItemPerSecond(settings.account_rate) if settings.account_rate else None
        self._route_most = settings.route_connections
        self._account_most = settings.account_connections
        self._of_route: dict[str, int] = {}
        self._of_account: dict[int, int] = {}

    def enter(self, route: Route) -> Exceeded | None:
        """None: it is counted until `leave`."""
        key, account = route.key, route.account_id
        of_route, of_account = self._of_route.get(key, 0), self._of_account.get(account, 0)
        if of_route >= self._route_most:
            return Exceeded(1, f"this address serves {self._route_most} requests and connections at a time")
        if of_account >= self._account_most:
            return Exceeded(1, f"the owner's sandboxes serve {self._account_most} requests and connections at a time")
        if self._route_rate and not self._limiter.hit(self._route_rate, "route", key):
            return Exceeded(1, f"this address serves {self._route_rate.amount} requests a second")
        if self._account_rate and not self._limiter.hit(self._account_rate, "account", str(account)):
            return Exceeded(1, f"the owner's sandboxes serve {self._account_rate.amount} requests a second")
        self._of_route[key] = of_route + 1
        self._of_account[account] = of_account + 1
        return None

    def leave(self, route: Route) -> None:
        _decrease(self._of_route, route.key)
        _decrease(self._of_account, route.account_id)


def _decrease(counts: dict[K, int], key: K) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]
