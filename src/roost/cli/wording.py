"""What the server and this program say, in the words of the command line that the user typed.

The server names fields and calls of its API; here they are options and commands, of the program in the name that it
was called by: `roost` or `mags`. What stands in quotes is somebody's own text and stays as it is.
"""

import re

import click

# what the API calls it -> what the command line does
FIELDS = {
    "base_workspace_id": "--base", "base_revision": "--base NAME@REVISION", "workspace_id": "-w", "file_ids": "-f",
    "rootfs_type": "--image", "memory_mb": "--memory", "disk_gb": "--disk", "timeout_seconds": "--timeout",
    "idle_minutes": "--idle-minutes", "no_sleep": "--no-sleep", "no_sync": "no --persistent",
    "startup_command": "--startup-command", "cron_expression": "--schedule", "expires_in": "--expires-in",
    "ssh_public_keys": "--ssh-key", "persistent: true": "-p", "ephemeral": "-e",
    "PATCH it with no_sleep: false": "`roost set NAME --sleep`",
}  # fmt: skip
# the API's path, below /api/v1 -> the command
CALLS = {
    "mags-workspaces/:id/revisions": "workspace revisions NAME", "mags-workspaces": "workspace list",
    "accounts": "team list", "mags-cron": "cron list", "jobs": "list", "mags-jobs": "list", "microvms": "vm list",
    "schedules": "schedule list", "job-templates": "template list", "webhooks": "webhook list",
    "webhooks/ID/deliveries": "webhook deliveries ID", "mags-url-aliases": "url alias list", "whoami": "whoami",
    "tokens": "token list", "ssh-keys": "ssh-key list", "images": "image list",
}  # fmt: skip
_MICROVM = re.compile(r"POST /api/v1/microvms/(\S+)/(start|stop|restart)")
_CALL = re.compile(r"(?:GET|POST|PATCH|PUT|DELETE) /api/v1/([\w/:-]+)")
_FIELD = re.compile(r"(?<![\w`$/-])(" + "|".join(re.escape(name) for name in FIELDS) + r")(?![\w-])")
_QUOTED = re.compile(r"""('[^']*'|"[^"]*"|`[^`]*`)""")
_PROGRAM = re.compile(r"\broost(?= [a-z-]|:)")


def program() -> str:
    """The name that this program was called by."""
    context = click.get_current_context(silent=True)
    name = context.find_root().info_name if context else None
    return "mags" if name and name.rpartition("/")[2].startswith("mags") else "roost"


def own_words(text: str) -> str:
    """Of what the server said, or of what this program says of itself."""
    parts = _QUOTED.split(text)  # every second one is quoted
    return in_own_name("".join(part if at % 2 else _unquoted(part) for at, part in enumerate(parts)))


def _unquoted(text: str) -> str:
    text = _MICROVM.sub(lambda found: f"`roost vm {found[2]} {found[1]}`", text)
    text = _CALL.sub(_command, text)
    return _FIELD.sub(lambda found: FIELDS[found[1]], text)


def _command(found: re.Match[str]) -> str:
    command = CALLS.get(found[1])
    return f"`roost {command}`" if command else found[0]


def in_own_name(text: str) -> str:
    """Where commands are named in it."""
    name = program()
    return text if name == "roost" else _PROGRAM.sub(name, text)


def note(text: str) -> None:
    """A remark beside the answer, on standard error."""
    click.echo(own_words(f"roost: {text}"), err=True)
