"""Where `roost login` keeps what it was given: `~/.config/roost/config.json`, and what an older `mags` left behind.

The file is its owner's alone (mode 0600 in a directory of mode 0700) and is replaced whole or not at all. A token
belongs to the URL beside it and is sent to no other; see `credentials.py` for what comes before it.
"""

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from roost.errors import Invalid, StateUnwritable, Unauthenticated

TOKEN_KEYS = ("token", "api_token", "apiToken", "MAGS_API_TOKEN")
URL_KEYS = ("url", "api_url", "apiUrl", "MAGS_API_URL")


@dataclass(frozen=True)
class Login:
    """A server and who one is there. `account` is a name to show; the server decides by the token alone."""

    url: str
    token: str
    account: str | None = None


@dataclass(frozen=True)
class MagsLogin:
    """What the file of `mags login` says; without `url` it meant its own cloud, which Roost does not assume."""

    url: str | None
    token: str


def path() -> Path:
    """Our own file, whether it is there or not."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    # the standard says that a relative one is to be ignored
    return (Path(home) if home.startswith("/") else Path.home() / ".config") / "roost" / "config.json"


def mags_path() -> Path:
    return Path.home() / ".mags" / "config.json"


def load() -> Login | None:
    """None where nobody logged in. Invalid: the file is damaged. Unauthenticated: it is somebody else's."""
    place = path()
    try:
        values = json.loads(place.read_bytes())
        account = values.get("account")
        return Login(str(values["url"]), str(values["token"]), None if account is None else str(account))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise Unauthenticated(f"you may not read {place}; it belongs to another user") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(
            f"{place} has no url and token; `roost login` writes it anew, `roost logout` removes it"
        ) from error


def load_mags() -> MagsLogin | None:
    """None where there is no such file, or none that holds a token: its form was never written down."""
    try:
        values = json.loads(mags_path().read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    token, url = _first(values, TOKEN_KEYS), _first(values, URL_KEYS)  # pyright: ignore[reportUnknownArgumentType]
    return None if token is None else MagsLogin(url, token)


def _first(values: dict[str, object], keys: tuple[str, ...]) -> str | None:
    return next((value for key in keys if isinstance(value := values.get(key), str) and value), None)


def save(login: Login) -> Path:
    """Replace the file; returns where it is."""
    place = path()
    values = {"url": login.url, "token": login.token} | ({"account": login.account} if login.account else {})
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.parent.chmod(0o700)
        number, draft = tempfile.mkstemp(dir=place.parent, prefix=".config-")  # mode 0600
        try:
            with os.fdopen(number, "w") as file:
                json.dump(values, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, place)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)  # noqa: PTH108
            raise
    except OSError as error:
        raise StateUnwritable(f"cannot write {place}: {error.strerror or error}") from error
    return place


def delete() -> bool:
    """Whether there was a file. The one of `mags` stays: it is not ours."""
    try:
        path().unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StateUnwritable(f"cannot remove {path()}: {error.strerror or error}") from error
    return True
