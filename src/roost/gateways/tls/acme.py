"""Certificates from an authority by ACME (RFC 8555), proven by HTTP-01 on the plain gateway.

The library is synchronous: every step runs in a thread with a limit of its own, waiting between steps does not. Each
order has a connection of its own, since the library's must not be shared between threads. The account's key is kept.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from josepy.errors import Error as JoseError
from josepy.jwk import JWK, JWKRSA

from roost.gateways.tls.challenges import Challenges
from roost.gateways.tls.issuing import OrderFailed
from roost.gateways.tls.kept import Kept
from roost.node.threads import Threads

REQUEST_SECONDS = 10
ORDER_SECONDS = 90
POLL_SECONDS = 0.5
FINAL_POLL_SECONDS = 5
NONCE_TRIES = 5  # an authority may refuse a good nonce (RFC 8555, 6.5)
THREADS = 4
SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

T = TypeVar("T")

logging.getLogger("acme").setLevel(logging.WARNING)  # at DEBUG it writes whole requests


class Account(msgspec.Struct, frozen=True):
    """As kept on disk, readable by its user alone."""

    key: str  # PEM
    uri: str


class Authority:
    """One account at the authority whose directory is at `url`; `trust`: PEM certificates to know it by."""

    def __init__(self, url: str, email: str | None, trust: Path | None, kept: Kept) -> None:
        self.challenges = Challenges()
        self._url = url
        self._email = email
        self._trust = trust or (SYSTEM_AUTHORITIES if SYSTEM_AUTHORITIES.exists() else None)
        self._kept = kept
        self._threads = Threads(THREADS, "acme")
        self._registering = asyncio.Lock()
        self._account: tuple[JWKRSA, messages.RegistrationResource] | None = None

    def close(self) -> None:
        self._threads.close()

    async def certificate(self, host: str) -> tuple[bytes, bytes]:
        """A new key and the chain for it, both PEM. Raises OrderFailed, in ORDER_SECONDS at most."""
        try:
            async with asyncio.timeout(ORDER_SECONDS):
                return await self._order(host)
        except TimeoutError:
            raise OrderFailed(f"the authority did not finish within {ORDER_SECONDS} s") from None
        except errors.ValidationError as error:
            raise OrderFailed(_refusals(error)) from None
        except messages.Error as error:
            limited = error.code == "rateLimited"
            raise OrderFailed(f"the authority refuses: {error.code}: {error.detail}", rate_limited=limited) from None
        except requests.RequestException as error:
            raise OrderFailed(f"the authority at {self._url} cannot be reached: {error}") from None
        except (errors.Error, JoseError, ValueError, KeyError) as error:
            raise OrderFailed(f"the authority at {self._url} does not answer as ACME: {error!r}") from None
        finally:
            self.challenges.forget(host)

    async def _order(self, host: str) -> tuple[bytes, bytes]:
        wire = await self._connect()
        key = _new_key()
        request = crypto_util.make_csr(key, [host])
        order = await self._step(lambda: wire.new_order(request))
        for authorization in cast(list[messages.AuthorizationResource], order.authorizations):
            await self._prove(wire, host, authorization)
        order = await self._finish(wire, order)
        return key, order.fullchain_pem.encode()

    async def _prove(self, wire: client.ClientV2, host: str, authorization: messages.AuthorizationResource) -> None:
        body = cast(Any, authorization.body)
        if body.status == messages.STATUS_VALID:
            return
        key = cast(JWK, wire.net.key)
        offered = [one for one in body.challenges if isinstance(one.chall, challenges.HTTP01)]
        if not offered:
            raise OrderFailed("the authority does not offer HTTP-01 for this name")
        challenge = offered[0]
        response, answer = challenge.chall.response_and_validation(key)
        self.challenges.expect(host, challenge.chall.encode("token"), answer.encode())
        await self._step(lambda: wire.answer_challenge(challenge, response))
        while True:
            seen, _ = await self._step(lambda: wire.poll(authorization))
            status = cast(Any, seen.body).status
            if status == messages.STATUS_VALID:
                return
            if status != messages.STATUS_PENDING:
                raise errors.ValidationError([seen])
            await asyncio.sleep(POLL_SECONDS)

    async def _finish(self, wire: client.ClientV2, order: messages.OrderResource) -> messages.OrderResource:
        await self._step(lambda: wire.begin_finalization(order))
        while True:
            try:
                # the library counts by the local clock
                return await self._step(
                    lambda: wire.poll_finalization(
                        order,
                        datetime.now() + timedelta(seconds=FINAL_POLL_SECONDS),  # noqa: DTZ005
                    )
                )
            except errors.TimeoutError:
                continue  # until ORDER_SECONDS are over

    async def _connect(self) -> client.ClientV2:
        """With the account, which is registered when there is none yet."""
        async with self._registering:
            if self._account is None:
                self._account = await self._threads.run(self._kept_account) or await self._register()
            key, registration = self._account
        return await self._threads.run(lambda: self._client(key, registration))

    def _client(self, key: JWKRSA, registration: messages.RegistrationResource | None) -> client.ClientV2:
        verify = cast(bool, str(self._trust)) if self._trust else True  # `requests` takes a path as well
        network = client.ClientNetwork(
            key, registration, verify_ssl=verify, user_agent="roost", timeout=REQUEST_SECONDS
        )
        return client.ClientV2(client.ClientV2.get_directory(self._url, network), network)

    def _kept_account(self) -> tuple[JWKRSA, messages.RegistrationResource] | None:
        data = self._kept.account()
        if data is None:
            return None
        account = msgspec.json.decode(data, type=Account)
        key = JWKRSA(key=load_pem_private_key(account.key.encode(), password=None))
        return key, messages.RegistrationResource(body=messages.Registration(), uri=account.uri)

    async def _register(self) -> tuple[JWKRSA, messages.RegistrationResource]:
        private = await self._threads.run(lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048))
        key = JWKRSA(key=private)
        wire = await self._threads.run(lambda: self._client(key, None))
        wanted = messages.NewRegistration.from_data(email=self._email, terms_of_service_agreed=True)
        registration = await self._step(lambda: wire.new_account(wanted))
        account = Account(_pem(private).decode(), registration.uri)
        await self._threads.run(lambda: self._kept.keep_account(msgspec.json.encode(account)))
        return key, registration

    async def _step(self, call: Callable[[], T]) -> T:
        for last in (*[False] * (NONCE_TRIES - 1), True):
            try:
                return await self._threads.run(call)
            except messages.Error as error:
                if error.code != "badNonce" or last:
                    raise
        raise AssertionError("unreachable")


def _new_key() -> bytes:
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _refusals(error: errors.ValidationError) -> str:
    told = [
        f"{cast(Any, one.body).identifier.value}: {challenge.error.detail}"
        for one in error.failed_authzrs
        for challenge in cast(Any, one.body).challenges
        if challenge.error is not None
    ]
    return "the authority could not confirm that the host is ours; " + "; ".join(told)[:500]
