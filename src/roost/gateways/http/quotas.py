"""How much one host name and one account may use the gateway: requests a second, and exchanges at a time."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

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
        self._route_rate, self._account_rate = settings.route_rate, settings.account_rate
        self._route_takes = rate_limiter(settings.route_rate)
        self._account_takes = rate_limiter(settings.account_rate)
        self._route_most = settings.route_connections or sys.maxsize
        self._account_most = settings.account_connections or sys.maxsize
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
        if self._route_takes and not self._route_takes(key):
            return Exceeded(1, f"this address serves {self._route_rate} requests a second")
        if self._account_takes and not self._account_takes(str(account)):
            return Exceeded(1, f"the owner's sandboxes serve {self._account_rate} requests a second")
        self._of_route[key] = of_route + 1
        self._of_account[account] = of_account + 1
        return None

    def leave(self, route: Route) -> None:
        _decrease(self._of_route, route.key)
        _decrease(self._of_account, route.account_id)


def rate_limiter(rate: int) -> Callable[[str], bool] | None:
    """Whether this name may have one more of `rate` a second; None for any number."""
    if not rate:
        return None
    from limits import RateLimitItemPerSecond  # 3 MB that most installations do without
    from limits.storage import MemoryStorage
    from limits.strategies import SlidingWindowCounterRateLimiter

    limiter, limit = SlidingWindowCounterRateLimiter(MemoryStorage()), RateLimitItemPerSecond(rate)
    return lambda name: limiter.hit(limit, name)


def _decrease(counts: dict[K, int], key: K) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]
