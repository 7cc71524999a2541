"""Roost: a self-hosted cloud of instant sandboxes. `Roost` and `AsyncRoost` are the Python SDK, see `roost.sdk`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roost.sdk import AsyncRoost, MagsError, Roost, RoostError

__version__ = "0.1.0"
__all__ = ["AsyncRoost", "MagsError", "Roost", "RoostError", "__version__"]


def __getattr__(name: str) -> object:
    """The SDK is imported when it is asked for: its HTTP client takes longer than `roost --version` may."""
    if name not in __all__:
        raise AttributeError(f"module 'roost' has no attribute {name!r}")
    from roost import sdk

    return getattr(sdk, name)
