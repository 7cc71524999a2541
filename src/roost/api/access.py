"""The doors into one job's sandbox: a URL on its own host name, and SSH.

`POST …/access` opens one and wakes the sandbox; port 22 is SSH, any other a URL. A job's name has one port at a time.
"""

from typing import Annotated, Any

import msgspec
from litestar import delete, get, post
from msgspec import Meta

from roost.api.bodies import JsonBody
from roost.api.mags import Caller, Id, Stopped
from roost.api.plane import Plane
from roost.clock import rfc3339
from roost.errors import Conflict, Invalid, NotFound
from roost.gateways import admission, openings
from roost.gateways.admission import Access, Kind
from roost.gateways.hosts import Name
from roost.gateways.openings import Opening
from roost.gateways.routes import Routes
from roost.gateways.ssh.access import SshAccess, ssh_access
from roost.jobs import job as jobs
from roost.jobs.job import Job
from roost.jobs.run import Run

SSH_PORT = 22
PORT = 8080  # documented, where none is said
WAKE_WITHIN = 25.0  # seconds; clients wait 30 for an answer


def _note(text: str) -> Meta:
    return Meta(description=text)


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """null counts as absent."""

    port: Annotated[int | None, _note("22: SSH; any other: a URL for that port; default 8080")] = None
    access: Annotated[
        str | None, _note('Of a URL: "public", "token" or "signed"; default as it was, "public" at first')
    ] = None
    expires_in: Annotated[int | None, _note("Of a signed URL: seconds, 1 to 604800; default 3600")] = None
    dedicated: Annotated[bool | None, _note("Of SSH: a port of the gateway that is this job's alone")] = None


class UrlAccess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    success: bool
    url: str
    subdomain: str
    port: int
    access_type: str
    access: str
    gateway_url: str | None = None  # where to send requests, with the URL's Host, if the name is not known to a program
    ipv6_address: str | None = None  # of the sandbox as it is now; it changes with a cold wake
    access_token: str | None = None  # shown once
    expires_at: str | None = None  # of a signed `url`


@post(
    "/mags-jobs/{id:str}/access",
    status_code=200,
    dto=JsonBody,
    return_dto=None,
    summary="Open a URL, or SSH, to a persistent job's sandbox",
    description=(
        "Wakes it if it sleeps. Any port but 22: the job's own host name leads to that port from now on; asking "
        'again repoints it. `access: "token"`: visitors send the answer\'s `access_token`, shown this once, as '
        'X-Roost-Token or as cookie roost_access. `access: "signed"`: `url` is a link that expires. Port 22: host, '
        "port and a private key for SSH."
    ),
)
async def open_access(request: Caller, plane: Plane, id: Id, data: Wanted) -> UrlAccess | SshAccess:
    port = port_of("port", data.port)
    job = await jobs.find(plane.database, request.user.id, id)
    if port == SSH_PORT:
        _refuse_terms(data)
        return await ssh_access(plane, request, job, dedicated=bool(data.dedicated))
    if data.dedicated is not None:
        raise Invalid("dedicated: is for SSH (port 22); a URL has its host name to itself: leave it out")
    kind, expires = terms_of(data.access, data.expires_in)
    _require_lasting(job)
    run = await plane.live.awake(job, WAKE_WITHIN)
    token, token_hash = admission.new_token() if kind == "token" else (None, None)
    opening = await openings.open_port(plane.database, job, port, kind, token_hash)
    plane.routes.job_changed(job)
    link = signed(plane.routes, job.subdomain, None, opening.terms, expires)
    return _url_access(plane.routes, job, opening, run, access_token=token, **link)


@get(
    "/mags-jobs/{id:str}/access",
    summary="Show where a job's URL leads",
    description="Tokens and links are not shown again: `POST` makes others. 404 while no URL is open.",
)
async def show_access(request: Caller, plane: Plane, id: Id) -> UrlAccess:
    job = await jobs.find(plane.database, request.user.id, id)
    opening = await openings.of(plane.database, job)
    if opening is None:
        raise NotFound(_closed(job))
    return _url_access(plane.routes, job, opening, plane.live.run_of(job))


@delete(
    "/mags-jobs/{id:str}/access",
    status_code=200,
    summary="Close a job's URL",
    description="Tokens and signed links that were given out end with it. Aliases of its workspace stay.",
)
async def close_access(request: Caller, plane: Plane, id: Id) -> Stopped:
    job = await jobs.find(plane.database, request.user.id, id)
    closed = await openings.close(plane.database, job)
    plane.routes.job_changed(job)
    if not closed:
        raise NotFound(_closed(job))
    return Stopped(True, f"The URL of job '{job.name}' is closed")


def port_of(field: str, port: int | None) -> int:
    """Raises Invalid."""
    if port is not None and not 1 <= port <= 65535:
        raise Invalid(f"{field}: {port} is no port; give 1 to 65535")
    return PORT if port is None else port


def terms_of(access: str | None, expires_in: int | None) -> tuple[Kind | None, int]:
    """The kind of access, and when a link that is made now ends. Raises Invalid."""
    kind = None if access is None else admission.kind(access)
    if expires_in is not None and kind != "signed":
        raise Invalid('expires_in: goes with access "signed" only')
    return kind, admission.expiry(expires_in)


def signed(routes: Routes, label: str, domain: str | None, access: Access, expires: int) -> dict[str, str]:
    """`url`, and for a name that wants a link, when that expires."""
    url = routes.hosts.url(label, domain)
    if access.kind != "signed":
        return {"url": url}
    host = Name(label, domain or routes.hosts.domains[0]).host
    return {"url": routes.admission.sign(url, host, access, expires), "expires_at": rfc3339(expires * 10**9)}


def _refuse_terms(wanted: Wanted) -> None:
    for field in ("access", "expires_in"):
        if getattr(wanted, field) is not None:
            raise Invalid(f"{field}: is for URLs; SSH (port 22) always wants its key: leave it out")


def _require_lasting(job: Job) -> None:
    if job.final:
        raise Conflict(f"job {job.name!r} is not running (status: {job.status}); submit it again")
    if not job.persistent:
        raise Invalid(f"job {job.name!r} ends with its script; submit it with persistent: true to reach it by a URL")


def _closed(job: Job) -> str:
    return f"job {job.name!r} has no URL open; POST …/access with a port opens one (`roost url`)"


def _url_access(routes: Routes, job: Job, opening: Opening, run: Run | None, **more: Any) -> UrlAccess:
    address = run.state.ipv6 if run is not None and run.state is not None else None
    told: dict[str, Any] = {"url": routes.hosts.url(job.subdomain), **more}
    return UrlAccess(
        success=True,
        subdomain=job.subdomain,
        port=opening.port,
        access_type="http_proxy",
        access=opening.access,
        gateway_url=routes.hosts.local_url(),
        ipv6_address=address,
        **told,
    )
