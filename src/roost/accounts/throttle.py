"""How often somebody may try a password or a code: by what is tried, and by the address that tries.

Counted in memory; a restart begins anew.
"""

import ipaddress
import math
import time
from typing import TYPE_CHECKING

from roost.errors import Throttled

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.strategies import MovingWindowRateLimiter

WINDOW = 5  # minutes
OF_NAME = 10  # tries of one name, whoever makes them
OF_ADDRESS = 60  # tries of one address, which may be an office's
NETWORK6 = 64  # bits: what one subscriber has by IPv6


class Throttle:
    def __init__(self) -> None:
        self._limiter: MovingWindowRateLimiter | None = None

    def count(self, what: str, name: str, address: str) -> None:
        """One more try of `name`, from `address`. Raises Throttled."""
        from limits import RateLimitItemPerMinute

        self._hit(RateLimitItemPerMinute(OF_ADDRESS, WINDOW), what, "address", network(address))
        if name:
            self._hit(RateLimitItemPerMinute(OF_NAME, WINDOW), what, "name", name)

    def clear(self, what: str, name: str) -> None:
        """It was right."""
        from limits import RateLimitItemPerMinute

        self._limits().storage.clear(RateLimitItemPerMinute(OF_NAME, WINDOW).key_for(what, "name", name))

    def _hit(self, limit: "RateLimitItem", *key: str) -> None:
        if not self._limits().hit(limit, *key):
            seconds = max(1, math.ceil(self._limits().get_window_stats(limit, *key).reset_time - time.time()))
            raise Throttled(f"too many tries; wait {seconds} s", seconds)

    def _limits(self) -> "MovingWindowRateLimiter":
        if self._limiter is None:
            from limits.storage import MemoryStorage
            from limits.strategies import MovingWindowRateLimiter

            self._limiter = MovingWindowRateLimiter(MemoryStorage())
        return self._limiter


def network(address: str) -> str:
    """An IPv4 address itself, the network of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed.packed, NETWORK6), strict=False))
