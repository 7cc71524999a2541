"""Users and the accounts that they share: roles, membership, and what ends with it."""

import asyncio

import httpx
import pytest

from tests.api.people import PASSWORD, a_browser, a_user, bearer, joined, log_in, somebody
from tests.api.test_tokens import PUBLIC_KEY, SCRIPT, made
from tests.workspaces.conftest import JOBS, Api


async def test_a_user_has_an_account_that_others_do_not_see(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        job = (await anna.post(JOBS, json=SCRIPT)).json()["request_id"]
        assert (await bert.get(f"/mags-jobs/{job}/status")).status_code == 404
        chosen = {"X-Roost-Account": "anna"}
        assert (await bert.get(JOBS, headers=chosen)).status_code == 404
        missing = await bert.get(JOBS, headers={"X-Roost-Account": "nobody"})
        assert missing.status_code == 404
        assert missing.text.replace("nobody", "anna") == (await bert.get(JOBS, headers=chosen)).text
        assert (await bert.post("/switch", json={"account": "anna"})).status_code == 404
        assert (await bert.get("/users")).status_code == 403


async def test_a_team_from_its_making_to_a_members_end(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        assert (await anna.post("/accounts", json={"name": "web"})).status_code == 201
        assert (await anna.post("/accounts", json={"name": "web"})).status_code == 409
        assert (await bert.get(JOBS, headers={"X-Roost-Account": "web"})).status_code == 404
        web = {"X-Roost-Account": "web"}
        await joined(anna, bert, "bert", "web", "member")
        assert (await anna.post("/members", json={"user": "bert"}, headers=web)).status_code == 409
        assert (await anna.post("/members", json={"user": "nobody"}, headers=web)).status_code == 404

        assert (await bert.post("/switch", json={"account": "web"})).json()["role"] == "member"
        job = (await bert.post(JOBS, json=SCRIPT)).json()["request_id"]
        assert (await anna.get(f"/mags-jobs/{job}/status", headers=web)).status_code == 200
        accounts = (await bert.get("/accounts")).json()["accounts"]
        assert [(one["name"], one["current"]) for one in accounts] == [("bert", False), ("web", True)]
        assert [one["user"] for one in (await bert.get("/members")).json()["members"]] == ["anna", "bert"]
        assert (await bert.post("/members", json={"user": "anna"})).status_code == 403

        token = (await made(bert, scope="run"))["token"]
        assert (await bert.post("/ssh-keys", json={"public_key": PUBLIC_KEY})).status_code == 201
        async with bearer(api, token) as program:
            assert (await program.get(JOBS)).status_code == 200
            assert (await anna.delete("/members/bert", headers=web)).status_code == 200
            assert (await program.get(JOBS)).status_code == 401
        assert (await bert.get(JOBS, headers=web)).status_code == 404
        assert (await bert.get("/whoami")).json()["account"] == "bert"  # still logged in
        assert (await anna.get("/ssh-keys", headers=web)).json() == {"keys": []}


async def test_a_role_is_what_its_scope_is_from_the_next_request_on(api: Api) -> None:
    async with somebody(api, "max", "member") as member:
        token = (await made(member, scope="run"))["token"]
        async with bearer(api, token) as program:
            assert (await program.post(JOBS, json=SCRIPT)).status_code == 202
            assert (await member.post("/ssh-keys", json={"public_key": PUBLIC_KEY})).status_code == 201
            await api.json("/members/max", 200, "PATCH", json={"role": "viewer"})
            for client in (member, program):
                assert (await client.post(JOBS, json=SCRIPT)).status_code == 403
                assert (await client.get(JOBS)).status_code == 200
            assert (await api.json("/ssh-keys")) == {"keys": []}  # it would let in who may run nothing
        await api.json("/members/max", 200, "PATCH", json={"role": "owner"})
        assert (await member.get("/whoami")).json()["scopes"] == ["read", "run", "admin"]


async def test_the_last_owner_stays_whoever_races(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        assert (await anna.post("/accounts", json={"name": "web"})).status_code == 201
        for browser in (anna, bert):
            browser.headers["X-Roost-Account"] = "web"
        refused = await anna.delete("/members/anna")
        assert refused.status_code == 409 and "last owner" in refused.text
        assert (await anna.patch("/members/anna", json={"role": "viewer"})).status_code == 409
        await joined(anna, bert, "bert", "web", "owner")
        left = await asyncio.gather(anna.delete("/members/anna"), bert.delete("/members/bert"))
        assert sorted(answer.status_code for answer in left)[0] == 200
        remaining = [one for one in (anna, bert) if (await one.get("/members")).status_code == 200]
        assert len(remaining) == 1
        assert len((await remaining[0].get("/members")).json()["members"]) == 1


async def test_a_disabled_owner_is_no_owner_to_stay(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        assert (await anna.post("/accounts", json={"name": "web"})).status_code == 201
        anna.headers["X-Roost-Account"] = "web"
        await joined(anna, bert, "bert", "web", "owner")
        await api.json("/users/bert", 200, "PATCH", json={"disabled": True})
        assert (await anna.delete("/members/anna")).status_code == 409


async def test_ones_own_account_stays_ones_own(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        await joined(anna, bert, "bert", "anna", "owner")
        refused = await anna.delete("/members/anna")
        assert refused.status_code == 409 and "stays its owner" in refused.text


async def test_a_disabled_user_is_out_at_once(api: Api) -> None:
    async with somebody(api, "max", "member") as member:
        token = (await made(member, scope="run"))["token"]
        assert (await member.post("/ssh-keys", json={"public_key": PUBLIC_KEY})).status_code == 201
        shown = await api.json("/users/max", 200, "PATCH", json={"disabled": True})
        assert shown["disabled"] is True
        async with bearer(api, token) as program, a_browser(api) as browser:
            assert (await program.get(JOBS)).status_code == 401
            assert (await member.get(JOBS)).status_code == 401
            answer = await browser.post("/login", json={"user": "max", "password": PASSWORD})
            assert answer.status_code == 401 and "wrong user name or password" in answer.text
            assert (await api.json("/ssh-keys")) == {"keys": []}
            await api.json("/users/max", 200, "PATCH", json={"disabled": False})
            assert (await program.get(JOBS)).status_code == 401  # what has ended stays so
            await log_in(browser, "max")


async def test_passwords_change_and_end_other_logins(api: Api) -> None:
    new = "another good password"
    async with somebody(api, "anna") as anna, a_browser(api) as elsewhere:
        await log_in(elsewhere)
        wrong = await anna.put("/users/anna/password", json={"password": new, "current_password": "no"})
        assert wrong.status_code == 401
        assert (await anna.put("/users/bert/password", json={"password": new})).status_code == 404
        assert (
            await anna.put("/users/anna/password", json={"password": "short", "current_password": PASSWORD})
        ).status_code == 400
        done = await anna.put("/users/anna/password", json={"password": new, "current_password": PASSWORD})
        assert done.status_code == 200, done.text
        assert (await anna.get("/whoami")).status_code == 200
        assert (await elsewhere.get("/whoami")).status_code == 401
        await log_in(elsewhere, "anna", new)
        await api.json("/users/anna/password", 200, "PUT", json={"password": PASSWORD})
        assert (await elsewhere.get("/whoami")).status_code == 401


async def test_a_password_that_nobody_chose_is_made_up_and_works(api: Api) -> None:
    made_up = await api.json("/users", 201, "POST", json={"name": "anna"})
    async with a_browser(api) as browser:
        await log_in(browser, "anna", str(made_up["password"]))
    assert "password" not in str((await api.json("/users"))["users"]).replace("has_password", "")


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"name": "Anna"}, 400, "name"),
        ({"name": "../x"}, 400, "name"),
        ({"name": "default"}, 409, "exists"),
        ({"name": "anna", "password": "short"}, 400, "10 to 1000"),
        ({"name": "anna", "email": "no address"}, 400, "email"),
        ({"name": "anna", "role": "king"}, 400, "owner, member, viewer"),
        ({"name": "anna", "admin": True}, 400, "unknown field"),
    ],
    ids=str,
)
async def test_users_that_cannot_be_are_refused_in_words(
    api: Api, fields: dict[str, object], status: int, words: str
) -> None:
    assert words in str(await api.json("/users", status, "POST", json=fields))


async def test_names_and_addresses_are_unique(api: Api) -> None:
    await a_user(api, "anna", email="anna@example.com")
    await api.json("/users", 409, "POST", json={"name": "anna"})
    await api.json("/users", 409, "POST", json={"name": "anne", "email": "ANNA@example.com"})
    assert [one["name"] for one in (await api.json("/users"))["users"]] == ["anna"]  # type: ignore[attr-defined]


async def test_a_token_that_nobody_made_says_whose_account_is_made(api: Api) -> None:
    await a_user(api, "anna")
    await api.json("/accounts", 400, "POST", json={"name": "web"})
    await api.json("/accounts", 201, "POST", json={"name": "web", "owner": "anna"})
    async with somebody(api, "bert") as bert:
        assert (await bert.post("/accounts", json={"name": "x", "owner": "anna"})).status_code == 403
    who = await api.json("/whoami")
    assert (who["user"], who["account"], who["authentication"]) == (None, "default", "token")


async def test_members_may_leave(api: Api) -> None:
    async with somebody(api, "vera", "viewer") as viewer:
        assert (await viewer.delete("/members/vera")).status_code == 200
        answer: httpx.Response = await viewer.get("/whoami")
        assert answer.json()["account"] == "vera"
