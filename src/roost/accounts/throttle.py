"""How often somebody may try a password or a code: by what is tried, and by the address that tries.

Whoever tries from one address is stopped there and locks out nobody else. What many addresses try of one name is
bounded too, but for addresses where the name was right before: its owner comes in whatever strangers do. Counted in
memory; a restart begins anew.
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
OF_NAME = 10  # tries of one name from one address
OF_STRANGERS = 100  # tries of one name from all addresses where it was never right
MOST_KNOWN = 10_000  # names with their addresses
OF_ADDRESS = 60  # tries of one address, which may be an office's
NETWORK6 = 64  # bits: what one subscriber has by IPv6


class Throttle:
    def __init__(self) -> None:
        self._limiter: MovingWindowRateLimiter | None = None
        self._known: dict[tuple[str, str, str], None] = {}  # where a name was right, the latest last

    def count(self, what: str, name: str, address: str) -> None:
        """One more try of `name`, from `address`. Raises Throttled."""
        from limits import RateLimitItemPerMinute

        self._hit(RateLimitItemPerMinute(OF_ADDRESS, WINDOW), what, "address", network(address))
        if name:
            self._hit(RateLimitItemPerMinute(OF_NAME, WINDOW), what, "name", name, network(address))
            if (what, name, network(address)) not in self._known:
                self._hit(RateLimitItemPerMinute(OF_STRANGERS, WINDOW), what, "strangers", name)

    def clear(self, what: str, name: str, address: str) -> None:
        """It was right."""
        from limits import RateLimitItemPerMinute

        here = network(address)
        self._limits().storage.clear(RateLimitItemPerMinute(OF_NAME, WINDOW).key_for(what, "name", name, here))
        self._known.pop((what, name, here), None)
        self._known[what, name, here] = None
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

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
