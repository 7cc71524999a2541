"""Logging in a program by a browser elsewhere, as RFC 8628 has it: every answer of it, and the page."""

import re

import httpx
import pytest
from sqlalchemy import select, update

from roost.accounts.tokens import digest
from roost.api.login_pages import POLICY
from roost.db.schema import devices, tokens
from tests.api.people import PASSWORD, a_browser, a_user, bearer, somebody
from tests.workspaces.conftest import JOBS, Api

PAGE = "http://roost/device"


async def begun(api: Api, **fields: object) -> dict[str, str]:
    async with a_browser(api) as program:
        answer = await program.post("/device/code", json={"client_name": "roost on <b>laptop</b>", **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()


async def asked(api: Api, device: dict[str, str]) -> httpx.Response:
    body = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": device["device_code"]}
    async with a_browser(api) as program:
        return await program.post("/device/token", json=body)


async def decided(browser: httpx.AsyncClient, device: dict[str, str], decision: str) -> httpx.Response:
    """By the page's own form."""
    page = await browser.get(PAGE, params={"user_code": device["user_code"].lower()})
    assert page.status_code == 200 and page.headers["content-security-policy"] == POLICY
    assert "<script" not in page.text and "&lt;b&gt;laptop" in page.text
    fields = dict(re.findall(r'name="(\w+)" value="([^"]+)"', page.text))
    return await browser.post(PAGE, data=fields | {"decision": decision}, headers={"Origin": "http://roost"})


async def test_a_program_is_let_in_and_speaks_for_the_user_where_they_choose(api: Api) -> None:
    device = await begun(api)
    assert device["verification_uri"] == PAGE and device["expires_in"] == 900 and device["interval"] == 5  # type: ignore[comparison-overlap]
    assert re.fullmatch(r"[B-Z]{4}-[B-Z]{4}", device["user_code"])
    assert (await asked(api, device)).json()["error"] == "authorization_pending"
    async with somebody(api, "max", "member") as browser:
        done = await decided(browser, device, "approve")
        assert done.status_code == 200 and "is logged in" in done.text
        await patience(api)
        answer = await asked(api, device)
        assert answer.status_code == 200 and answer.json()["token_type"] == "Bearer"
        async with bearer(api, answer.json()["access_token"]) as program:
            who = (await program.get("/whoami")).json()
            assert (who["user"], who["account"], who["scopes"]) == ("max", "default", ["read", "run"])
            assert (await program.get("/members")).status_code == 200
            own = {"X-Roost-Account": "max"}
            assert (await program.get("/whoami", headers=own)).json()["scopes"] == ["read", "run", "admin"]
            assert (await program.post("/switch", json={"account": "max"})).status_code == 200
            assert (await program.get("/whoami")).json()["account"] == "max"
            assert (await browser.get("/tokens")).json()["tokens"][0]["login"] is True
            assert (await program.post("/logout")).json() == {"success": True, "revoked": True}
            assert (await program.get(JOBS)).status_code == 401
    assert (await asked(api, device)).json()["error"] == "expired_token"  # once


async def test_a_removed_member_keeps_the_login_and_loses_the_account(api: Api) -> None:
    async with somebody(api, "max", "member") as browser:
        device = await begun(api)
        await decided(browser, device, "approve")
        async with bearer(api, (await asked(api, device)).json()["access_token"]) as program:
            assert (await program.get("/whoami")).json()["account"] == "default"
            await api.json("/members/max", 200, "DELETE")
            assert (await program.get("/whoami")).json()["account"] == "max"
            assert (await program.get(JOBS, headers={"X-Roost-Account": "default"})).status_code == 404


async def test_what_a_program_asked_for_is_all_that_it_may(api: Api) -> None:
    device = await begun(api, scope="read")
    async with somebody(api, "anna") as browser:
        await decided(browser, device, "approve")
    async with bearer(api, (await asked(api, device)).json()["access_token"]) as program:
        assert (await program.get("/whoami")).json()["scopes"] == ["read"]
        assert (await program.post("/tokens", json={"name": "x", "scope": "run"})).status_code == 403


async def test_a_refused_program_is_told_so(api: Api) -> None:
    device = await begun(api)
    async with somebody(api, "anna") as browser:
        assert "was refused" in (await decided(browser, device, "deny")).text
    answer = await asked(api, device)
    assert answer.status_code == 400 and answer.json()["error"] == "access_denied"


async def test_a_program_that_asks_too_often_is_slowed_down(api: Api) -> None:
    device = await begun(api)
    told = [(await asked(api, device)).json()["error"] for _ in range(2)]
    assert told == ["authorization_pending", "slow_down"]
    assert "15 s" in (await asked(api, device)).json()["error_description"]


async def test_a_code_that_has_expired_is_good_for_nothing(api: Api) -> None:
    device = await begun(api)
    await api.database.write(update(devices).values(expires_ns=1))
    assert (await asked(api, device)).json()["error"] == "expired_token"
    async with somebody(api, "anna") as browser:
        page = await browser.get(PAGE, params={"user_code": device["user_code"]})
        assert page.status_code == 404 and "no device waits" in page.text
    assert (await asked(api, {"device_code": "invented"})).json()["error"] == "expired_token"


async def test_codes_are_stored_as_hashes(api: Api) -> None:
    device = await begun(api)
    (row,) = await api.database.read(select(devices))
    assert device["device_code"] not in repr(row) and device["user_code"].replace("-", "") not in repr(row)
    assert row.hash == digest(device["device_code"])


async def test_who_is_not_logged_in_comes_back_to_the_device_after_it(api: Api) -> None:
    await a_user(api)
    device = await begun(api)
    async with a_browser(api) as browser:
        led = await browser.get(PAGE, params={"user_code": device["user_code"]})
        assert led.status_code == 302
        form = await browser.get(f"http://roost{led.headers['location']}")
        assert 'type="password"' in form.text and form.headers["x-frame-options"] == "DENY"
        (next,) = re.findall(r'name="next" value="([^"]+)"', form.text)
        wrong = await browser.post("http://roost/login", data={"user": "anna", "password": "no", "next": next})
        assert wrong.status_code == 401 and "wrong user name or password" in wrong.text
        back = await browser.post("http://roost/login", data={"user": "anna", "password": PASSWORD, "next": next})
        assert back.status_code == 302 and back.headers["location"] == f"/device?user_code={device['user_code']}"
        assert (await browser.get(f"http://roost{back.headers['location']}")).status_code == 200


@pytest.mark.parametrize(
    "next", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/a\tb", "/ü", "/a b"]
)
async def test_nobody_is_led_to_another_site_after_a_login(api: Api, next: str) -> None:
    await a_user(api)
    async with a_browser(api) as browser:
        back = await browser.post("http://roost/login", data={"user": "anna", "password": PASSWORD, "next": next})
        assert back.headers["location"] == "/login"


async def test_a_decision_that_another_site_sends_is_refused(api: Api) -> None:
    device = await begun(api)
    async with somebody(api, "anna") as browser:
        csrf = browser.headers.pop("X-CSRF-Token")
        form = {"user_code": device["user_code"], "decision": "approve"}
        for fields, origin in ((form, "http://roost"), (form | {"csrf_token": csrf}, "http://app.roost")):
            answer = await browser.post(PAGE, data=fields, headers={"Origin": origin})
            assert answer.status_code == 403
        assert (await asked(api, device)).json()["error"] == "authorization_pending"
        assert (await browser.post("http://roost/logout", data={})).status_code == 403
        answer = await browser.post("http://roost/logout", data={"csrf_token": csrf})
        assert answer.status_code == 302
        assert (await browser.get("/whoami")).status_code == 401


async def test_guessing_user_codes_is_throttled(api: Api) -> None:
    device = await begun(api)
    async with somebody(api, "anna") as browser:
        statuses = [(await browser.get(PAGE, params={"user_code": f"BBBB-BBB{c}"})).status_code for c in "BCDFGHJKLMN"]
        assert statuses == [404] * 10 + [429]
        assert (await browser.get(PAGE, params={"user_code": device["user_code"]})).status_code == 429


async def test_a_disabled_user_lets_nobody_in(api: Api) -> None:
    device = await begun(api)
    async with somebody(api, "anna") as browser:
        await decided(browser, device, "approve")
    await api.json("/users/anna", 200, "PATCH", json={"disabled": True})
    assert (await asked(api, device)).json()["error"] in ("access_denied", "expired_token")
    assert not await api.database.read(select(tokens).where(tokens.c.roams))


async def patience(api: Api) -> None:
    """As if the interval had passed: the server remembers when a program asked last."""
    plane = api.client._transport.app.state.plane  # type: ignore[attr-defined]
    plane.identity.devices.interval = 0
    plane.identity.devices._asked.clear()
