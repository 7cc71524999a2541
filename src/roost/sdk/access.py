"""Where the client's server and token come from; the same as for the command line."""

from roost import errors
from roost.credentials import find_credentials
from roost.sdk.errors import RoostError, Unauthenticated


def find_access(url: str | None, token: str | None) -> tuple[str, str]:
    """URL and token. Raises RoostError where there is none."""
    try:
        found = find_credentials(url, token, None)
    except (errors.Unauthenticated, errors.NotFound) as error:
        raise Unauthenticated(f"API token required: {error}") from error
    except errors.RoostError as error:
        raise RoostError(str(error)) from error
    return found.api_url.rstrip("/"), found.api_token
