"""Accounts of a user, the members of the account that a request speaks for, and whom it has invited."""

from typing import Annotated

import msgspec
from litestar import delete, get, patch, post
from msgspec import Meta

from roost.accounts import scopes
from roost.accounts.invitations import Invitation
from roost.accounts.members import Belonging, Member
from roost.accounts.tokens import Account
from roost.api.bodies import JsonBody
from roost.api.guard import require
from roost.api.mags import Caller
from roost.api.plane import ControlPlane, Plane
from roost.clock import rfc3339
from roost.errors import Forbidden, Invalid

ADMIN = {"scope": "admin"}
OWN = {"scope": "read"}


class NewAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    owner: Annotated[str | None, Meta(description="A user; for tokens of the first account that nobody made")] = None


class NewMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: Annotated[str, Meta(description="Name or e-mail address")]
    role: Annotated[str, Meta(description="owner, member (default) or viewer")] = "member"


class Invited(msgspec.Struct, frozen=True, kw_only=True):
    user: str
    role: str
    invited_by: Annotated[str | None, Meta(description="A user; none: a token that is nobody's")]
    invited_at: str
    expires_at: str


class MadeInvitation(Invited, frozen=True, kw_only=True):
    success: bool
    message: str


class InvitedList(msgspec.Struct, frozen=True):
    account: str
    invited: list[Invited]


class NewRole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str


class AccountRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    role: str | None
    current: Annotated[bool, Meta(description="This request speaks for it")]


class AccountList(msgspec.Struct, frozen=True):
    accounts: list[AccountRecord]


class MemberRecord(msgspec.Struct, frozen=True, kw_only=True):
    user: str
    email: str | None
    role: str
    disabled: bool
    since: str


class MemberList(msgspec.Struct, frozen=True):
    account: str
    members: list[MemberRecord]


class Done(msgspec.Struct, frozen=True):
    success: bool
    message: str


@get("/accounts", summary="List your accounts")
async def list_accounts(request: Caller, plane: Plane) -> AccountList:
    return AccountList(await accounts_of(plane, request.user))


@post("/accounts", status_code=201, dto=JsonBody, return_dto=None, summary="Make an account for a team", opt=OWN)
async def create_account(request: Caller, plane: Plane, data: NewAccount) -> AccountRecord:
    owner = await _owner(plane, request.user, data.owner)
    made = await plane.identity.members.create_account(data.name, owner)
    return AccountRecord(name=made.name, role=made.role, current=False)


@get("/members", summary="List the account's members")
async def list_members(request: Caller, plane: Plane) -> MemberList:
    members = await plane.identity.members.listed(request.user.id)
    return MemberList(request.user.name, [_told(member) for member in members])


@post(
    "/members",
    status_code=201,
    dto=JsonBody,
    return_dto=None,
    summary="Invite a user to the account",
    description="They are a member once they have accepted, and get nothing before.",
    opt=ADMIN,
)
async def add_member(request: Caller, plane: Plane, data: NewMember) -> MadeInvitation:
    role = scopes.role(data.role)
    user = await plane.identity.users.find(data.user)
    made = await plane.identity.invitations.invite(request.user, user, role)
    message = f"'{user.name}' is invited to '{made.account}' as {role}, and is that once they have accepted"
    return MadeInvitation(success=True, message=message, **msgspec.structs.asdict(_invited(made)))


@get("/invited", summary="List whom the account has invited, who have not answered yet", opt=ADMIN)
async def list_invited(request: Caller, plane: Plane) -> InvitedList:
    found = await plane.identity.invitations.of_account(request.user.id)
    return InvitedList(request.user.name, [_invited(one) for one in found])


@delete("/invited/{user:str}", status_code=200, summary="Withdraw an invitation to the account", opt=ADMIN)
async def withdraw_invitation(request: Caller, plane: Plane, user: str) -> Done:
    gone = await plane.identity.invitations.withdraw(request.user.id, user)
    return Done(True, f"'{gone.user}' is not invited to '{gone.account}' any more")


@patch("/members/{user:str}", dto=JsonBody, return_dto=None, summary="Change a member's role", opt=ADMIN)
async def change_member(request: Caller, plane: Plane, user: str, data: NewRole) -> Done:
    role = scopes.role(data.role)
    member = await plane.identity.members.find(request.user.id, user)
    _close(plane, await plane.identity.members.change(request.user, member, role))
    return Done(True, f"'{member.name}' is {role} of '{request.user.name}'")


@delete(
    "/members/{user:str}",
    status_code=200,
    summary="Remove a member, and what speaks for them here; or leave",
    opt=OWN,
)
async def remove_member(request: Caller, plane: Plane, user: str) -> Done:
    by = request.user
    member = await plane.identity.members.find(by.id, user)
    if not (by.is_person and member.id == by.user_id):
        require(by, "admin")
    _close(plane, await plane.identity.members.remove(by, member))
    return Done(True, f"'{member.name}' is no member of '{by.name}' any more")


async def accounts_of(plane: ControlPlane, by: Account) -> list[AccountRecord]:
    """A program's token knows of the one that it speaks for."""
    if by.is_person and by.user_id is not None:
        belongings = await plane.identity.members.accounts_of(by.user_id)
        return [_account(one, current=one.name == by.name) for one in belongings]
    return [AccountRecord(name=by.name, role=by.role, current=True)]


def _account(one: Belonging, current: bool) -> AccountRecord:
    return AccountRecord(name=one.name, role=one.role, current=current)


async def _owner(plane: ControlPlane, by: Account, named: str | None) -> int:
    if named is not None:
        if not (by.first and by.may("admin")):
            raise Forbidden("owner: only admins of the first account make accounts for others; leave it out")
        return (await plane.identity.users.find(named)).id
    if by.user_id is None:
        raise Invalid("owner: this token is nobody's; say which user shall own the account")
    if not by.is_person:
        require(by, "admin")
    return by.user_id


def _close(plane: ControlPlane, key_ids: list[str]) -> None:
    for key_id in key_ids:
        plane.ssh.revoke(key_id)


def _invited(one: Invitation) -> Invited:
    return Invited(
        user=one.user,
        role=one.role,
        invited_by=one.invited_by,
        invited_at=rfc3339(one.created_ns),
        expires_at=rfc3339(one.expires_ns),
    )


def _told(member: Member) -> MemberRecord:
    return MemberRecord(
        user=member.name,
        email=member.email,
        role=member.role,
        disabled=member.disabled,
        since=rfc3339(member.created_ns),
    )
