"""`roost browser`: Chromium in a sandbox, and where its DevTools are reached: the sandbox's own URL.

DevTools answer no other name than localhost, as which the gateway asks them (`gateways/http/forwarding.py`). What they
say of their own address is therefore of no use to others; the host of the URL takes its place.
"""

import contextlib
import http.client
import json
import time
import urllib.parse

import click

from roost.chromium import MEMORY_MB, PORT, SCRIPT
from roost.cli.answers import as_json, print_json
from roost.cli.connection import Api, Json, api_options
from roost.cli.names import JOB
from roost.cli.paths import path_of
from roost.cli.starting import FINAL, started, submitted, waited_for
from roost.cli.wording import note
from roost.errors import Invalid, NotFound, RoostError, Unauthenticated

WITHIN = 120.0  # seconds; clients give a browser as long
LOOK_AGAIN = 0.2  # seconds
ANSWER_WITHIN = 2.0  # seconds; the gateway itself waits for the port, but what ended will never listen
WAKE_WITHIN = 60.0  # seconds


@click.command()
@click.argument("name", required=False, type=JOB)
@click.option("--image", default="browser", show_default=True, metavar="I", help="One that has Chromium.")
@click.option("--memory", type=click.IntRange(min=1), default=MEMORY_MB, show_default=True, metavar="MB")
@click.option("--access", type=click.Choice(["public", "token"]), help="Who may drive it: who knows the URL, or ...")
@as_json
@api_options
def browser(api: Api, name: str | None, image: str, memory: int, access: str | None, raw: bool) -> None:
    """Start Chromium in a sandbox and print where programs drive it (CDP, by http and ws).

    With NAME its profile is kept as a workspace, and the one that is there is used again. It stays until `roost stop`.
    The image is made once, by one who may: roost image build browser -p chromium

    \b
    playwright: chromium.connect_over_cdp(HTTP)
    puppeteer:  connect({browserWSEndpoint: WS})
    """
    with waited_for(api) as made:
        job = _there(api, name) or str(_submitted(api, name, image, memory, made)["request_id"])
        started(api, job)
        opened, version = _opened(api, job, access)
    answer = endpoints(job, opened, version)
    if raw:
        return print_json(answer)
    click.echo(f"http  {answer['cdp_http_url']}\nws    {answer['ws_endpoint']}")
    if token := opened.get("access_token"):
        note(f"programs send the header X-Roost-Token: {token} (shown this once)")
    note(f"{version['Browser']} in job {job}; `roost stop {name or job}` ends it")
    return None


def _opened(api: Api, job: str, access: str | None) -> tuple[Json, Json]:
    """Its URL, and what its browser says of itself."""
    asked = {"port": PORT} | ({"access": access} if access else {})
    opened = api.call("POST", f"{path_of(job)}/access", asked, timeout=WAKE_WITHIN)
    return opened, _version(api, job, opened)


def endpoints(job: str, opened: Json, version: Json) -> dict[str, str]:
    """`cdp_url` finds the browser by itself, `ws_endpoint` is the browser's own address."""
    url = urllib.parse.urlsplit(str(opened["url"]))
    scheme = "wss" if url.scheme == "https" else "ws"
    path = urllib.parse.urlsplit(str(version["webSocketDebuggerUrl"])).path
    return {
        "request_id": job,
        "cdp_http_url": f"{url.scheme}://{url.netloc}",
        "cdp_url": f"{scheme}://{url.netloc}",
        "ws_endpoint": f"{scheme}://{url.netloc}{path}",
    } | ({"access_token": opened["access_token"]} if "access_token" in opened else {})


def _there(api: Api, name: str | None) -> str | None:
    """The job of that name, unless it has ended."""
    if name is None:
        return None
    with contextlib.suppress(NotFound):
        state = api.call("GET", f"{path_of(name)}/status")
        return None if state["status"] in FINAL else str(state["request_id"])
    return None


def _submitted(api: Api, name: str | None, image: str, memory: int, made: list[str]) -> Json:
    body = {"script": SCRIPT, "type": "inline", "persistent": True, "rootfs_type": image, "memory_mb": memory}
    # it wakes from cold by the same script, whose profile is then on its disk
    body |= {"startup_command": SCRIPT} | ({"name": name, "workspace_id": name} if name else {})
    try:
        return submitted(api, body, made)
    except (NotFound, Invalid) as error:
        if image not in str(error):
            raise
        text = f"{error}; `roost image build {image} -p chromium` makes one (a minute or two), --image names another"
        raise Invalid(text) from error


def _version(api: Api, job: str, opened: Json) -> Json:
    """What DevTools say of themselves, once they answer."""
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            return _asked(opened)
        state = api.call("GET", f"{path_of(job)}/status")
        if state["status"] in FINAL or state.get("exit_code") is not None:
            raise RoostError(_ended(api, job))
        time.sleep(LOOK_AGAIN)
    raise RoostError(f"no browser answered at {opened['url']} within {WITHIN:.0f} s; `roost logs {job}` may say why")


def _asked(opened: Json) -> Json:
    url = urllib.parse.urlsplit(str(opened["url"]))
    # names below localhost are this machine's (RFC 6761), though not every resolver knows
    host = "127.0.0.1" if (url.hostname or "").endswith(".localhost") else str(url.hostname)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, url.port, timeout=ANSWER_WITHIN)
    token = {"X-Roost-Token": str(opened["access_token"])} if "access_token" in opened else {}
    try:
        connection.request("GET", "/json/version", headers={"Host": url.netloc, **token})
        answer = connection.getresponse()
        if answer.status in (401, 403):
            raise Unauthenticated("its URL takes a token, which is not shown again; --access token makes another")
        if answer.status != 200:
            raise ValueError(answer.status)
        return json.loads(answer.read(65536))
    finally:
        connection.close()


def _ended(api: Api, job: str) -> str:
    """What it said last; the sandbox is not left behind."""
    logs = api.call("GET", f"{path_of(job)}/logs")["logs"]
    api.call("POST", f"{path_of(job)}/stop", timeout=60)
    own = [entry["message"] for entry in logs if entry["source"] != "system"]  # not Roost's remarks
    said = own[-1] if own else "it said nothing"
    return f"the browser ended at once: {said}; `roost image build NAME -p chromium` makes an image that has one"
