"""`python -m roost.cli.reference`: the reference of all commands, docs/cli.md, made from what their help says."""

import sys
from collections.abc import Iterator

import click

from roost.cli.main import COMMANDS, grouped, main
from roost.cli.screen import ALL

WIDTH = 80  # columns
INTRO = """\
# Commands

The program is `roost`; `mags` is the same program under the name that its users know. This page is made from the
commands' own help: `python -m roost.cli.reference > docs/cli.md`.

**Which server, and who you are.** `--api-url URL` (or `--url URL`, where a command has no other use for it) and
`--token TOKEN` count first, then `MAGS_API_URL` (`ROOST_API_URL`) and `MAGS_API_TOKEN` (`MAGS_TOKEN`,
`ROOST_API_TOKEN`), then what `roost login` kept in `~/.config/roost/config.json`, then `~/.mags/config.json`, then
the instance that runs on this machine. `--state DIR` names an instance on this machine, whatever the rest says. A
kept token is sent to its own URL alone.

**JSON.** With `--json` standard output holds what the API answered and nothing else: one document, or a line for each
step of `logs --follow` and of `image pull`, `build` and `import`. `run --json` waits and prints the job's status with
its `logs`. A command that fails prints `{"error": "..."}`.

**Exit status.** `run`, `exec`, `ssh` and `vm ssh` end with the script's or command's own status, and with 125 where
something of Roost's own failed: the server is not reached, there is no such job, the command line is not understood,
the status was lost. (What ssh itself cannot do is its own 255.) Other commands end with 0, with 1 for what cannot be
done, 2 for a command line that is not understood. The text says what to do about it. Whoever is told to go ends with
128 and the signal's number: 130 after Ctrl-C, 143 after TERM, 129 when the terminal has gone, 141 when nobody reads.

**Who goes away** stops what he waited for: `run` its job, `exec` its command, `new` and `run --url` a sandbox that does
not run yet. That holds for Ctrl-C (a second one leaves without waiting for it), `timeout`, a closed terminal and
`| head`. With `run --on-interrupt detach` the job goes on; `run --detach` does not wait at all.

**Bytes** pass `run`, `exec` and `logs` unchanged, each on the stream it was written to.

**Names.** A job is named by its id, its name or its workspace. `run -w NAME` and `run -n NAME` set both name and
workspace. `run -e` keeps nothing, while `-e KEY=VALUE` is a variable (`-e KEY` has the caller's value) and `-e
MINUTES` says when a job with `-p` falls asleep. Of an id its beginning is enough: 4 characters or more, one of them a
digit, that no other id begins with.

**On a terminal** uploads and images show a progress bar, lists are coloured (not with `NO_COLOR`) and say how long ago
something was; elsewhere they have whole ids and instants. `roost completion SHELL` makes bash, zsh or fish complete
commands, options, jobs and workspaces of both programs.
"""


def pages() -> Iterator[tuple[str, str]]:
    """Every command for people with its whole help: its words, as in `url alias list`, and the text."""
    with root() as top:
        for names in grouped().values():
            for name in names:
                command = main.get_command(top, name)  # pyright: ignore[reportAttributeAccessIssue]
                assert isinstance(command, click.Command), name
                yield from _pages(command, name, top)


def root() -> click.Context:
    """A context in which every option is explained."""
    context = click.Context(main, info_name="roost", terminal_width=WIDTH, **main.context_settings)
    context.meta[ALL] = True
    return context


def _pages(command: click.Command, name: str, parent: click.Context) -> Iterator[tuple[str, str]]:
    with click.Context(command, parent, name) as context:
        words = context.command_path.removeprefix("roost ")
        yield words, command.get_help(context)
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                yield from _pages(inner, inner.name or "", context)


def text() -> str:
    parts = [INTRO]
    for words, shown in pages():
        line = COMMANDS[words][2] if words in COMMANDS else None
        mark = "##" if " " not in words else "###"
        parts.append(f"{mark} {words}\n\n" + (f"{line}\n\n" if line else "") + f"```\n{shown.rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(text())
