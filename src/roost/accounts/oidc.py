"""Logging in at an OpenID provider: authorization code with PKCE, state and nonce (OpenID Connect Core 1.0, RFC 7636).

What belongs to one login travels in the browser's cookie, sealed, so that only the browser that began can finish it.
A user is who the provider's `sub` says; e-mail addresses decide only whether somebody new is let in, and as whom.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from roost.accounts.users import User, Users, mailed
from roost.db.secret import Secret
from roost.errors import Conflict, Forbidden, Invalid, ProviderUnavailable, Unauthenticated
from roost.settings import OIDC_SECRET_VARIABLE

if TYPE_CHECKING:
    from joserfc.jwk import KeySet

    from roost.settings import ServeSettings

SECONDS_TO_LOG_IN = 600
TIMEOUT = 10  # seconds for one answer of the provider
MAX_ANSWER = 1024 * 1024  # bytes
KEPT = 3600  # seconds that what the provider says about itself, and its keys, are kept
FETCHED_ANEW_AFTER = 30  # seconds, when a token names a key that is not among them
LEEWAY = 60  # seconds that clocks may differ
ALGORITHMS = ("RS256", "PS256", "ES256", "RS384", "PS384", "ES384", "RS512", "PS512", "ES512", "Ed25519", "EdDSA")
BEGIN_AGAIN = "this login took too long, or began in another browser; begin again at /login"
NAMES = 20  # tried for somebody new


@dataclass(frozen=True)
class Provider:
    issuer: str
    client_id: str
    client_secret: str
    domains: tuple[str, ...]  # of e-mail addresses that are let in
    emails: tuple[str, ...]


class Login(msgspec.Struct, frozen=True):
    """What the browser brings back."""

    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    next: str
    until: float


class Endpoints(msgspec.Struct, frozen=True):
    """What we need of the provider's configuration."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str = ""
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


def provider_of(settings: "ServeSettings", secret: str | None) -> Provider | None:
    """From options, and the variable's value. Raises Invalid where something is missing."""
    given = (settings.oidc_client_id, settings.oidc_client_secret, settings.oidc_domains, settings.oidc_emails)
    if not settings.oidc_issuer:
        if any(given):
            raise Invalid("--oidc-…: options for OpenID Connect need --oidc-issuer")
        return None
    if not settings.oidc_client_id:
        raise Invalid("--oidc-issuer needs --oidc-client-id: how the provider knows this Roost")
    if settings.oidc_client_secret is not None:
        secret = _read_secret(settings.oidc_client_secret)
    if not secret:
        raise Invalid(
            f"--oidc-issuer needs a secret: --oidc-client-secret FILE, or {OIDC_SECRET_VARIABLE} in the environment"
        )
    if not (settings.oidc_domains or settings.oidc_emails):
        raise Invalid("--oidc-issuer needs to know whom to let in: --oidc-domain example.com, or --oidc-email ADDRESS")
    require_private(settings.oidc_issuer)
    domains = tuple(domain.lower().lstrip("@") for domain in settings.oidc_domains)
    emails = tuple(email.lower() for email in settings.oidc_emails)
    return Provider(settings.oidc_issuer, settings.oidc_client_id, secret, domains, emails)


def _read_secret(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"--oidc-client-secret {path}: cannot be read ({error})") from None


def require_private(url: str) -> None:
    """What goes there must not be read on the way. Raises Invalid."""
    parts = urllib.parse.urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise Invalid(f"{url[:200]!r} is no https:// address; OpenID Connect needs one")


class Oidc:
    """One provider. Nothing is asked of it before the first login."""

    def __init__(self, provider: Provider, secret: Secret, users: Users) -> None:
        self.provider = provider
        self._seal = Secret(secret.derive("roost oidc login"))
        self._users = users
        self._endpoints: tuple[float, Endpoints] | None = None
        self._keys: tuple[float, KeySet] | None = None

    async def begin(self, redirect_uri: str, next: str) -> tuple[str, str]:
        """Where to send the browser, and its cookie. Raises ProviderUnavailable."""
        endpoints = await self._configuration()
        made = [secrets.token_urlsafe(32) for _ in range(3)]
        login = Login(made[0], made[1], made[2], redirect_uri, next, time.time() + SECONDS_TO_LOG_IN)
        challenge = _base64(hashlib.sha256(login.verifier.encode()).digest())
        query = {
            "response_type": "code",
            "client_id": self.provider.client_id,
            "redirect_uri": redirect_uri,
            "scope": "openid email profile",
            "state": login.state,
            "nonce": login.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        join = "&" if "?" in endpoints.authorization_endpoint else "?"
        url = endpoints.authorization_endpoint + join + urllib.parse.urlencode(query)
        return url, _base64(self._seal.seal(msgspec.json.encode(login), "login"))

    async def finish(self, cookie: str, answer: dict[str, str]) -> tuple[User, str]:
        """Who it is, and where they wanted to go. Raises Unauthenticated, Forbidden, ProviderUnavailable."""
        login = self._open(cookie)
        if not hmac.compare_digest(answer.get("state", "").encode(), login.state.encode()):
            raise Unauthenticated(BEGIN_AGAIN)
        if "iss" in answer and answer["iss"] != self.provider.issuer:  # RFC 9207
            raise Unauthenticated("the answer came from another provider; begin again at /login")
        if "error" in answer or not answer.get("code"):
            raise Unauthenticated(f"the provider did not log you in ({answer.get('error', 'no code')[:100]})")
        tokens = await self._exchange(answer["code"], login)
        claims = await self._verified(str(tokens.get("id_token", "")), login.nonce)
        if "email" not in claims and tokens.get("access_token"):
            claims |= await self._userinfo(str(tokens["access_token"]), str(claims["sub"]))
        return await self._user(claims), login.next

    def _open(self, cookie: str) -> Login:
        try:
            raw = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            login = msgspec.json.decode(self._seal.open(raw, "login"), type=Login)
        except (ValueError, Conflict, msgspec.MsgspecError):
            raise Unauthenticated(BEGIN_AGAIN) from None
        if login.until < time.time():
            raise Unauthenticated(BEGIN_AGAIN)
        return login

    # ---- the provider

    async def _configuration(self) -> Endpoints:
        if self._endpoints is not None and self._endpoints[0] > time.monotonic() - KEPT:
            return self._endpoints[1]
        url = self.provider.issuer.rstrip("/") + "/.well-known/openid-configuration"
        try:
            found = msgspec.convert(await self._request("GET", url), Endpoints)
            for address in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
                require_private(address)
        except (msgspec.ValidationError, Invalid) as error:
            raise ProviderUnavailable(f"{url} is no configuration of an OpenID provider: {error}") from None
        if found.issuer != self.provider.issuer:
            text = f"{url} calls itself {found.issuer[:200]!r}; give exactly that as --oidc-issuer"
            raise ProviderUnavailable(text)
        self._endpoints = time.monotonic(), found
        return found

    async def _exchange(self, code: str, login: Login) -> dict[str, Any]:
        endpoints, provider = await self._configuration(), self.provider
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": login.redirect_uri,
            "code_verifier": login.verifier,
        }
        if "client_secret_basic" in endpoints.token_endpoint_auth_methods_supported:
            words = (urllib.parse.quote_plus(provider.client_id), urllib.parse.quote_plus(provider.client_secret))
            headers = {"Authorization": "Basic " + base64.b64encode(":".join(words).encode()).decode()}
        else:
            form |= {"client_id": provider.client_id, "client_secret": provider.client_secret}
            headers = dict[str, str]()
        return await self._request("POST", endpoints.token_endpoint, headers, form)

    async def _verified(self, id_token: str, nonce: str) -> dict[str, Any]:
        """Its claims, when the provider signed them for us, for this login, and not long ago."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        try:
            token = jwt.decode(id_token, await self._key_set(id_token), algorithms=list(ALGORITHMS))
            registry = jwt.JWTClaimsRegistry(
                leeway=LEEWAY,
                iss={"essential": True, "value": self.provider.issuer},
                aud={"essential": True, "value": self.provider.client_id},
                exp={"essential": True},
                iat={"essential": True},
                sub={"essential": True},
                nonce={"essential": True, "value": nonce},
            )
            registry.validate(token.claims)
        except (JoseError, ValueError, TypeError) as error:
            raise Unauthenticated(f"the provider's ID token does not hold ({type(error).__name__})") from None
        claims = dict(token.claims)
        several = isinstance(claims["aud"], list) and len(cast("list[str]", claims["aud"])) > 1
        if (several or "azp" in claims) and claims.get("azp") != self.provider.client_id:
            raise Unauthenticated("the provider's ID token is for another client")
        return claims

    async def _key_set(self, id_token: str) -> "KeySet":
        from joserfc.jwk import KeySet

        now = time.monotonic()
        if self._keys is not None:
            fetched, keys = self._keys
            known = {key.kid for key in keys.keys}
            if now - fetched < (KEPT if _key_id(id_token) in known else FETCHED_ANEW_AFTER):
                return keys
        found = await self._request("GET", (await self._configuration()).jwks_uri)
        keys = KeySet.import_key_set(cast(Any, found))
        self._keys = now, keys
        return keys

    async def _userinfo(self, access_token: str, subject: str) -> dict[str, Any]:
        endpoint = (await self._configuration()).userinfo_endpoint
        if not endpoint:
            return {}
        require_private(endpoint)
        told = await self._request("GET", endpoint, {"Authorization": f"Bearer {access_token}"})
        if told.get("sub") != subject:
            raise Unauthenticated("the provider told of another person; begin again at /login")
        return {name: told[name] for name in ("email", "email_verified", "preferred_username") if name in told}

    async def _request(
        self, method: str, url: str, headers: dict[str, str] | None = None, form: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON object that it answers. Raises ProviderUnavailable, Unauthenticated (it refused)."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        more = {"Accept": "application/json", **(headers or {})}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, url, headers=more, data=form, allow_redirects=False) as answer,
            ):
                body = await answer.content.read(MAX_ANSWER)
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProviderUnavailable(f"the OpenID provider does not answer ({type(error).__name__})") from None
        if status in (400, 401, 403):
            raise Unauthenticated(f"the OpenID provider refused ({status}); begin again at /login")
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if status != 200 or not isinstance(found, dict):
            raise ProviderUnavailable(f"the OpenID provider answered {status} and no JSON object")
        return cast("dict[str, Any]", found)

    # ---- people

    async def _user(self, claims: dict[str, Any]) -> User:
        issuer, subject = self.provider.issuer, str(claims["sub"])
        user = await self._users.of_identity(issuer, subject)
        if user is None:
            email = self._let_in(claims)
            user = await self._users.with_email(email) or await self._new_user(claims, email)
            await self._users.link(user, issuer, subject)
        if user.disabled:
            raise Unauthenticated("this user is disabled here")
        return user

    def _let_in(self, claims: dict[str, Any]) -> str:
        """The address by which somebody new may come in. Raises Forbidden."""
        try:
            email = mailed(str(claims.get("email", ""))) or ""
        except Invalid:
            email = ""
        if not email or claims.get("email_verified") is not True:
            raise Forbidden("the provider does not vouch for your e-mail address, so you are not let in")
        if email not in self.provider.emails and email.rpartition("@")[2] not in self.provider.domains:
            raise Forbidden(f"{email} is not let in here; ask whoever runs this Roost")
        return email

    async def _new_user(self, claims: dict[str, Any], email: str) -> User:
        wanted = str(claims.get("preferred_username") or email).partition("@")[0].lower()
        base = re.sub(r"[^a-z0-9._-]", "-", wanted).lstrip("._-")[:50] or "user"
        for number in range(1, NAMES + 1):
            try:
                return await self._users.create(base if number == 1 else f"{base}-{number}", email, None)
            except Conflict:
                continue
        return await self._users.create(f"{base}-{secrets.token_hex(4)}", email, None)


def _key_id(token: str) -> str | None:
    head = token.partition(".")[0]
    try:
        return cast("str | None", json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))).get("kid"))
    except (ValueError, AttributeError):
        return None


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
