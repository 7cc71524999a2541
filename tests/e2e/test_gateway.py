"""HTTP into real sandboxes: what listens on loopback alone is reached, sleep is a delay, and nothing is lost."""

import hashlib
import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.instance import Api, RunningRoost, eventually
from tests.e2e.test_faults import kill_and_recover

pytestmark = pytest.mark.e2e
APP = Path(__file__).with_name("gateway_app.py").read_text()
START = f"cat > /root/app.py <<'END'\n{APP}\nEND\nexec python3 /root/app.py\n"


class Site:
    """A persistent job's port 8080 as its host name reaches it."""

    def __init__(self, roost: RunningRoost, **fields: Any) -> None:
        self.api: Api = roost.api
        self.gateway = roost.gateway
        self.job = self.api.submit(START, persistent=True, workspace_id=f"site-{secrets.token_hex(4)}", **fields)
        self.api.running(self.job)
        self.host = ""
        self.open(8080)

    def open(self, port: int) -> None:
        answer = self.api.call("POST", f"/mags-jobs/{self.job}/access", {"port": port})
        self.host = answer["url"].partition("//")[2].partition("/")[0]

    def ask(self, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.gateway, timeout=100)
        try:
            connection.request(method, path, body, {"Host": self.host} | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def told(self, path: str = "/") -> dict[str, str]:
        status, body = self.ask("GET", path)
        assert status == 200, body
        return dict(line.split(": ", 1) for line in body.decode().splitlines())

    def sleep(self, depth: str) -> None:
        self.api.call("POST", f"/mags-jobs/{self.job}/sleep", {"depth": depth})
        eventually(lambda: self.api.status(self.job)["status"] == "sleeping")


@pytest.fixture
def site(roost: RunningRoost) -> Iterator[Site]:
    site = Site(roost, startup_command="exec python3 /root/app.py")
    yield site
    roost.api.stop(site.job)


def test_an_application_on_loopback_is_reached_and_told_who_asks(site: Site) -> None:
    told = site.told()
    assert told["host"] == told["x-forwarded-host"] == site.host
    assert (told["x-forwarded-for"], told["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert site.told("/json/version")["host"] == "localhost"


def test_uploads_and_downloads_of_64_mb_arrive_whole(site: Site) -> None:
    body = secrets.token_bytes(1024) * 65536
    assert site.ask("POST", "/", body) == (200, hashlib.sha256(body).hexdigest().encode())
    status, content = site.ask("GET", f"/bytes/{len(body)}")
    assert (status, len(content)) == (200, len(body))


def test_an_upgraded_connection_echoes_and_keeps_the_sandbox_in_use(site: Site) -> None:
    host, _, port = site.gateway.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(f"GET / HTTP/1.1\r\nHost: {site.host}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n".encode())
        with raw.makefile("rb") as answer:
            assert b"101" in answer.readline()
            while answer.readline() != b"\r\n":
                pass
            for number in range(3):
                raw.sendall(b"line %d\n" % number)
                assert answer.readline() == b"line %d\n" % number
            raw.shutdown(socket.SHUT_WR)
            assert answer.read() == b""


def test_requests_during_a_frozen_sleep_are_served_by_the_same_process(site: Site) -> None:
    before = site.told()["pid"]
    site.sleep("frozen")
    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(lambda _: site.told()["pid"], range(20)))
    assert told == [before] * 20


def test_requests_during_a_cold_sleep_are_held_until_the_application_listens(site: Site) -> None:
    site.told()
    before = site.api.status(site.job)["vm_id"]
    site.sleep("cold")
    body = secrets.token_bytes(1_000_000)

    def one(number: int) -> tuple[int, bytes]:
        return site.ask("POST", "/", body) if number % 2 else site.ask("GET", "/bytes/3")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(one, range(20)))
    assert answers == [(200, b"xxx"), (200, hashlib.sha256(body).hexdigest().encode())] * 10
    assert site.api.status(site.job)["vm_id"] != before


def test_a_request_while_the_sandbox_falls_asleep_is_served(site: Site) -> None:
    for depth in ("frozen", "frozen", "cold"):
        asleep = threading.Thread(target=_sleep, args=(site, depth))
        asleep.start()
        assert site.ask("GET", "/bytes/3") == (200, b"xxx")
        asleep.join(60)


def _sleep(site: Site, depth: str) -> None:
    site.api.ask("POST", f"/mags-jobs/{site.job}/sleep", {"depth": depth})


def test_a_port_without_a_server_is_a_502_that_names_it(roost: RunningRoost) -> None:
    site = Site(roost)
    try:
        site.told()
        site.open(9999)
        status, body = site.ask()
        assert status == 502
        error = json.loads(body)["error"]
        assert "9999" in error
        assert "127.0.0.1" in error
        status, body = site.ask("GET", "/", None, Accept="text/html")
        assert status == 502
        assert body.startswith(b"<!doctype html>")
    finally:
        roost.api.stop(site.job)


def test_a_host_name_that_nobody_has_is_a_404(roost: RunningRoost) -> None:
    connection = http.client.HTTPConnection(roost.gateway, timeout=30)
    connection.request("GET", "/", headers={"Host": "0123456789ab.apps.localhost"})
    answer = connection.getresponse()
    assert answer.status == 404
    assert "error" in json.loads(answer.read())
    connection.close()


def test_a_stopped_job_is_not_reached_any_more(roost: RunningRoost) -> None:
    site = Site(roost)
    site.told()
    roost.api.stop(site.job)
    roost.api.wait(site.job)
    assert site.ask()[0] in (404, 409)


@pytest.mark.parametrize("victims", [("node",), ("serve",)], ids="+".join)
def test_routes_and_sandboxes_survive_a_kill(own_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    site = Site(own_roost, startup_command="exec python3 /root/app.py")
    before = site.told()["pid"]
    kill_and_recover(own_roost, victims)
    eventually(lambda: site.ask()[0] == 200, 60)
    assert site.told()["pid"] == before
    site.sleep("frozen")
    kill_and_recover(own_roost, victims)
    eventually(lambda: site.ask()[0] == 200, 60)
    assert site.told()["pid"] == before


def test_a_hundred_clients_at_once_are_all_served_by_a_server_with_one_thread_and_a_short_queue(
    roost: RunningRoost,
) -> None:
    """Python's own takes five that wait. Left to the kernel, whoever is sixth tries again after 1, 2, 4 … 64 s."""
    api = roost.api
    serve = "cd /tmp && echo hello > index.html && exec python3 -m http.server 8080 2>/dev/null"
    job = api.submit(serve, persistent=True, workspace_id=f"queue-{secrets.token_hex(4)}")
    api.running(job)
    host = api.call("POST", f"/mags-jobs/{job}/access", {"port": 8080})["url"].partition("//")[2].partition("/")[0]

    def one(_: int) -> tuple[int, bytes, bool]:
        begun = time.monotonic()
        connection = http.client.HTTPConnection(roost.gateway, timeout=100)
        try:
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read(), time.monotonic() - begun < 15
        finally:
            connection.close()

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(one, range(2000))) == {(200, b"hello\n", True)}
    api.stop(job)
