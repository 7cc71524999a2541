"""The program `roost`, also installed as `mags`: which commands there are and where each is found.

A command's module is imported when it is called, so that every one starts fast; the line of help stands here for
that reason. Conditions (`roost.errors`) end a command with their text and status 1 or 125, see `answers.py`; whoever
is told to go ends with 128 and the signal's number, see `leaving.py`.
"""

import importlib
import signal
from contextlib import nullcontext
from typing import cast

import click

from roost import __version__
from roost.cli.screen import show_all
from roost.errors import RoostError

# command -> (module, attribute, line of help); no line: not for people
COMMANDS = {
    "up": ("machine", "up", "Start Roost on this machine, in the foreground."),
    "service": ("service", "service", "Run Roost as a systemd service of this machine."),
    "doctor": ("machine", "doctor", "Say what this machine can do, and what to install for more."),
    "login": ("login", "login", "Log in by a browser, or with a token."),
    "logout": ("login", "logout", "Log out, and forget the login here."),
    "whoami": ("login", "whoami", "Show who you are and what you may do."),
    "run": ("run", "run", "Run a script in a new sandbox and show its output."),
    "list": ("jobs", "list_jobs", "List jobs, the newest first."),
    "ps": ("jobs", "ps", "List jobs that have not ended."),
    "status": ("jobs", "status", "Show one job."),
    "logs": ("jobs", "logs", "Show a job's output."),
    "stop": ("jobs", "stop", "Stop a job and its sandbox."),
    "exec": ("execs", "exec_command", "Run a command in a job's sandbox."),
    "ssh": ("ssh", "ssh", "Open a shell in a sandbox, or run a command there, by ssh."),
    "ssh-key": ("ssh", "ssh_key", "Add, list and remove public keys of your own."),
    "new": ("sleep", "new", "Make a sandbox that stays."),
    "browser": ("browser", "browser", "Start Chromium in a sandbox, for programs that drive it."),
    "resize": ("resize", "resize", "Give a sandbox that stays a larger disk."),
    "set": ("sleep", "set_options", "Change how a persistent job sleeps."),
    "sleep": ("sleep", "put_to_sleep", "Put a job to sleep now."),
    "wake": ("sleep", "wake", "Wake a job that sleeps."),
    "keepalive": ("sleep", "keepalive", "Keep a job awake for background work."),
    "cp": ("cp", "cp", "Copy files and directories to and from a sandbox."),
    "sync": ("workspaces", "sync", "Save a running job's workspace now."),
    "url": ("urls", "url", "Open a URL for a port of a sandbox, also by your own name."),
    "workspace": ("workspaces", "workspace", "List, delete, check and restore workspaces."),
    "cron": ("cron", "cron", "Run scripts on a schedule."),
    "audit": ("audit", "audit", "Show who did what in your account."),
    "quota": ("quotas", "quota", "Show and set what accounts may use at a time."),
    "template": ("templates", "template", "Jobs that are saved with their history."),
    "schedule": ("templates", "schedule", "Run templates and saved jobs at certain times."),
    "webhook": ("webhooks", "webhook", "Have a URL told of what jobs and sandboxes do."),
    "vm": ("microvms", "vm", "Machines that stay: log in as ubuntu, become root by sudo."),
    "token": ("tokens", "token", "Make, list and revoke API tokens."),
    "user": ("users", "user", "Add, list and disable users; set passwords."),
    "team": ("teams", "team", "Share an account with others."),
    "usage": ("usage", "usage", "Show what your account has used."),
    "pool": ("jobs", "pool", "Show the pool of warm sandboxes."),
    "image": ("images", "image", "List, pull, build, import and remove images."),
    "mcp": ("mcp", "mcp", "Serve tools for AI agents (Model Context Protocol)."),
    "skill": ("skill", "skill", "Teach AI coding agents to use Roost."),
    "completion": ("completion", "completion", "Print what makes a shell complete our commands."),
    "serve": ("machine", "serve", None),
    "node": ("machine", "node", None),
    "node-image": ("machine", "node_image", None),
}
WIDEST = 12  # columns of a command's name
# How the help groups them. What is in none of these stands under "More".
GROUPS = {
    "Scripts": ("run", "logs", "list", "ps", "status", "stop", "cron", "template", "schedule", "webhook"),
    "Sandboxes": ("new", "exec", "ssh", "ssh-key", "url", "browser", "resize", "set", "sleep", "wake", "keepalive"),
    "Files": ("cp", "workspace", "sync", "image"),
    "Machines": ("vm",),
    "Account": ("login", "logout", "whoami", "token", "user", "team", "usage", "quota", "audit"),
    "Roost": ("up", "service", "doctor", "pool", "mcp", "skill", "completion"),
}
ELSEWHERE = set[str]()  # what the client that is one file (`handouts/client.py`) has not
# commands that run a place of their own, and end it as they know how to
PLACES = ("up", "serve", "node", "node-image", "mcp")
SERVER = """\
Commands that ask a server take --api-url URL and --token TOKEN, or --state DIR for an instance on this machine; without
them MAGS_API_URL and MAGS_API_TOKEN count, then what `roost login` kept, then the local instance. With --json they
print JSON."""


class OwnName(click.HelpFormatter):
    """Names commands by the name that the program was called by."""

    def getvalue(self) -> str:
        from roost.cli.wording import in_own_name

        return in_own_name(super().getvalue())


class OwnContext(click.Context):
    formatter_class = OwnName


def _named(command: click.Command) -> click.Command:
    command.context_class = OwnContext
    for inner in getattr(command, "commands", {}).values():
        _named(inner)
    return command


class Program(click.Group):
    """A group whose commands are imported on demand."""

    context_class = OwnContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return _named(cast(click.Command, getattr(importlib.import_module(f"roost.cli.{module}"), attribute)))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in ELSEWHERE:
            raise click.UsageError(f"{args[0]!r} is for the machine that runs Roost, not for this client alone", ctx)
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            people = [name for name, (_, _, line) in COMMANDS.items() if line]
            raise click.exceptions.NoSuchCommand(args[0], possibilities=people, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, names in grouped().items():
            with formatter.section(group):
                formatter.write_dl([(name, COMMANDS[name][2] or "") for name in names], col_max=WIDEST)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["roost.words"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        from roost.cli.leaving import Left, mute, told

        try:
            with nullcontext() if _first(ctx.meta["roost.words"]) in PLACES else told():
                return self._invoked(ctx)
        except KeyboardInterrupt as gone:
            number = gone.number if isinstance(gone, Left) else signal.SIGINT
        except BrokenPipeError:
            number = signal.SIGPIPE
        mute()
        return ctx.exit(128 + number)

    def _invoked(self, ctx: click.Context) -> object:
        from roost.cli.answers import CARRIES, JSON, OUR_FAILURE, BadUsage, Failure

        try:
            return super().invoke(ctx)
        except RoostError as error:
            raise Failure(str(error), ctx.meta.get(JSON, False), ctx.meta.get(CARRIES, False)) from error
        except click.ClickException as error:
            carries = ctx.meta.get(CARRIES, False)
            # bad usage may be noticed before --json is read
            if ctx.meta.get(JSON, "--json" in ctx.meta["roost.words"]):
                kind = BadUsage if isinstance(error, click.UsageError) else Failure
                raise kind(error.format_message(), True, carries) from error
            if carries:
                error.exit_code = OUR_FAILURE  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except click.Abort as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # at a question
                raise error.__context__ from None
            raise


def _first(words: list[str]) -> str | None:
    return next((word for word in words if not word.startswith("-")), None)


def grouped() -> dict[str, list[str]]:
    """The commands for people under each heading that has any."""
    shown = [name for name, (_, _, line) in COMMANDS.items() if line]
    known = {name for names in GROUPS.values() for name in names}
    groups = {group: [name for name in names if name in shown] for group, names in GROUPS.items()}
    groups["More"] = [name for name in shown if name not in known]
    return {group: names for group, names in groups.items() if names}


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]}, epilog=SERVER)
@click.version_option(__version__, prog_name="roost")
@click.option("--help-all", is_flag=True, is_eager=True, expose_value=False, callback=show_all, hidden=True)
def main() -> None:
    """Roost: a self-hosted cloud of instant sandboxes."""
