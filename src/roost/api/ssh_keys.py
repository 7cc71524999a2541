"""SSH keys: an account's own, and those that were made for a job. A removed key closes what it has opened."""

from typing import Annotated

import msgspec
from litestar import Request, delete, get, post
from litestar.datastructures import State
from litestar.params import Parameter

from roost.accounts.tokens import Account
from roost.api.bodies import JsonBody
from roost.api.plane import ControlPlane, Plane
from roost.clock import rfc3339
from roost.gateways.ssh import keys
from roost.gateways.ssh.keys import Key
from roost.jobs import job as jobs

Caller = Request[Account, str, State]
Id = Annotated[str, Parameter(description="Request id, name or workspace of a job")]


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    public_key: str
    name: str = ""  # none: the key's own comment


class SshKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    type: str
    fingerprint: str
    created_at: str
    last_used_at: str | None = None


class SshKeys(msgspec.Struct, frozen=True):
    keys: list[SshKey]


class Removed(msgspec.Struct, frozen=True):
    success: bool
    message: str


@post("/ssh-keys", status_code=201, dto=JsonBody, return_dto=None, summary="Register a public key of your own")
async def add(request: Caller, plane: Plane, data: NewKey) -> SshKey:
    return _told(await keys.add(plane.database, request.user.id, data.name, data.public_key, request.user.user_id))


@get("/ssh-keys", summary="List your public keys")
async def list_keys(request: Caller, plane: Plane) -> SshKeys:
    return SshKeys([_told(key) for key in await keys.listed(plane.database, request.user.id, None)])


@delete("/ssh-keys/{key_id:str}", status_code=200, summary="Remove a public key, and close what it has opened")
async def remove(request: Caller, plane: Plane, key_id: str) -> Removed:
    return await _removed(plane, request.user.id, None, key_id)


@get("/mags-jobs/{id:str}/ssh-keys", summary="List the SSH keys made for a job")
async def list_job_keys(request: Caller, plane: Plane, id: Id) -> SshKeys:
    job = await jobs.find(plane.database, request.user.id, id)
    return SshKeys([_told(key) for key in await keys.listed(plane.database, request.user.id, job.seq)])


@delete(
    "/mags-jobs/{id:str}/ssh-keys/{key_id:str}",
    status_code=200,
    summary="Remove a job's SSH key, and close what it has opened",
)
async def remove_job_key(request: Caller, plane: Plane, id: Id, key_id: str) -> Removed:
    job = await jobs.find(plane.database, request.user.id, id)
    return await _removed(plane, request.user.id, job.seq, key_id)


async def _removed(plane: ControlPlane, account_id: int, job_seq: int | None, key_id: str) -> Removed:
    await keys.remove(plane.database, account_id, job_seq, key_id)
    plane.ssh.revoke(key_id)
    return Removed(True, "SSH key removed")


def _told(key: Key) -> SshKey:
    return SshKey(
        id=key.id,
        name=key.name,
        type=key.kind,
        fingerprint=key.fingerprint,
        created_at=rfc3339(key.created_ns),
        last_used_at=None if key.last_used_ns is None else rfc3339(key.last_used_ns),
    )
