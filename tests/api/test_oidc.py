"""Logging in at an OpenID provider: one that runs here and signs, and everything that may be wrong with its answer."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import RSAKey

from roost.accounts.oidc import provider_of
from roost.errors import Invalid
from roost.settings import ServeSettings
from tests.api.oidc_provider import CLIENT, SECRET, OidcProvider, an_oidc_provider
from tests.api.people import a_browser, a_user
from tests.workspaces.conftest import JOBS, Api, an_api

BEGIN = "/login/oidc?next=/device"
ANNA = {"sub": "1", "email": "Anna.Example@example.com", "email_verified": True}


@pytest.fixture
async def provider() -> AsyncIterator[OidcProvider]:
    async with an_oidc_provider() as provider:
        provider.person = dict(ANNA)
        yield provider


@pytest.fixture
async def api(tmp_path: Path, provider: OidcProvider) -> AsyncIterator[Api]:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    settings = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT, "oidc_client_secret": tmp_path / "secret"}
    async with an_api(tmp_path, **settings, oidc_domains=("example.com",), oidc_emails=("bob@other.example",)) as api:
        yield api


async def login(browser: httpx.AsyncClient) -> httpx.Response:
    """From our page to the provider and back; the last answer."""
    led = await browser.get(BEGIN)
    assert led.status_code == 302, led.text
    async with httpx.AsyncClient() as elsewhere:
        back = await elsewhere.get(led.headers["location"])
    return await browser.get(back.headers["location"])


async def who(browser: httpx.AsyncClient) -> dict[str, Any]:
    answer = await browser.get("/whoami")
    return answer.json() if answer.status_code == 200 else {}


async def test_somebody_new_is_let_in_once_and_known_afterwards(api: Api, provider: OidcProvider) -> None:
    async with a_browser(api) as browser, a_browser(api) as another:
        done = await login(browser)
        assert done.status_code == 302 and done.headers["location"] == "/device"
        assert (await who(browser))["user"] == "anna.example"
        assert (await browser.get(JOBS)).status_code == 200
        provider.person["email"] = "renamed@elsewhere.example"  # only `sub` says who it is
        await login(another)
        assert (await who(another))["user"] == "anna.example"
        answer = await another.post("/login", json={"user": "anna.example", "password": ""})
        assert answer.status_code == 401  # there is no password
    assert len((await api.json("/users"))["users"]) == 1  # type: ignore[arg-type]
    assert provider.key_requests == 1


async def test_two_people_of_one_name_are_two_users(api: Api, provider: OidcProvider) -> None:
    async with a_browser(api) as first, a_browser(api) as second:
        await login(first)
        provider.person = {"sub": "2", "email": "x@example.com", "email_verified": True} | {
            "preferred_username": "Anna.Example"
        }
        await login(second)
        assert [(await who(one))["user"] for one in (first, second)] == ["anna.example", "anna.example-2"]


async def test_a_user_made_before_is_found_by_the_address(api: Api, provider: OidcProvider) -> None:
    await a_user(api, "anna", email="anna.example@example.com")
    async with a_browser(api) as browser, a_browser(api) as impostor:
        await login(browser)
        assert (await who(browser))["user"] == "anna"
        provider.person["sub"] = "another person, later given the same address"
        assert (await login(impostor)).status_code == 409
        assert await who(impostor) == {}


async def test_the_address_may_be_told_by_userinfo_alone(api: Api, provider: OidcProvider) -> None:
    provider.in_userinfo = True
    async with a_browser(api) as browser:
        await login(browser)
        assert (await who(browser))["user"] == "anna.example"


@pytest.mark.parametrize(
    "person",
    [
        {"email": "anna@elsewhere.example"},
        {"email": "anna@example.com.evil.example"},
        {"email": "anna@evil@example.com"},
        {"email_verified": False},
        {"email_verified": "true"},
        {"email": None},
    ],
    ids=str,
)
async def test_strangers_are_not_let_in(api: Api, provider: OidcProvider, person: dict[str, Any]) -> None:
    provider.person |= person
    async with a_browser(api) as browser:
        answer = await login(browser)
        assert answer.status_code == 403 and "let in" in answer.text
        assert await who(browser) == {}
    assert (await api.json("/users"))["users"] == []


async def test_an_address_by_itself_is_let_in(api: Api, provider: OidcProvider) -> None:
    provider.person["email"] = "Bob@other.example"
    async with a_browser(api) as browser:
        await login(browser)
        assert (await who(browser))["user"] == "bob"


NOW = int(time.time())


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://another.example"},
        {"aud": "another client"},
        {"aud": [CLIENT, "another"], "azp": "another"},
        {"aud": [CLIENT, "another"]},
        {"exp": NOW - 3600},
        {"exp": None},
        {"iat": NOW + 3600},
        {"nonce": "of another login"},
        {"nonce": None},
        {"sub": None},
        {"sub": ""},
    ],
    ids="-".join,
)
async def test_an_id_token_that_is_not_for_this_login_is_refused(
    api: Api, provider: OidcProvider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    async with a_browser(api) as browser:
        assert (await login(browser)).status_code == 401
        assert await who(browser) == {}


@pytest.mark.parametrize("wrong", ["another key", "HS256", "none"])
async def test_a_signature_that_is_not_the_providers_is_refused(api: Api, provider: OidcProvider, wrong: str) -> None:
    if wrong == "another key":
        provider.signs_with = RSAKey.generate_key(2048, {"kid": "one"})
    else:
        provider.algorithm = wrong
    async with a_browser(api) as browser:
        assert (await login(browser)).status_code == 401
        assert await who(browser) == {}


async def test_another_browsers_login_is_not_finished_here(api: Api, provider: OidcProvider) -> None:
    """Somebody could log their victim in as themselves by it."""
    async with a_browser(api) as attacker, a_browser(api) as victim:
        led = await attacker.get(BEGIN)
        async with httpx.AsyncClient() as elsewhere:
            back = (await elsewhere.get(led.headers["location"])).headers["location"]
        assert (await victim.get(back)).status_code == 401
        await victim.get(BEGIN)  # with a cookie of its own
        assert (await victim.get(back)).status_code == 401
        assert await who(victim) == {}
        assert (await attacker.get(back)).status_code == 302
        assert (await attacker.get(back)).status_code == 401  # and not twice


async def test_a_disabled_user_is_refused(api: Api, provider: OidcProvider) -> None:
    async with a_browser(api) as browser:
        await login(browser)
        await api.json("/users/anna.example", 200, "PATCH", json={"disabled": True})
        assert (await login(browser)).status_code == 401


async def test_the_provider_that_refuses_or_is_away_is_told(api: Api, provider: OidcProvider) -> None:
    async with a_browser(api) as browser:
        await browser.get(BEGIN)
        answer = await browser.get("/login/oidc/callback?error=access_denied&state=x")
        assert answer.status_code == 401
        provider.codes.clear()
        led = await browser.get(BEGIN)
        state = httpx.URL(led.headers["location"]).params["state"]
        refused = await browser.get(f"/login/oidc/callback?error=access_denied&state={state}")
        assert refused.status_code == 401 and "access_denied" in refused.text
    page = await api.client.get("http://roost/login")
    assert "OpenID" in page.text


async def test_without_a_provider_there_is_none(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api, a_browser(api) as browser:
        assert (await browser.get(BEGIN)).status_code == 404
        assert "OpenID" not in (await browser.get("http://roost/login")).text


async def test_a_provider_that_does_not_answer_is_a_bad_gateway(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    settings: dict[str, Any] = {"oidc_issuer": "http://127.0.0.1:9", "oidc_client_id": CLIENT}
    async with (
        an_api(tmp_path, **settings, oidc_client_secret=tmp_path / "secret", oidc_domains=("x.example",)) as api,
        a_browser(api) as browser,
    ):
        assert (await browser.get(BEGIN)).status_code == 502


@pytest.mark.parametrize(
    ("fields", "secret", "words"),
    [
        ({"oidc_client_id": "x"}, "s", "need --oidc-issuer"),
        ({"oidc_issuer": "https://x.example"}, "s", "--oidc-client-id"),
        ({"oidc_issuer": "https://x.example", "oidc_client_id": "x"}, None, "--oidc-client-secret FILE"),
        ({"oidc_issuer": "https://x.example", "oidc_client_id": "x"}, "s", "--oidc-domain"),
        (
            {"oidc_issuer": "http://x.example", "oidc_client_id": "x", "oidc_domains": ("x.example",)},
            "s",
            "no https://",
        ),
        (
            {"oidc_issuer": "https://x.example", "oidc_client_id": "x", "oidc_client_secret": Path("/nonexistent")},
            None,
            "cannot be read",
        ),
    ],
    ids=str,
)
def test_settings_that_are_incomplete_are_refused(fields: dict[str, Any], secret: str | None, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        provider_of(ServeSettings(Path("/x"), Path("/x"), **fields), secret)
