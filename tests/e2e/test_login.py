"""Logging in by a real browser, at a real provider, into a Roost as `roost up` starts it; and what others cannot do."""

import asyncio
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect
from websockets.exceptions import ConnectionClosed

from tests.api.oidc_provider import CLIENT, SECRET, OidcProvider, an_oidc_provider
from tests.e2e.browser_network import BrowserNetwork
from tests.e2e.conftest import a_place, an_instance
from tests.e2e.exec_client import Stream, start
from tests.e2e.instance import Api, RunningRoost, clean_environment
from tests.e2e.test_browser import CHROMIUM, browser, network, playwright, visitor

pytestmark = pytest.mark.e2e
with_browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
__all__ = ["browser", "network", "playwright", "visitor"]  # fixtures

ATTACK = """async (api) => {
    const told = []
    for (const path of ['/api/v1/mags-jobs', '/api/v1/logout', '/logout', '/device']) {
        await fetch(api + path, {method: 'POST', mode: 'no-cors', credentials: 'include', body: '{"script": "x"}'})
    }
    told.push(await fetch(api + '/api/v1/whoami', {credentials: 'include'}).then(() => 'read', () => 'unreadable'))
    told.push(await new Promise((done) => {
        const socket = new WebSocket(api.replace('http', 'ws') + '/api/v1/mags-jobs/x/execs/0000000000000000/stream')
        socket.onopen = () => done('open'); socket.onerror = () => done('refused')
    }))
    return told
}"""


@pytest.fixture(scope="module")
def provider() -> Iterator[OidcProvider]:
    """In a thread, with a loop of its own."""
    found: list[OidcProvider] = []
    ready, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with an_oidc_provider() as provider:
            provider.person = {"sub": "1", "email": "anna@example.com", "email_verified": True}
            found.append(provider)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(over.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def known_roost(provider: OidcProvider) -> Iterator[RunningRoost]:
    """Running, and known to the provider."""
    with a_place() as place:
        place.chmod(0o755)
        (place / "secret").write_text(SECRET)
        options = ["--oidc-issuer", provider.issuer, "--oidc-client-id", CLIENT, "--oidc-domain", "example.com"]
        with an_instance("--min-pool-size", "1", *options, "--oidc-client-secret", str(place / "secret")) as instance:
            yield instance.start()


def roost(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "roost.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=clean_environment() | {"HOME": str(home)},
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out


@with_browser
def test_a_program_is_let_in_by_a_browser_that_logs_in_at_the_provider(
    known_roost: RunningRoost,
    provider: OidcProvider,
    network: BrowserNetwork,
    visitor: BrowserContext,
    tmp_path: Path,
) -> None:
    url = known_roost.api.url
    for address in (url, provider.issuer):
        network.lead_to(address.removeprefix("http://"))
    program = roost(tmp_path, "login", "--api-url", url, "--no-browser")
    assert program.stderr is not None
    address, code = (program.stderr.readline().split()[-1] for _ in range(2))
    page = visitor.new_page()
    page.goto(address)
    page.get_by_text("Log in with OpenID Connect").click()
    expect(page.locator("code")).to_have_text(code)
    page.get_by_text("Let it in").click()
    expect(page.locator("p")).to_contain_text("is logged in")
    assert "as anna, account anna (owner)" in said(program)
    assert "hello of anna" in said(roost(tmp_path, "run", "echo hello of anna"))
    assert "hello of anna" not in json.dumps(known_roost.api.jobs())
    said(roost(tmp_path, "logout"))

    assert attacked(network, visitor, url) == ["unreadable", "refused"]
    page.goto(f"{url}/login")
    expect(page.locator("p")).to_contain_text("You are logged in as anna")
    assert len(page.request.get(f"{url}/api/v1/mags-jobs").json()["jobs"]) == 1
    page.get_by_text("Log out").click()
    expect(page.get_by_text("Password")).to_be_visible()


def attacked(network: BrowserNetwork, visitor: BrowserContext, url: str) -> list[str]:
    """What a page of the same site, on another port, got out of the browser's session."""
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        evil = f"127.0.0.1:{server.server_port}"
        network.lead_to(evil)
        page = visitor.new_page()
        page.goto(f"http://{evil}/")
        told: list[str] = page.evaluate(ATTACK, url)
        page.close()
        server.shutdown()
    return told


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@with_browser
def test_a_password_typed_into_the_page_logs_in(
    known_roost: RunningRoost, network: BrowserNetwork, visitor: BrowserContext
) -> None:
    api = known_roost.api
    network.lead_to(api.url.removeprefix("http://"))
    assert api.ask("POST", "/users", {"name": "bert", "password": "correct horse"})[0] == 201
    page = visitor.new_page()
    for password, words in (("wrong horse", "wrong user name or password"), ("correct horse", "logged in as bert")):
        page.goto(f"{api.url}/login")
        page.get_by_label("User").fill("bert")
        page.get_by_label("Password").fill(password)
        page.get_by_role("button").click()
        expect(page.locator("p")).to_contain_text(words)
    (cookie,) = visitor.cookies()
    assert (cookie.get("name"), cookie.get("httpOnly"), cookie.get("sameSite")) == ("roost_session", True, "Lax")


def test_a_revoked_token_loses_the_terminal_that_is_open(known_roost: RunningRoost) -> None:
    api = known_roost.api
    made = api.call("POST", "/tokens", {"name": "laptop"})
    job = api.submit("sleep infinity", name="revoked")
    api.running(job)
    stream = Stream(Api(api.url, made["token"]), job, start(api, job, "cat", input=True)).open()
    stream.send(0, b"before\n")
    stream.until(b"before")
    api.call("DELETE", f"/tokens/{made['id']}")
    with pytest.raises(ConnectionClosed, match="not known here"):
        while True:
            stream.hear()
    api.stop(job)
