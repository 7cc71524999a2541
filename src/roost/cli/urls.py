"""Commands about host names: a job's URL, and aliases that follow a workspace."""

import urllib.parse

import click
from click.shell_completion import CompletionItem

from roost.cli.answers import as_json, print_json, print_table, word
from roost.cli.connection import Api, Json, api_options
from roost.cli.names import JOB, WORKSPACE
from roost.cli.paths import path_of
from roost.cli.times import cells
from roost.cli.wording import note
from roost.errors import Invalid

ALIASES = "/api/v1/mags-url-aliases"
WAKING = 60.0  # seconds; a cold sandbox starts first
PORT = click.IntRange(1, 65535)
ACCESS = click.Choice(["public", "token", "signed"])


class Worded(click.Group):
    """A group whose first word may be an argument: it then means the command `meant`."""

    meant = ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, "-h", "--help"} - {self.meant}
        return super().parse_args(ctx, args if not args or args[0] in known else [self.meant, *args])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        meant = self.commands[self.meant]
        with click.Context(meant, ctx, self.meant, resilient_parsing=True) as inner:
            first = meant.params[0].shell_complete(inner, incomplete)
        return [*super().shell_complete(ctx, incomplete), *first]


class UrlGroup(Worded):
    meant = "open"


class AliasGroup(Worded):
    meant = "create"


@click.group(cls=UrlGroup, subcommand_metavar="JOB [PORT] | alias ...")
def url() -> None:
    """Open a URL for a port of a persistent job's sandbox (8080), or name it by an alias.

    \b
    roost url JOB [PORT]                  open it, wake the job, print the URL
    roost url JOB --close                 close it
    roost url alias SUBDOMAIN WORKSPACE   a name that follows the workspace's job
    roost url alias list
    roost url alias remove SUBDOMAIN

    Options of `roost url JOB` are shown by `roost url JOB --help`.
    """


@url.command("open", hidden=True, options_metavar="", short_help="")
@click.argument("job", type=JOB)
@click.argument("port", type=PORT, required=False)
@click.option("--port", "named", type=PORT, metavar="PORT", help="The same as PORT.")
@click.option("--access", type=ACCESS, help="Who may use it [as it was; public at first].")
@click.option("--expires-in", type=click.IntRange(min=1), metavar="S", help="Of a signed URL (3600).")
@click.option("--close", is_flag=True, help="Close the job's URL.")
@as_json
@api_options
def open_url(
    api: Api, job: str, port: int | None, named: int | None, close: bool, raw: bool, **options: object
) -> None:
    """Open a URL for PORT (8080) of a persistent JOB's sandbox, wake it, and print the URL."""
    path = f"{path_of(job)}/access"
    if close:
        answer = api.call("DELETE", path)
        return print_json(answer) if raw else click.echo(answer["message"])
    if port and named and port != named:
        raise Invalid(f"PORT is {port} and --port {named}; give one of them")
    answer = api.call("POST", path, _asked(port=port or named or 8080, **options), timeout=WAKING)
    return print_json(answer) if raw else _show(answer)


@url.group(cls=AliasGroup, subcommand_metavar="SUBDOMAIN WORKSPACE | list | remove SUBDOMAIN")
def alias() -> None:
    """Names of your own: SUBDOMAIN leads to whatever job has WORKSPACE."""


@alias.command(hidden=True)
@click.argument("subdomain")
@click.argument("workspace", type=WORKSPACE)
@click.option("--domain", help="One of those that Roost serves [the first].")
@click.option("--port", type=PORT, help="In the sandbox (8080).")
@click.option("--access", type=ACCESS, help="Who may use it (public).")
@click.option("--expires-in", type=click.IntRange(min=1), metavar="S", help="Of a signed URL (3600).")
@as_json
@api_options
def create(api: Api, subdomain: str, workspace: str, raw: bool, **options: object) -> None:
    """Let SUBDOMAIN lead to whatever job has WORKSPACE, and print the URL."""
    answer = api.call("POST", ALIASES, _asked(subdomain=subdomain, workspace_id=workspace, **options))
    print_json(answer) if raw else _show(answer)


@alias.command("list")
@as_json
@api_options
def list_aliases(api: Api, raw: bool) -> None:
    """List aliases, the newest first."""
    answer = api.call("GET", ALIASES)
    if raw:
        return print_json(answer)
    keys = ("url", "workspace_id", "port", "access", "created_at")
    rows = [cells(one, keys) for one in answer["aliases"]]
    return print_table(["URL", "WORKSPACE", "PORT", "ACCESS", "CREATED"], rows)


@alias.command()
@click.argument("subdomain")
@click.option("--domain", help="Where the subdomain is there in several.")
@as_json
@api_options
def remove(api: Api, subdomain: str, domain: str | None, raw: bool) -> None:
    """Remove an alias."""
    query = "" if domain is None else f"?domain={urllib.parse.quote(domain, safe='')}"
    answer = api.call("DELETE", f"{ALIASES}/{urllib.parse.quote(subdomain, safe='')}{query}")
    print_json(answer) if raw else click.echo(answer["message"])


def _asked(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _show(answer: Json) -> None:
    """The URL alone on standard output, for scripts."""
    click.echo(word(answer["url"]))
    if token := answer.get("access_token"):
        note(f"visitors send the header X-Roost-Token: {word(token)} (shown this once)")
    if expires := answer.get("expires_at"):
        note(f"until {word(expires)}")
