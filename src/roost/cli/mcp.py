"""`roost mcp`: tools for AI agents, on standard input and output or over HTTP."""

import asyncio
import contextlib
from pathlib import Path

import click

from roost.cli.connection import Api, find_credentials
from roost.cli.screen import ServerOption
from roost.cli.wording import note
from roost.errors import Invalid

ANYWHERE = ("0.0.0.0", "::")


@click.command()
@click.option("--http", "listen", metavar="HOST:PORT", help="Serve HTTP there, at /mcp, instead.")
@click.option(
    "--allow-host", "names", multiple=True, metavar="NAME", help="A name it is asked by, with --http; repeatable."
)
@click.option(
    "--api-url", "--url", "url", cls=ServerOption, metavar="URL", help="The API's address; also in MAGS_API_URL."
)
@click.option("--token", cls=ServerOption, help="An API token; also in MAGS_API_TOKEN.")
@click.option("--state", cls=ServerOption, type=click.Path(path_type=Path), metavar="DIR", help="Of a local instance.")
def mcp(listen: str | None, names: tuple[str, ...], url: str | None, token: str | None, state: Path | None) -> None:
    """Give AI agents tools to run scripts, use workspaces and open URLs, by the Model Context Protocol: on standard
    input and output with your login, or with --http for several, who each send a token of their own.

    \b
    claude mcp add roost -- roost mcp
    """
    if listen is None:
        if names:
            raise Invalid("--allow-host is for --http")
        return _stdio(url, token, state)
    if token is not None:
        raise Invalid("--token: with --http everybody sends a token of their own; leave it out")
    return _http(listen, names, url, state)


def _stdio(url: str | None, token: str | None, state: Path | None) -> None:
    from roost.mcp.server import serve_stdio

    credentials = find_credentials(url, token, state)
    Api(credentials)  # refuses what is no URL
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_stdio(credentials))


def _http(listen: str, names: tuple[str, ...], url: str | None, state: Path | None) -> None:
    from roost.listening import address_of, bound
    from roost.mcp.server import PATH, serve_http

    found = Api(find_credentials(url, "-", state))  # of which only the URL counts
    host, port = address_of(listen, "--http")
    if host in ANYWHERE and not names:
        raise Invalid(f"--http {listen}: say by which name it will be asked, with --allow-host NAME")
    listener = bound(host, port, "--http")
    shown = f"[{host}]" if ":" in host else host
    note(f"MCP at http://{shown}:{listener.getsockname()[1]}{PATH}, for {found.url}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_http(found.url, listener, (shown, *names)))
