"""`roost login`, `logout` and `whoami`: a token by way of a browser, or one that is pasted, kept for later commands."""

import os
import socket
import sys
import time
import webbrowser

import click

from roost import instance, logins
from roost.cli.answers import as_json, print_json, word
from roost.cli.connection import Api, Json, api_options
from roost.cli.wording import note, program
from roost.credentials import FIRST_USER, TOKEN_VARIABLES, URL_VARIABLES
from roost.errors import Conflict, Invalid, RoostError, Unauthenticated
from roost.instance import Credentials
from roost.logins import Login

WHOAMI = "/api/v1/whoami"
LOCAL = "http://127.0.0.1:8484"  # where `roost up` listens, unless it is told otherwise
ASK = "-"
GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SLOWER = 5  # seconds; RFC 8628, 3.5


@click.command()
@click.option("--api-url", "--url", "url", metavar="URL", help="The API's address [the one in use].")
@click.option("--token", is_flag=False, flag_value=ASK, help="Keep this API token; without a value, ask for it.")
@click.option(
    "--scope", type=click.Choice(["read", "run", "admin"]), default="run", show_default=True,
    help="At most this much; admin also manages tokens, users and teams.",
)  # fmt: skip
@click.option("--no-browser", is_flag=True, help="Only show the address to open.")
@as_json
def login(url: str | None, token: str | None, scope: str, no_browser: bool, raw: bool) -> None:
    """Log in: by a browser, here or on any other machine, or with --token by a token that you paste.

    What you get is kept in ~/.config/roost/config.json for later commands. MAGS_API_TOKEN and --token come before it.
    """
    url = (url or server_here()).rstrip("/")
    if token is None:
        token = _by_browser(Api(Credentials(url, "")), scope, no_browser)
    elif token == ASK:
        token = str(click.prompt("API token", hide_input=True, err=True))
    token = token.strip()
    who = Api(Credentials(url, token)).call("GET", WHOAMI)
    place = logins.save(Login(url, token, who["account"]))
    print_json(who) if raw else click.echo(f"Logged in at {url} as {_described(who)}; kept in {place}")
    if any(os.environ.get(name) for name in TOKEN_VARIABLES):
        note(f"{' or '.join(TOKEN_VARIABLES)} is set and comes before this login")


@click.command()
@as_json
def logout(raw: bool) -> None:
    """Log out: end the token that `roost login` got by a browser, and forget it here."""
    kept = logins.load()
    if kept is None:
        raise Unauthenticated("you are not logged in; `roost login` logs in")
    ended = False
    try:
        ended = bool(Api(Credentials(kept.url, kept.token)).call("POST", "/api/v1/logout")["revoked"])
        left = "" if ended else "; the token was pasted and is still good: `roost token revoke` ends one"
    except Unauthenticated:
        ended, left = True, ""  # before
    except RoostError as error:
        left = f"; the server could not be told, so the token is good until it expires: {error}"
    logins.delete()
    print_json({"url": kept.url, "revoked": ended}) if raw else click.echo(f"Logged out of {kept.url}{left}")


@click.command()
@as_json
@api_options
def whoami(api: Api, raw: bool) -> None:
    """Show who you are, the account that commands act in, and what you may do there."""
    who = api.call("GET", WHOAMI)
    print_json(who) if raw else click.echo(f"{_described(who)}; may {', '.join(who['scopes'])}; at {api.url}")


def _by_browser(api: Api, scope: str, no_browser: bool) -> str:
    """A token, when somebody who is logged in has let this program in."""
    wanted = {"client_name": f"{program()} on {socket.gethostname()}", "scope": scope}
    device = api.call("POST", "/api/v1/device/code", wanted)
    click.echo(f"Open {device['verification_uri_complete']}", err=True)
    click.echo(f"and let in the device that shows {device['user_code']}", err=True)
    note(f"who has no user yet is given one by whoever runs Roost, there: {FIRST_USER}")
    if not no_browser and _has_screen():
        webbrowser.open(device["verification_uri_complete"])
    deadline, pause = time.monotonic() + device["expires_in"], float(device["interval"])
    while time.monotonic() < deadline:
        time.sleep(pause)
        try:
            question = {"grant_type": GRANT, "device_code": device["device_code"]}
            return str(api.call("POST", "/api/v1/device/token", question)["access_token"])
        except RoostError as error:
            pause = _patience(error, pause)
    raise Unauthenticated("nobody let this device in, in time; `roost login` begins again")


def _patience(error: RoostError, pause: float) -> float:
    """Seconds until it makes sense to ask again. Raises what ends it."""
    if str(error) == "slow_down":
        return pause + SLOWER
    if str(error) == "access_denied":
        raise Unauthenticated("the login was refused in the browser")
    if str(error) == "expired_token":
        raise Unauthenticated("nobody let this device in, in time; `roost login` begins again")
    if isinstance(error, Invalid) and str(error) != "authorization_pending":
        raise error
    return pause  # also while the server is away


def _has_screen() -> bool:
    return sys.stdout.isatty() and (sys.platform == "darwin" or bool(_set("DISPLAY", "WAYLAND_DISPLAY")))


def _set(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def server_here() -> str:
    """Of the environment, of the last login, of the instance that runs here."""
    if named := _set(*URL_VARIABLES):
        return named
    if kept := logins.load():
        return kept.url
    known = instance.known_urls()
    if len(known) > 1 and instance.DEFAULT_STATE not in known:
        raise Conflict(f"several instances run here; choose one with --api-url: {', '.join(sorted(known.values()))}")
    return known.get(instance.DEFAULT_STATE) or next(iter(known.values()), LOCAL)


def _described(who: Json) -> str:
    role = f" ({word(who['role'])})" if who["role"] else ""
    name = word(who["user"]) if who["user"] else f"the token {word(who['token']['name'])!r}"
    return f"{name}, account {word(who['account'])}{role}"
