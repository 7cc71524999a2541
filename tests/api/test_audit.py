"""The audit log tells who did what, from where and with what outcome, and nothing of what it was."""

import re
from typing import Any

import httpx
from litestar.handlers import HTTPRouteHandler
from sqlalchemy import select, text, update

from roost.accounts.audit import Audit
from roost.api.app import ROUTES
from roost.api.auditing import SAFE, is_audited
from roost.clock import now_ns
from roost.db.schema import accounts, audit
from tests.api.people import a_browser, a_user, bearer, somebody
from tests.api.test_devices import begun, decided
from tests.jobs.memory_node import until
from tests.workspaces.conftest import JOBS, Api


async def entries(api: Api, **query: object) -> list[dict[str, object]]:
    return (await api.json("/audit", params=query))["entries"]  # type: ignore[return-value]


async def test_what_changes_something_is_told_with_its_maker_and_what_was_made(api: Api) -> None:
    made = await api.json("/tokens", 201, "POST", json={"name": "ci", "scope": "run"})
    (entry,) = await entries(api)
    assert (entry["actor"], entry["action"], entry["status"]) == ("token credentials.json", "POST /tokens", 201)
    assert entry["resource"] == str(made["id"])
    assert entry["address"] == "127.0.0.1"
    assert str(made["token"]) not in str(entry)


async def test_submissions_and_stops_are_told_and_reading_is_not(api: Api) -> None:
    await api.run(name="told", environment={"KEY": "hidden-value"})
    await api.json(f"{JOBS}/told/status")
    await api.json(f"{JOBS}/told/stop", 200, "POST")

    async def both() -> bool:
        return len(await entries(api)) == 2

    await until(both)
    stop, submission = await entries(api)
    assert (stop["action"], stop["resource"]) == ("POST /mags-jobs/{id}/stop", "told")
    assert submission["action"] == "POST /mags-jobs"
    assert submission["resource"] == (await api.json(f"{JOBS}/told"))["request_id"]
    assert "hidden-value" not in str(await api.database.read(select(audit)))


async def test_refusals_are_told_with_their_status(api: Api) -> None:
    await api.client.delete("/webhooks/none")
    (entry,) = await entries(api)
    assert (entry["action"], entry["resource"], entry["status"]) == ("DELETE /webhooks/{id}", "none", 404)


async def test_it_is_filtered_and_read_page_by_page(api: Api) -> None:
    for number in range(5):
        await api.client.delete(f"/webhooks/w{number}")
    assert [one["resource"] for one in await entries(api, limit=2)] == ["w4", "w3"]
    last = (await entries(api, limit=2))[-1]["id"]
    assert [one["resource"] for one in await entries(api, limit=2, before=last)] == ["w2", "w1"]
    assert [one["resource"] for one in await entries(api, resource="w3")] == ["w3"]
    assert await entries(api, action="POST /tokens") == []
    assert len(await entries(api, action="DELETE /webhooks", actor="token ")) == 5
    assert await entries(api, action="%") == []


async def test_another_account_sees_its_own_alone(api: Api, stranger: httpx.AsyncClient) -> None:
    await api.client.delete("/webhooks/mine")
    assert (await stranger.get("/audit")).json() == {"entries": []}


async def test_only_admins_read_it(api: Api) -> None:
    made = await api.json("/tokens", 201, "POST", json={"name": "low", "scope": "run"})
    answer = await api.client.get("/audit", headers={"Authorization": f"Bearer {made['token']}"})
    assert answer.status_code == 403


async def test_what_is_old_goes(api: Api) -> None:
    await api.client.delete("/webhooks/old")
    await api.database.write(update(audit).values(at_ns=now_ns() - 91 * 24 * 3600 * 10**9))
    await api.client.delete("/webhooks/new")
    await Audit(api.database, 90).forget_old()
    assert [one["resource"] for one in await entries(api)] == ["new"]


async def test_names_that_others_choose_are_cut(api: Api) -> None:
    await api.client.delete("/webhooks/" + "x" * 5000)
    (entry,) = await entries(api)
    assert len(str(entry["resource"])) == 200


async def test_logins_are_told(api: Api) -> None:
    await api.json("/users", 201, "POST", json={"name": "alice", "password": "correct horse battery"})
    credentials = {"user": "alice", "password": "correct horse battery"}
    assert (await api.client.post("/login", json=credentials, headers={"Authorization": ""})).status_code == 200
    rows = [row for row in await api.database.read(select(audit)) if row.action == "login"]
    assert [(row.actor, row.status) for row in rows] == [("user alice", 200)]


async def rows_of(api: Api, action: str) -> list[Any]:
    found = select(audit, accounts.c.name.label("account")).join(accounts, audit.c.account_id == accounts.c.id)
    return list(await api.database.read(found.where(audit.c.action == action).order_by(audit.c.id)))


async def test_failed_logins_are_told_to_the_users_account_or_the_first_one_without_what_may_be_a_password(
    api: Api,
) -> None:
    await a_user(api, "anna", email="anna@example.com")
    async with a_browser(api) as browser:
        for name in ("anna", "ANNA@example.com", "nobody", "My Secret Word!"):
            tried = await browser.post("/login", json={"user": name, "password": "wrong-and-hidden"})
            assert tried.status_code == 401
        page = await browser.post("http://roost/login", data={"user": "anna", "password": "wrong-and-hidden"})
        assert page.status_code == 401

    async def all_of_them() -> bool:
        return len(await rows_of(api, "login")) == 5

    await until(all_of_them)
    told = [(row.account, row.actor, row.status) for row in await rows_of(api, "login")]
    anna = ("anna", "user anna", 401)
    assert told == [anna, anna, ("default", "user nobody", 401), ("default", "user ?", 401), anna]
    assert "hidden" not in str(await api.database.read(select(audit)))


async def test_guessing_makes_no_more_entries_than_the_throttle_lets_through(api: Api) -> None:
    await a_user(api)
    async with a_browser(api) as browser:
        answers = [await browser.post("/login", json={"user": "anna", "password": "wrong"}) for _ in range(14)]
    let_through = [answer.status_code for answer in answers].count(401)
    assert 0 < let_through < 14
    await api.client.delete("/webhooks/last")  # is written after all that was asked before
    assert len(await rows_of(api, "login")) == let_through


async def test_what_a_scope_does_not_allow_is_told(api: Api) -> None:
    made = await api.json("/tokens", 201, "POST", json={"name": "low", "scope": "read"})
    async with bearer(api, str(made["token"])) as low:
        assert (await low.delete("/webhooks/w")).status_code == 403
    (row,) = await rows_of(api, "DELETE /webhooks/{id}")
    assert (row.account, row.actor, row.resource, row.status) == ("default", "token low", "w", 403)


async def test_letting_in_a_device_or_refusing_it_and_logging_out_are_told(api: Api) -> None:
    devices = [await begun(api), await begun(api)]
    async with somebody(api, "max", "member") as browser:
        for device, decision in zip(devices, ("approve", "deny"), strict=True):
            assert (await decided(browser, device, decision)).status_code == 200
        page = await browser.get("http://roost/login")
        fields = dict(re.findall(r'name="(\w+)" value="([^"]+)"', page.text))
        gone = await browser.post("http://roost/logout", data=fields, headers={"Origin": "http://roost"})
        assert gone.status_code < 400
    for action, resource in (
        ("device approve", "roost on <b>laptop</b>"),
        ("device deny", "roost on <b>laptop</b>"),
        ("logout", None),
    ):
        (row,) = await rows_of(api, action)
        assert (row.account, row.actor, row.resource) == ("default", "user max", resource)
    assert devices[0]["user_code"] not in str(await api.database.read(select(audit)))


async def test_the_download_of_a_private_key_is_told(api: Api) -> None:
    made = await api.json("/microvms", 201, "POST", json={"image": "standard"})
    path = f"/microvms/{made['id']}/ssh-keys/download"
    answers = [await api.client.get(path) for _ in range(2)]
    told = [(row.resource, row.status) for row in await rows_of(api, "GET /microvms/{id}/ssh-keys/download")]
    assert told == [(made["id"], 200), (made["id"], 404)]
    assert answers[0].text.splitlines()[1] not in str(await api.database.read(select(audit)))


async def test_what_cannot_be_told_is_not_answered_as_done(api: Api) -> None:
    await api.database.write(text("DROP TABLE audit"))
    answer = await api.client.post("/tokens", json={"name": "ci", "scope": "run"})
    assert answer.status_code == 503
    assert "token" not in answer.json()


def test_every_call_that_changes_something_is_audited() -> None:
    for handler in ROUTES:
        if isinstance(handler, HTTPRouteHandler):
            for method in handler.http_methods - set(SAFE):
                assert is_audited(handler, str(method))
