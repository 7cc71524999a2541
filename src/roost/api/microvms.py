"""MicroVMs: sandboxes that stay until they are deleted, for who logs in by SSH as `ubuntu`.

What one is made of, and what is lost when, says `jobs/microvms.py`. Its job has the same id, so that all of
`/mags-jobs/{id}/…` (exec, logs, files, access) works for it too.
"""

import dataclasses
import re
from typing import Annotated, Any

import msgspec
from litestar import Response, delete, get, post
from litestar.params import Parameter
from msgspec import Meta

from roost import ids
from roost.api.bodies import JsonBody
from roost.api.mags import Caller, Stopped
from roost.api.plane import ControlPlane, Plane
from roost.api.submission import MAX_DISK_GB, MIN_MEMORY_MB, MIN_VCPUS
from roost.clock import rfc3339
from roost.errors import Conflict, Invalid, NodeUnavailable
from roost.gateways.ssh import keys
from roost.gateways.ssh.access import host_of
from roost.jobs import microvms as rows
from roost.jobs.microvms import USER, Keys, MicroVM, Size, State
from roost.sandboxes.images import image_name
from roost.sandboxes.placement import Machine
from roost.sandboxes.pulls import TRANSPORT
from roost.sandboxes.well_known import Taken, take

IMAGE = "ubuntu-22.04"  # documented
CPU = 2.0
MEMORY_MB = 2048
DISK_GB = 20
RUNTIME = "oci"
MAX_KEYS = 64
WITHIN = 25.0  # seconds; clients wait 30 for an answer
PEM = "application/x-pem-file"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")

Id = Annotated[str, Parameter(description="Id or name of a microVM")]


def _note(text: str) -> Meta:
    return Meta(description=text)


class NewMicroVM(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """null counts as absent."""

    name: Annotated[str | None, _note("Also its host name: letters, digits and '-', at most 63; made up")] = None
    cpu: Annotated[float | None, _note("0.1 to the machine's; default 2")] = None
    memory: Annotated[int | None, _note("MB, 32 to 90 % of the machine's; default 2048")] = None
    disk: Annotated[int | None, _note("GB, 1 to 64; default 20")] = None
    image: Annotated[
        str | None,
        _note(f"Name of an image, or well-known: ubuntu-24.04, debian-12, alpine, python, node-20 …; default {IMAGE}"),
    ] = None
    ssh_public_keys: Annotated[list[str] | None, _note("Who may log in; absent or empty: a key pair is generated")] = (
        None
    )
    runtime: Annotated[str | None, _note(f'"{RUNTIME}", which is the default')] = None


class MicroVMRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    name: str
    state: State
    cpu: float
    memory: int  # MB
    disk: int  # GB
    image: str  # the one that was taken: a name of this Roost, or a registry's reference
    runtime: str
    key_generated: bool
    created_at: str
    started_at: str | None = None
    ip_address: str | None = None
    ipv6_address: str | None = None
    error: str | None = None
    image_note: str | None = None  # of the answer that creates it: what was taken for the image that was asked for


class MicroVMList(msgspec.Struct, frozen=True):
    microvms: list[MicroVMRecord]
    total: int


class SshConnection(msgspec.Struct, frozen=True, kw_only=True):
    ssh_command: str  # through the gateway; the addresses are the sandbox's own, which only this machine reaches
    ip_address: str | None  # none while it does not run
    ipv6_address: str | None
    key_generated: bool
    ssh_host: str
    ssh_port: int
    ssh_user: str
    host_key: str  # of the gateway, "ssh-ed25519 AAAA…", for a line of known_hosts


@post(
    "/microvms", status_code=201, dto=JsonBody, return_dto=None, summary="Create a microVM",
    description="Answers as soon as it is sure to exist; its state becomes running within moments.",
)  # fmt: skip
async def create(request: Caller, plane: Plane, data: NewMicroVM) -> MicroVMRecord:
    id = ids.request_id()
    _require_runtime(data.runtime)
    name, opening = _name(data.name, id), _keys(data.ssh_public_keys)
    size = _size(data, plane.placement.machine)
    taken = await _image(plane, request.user.id, size.image)
    size = dataclasses.replace(size, image=taken.image, image_source=taken.source)
    made = _record(plane, await plane.microvms.create(request.user.id, id, name, size, opening))
    return msgspec.structs.replace(made, image_note=taken.note)


@get("/microvms", summary="List microVMs, the newest first")
async def list_microvms(request: Caller, plane: Plane) -> MicroVMList:
    found = await rows.of_account(plane.database, plane.live, request.user.id)
    return MicroVMList([_record(plane, one) for one in found], len(found))


@get("/microvms/{id:str}", summary="Show a microVM")
async def show(request: Caller, plane: Plane, id: Id) -> MicroVMRecord:
    return _record(plane, await _find(request, plane, id))


@delete("/microvms/{id:str}", status_code=200, summary="Delete a microVM, with its files and keys")
async def remove(request: Caller, plane: Plane, id: Id) -> Stopped:
    found = await _find(request, plane, id)
    done = await plane.microvms.remove(found, WITHIN)
    plane.collection.wake()
    rest = "" if done else "; what it used is freed as soon as its node answers"
    return Stopped(True, f"MicroVM {found.name!r} deleted{rest}")


@get(
    "/microvms/{id:str}/ssh-connection", summary="How to log in by SSH",
    description="The command works once the private key is where it says; it starts nothing that is stopped.",
)  # fmt: skip
async def ssh_connection(request: Caller, plane: Plane, id: Id) -> SshConnection:
    found = await _find(request, plane, id)
    host = plane.ssh.settings.ssh_host or host_of(request.headers.get("host", "")) or "localhost"
    port = plane.ssh.port
    user = USER if found.key_generated else f"{USER}+{found.id}"
    key = f"-i ~/.ssh/vm-{found.id}-key.pem " if found.key_generated else ""
    record = _record(plane, found)
    return SshConnection(
        ssh_command=f"ssh {key}-p {port} {user}@{host}",
        ip_address=record.ip_address,
        ipv6_address=record.ipv6_address,
        key_generated=found.key_generated,
        ssh_host=host,
        ssh_port=port,
        ssh_user=user,
        host_key=plane.ssh.key.public,
    )


@get(
    "/microvms/{id:str}/ssh-keys/download", summary="Download the generated private key, once",
    description="404 from the second time on, and for a microVM that was given keys. It is erased before it is sent.",
    media_type=PEM, opt={"scope": "run", "audit": True},
)  # fmt: skip
async def download_key(request: Caller, plane: Plane, id: Id) -> Response[bytes]:
    found = await _find(request, plane, id)
    private = await rows.tell_key(plane.database, plane.secret, found)
    headers = {"Content-Disposition": f'attachment; filename="vm-{found.id}-key.pem"', "Cache-Control": "no-store"}
    return Response(private, media_type=PEM, headers=headers)


@post(
    "/microvms/{id:str}/start", status_code=200, summary="Start a microVM that is stopped",
    description="Answers when it runs; one that runs already stays as it is.",
)  # fmt: skip
async def start(request: Caller, plane: Plane, id: Id) -> MicroVMRecord:
    found = await _living(request, plane, id)
    await plane.live.resume(found.job, WITHIN)
    return _record(plane, await _find(request, plane, id))


@post(
    "/microvms/{id:str}/stop", status_code=200, summary="Stop a microVM; its files are kept",
    description="Its processes get TERM, then KILL. It stays stopped until it is started, whoever asks for it.",
)  # fmt: skip
async def stop(request: Caller, plane: Plane, id: Id) -> MicroVMRecord:
    found = await _living(request, plane, id)
    await plane.live.halt(found.job, WITHIN)
    return _record(plane, await _find(request, plane, id))


@post(
    "/microvms/{id:str}/restart", status_code=200, summary="Restart a microVM; its files are kept",
    description="One that is stopped is started.",
)  # fmt: skip
async def restart(request: Caller, plane: Plane, id: Id) -> MicroVMRecord:
    found = await _living(request, plane, id)
    await plane.live.restart(found.job, WITHIN)
    return _record(plane, await _find(request, plane, id))


async def _find(request: Caller, plane: ControlPlane, id: str) -> MicroVM:
    return await rows.find(plane.database, plane.live, request.user.id, id)


async def _living(request: Caller, plane: ControlPlane, id: str) -> MicroVM:
    """Raises Conflict for one that has ended for good."""
    found = await _find(request, plane, id)
    if found.job.final:
        raise Conflict(f"microVM {found.name!r} has ended: {found.error}")
    return found


def _record(plane: ControlPlane, microvm: MicroVM) -> MicroVMRecord:
    job, run = microvm.job, plane.live.run_of(microvm.job)
    sandbox = None if run is None else run.state
    return MicroVMRecord(
        id=microvm.id,
        name=microvm.name,
        state=microvm.state,
        cpu=job.vcpus,
        memory=job.memory_mb,
        disk=job.disk_gb,
        image=job.image if job.image_source is None else job.image_source.removeprefix(TRANSPORT),
        runtime=RUNTIME,
        key_generated=microvm.key_generated,
        created_at=rfc3339(microvm.created_ns),
        started_at=None if sandbox is None or sandbox.started_ns is None else rfc3339(sandbox.started_ns),
        ip_address=None if sandbox is None else sandbox.ipv4,
        ipv6_address=None if sandbox is None else sandbox.ipv6,
        error=microvm.error,
    )


# ---- what may be asked for


def _name(name: str | None, id: str) -> str:
    if not name:
        return f"vm-{id[:8]}"
    if not _NAME.match(name):
        raise Invalid(f"name: {name[:80]!r} can be no host name; 1 to 63 letters, digits and '-', not first or last")
    return name


def _size(wanted: NewMicroVM, machine: Machine) -> Size:
    most = machine.largest_memory_mb
    return Size(
        image=image_name("image", wanted.image or IMAGE),
        image_source=None,
        vcpus=_within("cpu", wanted.cpu, MIN_VCPUS, machine.cpus, min(CPU, machine.cpus)),
        memory_mb=_within("memory", wanted.memory, MIN_MEMORY_MB, most, min(MEMORY_MB, most)),
        disk_gb=_within("disk", wanted.disk, 1, MAX_DISK_GB, DISK_GB),
    )


def _within(field: str, value: Any, least: float, most: float, default: Any) -> Any:
    if value is None:
        return default
    if not least <= value <= most:
        raise Invalid(f"{field}: {value} is out of range; give {least} to {most}")
    return value


def _keys(lines: list[str] | None) -> Keys:
    if not lines:
        public, private = keys.generate()
        return Keys((public,), private)
    if len(lines) > MAX_KEYS:
        raise Invalid(f"ssh_public_keys: {len(lines)} keys; at most {MAX_KEYS}")
    found = [keys.read_public(line, f"ssh_public_keys[{at}]") for at, line in enumerate(lines)]
    return Keys(tuple(dict.fromkeys(found)))


def _require_runtime(runtime: str | None) -> None:
    if runtime and runtime != RUNTIME:
        raise Invalid(f'runtime: {runtime[:40]!r} is not installed here; there is "{RUNTIME}", which is the default')


async def _image(plane: ControlPlane, account_id: int, name: str) -> Taken:
    """Raises Invalid. Without a node nobody knows what there is: the job will tell."""
    try:
        there = await plane.node.images()
        return await take(name, there, plane.live.pulls, plane.default_images.of(account_id))
    except NodeUnavailable:
        return Taken(name)
    except Invalid as error:
        raise Invalid(f"image: {error}") from None
