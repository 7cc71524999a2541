"""The Python SDK: `from roost import Roost, AsyncRoost`. See docs/python.md."""

from roost.sdk.client import AsyncRoost, Roost
from roost.sdk.drivers import AsyncStream, Stream
from roost.sdk.errors import (
    Conflict,
    Forbidden,
    Invalid,
    JobFailed,
    MagsError,
    NotFound,
    RateLimited,
    RoostError,
    ServerError,
    TimedOut,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unreachable,
)

__all__ = [
    "AsyncRoost",
    "AsyncStream",
    "Conflict",
    "Forbidden",
    "Invalid",
    "JobFailed",
    "MagsError",
    "NotFound",
    "RateLimited",
    "Roost",
    "RoostError",
    "ServerError",
    "Stream",
    "TimedOut",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
]
