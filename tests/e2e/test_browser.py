"""A browser in front of real sandboxes: Chromium shows pages, keeps WebSockets and event streams open, and waits."""

import contextlib
import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from tests.e2e.browser_network import BrowserNetwork
from tests.e2e.conftest import a_place, an_instance
from tests.e2e.instance import Api, RunningRoost, clean_environment, eventually, free_address
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
by_http_1 = pytest.mark.parametrize("protocol", ["http/1.1"], indirect=True)

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
    window.socket = new WebSocket(`${location.protocol.replace('http', 'ws')}//${location.host}/echo`)
    socket.onopen = () => opened(true)
    socket.onclose = () => failed(new Error('closed'))
})"""

FETCHES = "async (path) => { const answer = await fetch(path); return [answer.status, await answer.text()] }"


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def network() -> Iterator[BrowserNetwork]:
    made = BrowserNetwork()
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser(
    playwright: Playwright, network: BrowserNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    home = tmp_path_factory.mktemp("browser")
    started = launched(playwright, network.program(home / "chromium", str(CHROMIUM)), home)
    yield started
    started.close()


def launched(playwright: Playwright, program: Path, home: Path, *more: str) -> Browser:
    return playwright.chromium.launch(
        executable_path=program,
        args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *more],
        env=clean_environment() | {"HOME": str(home)},
        timeout=MILLISECONDS,
    )


@pytest.fixture(scope="module")
def tls_roost() -> Iterator[RunningRoost]:
    with a_place() as place:
        place.chmod(0o755)
        pair = for_roost(Lab(place).files("*.apps.localhost"))
        with an_instance("--gateway-tls", free_address(), *with_files(pair)) as instance:
            yield instance.start()


@pytest.fixture(params=["http/1.1", "h2"])
def protocol(request: pytest.FixtureRequest) -> str:
    """As browsers call what they speak with the gateway."""
    return request.param


@pytest.fixture
def api(request: pytest.FixtureRequest, protocol: str) -> Api:
    """Of an instance whose URLs are reached by the protocol."""
    instance: RunningRoost = request.getfixturevalue("tls_roost" if protocol == "h2" else "roost")
    return instance.api


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
    api.said(api.submit(START, name=name, workspace_id=name, persistent=True, **fields), b"it listens")
    return name


@pytest.fixture
def job(api: Api) -> Iterator[str]:
    name = a_job(api)
    yield name
    api.stop(name)


def opened(network: BrowserNetwork, api: Api, job: str, **asked: Any) -> str:
    """Its URL, which the browser can reach."""
    url = access(api, job, **asked)["url"]
    network.lead_to(f"127.0.0.1:{urllib.parse.urlsplit(url).port}")
    return url


@pytest.fixture
def url(network: BrowserNetwork, api: Api, job: str) -> str:
    return opened(network, api, job)


def is_whole(page: Page) -> bool:
    """Whether its style and its script have come as well."""
    expect(page).to_have_title("the application")
    expect(page.locator("p")).to_have_css("color", "rgb(1, 2, 3)")
    return page.evaluate("document.body.dataset.script") == "ran"


def statuses_of_handshakes(page: Page) -> list[int]:
    """Of the WebSockets that the page opens from now on."""
    found: list[int] = []
    session = page.context.new_cdp_session(page)
    session.on("Network.webSocketHandshakeResponseReceived", lambda told: found.append(told["response"]["status"]))
    session.send("Network.enable")
    return found


def pid(page: Page) -> str:
    return page.locator("#pid").inner_text()


# ---- pages, WebSockets and events --------------------------------------------------------------------------


def test_a_page_is_shown_by_the_jobs_url_and_by_an_alias(
    api: Api, page: Page, job: str, url: str, protocol: str
) -> None:
    assert (answer := page.goto(url)) and answer.status == 200
    assert is_whole(page)
    assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == protocol
    name = named("shop")
    assert (answer := page.goto(alias(api, name, job)["url"])) and answer.status == 200
    assert is_whole(page) and f"//{name}." in page.url


def test_a_page_keeps_a_websocket(page: Page, url: str, protocol: str) -> None:
    handshakes = statuses_of_handshakes(page)
    page.goto(url)
    assert page.evaluate(ECHOES, MEGABYTE) == ECHOED
    assert handshakes == [200 if protocol == "h2" else 101], "over HTTP/2 by RFC 8441"


def test_events_come_as_they_happen_and_go_on_where_the_stream_ended(page: Page, url: str) -> None:
    page.goto(url)
    assert page.evaluate(FOLLOWS_EVENTS) == [[str(n), f"event {n}"] for n in (1, 2, 3)]


# ---- sleep ------------------------------------------------------------------------------------------------


@by_http_1
def test_a_page_waits_for_a_slow_start_and_then_is_shown_by_itself(
    network: BrowserNetwork, api: Api, page: Page
) -> None:
    job = a_job(api, startup_command="sleep 4; exec python3 /root/app.py")
    url = opened(network, api, job)
    page.goto(url)
    assert is_whole(page)
    sleep(api, job, "cold")
    assert (answer := page.goto(url)) and answer.status == 503
    assert page.title() == "Starting your application"
    assert is_whole(page)
    assert page.url.rstrip("/") == url
    api.stop(job)


def test_an_open_websocket_keeps_its_sandbox_awake_and_a_closed_page_lets_it_sleep(
    network: BrowserNetwork, api: Api, visitor: BrowserContext
) -> None:
    job = a_job(api, idle_minutes=0.02)
    url = opened(network, api, job)
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
    network: BrowserNetwork, api: Api, page: Page, visitor: BrowserContext, job: str, protocol: str
) -> None:
    link = opened(network, api, job, access="signed", expires_in=600)
    plain = link.partition("?")[0]
    assert (answer := page.goto(plain)) and answer.status == 401
    assert page.title() == "This address is not open to everybody"
    assert (answer := page.goto(f"{link}&page=2")) and answer.status == 200
    assert page.url == f"{plain}?page=2"
    assert is_whole(page)
    (cookie,) = visitor.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("roost_access", True, "Lax")
    assert cookie["secure"] is (protocol == "h2")
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


@by_http_1
def test_a_browser_whose_devtools_are_in_a_sandbox_is_driven_by_its_url(
    api: Api, roost: RunningRoost, playwright: Playwright, job: str, tmp_path: Path
) -> None:
    """A forward by SSH puts a Chromium of this machine where one of the sandbox's own would listen."""
    port = free_address().rpartition(":")[2]
    flag = f"--remote-debugging-port={port}"
    with contextlib.closing(launched(playwright, Path(str(CHROMIUM)), tmp_path, flag)) as other:
        client = with_access(roost, job, tmp_path / "ssh")
        host = access(api, job, port=9222)["url"].partition("//")[2]
        with client.forwarding("-R", f"127.0.0.1:9222:127.0.0.1:{port}"):
            told = json.loads(asked(roost, host, "/json/version"))
            assert told["Browser"].partition("/")[2] == other.version
            path = told["webSocketDebuggerUrl"].removeprefix("ws://localhost")
            driven = playwright.chromium.connect_over_cdp(
                f"ws://{roost.gateway}{path}", headers={"Host": host}, timeout=MILLISECONDS
            )
            page = driven.contexts[0].new_page()
            page.goto("data:text/html,<title>far away</title>")
            assert page.title() == "far away"
            driven.close()


def asked(roost: RunningRoost, host: str, path: str) -> bytes:
    request = urllib.request.Request(f"http://{roost.gateway}{path}", headers={"Host": host})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()
