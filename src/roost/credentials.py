"""Which server and token a client uses, in the CLI as in the Python SDK.

Credentials come from the caller, else the environment, else what `roost login` kept (`logins.py`), else the local
instance's file. Every way in which that can fail is a `RoostError` with the cure in its text.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from roost import instance, logins
from roost.errors import Conflict, NotFound, RoostError, Unauthenticated
from roost.instance import Credentials
from roost.logins import MagsLogin

URL_VARIABLES = ("MAGS_API_URL", "ROOST_API_URL", "ROOST_URL")
FIRST_USER = "`sudo roost user add NAME --role owner`"  # on the machine that runs Roost
TOKEN_VARIABLES = ("MAGS_API_TOKEN", "MAGS_TOKEN", "ROOST_API_TOKEN", "ROOST_TOKEN")


def find_credentials(url: str | None, token: str | None, state: Path | None) -> Credentials:
    """What the command line says, then the environment, completed by what is kept: a login, else the local instance.

    A state that was named means that instance, whatever the rest says. A kept token goes to its own URL alone; the
    one of `mags login`, whose file may name no URL, goes to a URL that somebody chose.
    """
    if state is None:
        url, token = url or _variable(URL_VARIABLES), token or _variable(TOKEN_VARIABLES)
    if url and token:
        return Credentials(url, token)
    if state is not None:
        local = _read(state)
        if url and not same(local.api_url, url):
            raise Unauthenticated(f"no token for {url}: {state} belongs to {local.api_url}; give --token")
        return Credentials(local.api_url, token or local.api_token)
    mags = logins.load_mags()
    if url and (matching := next((kept for kept in _kept(mags) if same(kept.api_url, url)), None)):
        return Credentials(url, matching.api_token)
    if url and mags and mags.url is None:
        return Credentials(url, mags.token)
    if url:
        raise Unauthenticated(f"no token for {url}: `roost login --url {url}`, or set MAGS_API_TOKEN or --token")
    kept = next(_kept(mags), None) or _local(mags)
    return Credentials(kept.api_url, token or kept.api_token)


def _kept(mags: MagsLogin | None) -> Iterator[Credentials]:
    """Those with a URL, the preferred first; the local instance is the last, where it may be read."""
    if login := logins.load():
        yield Credentials(login.url, login.token)
    if mags and mags.url:
        yield Credentials(mags.url, mags.token)
    with contextlib.suppress(RoostError):
        yield _read(_local_state())


def _local(mags: MagsLogin | None) -> Credentials:
    """Says what is wrong where there is none."""
    try:
        return _read(_local_state())
    except NotFound as error:
        if mags is None:
            raise
        text = f"{logins.mags_path()} holds a token and no URL; set MAGS_API_URL to your Roost, or use `roost login`"
        raise Unauthenticated(text) from error


def same(one: str, other: str) -> bool:
    """Whether two URLs name the same server."""
    return one.rstrip("/").lower() == other.rstrip("/").lower()


def _variable(names: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _local_state() -> Path:
    """The running instance's state; the default one where several run or none does."""
    running = sorted(set(instance.known_states()))
    if instance.DEFAULT_STATE in running:
        return instance.DEFAULT_STATE
    if len(running) > 1:
        names = ", ".join(str(state) for state in running)
        raise Conflict(f"several instances run here ({names}); choose one with --state DIR")
    return running[0] if running else instance.DEFAULT_STATE


def _read(state: Path) -> Credentials:
    path = instance.credentials_path(state)
    try:
        return instance.read_credentials(state)
    except PermissionError:
        text = f"you may not read {path}; `roost login` lets you in as a user of your own, whom {FIRST_USER} makes; or"
        raise Unauthenticated(f"{text} use sudo, or set MAGS_API_URL and MAGS_API_TOKEN") from None
    except (FileNotFoundError, NotADirectoryError):
        text = (
            f"no Roost found: there is no {path}. Log in with `roost login --url URL`, start one with `sudo roost up`,"
        )
        raise NotFound(f"{text} name its state with --state DIR, or set MAGS_API_URL and MAGS_API_TOKEN") from None
