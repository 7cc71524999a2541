"""What was looked up about callers, kept in memory until anything about users, members, tokens or sessions changes.

Changes are rare and requests are not, so a change forgets all of it.
"""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

REMEMBERED = 1024  # callers

V = TypeVar("V")


class Known(Generic[V]):
    def __init__(self) -> None:
        self._found: dict[Hashable, V] = {}
        self._changes = 0

    def get(self, key: Hashable) -> V | None:
        return self._found.get(key)

    async def find(self, key: Hashable, look_up: Callable[[], Awaitable[V]]) -> V:
        """What a change may have overtaken is answered this once and not kept."""
        changes = self._changes
        value = await look_up()
        if changes == self._changes:
            if len(self._found) >= REMEMBERED:
                self._found.pop(next(iter(self._found)))
            self._found[key] = value
        return value

    def forget(self) -> None:
        """To be called when a change is committed; it holds from the next request on."""
        self._changes += 1
        self._found.clear()
