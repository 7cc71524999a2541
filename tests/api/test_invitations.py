"""Nobody is in an account before they have said so: invitations, from their making to their end."""

import asyncio
import re

import httpx
import pytest
from sqlalchemy import insert, select, update

from roost.accounts.invitations import LIFETIME, MOST
from roost.clock import now_ns
from roost.db.schema import accounts, audit, invitations, users
from tests.api.people import a_browser, a_user, bearer, joined, log_in, somebody
from tests.api.test_tokens import made
from tests.workspaces.conftest import JOBS, Api

LOGIN = "http://roost/login"
IN_WEB = {"X-Roost-Account": "web"}


async def invited(owner: httpx.AsyncClient, user: str, role: str = "member") -> httpx.Response:
    """To the account web."""
    return await owner.post("/members", json={"user": user, "role": role}, headers=IN_WEB)


async def a_team(owner: httpx.AsyncClient) -> None:
    assert (await owner.post("/accounts", json={"name": "web"})).status_code == 201


async def waiting(guest: httpx.AsyncClient) -> list[tuple[str, str, str | None]]:
    answer = await guest.get("/invitations")
    assert answer.status_code == 200, answer.text
    return [(one["account"], one["role"], one["invited_by"]) for one in answer.json()["invitations"]]


async def told(api: Api, account: str) -> list[tuple[str, str, str | None, int]]:
    """The audit log of an account, the oldest first."""
    found = select(audit).join(accounts, audit.c.account_id == accounts.c.id).where(accounts.c.name == account)
    rows = await api.database.read(found.order_by(audit.c.id))
    return [(row.actor, row.action, row.resource, row.status) for row in rows]


async def test_who_is_invited_gets_nothing_but_the_choice(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        await a_team(anna)
        answer = await invited(anna, "bert")
        assert answer.status_code == 201
        assert answer.json()["message"] == "'bert' is invited to 'web' as member, and is that once they have accepted"
        assert (await bert.get(JOBS, headers=IN_WEB)).status_code == 404
        assert (await bert.post("/switch", json={"account": "web"})).status_code == 404
        assert [one["name"] for one in (await bert.get("/accounts")).json()["accounts"]] == ["bert"]
        assert [one["user"] for one in (await anna.get("/members", headers=IN_WEB)).json()["members"]] == ["anna"]
        assert await waiting(bert) == [("web", "member", "anna")]
        assert await waiting(anna) == []

        accepted = await bert.post("/invitations/web/accept")
        assert accepted.json() == {"name": "web", "role": "member", "current": False}
        assert (await bert.get(JOBS, headers=IN_WEB)).status_code == 200
        assert (await bert.post("/invitations/web/accept")).status_code == 404
        assert await waiting(bert) == []
        again = await invited(anna, "bert")
        assert again.status_code == 409 and "is a member already" in again.text


async def test_who_declines_is_not_in_and_may_be_asked_again(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        await a_team(anna)
        await invited(anna, "bert")
        assert (await bert.delete("/invitations/web")).status_code == 200
        assert (await bert.delete("/invitations/web")).status_code == 404
        assert (await bert.post("/invitations/web/accept")).status_code == 404
        assert (await bert.get(JOBS, headers=IN_WEB)).status_code == 404
        assert (await invited(anna, "bert", "viewer")).status_code == 201
        assert await waiting(bert) == [("web", "viewer", "anna")]


async def test_owners_see_and_withdraw_what_waits_and_others_do_not(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert, somebody(api, "carl") as carl:
        await a_team(anna)
        await joined(anna, carl, "carl", "web", "member")
        assert (await invited(anna, "bert")).status_code == 201
        repeated = await invited(anna, "bert", "owner")
        assert repeated.status_code == 409 and "invited already" in repeated.text

        (one,) = (await anna.get("/invited", headers=IN_WEB)).json()["invited"]
        assert (one["user"], one["role"], one["invited_by"]) == ("bert", "member", "anna")
        for call in (carl.get("/invited", headers=IN_WEB), carl.delete("/invited/bert", headers=IN_WEB)):
            assert (await call).status_code == 403
        assert (await anna.delete("/invited/bert")).status_code == 404  # of her own account, that has invited nobody
        assert await waiting(bert) == [("web", "member", "anna")]

        assert (await anna.delete("/invited/bert", headers=IN_WEB)).status_code == 200
        assert await waiting(bert) == []
        assert (await bert.post("/invitations/web/accept")).status_code == 404


async def test_an_invitation_is_its_users_alone_and_no_program_answers_it(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert, somebody(api, "carl") as carl:
        await a_team(anna)
        await invited(anna, "bert")
        absent = await carl.post("/invitations/none/accept")
        assert absent.status_code == 404
        assert (await carl.post("/invitations/web/accept")).json() == absent.json()
        assert (await carl.delete("/invitations/web")).json() == absent.json()
        token = (await made(bert, scope="admin"))["token"]
        async with bearer(api, token) as program:
            assert (await program.get("/invitations")).status_code == 403
            assert (await program.post("/invitations/web/accept")).status_code == 403
            assert (await program.delete("/invitations/web")).status_code == 403
        assert await waiting(bert) == [("web", "member", "anna")]


async def test_an_invitation_ends_with_time(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        await a_team(anna)
        await invited(anna, "bert")
        (row,) = await api.database.read(select(invitations))
        assert row.expires_ns - row.created_ns == LIFETIME * 10**9
        await api.database.write(update(invitations).values(expires_ns=now_ns()))
        assert await waiting(bert) == []
        assert (await anna.get("/invited", headers=IN_WEB)).json()["invited"] == []
        assert (await bert.post("/invitations/web/accept")).status_code == 404
        assert (await invited(anna, "bert", "viewer")).status_code == 201


@pytest.mark.parametrize("end", ["removed", "a member", "disabled"])
async def test_an_invitation_ends_with_its_makers_standing(api: Api, end: str) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert, somebody(api, "carl") as carl:
        await a_team(anna)
        await joined(anna, carl, "carl", "web", "owner")
        await invited(carl, "bert")
        await a_user(api, "dora")
        await invited(anna, "dora")
        if end == "removed":
            assert (await anna.delete("/members/carl", headers=IN_WEB)).status_code == 200
        elif end == "a member":
            assert (await anna.patch("/members/carl", json={"role": "member"}, headers=IN_WEB)).status_code == 200
        else:
            await api.json("/users/carl", 200, "PATCH", json={"disabled": True})
        assert await waiting(bert) == []
        assert (await bert.post("/invitations/web/accept")).status_code == 404
        assert [one["user"] for one in (await anna.get("/invited", headers=IN_WEB)).json()["invited"]] == ["dora"]


async def test_who_was_disabled_comes_back_without_invitations(api: Api) -> None:
    async with somebody(api, "anna") as anna:
        await a_user(api, "bert")
        await a_team(anna)
        await invited(anna, "bert")
        for disabled in (True, False):
            await api.json("/users/bert", 200, "PATCH", json={"disabled": disabled})
        async with a_browser(api) as browser:
            await log_in(browser, "bert")
            assert await waiting(browser) == []


async def test_to_accept_and_to_withdraw_at_once_leaves_one_or_the_other(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        await a_team(anna)
        await invited(anna, "bert")
        answers = await asyncio.gather(
            bert.post("/invitations/web/accept"),
            anna.delete("/invited/bert", headers=IN_WEB),
            bert.post("/invitations/web/accept"),
        )
        assert sorted(answer.status_code for answer in answers) == [200, 404, 404]
        is_in = (await bert.get(JOBS, headers=IN_WEB)).status_code == 200
        assert is_in == (answers[1].status_code == 404)
        assert await api.database.read(select(invitations)) == []


async def test_those_that_wait_are_limited_in_number(api: Api) -> None:
    async with somebody(api, "anna") as anna:
        await a_user(api, "bert")
        await a_team(anna)
        now = now_ns()
        fields = {"role": "member", "created_ns": now, "expires_ns": now + LIFETIME * 10**9}
        (web,) = await api.database.read(select(accounts.c.id).where(accounts.c.name == "web"))
        (bert,) = await api.database.read(select(users.c.id).where(users.c.name == "bert"))
        for number in range(MOST):
            await api.database.write(
                insert(accounts).values(id=1000 + number, name=f"a{number}", created_ns=now),
                insert(users).values(id=1000 + number, name=f"u{number}", account_id=1000 + number, created_ns=now),
                insert(invitations).values(account_id=1000 + number, user_id=bert.id, **fields),
            )
        refused = await invited(anna, "bert")
        assert refused.status_code == 409 and "as many invitations as a user may have" in refused.text
        others = [{"account_id": web.id, "user_id": 1000 + number, **fields} for number in range(MOST)]
        await api.database.write(insert(invitations).values(others))
        await a_user(api, "carl")
        refused = await invited(anna, "carl")
        assert refused.status_code == 409 and "withdraw one first" in refused.text
        await anna.delete("/invited/u0", headers=IN_WEB)
        assert (await invited(anna, "carl")).status_code == 201


async def test_both_accounts_logs_tell_of_it(api: Api) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert, somebody(api, "carl") as carl:
        await a_team(anna)
        for name in ("bert", "carl", "nobody"):
            await invited(anna, name)
        await bert.post("/invitations/web/accept")
        await carl.delete("/invitations/web")
        await invited(anna, "carl")
        await anna.delete("/invited/carl", headers=IN_WEB)
        assert await told(api, "web") == [
            ("user anna", "POST /members", "bert", 201),
            ("user anna", "POST /members", "carl", 201),
            ("user anna", "POST /members", None, 404),
            ("user bert", "invitation accept", "bert", 200),
            ("user carl", "invitation decline", "carl", 200),
            ("user anna", "POST /members", "carl", 201),
            ("user anna", "DELETE /invited/{user}", "carl", 200),
        ]
        assert ("user bert", "POST /invitations/{account}/accept", "web", 200) in await told(api, "bert")
        assert ("user carl", "DELETE /invitations/{account}", "web", 200) in await told(api, "carl")


@pytest.mark.parametrize("decision", ["accept", "decline"])
async def test_the_page_shows_invitations_and_takes_the_answer(api: Api, decision: str) -> None:
    async with somebody(api, "anna") as anna, somebody(api, "bert") as bert:
        await a_team(anna)
        await invited(anna, "bert", "viewer")
        page = await bert.get(LOGIN)
        assert "<b>anna</b> invites you to the account <b>web</b>, as viewer." in page.text
        form = page.text[page.text.index('action="/invitation"') :]
        fields = dict(re.findall(r'name="(\w+)" value="([^"]+)"', form[: form.index("</form>")]))
        assert fields.pop("decision") == "decline"  # the last of its buttons
        send = {"headers": {"Origin": "http://roost"}}
        forged = fields | {"csrf_token": "x", "decision": decision}
        assert (await bert.post("http://roost/invitation", data=forged, **send)).status_code == 403
        elsewhere = {"headers": {"Origin": "http://evil"}}
        answer = fields | {"decision": decision}
        assert (await bert.post("http://roost/invitation", data=answer, **elsewhere)).status_code == 403
        assert (await bert.post("http://roost/invitation", data=fields, **send)).status_code == 404
        assert await waiting(bert) == [("web", "viewer", "anna")]

        assert (await bert.post("http://roost/invitation", data=answer, **send)).status_code == 302
        assert "invites you" not in (await bert.get(LOGIN)).text
        allowed = 200 if decision == "accept" else 404
        assert (await bert.get(JOBS, headers=IN_WEB)).status_code == allowed
        assert ("user bert", f"invitation {decision}", "bert", 200) in await told(api, "web")
        assert ("user bert", f"own invitation {decision}", "web", 200) in await told(api, "bert")


async def test_a_user_that_an_administrator_makes_for_an_account_is_in_it_at_once(api: Api) -> None:
    async with somebody(api, "max", "member") as member:
        assert (await member.get("/whoami")).json()["account"] == "default"
        assert await waiting(member) == []
