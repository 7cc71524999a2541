"""Passwords: hashed by Argon2id with the parameters of RFC 9106 for little memory (64 MiB, 3 passes).

That takes a tenth of a second of a CPU, so it is done by one thread, one password at a time, beside the event loop.
Where there is nothing to compare with, as much work is done: how long an answer takes does not tell who exists.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from roost.errors import Invalid, Throttled

if TYPE_CHECKING:
    from argon2 import Parameters, PasswordHasher

SHORTEST, LONGEST = 10, 1000  # characters
MOST_WAITING = 16  # passwords

T = TypeVar("T")


class Passwords:
    def __init__(self, parameters: "Parameters | None" = None) -> None:
        self._parameters = parameters
        self._thread = ThreadPoolExecutor(1, "passwords")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Raises Invalid for one that is too short or too long."""
        if not SHORTEST <= len(password) <= LONGEST:
            raise Invalid(f"password: {SHORTEST} to {LONGEST} characters; a few random words make a good one")
        return await self._work(lambda: self._hasher.hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        return await self._work(lambda: self._matches(stored, password))

    def is_outdated(self, stored: str) -> bool:
        """Whether it was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    async def _work(self, work: Callable[[], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise Throttled("too many people are logging in; try again in a moment", 2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1

    def _matches(self, stored: str | None, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return self._hasher.verify(stored or self._nobodys, password[:LONGEST]) and stored is not None
        except (VerificationError, InvalidHashError):
            return False

    @functools.cached_property
    def _hasher(self) -> "PasswordHasher":
        from argon2 import PasswordHasher
        from argon2.profiles import RFC_9106_LOW_MEMORY

        return PasswordHasher.from_parameters(self._parameters or RFC_9106_LOW_MEMORY)

    @functools.cached_property
    def _nobodys(self) -> str:
        return self._hasher.hash("nobody's")
