"""Users of an API under test, and their browsers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.workspaces.conftest import Api

PASSWORD = "correct horse battery"


async def a_user(api: Api, name: str = "anna", role: str | None = None, **fields: object) -> dict[str, object]:
    """With PASSWORD; `role`: also in the first account."""
    body = {"name": name, "password": PASSWORD, **fields} | ({"role": role} if role else {})
    return await api.json("/users", 201, "POST", json=body)


@asynccontextmanager
async def a_browser(api: Api, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Nobody is logged in; `headers` go with each request."""
    transport = api.client._transport
    async with httpx.AsyncClient(transport=transport, base_url=api.client.base_url, headers=headers) as browser:
        yield browser


async def log_in(browser: httpx.AsyncClient, name: str = "anna", password: str = PASSWORD) -> dict[str, object]:
    """From now on the browser sends what its own pages would."""
    answer = await browser.post("/login", json={"user": name, "password": password})
    assert answer.status_code == 200, answer.text
    who = answer.json()
    browser.headers["X-CSRF-Token"] = who["csrf_token"]
    return who


@asynccontextmanager
async def somebody(api: Api, name: str, role: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A new user's browser, logged in; with a role it speaks for the first account."""
    await a_user(api, name, role)
    async with a_browser(api) as browser:
        await log_in(browser, name)
        if role:
            assert (await browser.post("/switch", json={"account": "default"})).status_code == 200
        yield browser


async def joined(owner: httpx.AsyncClient, guest: httpx.AsyncClient, name: str, account: str, role: str) -> None:
    """The guest's user, called so, is invited to the account and accepts."""
    invited = await owner.post("/members", json={"user": name, "role": role}, headers={"X-Roost-Account": account})
    assert invited.status_code == 201, invited.text
    # whichever account the guest has chosen: they are in their own
    accepted = await guest.post(f"/invitations/{account}/accept", headers={"X-Roost-Account": name})
    assert accepted.json() == {"name": account, "role": role, "current": False}, accepted.text


@asynccontextmanager
async def bearer(api: Api, token: str) -> AsyncIterator[httpx.AsyncClient]:
    async with a_browser(api, Authorization=f"Bearer {token}") as client:
        yield client
