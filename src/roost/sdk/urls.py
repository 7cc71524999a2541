"""What leads into a sandbox: URLs, aliases, SSH and its keys, and a browser in one."""

import time
import urllib.parse
from typing import Literal, NotRequired, TypedDict, cast

from roost.chromium import MEMORY_MB, PORT, SCRIPT
from roost.sdk import jobs, wire
from roost.sdk.errors import JobFailed, RoostError, TimedOut
from roost.sdk.jobs import FINAL, WAKE_WITHIN, path_of
from roost.sdk.results import AliasList, AliasRecord, Removed, SshAccess, SshKey, SshKeys, Stopped, UrlAccess
from roost.sdk.wire import Answer, Call, Json, Request, Send, Wait, given, quoted

ALIASES = "/mags-url-aliases"
KEYS = "/ssh-keys"
Access = Literal["public", "token", "signed"]


class Browser(TypedDict):
    """`cdp_url` and `cdp_http_url` find the browser by themselves, `ws_endpoint` is its own address."""

    request_id: str
    cdp_url: str
    cdp_http_url: str
    ws_endpoint: str
    access_token: NotRequired[str]


def enable_access(
    request_id: str,
    *,
    port: int = 8080,
    access: Access | None = None,
    expires_in: int | None = None,
    dedicated: bool | None = None,
) -> Call[UrlAccess | SshAccess]:
    """Open a URL to a port of a persistent job's sandbox, or with port 22 SSH; wakes it."""
    body = {"port": port} | given(access=access, expires_in=expires_in, dedicated=dedicated)
    # a token or key that is made twice would leave one that nobody knows
    again = port != 22 and access in (None, "public")
    return (yield from wire.call("POST", f"{path_of(request_id)}/access", body, timeout=WAKE_WITHIN, repeatable=again))


def url(
    name_or_id: str, *, port: int = 8080, access: Access | None = None, expires_in: int | None = None
) -> Call[UrlAccess]:
    """Open a URL to a port of a persistent job's sandbox; `url` of the answer is where."""
    return cast(UrlAccess, (yield from enable_access(name_or_id, port=port, access=access, expires_in=expires_in)))


def get_access(name_or_id: str) -> Call[UrlAccess]:
    """Show where a job's URL leads. Raises NotFound while none is open."""
    return (yield from wire.call("GET", f"{path_of(name_or_id)}/access"))


def disable_access(name_or_id: str) -> Call[Stopped]:
    """Close a job's URL; tokens and signed links end with it."""
    return (yield from wire.call("DELETE", f"{path_of(name_or_id)}/access"))


def url_alias_create(
    subdomain: str,
    workspace_id: str,
    domain: str | None = None,
    *,
    port: int | None = None,
    access: Access | None = None,
    expires_in: int | None = None,
) -> Call[AliasRecord]:
    """Give a workspace a host name, which leads to whatever job has it. `domain`: default the server's first."""
    body = {"subdomain": subdomain, "workspace_id": workspace_id}
    return (
        yield from wire.call(
            "POST", ALIASES, body | given(domain=domain, port=port, access=access, expires_in=expires_in)
        )
    )


def url_alias_list() -> Call[AliasList]:
    """List aliases, the newest first."""
    return (yield from wire.call("GET", ALIASES))


def url_alias_delete(subdomain: str, *, domain: str | None = None) -> Call[Stopped]:
    """Remove an alias. `domain` is needed where the subdomain is there in several."""
    return (yield from wire.call("DELETE", ALIASES + quoted(subdomain), query={"domain": domain}))


def url_alias_link(subdomain: str, *, expires_in: int | None = None, domain: str | None = None) -> Call[AliasRecord]:
    """Sign another link to an alias whose access is signed."""
    path = f"{ALIASES}{quoted(subdomain)}/link"
    return (yield from wire.call("POST", path, given(expires_in=expires_in), query={"domain": domain}))


def list_ssh_keys(name_or_id: str | None = None) -> Call[SshKeys]:
    """List your public keys, or those that were made for a job."""
    return (yield from wire.call("GET", KEYS if name_or_id is None else f"{path_of(name_or_id)}{KEYS}"))


def add_ssh_key(public_key: str, *, name: str | None = None) -> Call[SshKey]:
    """Register a public key of your own, which opens all your sandboxes."""
    return (yield from wire.call("POST", KEYS, {"public_key": public_key} | given(name=name)))


def remove_ssh_key(key_id: str, *, job: str | None = None) -> Call[Removed]:
    """Remove a key, of yours or of a job, and close what it has opened."""
    return (yield from wire.call("DELETE", (KEYS if job is None else f"{path_of(job)}{KEYS}") + quoted(key_id)))


def browser(
    name: str | None = None,
    *,
    timeout: float = 120.0,
    rootfs_type: str = "browser",
    memory_mb: int = MEMORY_MB,
    access: Literal["public", "token"] | None = None,
) -> Call[Browser]:
    """Start Chromium in a sandbox; the answer says where programs drive it (CDP). `stop(request_id)` ends it.

    With `name` its profile is kept as a workspace, and the one that is there is used again. The image is made once, by
    `roost image build browser -p chromium`.
    """
    deadline = time.monotonic() + timeout
    there = None if name is None else (yield from jobs.find_job(name))
    if there and there["status"] not in FINAL:
        job = there["request_id"]
    else:
        # it wakes from cold by the same script, whose profile is then on its disk
        accepted = yield from jobs.run(
            SCRIPT,
            name=name,
            workspace_id=name,
            persistent=True,
            rootfs_type=rootfs_type,
            memory_mb=memory_mb,
            startup_command=SCRIPT,
        )
        job = accepted["request_id"]
    yield from jobs.started(job, timeout, 1.0)
    opened = yield from url(job, port=PORT, access=access)
    while True:
        try:
            return _endpoints(job, opened, (yield from _version(opened)))
        except (RoostError, ValueError, KeyError) as error:
            state = yield from jobs.status(job)
            if state["status"] in FINAL or state.get("exit_code") is not None:
                told = yield from jobs.logs(job)
                yield from jobs.stop(job)
                said = [line["message"] for line in told["logs"] if line["source"] != "system"]
                words = said[-1] if said else "it said nothing"
                raise JobFailed(f"the browser ended: {words}") from error
            if time.monotonic() > deadline:
                raise TimedOut(f"no browser answered at {opened['url']} in {timeout} s: {error}") from error
        yield Wait(0.2)


def _version(opened: UrlAccess) -> Call[Json]:
    """What DevTools say of themselves. The sandbox is not the API: it is not sent the token."""
    where = urllib.parse.urlsplit(opened["url"])
    # names below localhost are this machine's (RFC 6761), though not every resolver knows
    host = "127.0.0.1" if (where.hostname or "").endswith(".localhost") else str(where.hostname)
    port = f":{where.port}" if where.port else ""
    headers = {"Host": where.netloc}
    if token := opened.get("access_token"):
        headers["X-Roost-Token"] = token
    request = Request("GET", "/json/version", headers=headers, origin=f"{where.scheme}://{host}{port}", timeout=2.0)
    answer = cast(Answer, (yield Send(request)))
    if answer.status != 200:
        raise ValueError(f"DevTools answered {answer.status}")
    return wire.decoded(answer)


def _endpoints(job: str, opened: UrlAccess, version: Json) -> Browser:
    where = urllib.parse.urlsplit(opened["url"])
    sockets = "wss" if where.scheme == "https" else "ws"
    path = urllib.parse.urlsplit(str(version["webSocketDebuggerUrl"])).path
    found: Browser = {
        "request_id": job,
        "cdp_url": f"{sockets}://{where.netloc}",
        "cdp_http_url": f"{where.scheme}://{where.netloc}",
        "ws_endpoint": f"{sockets}://{where.netloc}{path}",
    }
    if token := opened.get("access_token"):
        found["access_token"] = token
    return found
