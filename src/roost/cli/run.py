"""`roost run`: submit a script, show its output byte for byte as it comes, and end with its exit status.

A status that was lost is never shown as success. Who goes away (Ctrl-C, TERM, the end of the terminal or of the reader)
stops the job, or leaves it, as `--on-interrupt` says.
"""

import re
import sys
from pathlib import Path

import click

from roost.cli import stdin
from roost.cli.answers import Carrying, as_json, print_json
from roost.cli.connection import Api, Json, server_options
from roost.cli.follow import follow
from roost.cli.jobs import discard, exit_status, read_script, show_bytes, submission
from roost.cli.names import WORKSPACE
from roost.cli.paths import path_of
from roost.cli.screen import Screen
from roost.cli.starting import started, submitted, waited_for
from roost.cli.wording import note
from roost.cli.workspaces import upload
from roost.errors import Invalid

PORT = 8080  # documented, where none is said
WAKE_WITHIN = 60.0  # seconds
# The options that the help explains; the others it names
USUAL = ("-w", "-n", "-e", "-t", "-f", "--base", "-p", "--url", "--port", "-d")
_NAME = ("--env", re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z"))  # whose value is the caller's
_VALUES = (("--env", re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")), ("--idle-minutes", re.compile(r"[0-9.]+\Z")))


class Run(Carrying, Screen):
    """Gives `-e` its meanings: nothing is kept; `-e KEY[=VALUE]`, a variable; `-e MINUTES`, until it sleeps."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # `run -e 'A=1; echo $A'` has no other script, so this is it; the same holds for `run -e uname`
        readings = (spelled_out(args, names=True), spelled_out(args), args)
        return super().parse_args(ctx, next(read for read in readings if read is args or self._has_script(ctx, read)))

    def _has_script(self, ctx: click.Context, args: list[str]) -> bool:
        try:
            values, _, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return False  # which is said of what was typed
        return isinstance(values.get("script"), str)


def spelled_out(args: list[str], names: bool = False) -> list[str]:
    """The long option in place of each `-e` that has a value; with `names`, of `-e NAME` too."""
    end = args.index("--") if "--" in args else len(args)
    read = list(args)
    for at in range(end - 1):
        forms = (*_VALUES, *((_NAME,) if names else ()))
        long = [name for name, form in forms if args[at] == "-e" and form.match(args[at + 1])]
        read[at : at + 1] = long or [args[at]]
    return read


@click.command(cls=Run, brief=USUAL)
@click.argument("script")
@click.option("-w", "--workspace", type=WORKSPACE, metavar="NAME", help="Begin from this workspace and save to it.")
@click.option("-n", "--name", metavar="NAME", help="The same, and the job's name; with -e the name alone.")
@click.option("-e", "--ephemeral", is_flag=True, help="Keep nothing. But -e KEY=VALUE: a variable.")
@click.option("--env", "pairs", multiple=True, metavar="KEY=VALUE", help="Environment; repeatable.")
@click.option(
    "-t", "--timeout", type=click.IntRange(1), metavar="S", help="Seconds it may run (300; with -p: no limit)."
)
@click.option(
    "-f", "--file", "files", multiple=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Upload a file into /root; repeatable.",
)  # fmt: skip
@click.option("--base", type=WORKSPACE, metavar="NAME", help="Begin from NAME or NAME@REVISION; it stays as it is.")
@click.option("-p", "--persistent", is_flag=True, default=None, help="Keep the sandbox until `roost stop`.")
@click.option("--url", "public", is_flag=True, help="Open a URL and print it; with -p.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Where the URL leads (8080).")
@click.option("--startup-command", metavar="CMD", help="Runs when it wakes from cold; with -p.")
@click.option("--no-sleep", is_flag=True, default=None, help="Never put it to sleep; with -p.")
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and do not wait.")
@click.option(
    "--on-interrupt", type=click.Choice(["stop", "detach"]), default="stop", show_default=True,
    help="What going away does with the job.",
)  # fmt: skip
@click.option(
    "--stdin/--no-stdin", "fed", default=None,
    help="Give the script our standard input [a pipe's or file's; not with -d, -p].",
)  # fmt: skip
@click.option("--image", metavar="I", help="Root file system (standard).")
@click.option("--memory", type=click.IntRange(min=1), metavar="MB", help="Memory limit (1024).")
@click.option("--vcpus", type=click.FloatRange(min=0, min_open=True), metavar="N", help="CPU limit (2).")
@click.option("--disk", type=click.IntRange(min=1), metavar="GB", help="Disk limit (2).")
@click.option(
    "--idle-minutes", type=click.FloatRange(min=0, min_open=True), metavar="N",
    help="Unused, until it sleeps (10); with -p.",
)  # fmt: skip
@as_json
@server_options("--api-url")  # --url is of `run` itself
def run(
    api: Api,
    script: str,
    pairs: tuple[str, ...],
    files: tuple[Path, ...],
    public: bool,
    port: int | None,
    detach: bool,
    on_interrupt: str,
    fed: bool | None,
    raw: bool,
    **options: object,
) -> None:
    """Run SCRIPT (text, file or -) in a new sandbox, show its output, exit as it does.
    With -p the sandbox stays and is not waited for. Ctrl-C stops the job.

    \b
    roost run -w app -p --url --port 3000 'npm install && npm start'
    """
    persistent = bool(options["persistent"])
    refuse_contradictions(options, public, port)
    has_files = bool(files or options["workspace"] or options["base"] or options["name"])
    body = submission(read_script(script, has_files), pairs, **kept(options))
    fed = _is_fed(fed, script, waits=not (persistent or detach or public))
    if fed:
        body["input"] = True
    if files:
        body["file_ids"] = [upload(api, file) for file in files]
    with waited_for(api, leave=detach or on_interrupt == "detach") as made:
        accepted = submitted(api, body, made)
        job = made[0]
        feeding = stdin.feed(api, job) if fed else None
        if feeding and (persistent or detach):
            feeding.join()  # what it is given has to come from somewhere
        if public:
            return _opened(api, job, port or PORT, accepted, raw)
        if persistent or detach:
            return _left(job, accepted, raw)
        return _followed(api, job, raw)


def _is_fed(wish: bool | None, script: str, waits: bool) -> bool:
    """Whether the script is given our standard input. Raises Invalid."""
    if wish and script == "-":
        raise Invalid("--stdin: standard input is the script itself; give the script as text or file")
    if wish is None:
        return waits and script != "-" and stdin.is_given()
    return wish


def refuse_contradictions(options: dict[str, object], public: bool, port: int | None) -> None:
    """Before anything is uploaded or submitted."""
    if options["ephemeral"]:
        for name, spelled in (("workspace", "-w"), ("persistent", "-p")):
            if options[name]:
                raise Invalid(f"-e keeps nothing and {spelled} does; leave one of them out")
    if not options["persistent"]:
        given = {"--url": public, "--no-sleep": options["no_sleep"], "--startup-command": options["startup_command"]}
        for spelled in (name for name, value in given.items() if value):
            raise Invalid(f"{spelled} needs -p: other sandboxes end with their script")
    if port is not None and not public:
        raise Invalid("--port says where the URL leads; add --url")


def kept(options: dict[str, object]) -> dict[str, object]:
    """A workspace names its job and a name its workspace, unless both are given or nothing is kept."""
    known = {name: value for name, value in options.items() if name != "ephemeral"}
    workspace, name = known["workspace"], known["name"]
    known["name"] = name or workspace
    if not options["ephemeral"]:
        known["workspace"] = workspace or name
    return known


def _left(job: str, accepted: Json, raw: bool) -> None:
    if raw:
        return print_json(accepted)
    click.echo(job)
    note(f"follow it with `roost logs -f {job}`, end it with `roost stop {job}`")
    return None


def _opened(api: Api, job: str, port: int, accepted: Json, raw: bool) -> None:
    """The URL alone on standard output, for scripts."""
    started(api, job)
    access = api.call("POST", f"{path_of(job)}/access", {"port": port}, timeout=WAKE_WITHIN)
    if raw:
        return print_json(accepted | access)
    click.echo(access["url"])
    note(f"port {port} of job {job}; end it with `roost stop {job}`")
    return None


def _followed(api: Api, job: str, raw: bool) -> None:
    last = b""

    def show(source: str, data: bytes) -> None:
        nonlocal last
        last = data
        show_bytes(source, data)

    ending = follow(api, f"{path_of(job)}/logs", discard if raw else show)
    if raw:
        logs = api.call("GET", f"{path_of(job)}/logs")
        print_json(api.call("GET", f"{path_of(job)}/status") | logs)
    elif ending.error and ending.error.encode() != last.strip():  # the log may have said so
        note(f"{ending.error}")
    sys.exit(exit_status(ending))
