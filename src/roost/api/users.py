"""Users, made and disabled by admins of the first account; and everybody's own password."""

from typing import Annotated

import msgspec
from litestar import get, patch, post, put
from msgspec import Meta

from roost.accounts import scopes
from roost.accounts.users import User, made_up_password
from roost.api.bodies import JsonBody
from roost.api.guard import client_address
from roost.api.mags import Caller
from roost.api.plane import Plane
from roost.clock import rfc3339
from roost.errors import Forbidden, NotFound

INSTALLATION = {"scope": "admin", "first": True}


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    email: str | None = None
    password: Annotated[str | None, Meta(description="None: one is made up, and shown this once")] = None
    role: Annotated[str | None, Meta(description="Also in the caller's account: owner, member or viewer")] = None


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    disabled: bool


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    password: str
    current_password: Annotated[str | None, Meta(description="Of whoever changes their own")] = None


class UserRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    email: str | None
    has_password: bool
    disabled: bool
    created_at: str
    last_login_at: str | None


class MadeUser(UserRecord, frozen=True, kw_only=True, omit_defaults=True):
    password: Annotated[str | None, Meta(description="The one that was made up; shown this once")] = None


class UserList(msgspec.Struct, frozen=True):
    users: list[UserRecord]


class Done(msgspec.Struct, frozen=True):
    success: bool
    message: str


@post(
    "/users",
    status_code=201,
    dto=JsonBody,
    return_dto=None,
    summary="Make a user, with an account of the same name",
    opt=INSTALLATION,
)
async def create(request: Caller, plane: Plane, data: NewUser) -> MadeUser:
    made_up = made_up_password() if data.password is None else None
    joins = (request.user.id, scopes.role(data.role)) if data.role else None
    user = await plane.identity.users.create(data.name, data.email, made_up or data.password, joins)
    return MadeUser(password=made_up, **msgspec.structs.asdict(_told(user)))


@get("/users", summary="List users", opt=INSTALLATION)
async def list_users(plane: Plane) -> UserList:
    return UserList([_told(user) for user in await plane.identity.users.listed()])


@patch(
    "/users/{name:str}",
    dto=JsonBody,
    return_dto=None,
    summary="Disable a user, or enable them again",
    description="Disabling ends their sessions, tokens and SSH keys, in every account and for good.",
    opt=INSTALLATION,
)
async def change(plane: Plane, name: str, data: Change) -> UserRecord:
    user = await plane.identity.users.find(name)
    if data.disabled:
        for key_id in await plane.identity.users.disable(user):
            plane.ssh.revoke(key_id)
    else:
        await plane.identity.users.enable(user)
    return _told(await plane.identity.users.find(name))


@put(
    "/users/{name:str}/password",
    dto=JsonBody,
    return_dto=None,
    summary="Set a password: your own, or as admin of the first account anybody's",
    description="Ends their other sessions and the tokens of `roost login`.",
    opt={"scope": "read"},
)
async def set_password(request: Caller, plane: Plane, name: str, data: NewPassword) -> Done:
    by, users = request.user, plane.identity.users
    own = by.is_person and by.user_name == name
    if not own and not (by.first and by.may("admin")):
        raise NotFound(f"there is no user {name[:80]!r} whose password you may set")
    user = await users.find(name)
    if own:
        if not user.has_password:
            raise Forbidden("you log in at the OpenID provider; an admin of the first account can give you a password")
        await users.check(user.name, data.current_password or "", client_address(request))
    await users.set_password(user, data.password, by)
    return Done(True, f"Password of '{user.name}' set")


def _told(user: User) -> UserRecord:
    return UserRecord(
        name=user.name,
        email=user.email,
        has_password=user.has_password,
        disabled=user.disabled,
        created_at=rfc3339(user.created_ns),
        last_login_at=None if user.last_login_ns is None else rfc3339(user.last_login_ns),
    )
