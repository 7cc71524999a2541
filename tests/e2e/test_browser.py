"""A browser in front of real sandboxes: Chromium itself shows pages, keeps WebSockets and event streams open, and waits."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from tests.e2e.conftest import a_place, an_instance
from tests.e2e.instance import Api, RunningRoost, eventually, free_address
from tests.e2e.ssh_client import with_access
from tests.e2e.test_sleep import asleep, sleep
from tests.e2e.test_tls import for_roost, with_files
from tests.e2e.test_urls import access, alias, named
from tests.gateways.tls_world import Lab

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium; on Debian: scripts/system-packages --test"),
]
APP = Path(__file__).with_name("browser_app.py").read_text()
START = f"cat > /root/app.py <<'END'\n{APP}\nEND\nexec python3 /root/app.py\n"
MILLISECONDS = 30_000  # that the browser waits for anything
MEGABYTE = 1_000_000

ECHOES = """async (size) => {
    const address = new URL('/echo', location.href)
    address.protocol = location.protocol.replace('http', 'ws')
    const socket = new WebSocket(address)
    socket.binaryType = 'arraybuffer'
    await new Promise((opened, failed) => { socket.onopen = opened; socket.onclose = failed })
    const echo = (sent) => new Promise((came, failed) => {
        socket.onmessage = (message) => came(message.data)
        socket.onclose = (event) => failed(new Error(`closed with ${event.code}`))
        socket.send(sent)
    })
    const text = 'über'.repeat(size / 5)
    const bytes = Uint8Array.from({length: size}, (_, at) => (at * 31 + (at >> 8)) & 255)
    const same = [(await echo('short')) === 'short', (await echo(text)) === text]
    const back = new Uint8Array(await echo(bytes))
    same.push(back.length === size && back.every((byte, at) => byte === bytes[at]))
    const closed = new Promise((done) => { socket.onclose = done })
    socket.close(4001, 'enough')
    const {code, reason, wasClean} = await closed
    return [...same, code, reason, wasClean]
}"""
ECHOED = [True, True, True, 4001, "enough", True]

FOLLOWS_EVENTS = """() => new Promise((done, failed) => {
    const source = new EventSource('/events')
    const seen = []
    source.onmessage = (event) => {
        seen.push([event.lastEventId, event.data])
        if (seen.length === 3) { source.close(); fetch('/go'); done(seen) }
        else if (seen.length === 1) fetch('/go')
    }
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) failed(new Error('given up')) }
})"""

OPENS_A_SOCKET = """() => new Promise((opened, failed) => {
    window.socket = new WebSocket(`ws://${location.host}/echo`)
    socket.onopen = () => opened(true)
    socket.onclose = () => failed(new Error('closed'))
})"""

FETCHES = "async (path) => { const answer = await fetch(path); return [answer.status, await answer.text()] }"


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def devtools(playwright: Playwright) -> int:
    """The port on which the browser offers its DevTools."""
    return int(free_address().rpartition(":")[2])


@pytest.fixture(scope="module")
def browser(playwright: Playwright, devtools: int) -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--remote-debugging-port={devtools}"]
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=MILLISECONDS)
    yield started
    started.close()


@pytest.fixture
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """Somebody without cookies."""
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(MILLISECONDS)
    yield context
    context.close()


@pytest.fixture
def page(visitor: BrowserContext) -> Page:
    return visitor.new_page()


def a_job(api: Api, **fields: Any) -> str:
    """The name of a persistent job, and of its workspace, that serves pages on port 8080."""
    name = named("pages")
    api.running(api.submit(START, name=name, workspace_id=name, persistent=True, **fields))
    return name


@pytest.fixture
def job(api: Api) -> Iterator[str]:
    name = a_job(api, startup_command="exec python3 /root/app.py")
    yield name
    api.stop(name)


@pytest.fixture
def url(api: Api, job: str) -> str:
    return access(api, job)["url"]


def is_whole(page: Page) -> bool:
    """Whether its style and its script have come as well."""
    expect(page).to_have_title("the application")
    expect(page.locator("p")).to_have_css("color", "rgb(1, 2, 3)")
    return page.evaluate("document.body.dataset.script") == "ran"


def pid(page: Page) -> str:
    return page.locator("#pid").inner_text()


# ---- pages, WebSockets and events --------------------------------------------------------------------------


def test_a_page_is_shown_by_the_jobs_url_and_by_an_alias(api: Api, page: Page, job: str, url: str) -> None:
    assert (answer := page.goto(url)) and answer.status == 200
    assert is_whole(page)
    name = named("shop")
    assert (answer := page.goto(alias(api, name, job)["url"])) and answer.status == 200
    assert is_whole(page) and f"//{name}." in page.url


def test_a_page_keeps_a_websocket(page: Page, url: str) -> None:
    page.goto(url)
    assert page.evaluate(ECHOES, MEGABYTE) == ECHOED


def test_events_come_as_they_happen_and_go_on_where_the_stream_ended(page: Page, url: str) -> None:
    page.goto(url)
    assert page.evaluate(FOLLOWS_EVENTS) == [[str(n), f"event {n}"] for n in (1, 2, 3)]


def test_websockets_and_events_pass_over_http_2(page: Page) -> None:
    with a_place() as place:
        place.chmod(0o755)
        pair = for_roost(Lab(place).files("*.apps.localhost"))
        with an_instance("--gateway-tls", free_address(), *with_files(pair)) as roost:
            url = access(roost.start().api, a_job(roost.api))["url"]
            assert url.startswith("https://")
            session, handshakes = page.context.new_cdp_session(page), list[int]()
            session.on(
                "Network.webSocketHandshakeResponseReceived", lambda e: handshakes.append(e["response"]["status"])
            )
            session.send("Network.enable")
            page.goto(url)
            assert is_whole(page)
            assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
            assert page.evaluate(ECHOES, MEGABYTE) == ECHOED
            assert handshakes == [200], "RFC 8441; HTTP/1.1 would say 101"
            assert page.evaluate(FOLLOWS_EVENTS)[-1] == ["3", "event 3"]
            page.close()


# ---- sleep ------------------------------------------------------------------------------------------------


def test_a_page_waits_for_a_slow_start_and_then_is_shown_by_itself(api: Api, page: Page) -> None:
    job = a_job(api, startup_command="sleep 4; exec python3 /root/app.py")
    url = access(api, job)["url"]
    page.goto(url)
    first = pid(page)
    sleep(api, job, "cold")
    assert (answer := page.goto(url)) and answer.status == 503
    assert page.title() == "Starting your application"
    assert is_whole(page)
    assert page.url.rstrip("/") == url and first
    api.stop(job)


def test_an_open_websocket_keeps_its_sandbox_awake_and_a_closed_page_lets_it_sleep(
    api: Api, visitor: BrowserContext
) -> None:
    job = a_job(api, idle_minutes=0.02)
    url = access(api, job)["url"]
    page = visitor.new_page()
    page.goto(url)
    before = pid(page)
    assert page.evaluate(OPENS_A_SOCKET)
    page.wait_for_timeout(3000)  # of which 1.2 would have been enough
    assert api.status(job)["status"] == "running"
    page.close()
    eventually(lambda: asleep(api, job, "frozen"))
    page = visitor.new_page()
    assert (answer := page.goto(url)) and answer.status == 200
    assert is_whole(page) and pid(page) == before
    api.stop(job)


# ---- who may enter ----------------------------------------------------------------------------------------


def test_a_signed_link_lets_a_browser_in_without_the_sandbox_knowing(
    api: Api, page: Page, visitor: BrowserContext, job: str
) -> None:
    link = access(api, job, access="signed", expires_in=600)["url"]
    plain = link.partition("?")[0]
    assert (answer := page.goto(plain)) and answer.status == 401
    assert page.title() == "This address is not open to everybody"
    assert (answer := page.goto(f"{link}&page=2")) and answer.status == 200
    assert page.url == f"{plain}?page=2"
    assert is_whole(page)
    (cookie,) = visitor.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("roost_access", True, "Lax")
    page.evaluate("document.cookie = 'mine=1'")
    assert page.evaluate("document.cookie") == "mine=1"
    status, text = page.evaluate(FETCHES, "/headers?a=1")
    told = json.loads(text)
    assert (status, told["target"], dict(told["headers"])["cookie"]) == (200, "/headers?a=1", "mine=1")
    signature = link.partition("roost_signature=")[2]
    assert signature and signature not in text and "roost_" not in text
    assert page.evaluate(ECHOES, 1000) == ECHOED
    assert (answer := page.goto(plain)) and answer.status == 200


# ---- DevTools ---------------------------------------------------------------------------------------------


def test_devtools_that_answer_local_names_alone_are_reached_from_a_page(page: Page, url: str) -> None:
    page.goto(url)
    status, text = page.evaluate(FETCHES, "/json/version")
    assert status == 200
    path = json.loads(text)["webSocketDebuggerUrl"].removeprefix("ws://localhost")
    assert page.evaluate(ECHOES.replace("/echo", path), 1000) == ECHOED


def test_a_browser_whose_devtools_are_in_a_sandbox_is_driven_by_its_url(
    api: Api, roost: RunningRoost, playwright: Playwright, browser: Browser, devtools: int, url: str, job: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A forward by SSH puts this machine's Chromium where one of the sandbox's own would listen."""
    client = with_access(roost, job, tmp_path / "ssh")
    opened = access(api, job, port=9222)["url"]
    host = opened.partition("//")[2]
    with client.forwarding("-R", f"127.0.0.1:9222:127.0.0.1:{devtools}"):
        asked = urllib.request.Request(f"http://{roost.gateway}/json/version", headers={"Host": host})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            told = json.loads(answer.read())
        assert told["Browser"].startswith(("Chrome/", "HeadlessChrome/"))
        path = told["webSocketDebuggerUrl"].removeprefix("ws://localhost")
        endpoint = f"ws://{roost.gateway}{path}"
        driven = playwright.chromium.connect_over_cdp(endpoint, headers={"Host": host}, timeout=MILLISECONDS)
        page = driven.contexts[0].new_page()
        page.goto("data:text/html,<title>far away</title>")
        assert page.title() == "far away"
        page.close()
        driven.close()
