"""What an account may use and uses; whoever runs this Roost sets it."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, put
from litestar.datastructures import State
from litestar.params import Parameter
from msgspec import Meta

from roost.accounts.quotas import Limits, checked
from roost.accounts.tokens import Account
from roost.api.bodies import JsonBody
from roost.api.plane import ControlPlane, Plane

ADMIN = {"scope": "admin", "first": True}
Caller = Request[Account, str, State]
Reference = Annotated[str, Parameter(description="Name or number of an account")]


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """null or absent: the installation's default."""

    running: Annotated[int | None, Meta(description="Sandboxes that run or wait")] = None
    vcpus: float | None = None
    memory_mb: int | None = None
    disk_gb: int | None = None
    stored_bytes: int | None = None
    requests_per_second: int | None = None


class QuotaUse(msgspec.Struct, frozen=True):
    running: int
    vcpus: float
    memory_mb: int
    disk_gb: int
    stored_bytes: int


class QuotaState(msgspec.Struct, frozen=True):
    """A limit that is null: as much as there is."""

    account_id: int
    limits: Limits
    used: QuotaUse


@get("/quotas", summary="Show what your account may use and uses")
async def show_own(request: Caller, plane: Plane) -> QuotaState:
    return await _state(plane, request.user.id)


@get("/accounts/{id:str}/quotas", opt=ADMIN, summary="Show what an account may use and uses")
async def show(plane: Plane, id: Reference) -> QuotaState:
    return await _state(plane, await plane.quotas.account(id))


@put(
    "/accounts/{id:str}/quotas",
    dto=JsonBody,
    return_dto=None,
    opt=ADMIN,
    summary="Set what an account may use",
    description="All of it at once. It holds from the next submission, wake, upload or request on; nothing is stopped.",
)
async def change(plane: Plane, id: Reference, data: Wanted) -> QuotaState:
    told: dict[str, Any] = msgspec.structs.asdict(data)
    limits = checked("quotas", Limits(**told))
    account_id = await plane.quotas.account(id)
    await plane.quotas.set(account_id, limits)
    return await _state(plane, account_id)


async def _state(plane: ControlPlane, account_id: int) -> QuotaState:
    used = plane.live.using(account_id)
    stored = await plane.quotas.stored(account_id)
    use = QuotaUse(used.running, used.vcpus, used.memory_mb, used.disk_gb, stored)
    return QuotaState(account_id, await plane.quotas.of(account_id), use)
