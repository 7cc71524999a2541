"""Invitations of a user to others' accounts, which they accept or decline."""

from typing import Annotated, Literal

import msgspec
from litestar import delete, get, post
from msgspec import Meta

from roost.accounts.audit import actor_of
from roost.accounts.invitations import Invitation
from roost.accounts.tokens import Account
from roost.api.guard import Connection, client_address
from roost.api.mags import Caller
from roost.api.members import OWN, AccountRecord
from roost.api.plane import ControlPlane, Plane
from roost.clock import rfc3339
from roost.errors import Forbidden

Decision = Literal["accept", "decline"]


class InvitationRecord(msgspec.Struct, frozen=True, kw_only=True):
    account: str
    role: str
    invited_by: Annotated[str | None, Meta(description="A user; none: a token that is nobody's")]
    invited_at: str
    expires_at: str


class InvitationList(msgspec.Struct, frozen=True):
    invitations: list[InvitationRecord]


class Declined(msgspec.Struct, frozen=True):
    success: bool
    message: str


@get("/invitations", summary="List accounts that you are invited to")
async def list_invitations(request: Caller, plane: Plane) -> InvitationList:
    found = await plane.identity.invitations.of_user(_person(request.user))
    return InvitationList([_told(one) for one in found])


@post("/invitations/{account:str}/accept", status_code=200, summary="Accept an invitation: be in that account", opt=OWN)
async def accept_invitation(request: Caller, plane: Plane, account: str) -> AccountRecord:
    found = await decide(request, plane, request.user, account, "accept")
    return AccountRecord(name=found.account, role=found.role, current=False)


@delete("/invitations/{account:str}", status_code=200, summary="Decline an invitation", opt=OWN)
async def decline_invitation(request: Caller, plane: Plane, account: str) -> Declined:
    found = await decide(request, plane, request.user, account, "decline")
    return Declined(True, f"you are not invited to '{found.account}' any more")


async def decide(
    connection: Connection, plane: ControlPlane, by: Account, account: str, decision: Decision
) -> Invitation:
    """It is told to the account, too: the call itself is in the log of the one that the caller speaks for now.

    Raises NotFound, Forbidden.
    """
    invitations, user_id = plane.identity.invitations, _person(by)
    found = await (invitations.accept if decision == "accept" else invitations.decline)(user_id, account)
    told = {"actor": actor_of(by), "action": f"invitation {decision}", "resource": found.user, "status": 200}
    await plane.audit.record(account_id=found.account_id, address=client_address(connection), **told)
    return found


def _person(by: Account) -> int:
    """A program must not bring its maker anywhere."""
    if not by.is_person or by.user_id is None:
        raise Forbidden(
            "only somebody who is logged in has invitations; use `roost login`, or open /login in a browser"
        )
    return by.user_id


def _told(one: Invitation) -> InvitationRecord:
    return InvitationRecord(
        account=one.account,
        role=one.role,
        invited_by=one.invited_by,
        invited_at=rfc3339(one.created_ns),
        expires_at=rfc3339(one.expires_ns),
    )
