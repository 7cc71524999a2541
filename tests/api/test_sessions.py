"""Browsers' sessions: how they begin and end, and what another site cannot do with them."""

import time

import httpx
import pytest
from argon2.profiles import RFC_9106_LOW_MEMORY
from sqlalchemy import select, update
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from roost.accounts.passwords import Passwords
from roost.accounts.sessions import IDLE
from roost.accounts.throttle import OF_ADDRESS, OF_NAME, Throttle, network
from roost.db.schema import sessions, users
from roost.errors import Throttled
from tests.api.conftest import Served
from tests.api.people import PASSWORD, a_browser, a_user, log_in, somebody
from tests.workspaces.conftest import JOBS, Api

SCRIPT = {"script": "x", "type": "inline"}
HOST = "roost.example.com"


async def test_a_login_sets_a_cookie_that_every_endpoint_accepts(api: Api) -> None:
    await a_user(api, email="Anna@Example.com")
    async with a_browser(api) as browser:
        answer = await browser.post("/login", json={"user": "anna@example.COM", "password": PASSWORD})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("roost_session=") and "HttpOnly" in cookie and "samesite=lax" in cookie.lower()
        assert "Path=/" in cookie and "Domain" not in cookie
        who = (await browser.get("/whoami")).json()
        assert (who["user"], who["account"], who["role"], who["authentication"]) == ("anna", "anna", "owner", "session")
        assert who["scopes"] == ["read", "run", "admin"]
        browser.headers["X-CSRF-Token"] = who["csrf_token"]
        assert (await browser.post(JOBS, json=SCRIPT)).status_code == 202
        assert len((await browser.get(JOBS)).json()["jobs"]) == 1
        assert (await browser.get("http://roost/api/v2/mags-jobs")).status_code == 200
    assert not (await api.json(JOBS))["jobs"]  # another account's


async def test_by_tls_the_cookie_is_one_that_no_other_host_can_set(api: Api) -> None:
    await a_user(api)
    async with a_browser(api) as browser:
        browser.base_url = httpx.URL("https://roost/api/v1")
        answer = await browser.post("/login", json={"user": "anna", "password": PASSWORD})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-roost_session=") and "Secure" in cookie
        value = browser.cookies["__Host-roost_session"]
        assert (await browser.get("/whoami")).status_code == 200
        browser.cookies.clear()
        assert (await browser.get("/whoami", headers={"Cookie": f"roost_session={value}"})).status_code == 401


async def test_a_login_is_another_session_than_any_that_was_planted(api: Api) -> None:
    await a_user(api)
    async with somebody(api, "mallory") as attacker, a_browser(api) as browser:
        planted = attacker.cookies["roost_session"]
        body = {"user": "anna", "password": PASSWORD}
        answer = await browser.post("/login", json=body, headers={"Cookie": f"roost_session={planted}"})
        fresh = answer.cookies["roost_session"]
        assert fresh != planted
        assert (await attacker.get("/whoami")).status_code == 401  # the planted one has ended
        both = {"Cookie": f"roost_session={planted}; roost_session={fresh}"}
        async with a_browser(api, **both) as confused:
            answer = await confused.get("/whoami")
            assert answer.status_code == 401 and "several cookies" in answer.text


async def test_an_invented_session_is_not_adopted(api: Api) -> None:
    async with a_browser(api, Cookie="roost_session=mine") as browser:
        assert (await browser.get("/whoami")).status_code == 401


async def test_logging_out_ends_the_session_everywhere(api: Api) -> None:
    async with somebody(api, "anna") as browser:
        cookie = browser.cookies["roost_session"]
        assert (await browser.get("/whoami")).status_code == 200
        assert (await browser.post("/logout")).json() == {"success": True, "revoked": True}
        async with a_browser(api, Cookie=f"roost_session={cookie}") as copy:
            assert (await copy.get("/whoami")).status_code == 401
        await log_in(browser)
        assert (await browser.delete("/logout")).status_code == 200


async def test_a_session_ends_without_use_and_in_any_case(api: Api) -> None:
    async with somebody(api, "anna") as browser, somebody(api, "bert") as another:
        assert (await browser.get("/whoami")).status_code == 200
        for column, instant in ((sessions.c.used_ns, time.time_ns() - IDLE * 10**9), (sessions.c.expires_ns, 1)):
            await log_in(browser)
            await api.database.write(update(sessions).values({column: instant}))
            await log_in(another, "bert")  # a change: what was known is looked up again
            assert (await browser.get("/whoami")).status_code == 401


async def test_cookies_and_passwords_are_stored_as_hashes(api: Api) -> None:
    async with somebody(api, "anna") as browser:
        rows = [*await api.database.read(select(sessions)), *await api.database.read(select(users))]
        stored = repr([tuple(row) for row in rows])
        assert browser.cookies["roost_session"] not in stored and PASSWORD not in stored
        assert "$argon2id$" in stored


# ---- other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "x" * 43},
        {"X-CSRF-Token": "ü"},
        {"Origin": "http://app.roost"},
        {"Origin": "https://roost:8484"},
        {"Origin": "http://roost:8485"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
async def test_what_another_site_sends_along_with_the_cookie_is_refused(api: Api, headers: dict[str, str]) -> None:
    async with somebody(api, "anna") as browser:
        raw = {name: value.encode() for name, value in headers.items()}
        answer = await browser.post(JOBS, json=SCRIPT, headers=raw)  # type: ignore[arg-type]
        assert answer.status_code == 403, answer.text
        assert not (await browser.get(JOBS)).json()["jobs"]


async def test_our_own_pages_are_let_through(api: Api) -> None:
    async with somebody(api, "anna") as browser:
        own = {"Origin": "http://roost", "Sec-Fetch-Site": "same-origin"}
        assert (await browser.post(JOBS, json=SCRIPT, headers=own)).status_code == 202


async def test_another_sessions_csrf_token_does_not_count(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        headers = {"X-CSRF-Token": bert.headers["X-CSRF-Token"]}
        assert (await anna.post(JOBS, json=SCRIPT, headers=headers)).status_code == 403


async def test_another_site_cannot_read_nor_log_somebody_in(api: Api) -> None:
    async with somebody(api, "anna") as browser:
        assert (await browser.get(JOBS, headers={"Sec-Fetch-Site": "same-site"})).status_code == 403
        body = {"user": "anna", "password": PASSWORD}
        foreign = {"Origin": "http://evil.example"}
        assert (await browser.post("/login", json=body, headers=foreign)).status_code == 403
        form = await browser.post("http://roost/login", data={"user": "anna", "password": PASSWORD}, headers=foreign)
        assert form.status_code == 403 and "set-cookie" not in form.headers


async def test_a_token_needs_no_csrf_token(api: Api) -> None:
    answer = await api.client.post(JOBS, json=SCRIPT, headers={"Origin": "http://elsewhere.example"})
    assert answer.status_code == 202


# ---- guessing


async def test_guessing_is_throttled_and_tells_nothing(api: Api) -> None:
    await a_user(api)
    async with a_browser(api) as browser:
        wrong = [await browser.post("/login", json={"user": name, "password": "x"}) for name in ("anna", "nobody")]
        assert [answer.status_code for answer in wrong] == [401, 401]
        assert wrong[0].json() == wrong[1].json()
        for name in ("anna", "nobody"):
            for _ in range(OF_NAME - 1):
                assert (await browser.post("/login", json={"user": name, "password": "y"})).status_code == 401
            refused = await browser.post("/login", json={"user": name, "password": PASSWORD})
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 300
        page = await browser.post("http://roost/login", data={"user": "anna", "password": PASSWORD})
        assert page.status_code == 429 and "Retry-After" in page.headers


async def test_nobodys_password_costs_as_much_as_somebodys() -> None:
    passwords = Passwords()
    stored = await passwords.hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert await passwords.verify(stored, PASSWORD)
    assert not await passwords.verify(None, PASSWORD)
    assert not await passwords.verify(None, "nobody's")

    async def spent(hashed: str | None) -> int:
        begun = time.process_time_ns()
        await passwords.verify(hashed, "wrong")
        return time.process_time_ns() - begun

    assert await spent(None) > await spent(stored) / 3  # of CPU: hashing, not a look-up


async def test_passwords_of_older_parameters_are_hashed_anew(api: Api) -> None:
    await a_user(api)
    old = await Passwords(RFC_9106_LOW_MEMORY).hash(PASSWORD)
    await api.database.write(update(users).values(password_hash=old))
    async with a_browser(api) as browser:
        await log_in(browser)
        await log_in(browser)
    (row,) = await api.database.read(select(users.c.password_hash))
    assert row[0] != old


def test_an_address_has_so_many_tries_whatever_names_it_tries() -> None:
    throttle = Throttle()
    for number in range(OF_ADDRESS):
        throttle.count("login", f"user{number}", f"2001:db8:1:2::{number:x}")
    with pytest.raises(Throttled):
        throttle.count("login", "another", "2001:db8:1:2:ffff::1")
    throttle.count("login", "another", "2001:db8:1:3::1")
    assert network("198.51.100.7") == "198.51.100.7"


def test_no_secret_is_in_the_events(served: Served) -> None:
    secrets = [PASSWORD, "a wrong password"]
    with served.client() as client, httpx.Client(base_url=served.url) as browser:
        assert client.post("/api/v1/users", json={"name": "anna", "password": PASSWORD}).status_code == 201
        body = {"user": "anna", "password": "a wrong password"}
        assert browser.post("/api/v1/login", json=body).status_code == 401
        assert browser.post("/api/v1/login", json=body | {"password": PASSWORD}).status_code == 200
        secrets.append(browser.cookies["roost_session"])
        who = browser.get("/api/v1/whoami").json()
        secrets.append(who["csrf_token"])
        made = browser.post("/api/v1/tokens", json={"name": "ci"}, headers={"X-CSRF-Token": who["csrf_token"]})
        secrets.append(made.json()["token"])
        device = browser.post("/api/v1/device/code", json={}).json()
        secrets += [device["device_code"], device["user_code"]]
        assert browser.get("/device", params={"user_code": device["user_code"]}).status_code == 200
    assert served.stop() == 0
    written = served.events.read_text()
    files = b"".join(path.read_bytes() for path in (served.events.parent / "serve").iterdir() if path.is_file())
    assert not [secret for secret in secrets if secret in written or secret.encode() in files]


def test_a_proxy_on_this_machine_tells_who_came_and_how(shared: httpx.Client) -> None:
    body = {"user": "nobody", "password": "x"}
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.7"}
    with httpx.Client(base_url=shared.base_url) as browser:
        assert shared.post("/api/v1/users", json={"name": "eva", "password": PASSWORD}).status_code == 201
        right = {"user": "eva", "password": PASSWORD}
        answer = browser.post(
            "/api/v1/login", json=right, headers=forwarded | {"Origin": f"https://{HOST}", "Host": HOST}
        )
        assert answer.headers["set-cookie"].startswith("__Host-roost_session=")
        device = browser.post("/api/v1/device/code", json={}, headers=forwarded | {"Host": HOST}).json()
        assert device["verification_uri"] == f"https://{HOST}/device"
        statuses = {browser.post("/api/v1/login", json=body, headers=forwarded).status_code for _ in range(OF_NAME + 1)}
        assert statuses == {401, 429}


# ---- WebSockets


def test_a_websocket_by_cookie_comes_from_our_own_pages(shared: httpx.Client) -> None:
    assert shared.post("/api/v1/users", json={"name": "anna", "password": PASSWORD}).status_code == 201
    with httpx.Client(base_url=shared.base_url) as browser:
        assert browser.post("/api/v1/login", json={"user": "anna", "password": PASSWORD}).status_code == 200
        cookie = browser.cookies["roost_session"]
    own = f"http://127.0.0.1:{shared.base_url.port}"
    assert opened(shared, cookie, Origin=own) == 404  # let in, and there is no such job
    assert opened(shared, cookie) == 403
    assert opened(shared, cookie, Origin="http://app.apps.localhost:8485") == 403
    assert opened(shared, cookie, Origin="http://127.0.0.1:8485") == 403
    assert opened(shared, cookie, Origin="null") == 403
    assert opened(shared, cookie, **{"Origin": own, "Sec-Fetch-Site": "same-site"}) == 403
    assert opened(shared, "invented", Origin=own) == 401


def test_a_websocket_that_runs_commands_needs_the_scope_for_it(shared: httpx.Client) -> None:
    made = shared.post("/api/v1/tokens", json={"name": "reads", "scope": "read"}).json()
    assert opened(shared, "", Authorization=f"Bearer {made['token']}") == 403
    assert opened(shared, "", **{"Sec-WebSocket-Protocol": f"roost.exec, roost.token.{made['token']}"}) == 403


def opened(server: httpx.Client, cookie: str, **headers: str) -> int:
    """The status with which the stream of an exec that does not exist is refused."""
    with pytest.raises(InvalidStatus) as refused:
        connect(
            f"ws://127.0.0.1:{server.base_url.port}/api/v1/mags-jobs/none/execs/0000000000000000/stream",
            additional_headers=headers | ({"Cookie": f"roost_session={cookie}"} if cookie else {}),
        )
    return refused.value.response.status_code
