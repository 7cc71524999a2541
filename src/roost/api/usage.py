"""What the caller's account has used, as the Mags dialect tells it."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.params import Parameter

from roost.accounts import usage
from roost.accounts.tokens import Account
from roost.accounts.usage import Used
from roost.api.plane import Plane
from roost.clock import rfc3339

MOST_DAYS = 365

Caller = Request[Account, str, State]


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    total_jobs: int  # submitted in the window
    vm_seconds: float  # that sandboxes were awake
    frozen_seconds: float  # … stood still in memory
    cpu_seconds: float
    memory_mb_seconds: float
    bytes_in: int  # received by sandboxes
    bytes_out: int
    stored_bytes: int  # now: the newest revisions of workspaces


class WorkspaceUsage(Amounts, frozen=True, kw_only=True):
    workspace_id: str


class AccountUsage(Amounts, frozen=True, kw_only=True):
    window_days: int
    since: str
    workspaces: list[WorkspaceUsage]


@get(
    "/mags-jobs/usage",
    summary="Show what your account has used",
    description=(
        "In the last `window_days` days, which are days in UTC with today as the last. Running sandboxes are counted "
        "up to half a minute ago. Jobs without a workspace are in the totals only."
    ),
)
async def show_usage(
    request: Caller, plane: Plane, window_days: Annotated[int, Parameter(ge=1, le=MOST_DAYS)] = 30
) -> AccountUsage:
    used = await usage.of_account(plane.database, request.user.id, window_days)
    return AccountUsage(
        **_amounts(used.total),
        window_days=window_days,
        since=rfc3339(used.since_ns),
        workspaces=[WorkspaceUsage(**_amounts(its), workspace_id=name) for name, its in used.workspaces.items()],
    )


def _amounts(used: Used) -> dict[str, Any]:
    return {
        "total_jobs": used.jobs,
        "vm_seconds": _seconds(used.awake_ns),
        "frozen_seconds": _seconds(used.frozen_ns),
        "cpu_seconds": _seconds(used.cpu_ns),
        "memory_mb_seconds": round(used.memory_mb_seconds, 3),
        "bytes_in": used.rx_bytes,
        "bytes_out": used.tx_bytes,
        "stored_bytes": used.stored_bytes,
    }


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / 1e9, 3)
