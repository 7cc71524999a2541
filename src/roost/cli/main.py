"""The `roost` command: which commands there are and where each is found.

A command's module is imported when it is called, so that every one starts fast; the line of help stands here for
that reason. Conditions (`roost.errors`) end a command with their text and status 1.
"""

import importlib
from typing import cast

import click

from roost import __version__
from roost.errors import RoostError

# command -> (module, attribute, line of help); no line: not for people
COMMANDS = {
    "up": ("machine", "up", "Start Roost on this machine, in the foreground."),
    "doctor": ("machine", "doctor", "Say what this machine can do, and what to install for more."),
    "run": ("jobs", "run", "Run a script in a new sandbox and show its output."),
    "list": ("jobs", "list_jobs", "List jobs, the newest first."),
    "status": ("jobs", "status", "Show one job."),
    "logs": ("jobs", "logs", "Show a job's output."),
    "stop": ("jobs", "stop", "Stop a job and its sandbox."),
    "exec": ("execs", "exec_command", "Run a command in a job's sandbox."),
    "ssh": ("ssh", "ssh", "Open a shell in a sandbox, or run a command there, by ssh."),
    "ssh-key": ("ssh", "ssh_key", "Add, list and remove public keys of your own."),
    "new": ("sleep", "new", "Make a sandbox that stays."),
    "set": ("sleep", "set_options", "Change how a persistent job sleeps."),
    "sleep": ("sleep", "put_to_sleep", "Put a job to sleep now."),
    "wake": ("sleep", "wake", "Wake a job that sleeps."),
    "keepalive": ("sleep", "keepalive", "Keep a job awake for background work."),
    "sync": ("workspaces", "sync", "Save a running job's workspace now."),
    "url": ("urls", "url", "Open a URL for a port of a job's sandbox; names of your own for it."),
    "workspace": ("workspaces", "workspace", "List, delete, check and restore workspaces."),
    "cron": ("cron", "cron", "Run scripts on a schedule."),
    "usage": ("usage", "usage", "Show what your account has used."),
    "pool": ("jobs", "pool", "Show the pool of warm sandboxes."),
    "skill": ("skill", "skill", "Teach AI coding agents to use Roost."),
    "image": ("images", "image", "List, import, pull and build images."),
    "serve": ("machine", "serve", None),
    "node": ("machine", "node", None),
    "node-image": ("machine", "node_image", None),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        return cast(click.Command, getattr(importlib.import_module(f"roost.cli.{module}"), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items() if line])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except RoostError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="roost")
def main() -> None:
    """Roost: a self-hosted cloud of instant sandboxes."""
