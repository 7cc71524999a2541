"""What `POST mags-jobs` may say, and how it becomes an Order: every limit, and the text that names it."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from roost.errors import Invalid, TooLarge
from roost.jobs.job import Keeping, Order, Work
from roost.sandboxes.images import image_name
from roost.sandboxes.placement import Machine
from roost.workspaces.workspace import split

MAX_SCRIPT = 1024 * 1024  # bytes
MAX_NAME = 128  # characters
MAX_ENVIRONMENT = 128 * 1024  # bytes, as the kernel counts: NAME=VALUE and an end each
MAX_DISK_GB = 64
MAX_TIMEOUT = 86_400  # seconds
MIN_MEMORY_MB = 32
MIN_VCPUS = 0.1
INLINE = "inline"
URL = "url"
VCPUS = 2.0
MEMORY_MB = 1024
DISK_GB = 2
TIMEOUT = 300  # seconds
MAGIC_GB = {"2": 2048, "4": 4096}  # the tiers that clients ask for with __MAGS_MEM_GB
MAX_FILES = 64
MAX_COMMAND = 64 * 1024  # bytes
MAX_IDLE_MINUTES = 7 * 24 * 60

_NEEDS_PERSISTENT = "{}: needs persistent: true; other jobs end with their script and never sleep"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# What hides in a name, or turns the rest of its line round. Joiners (U+200C, U+200D) belong to scripts and to emoji
INVISIBLE = re.compile(
    "[\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2060-\\u206f\\u3164\\ufeff"
    "\\uffa0\\ufff9-\\ufffb\\U000e0000-\\U000e0fff]"
)


def _note(text: str) -> Meta:
    return Meta(description=text)


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a submission, before its values are checked; null counts as absent."""

    script: Annotated[str | None, _note("Shell script to run (required); at most 1 MiB")] = None
    type: Annotated[str | None, _note('"inline" (default), or "url": script is the URL of its text')] = None
    name: Annotated[str | None, _note("At most 128 characters, no slashes; made up when absent")] = None
    environment: Annotated[dict[str, str] | None, _note("Variables; at most 128 KiB in all")] = None
    rootfs_type: Annotated[
        str | None, _note('Name of an image; default: GET /default-image, "standard" as installed')
    ] = None
    disk_gb: Annotated[int | None, _note("1 to 64; default 2")] = None
    vcpus: Annotated[float | None, _note("0.1 to the machine's; default 2")] = None
    memory_mb: Annotated[int | None, _note("32 to 90 % of the machine's; default 1024")] = None
    timeout: Annotated[int | None, _note("Seconds, 1 to 86400; default 300, or none when persistent")] = None
    timeout_seconds: Annotated[int | None, _note("The same as timeout")] = None
    workspace_id: Annotated[
        str | None, _note("Workspace to begin from and save to; made if it is not there; one job at a time")
    ] = None
    base_workspace_id: Annotated[
        str | None,
        _note("Workspace to begin from, or NAME@REVISION; never changed. With workspace_id: used while that is empty"),
    ] = None
    base_revision: Annotated[str | None, _note("A revision of base_workspace_id; default its newest")] = None
    persistent: Annotated[
        bool | None, _note("The sandbox stays when the script has ended, and its workspace goes to the object store")
    ] = None
    no_sync: Annotated[bool | None, _note("Keep the workspace on the node only")] = None
    no_sleep: Annotated[bool | None, _note("Never put the sandbox to sleep; needs persistent")] = None
    startup_command: Annotated[
        str | None, _note("Runs when the sandbox wakes from cold, and first where there is no script; needs persistent")
    ] = None
    idle_minutes: Annotated[
        float | None, _note("Unused, until it falls asleep; up to 10080 (a week), default 10; needs persistent")
    ] = None
    ephemeral: Annotated[bool | None, _note("Nothing is kept; not with workspace_id or persistent")] = None
    input: Annotated[bool | None, _note("The script's input follows, by POST …/input; otherwise it is empty")] = None
    file_ids: Annotated[list[str] | None, _note("Uploads to place in /root before the script; at most 64")] = None


@dataclass(frozen=True)
class Magic:
    """What clients ask for through the environment."""

    environment: dict[str, str]  # without the magic keys
    image: str | None
    memory_mb: int | None
    idle_minutes: float | None
    no_sleep: bool


def order_of(submission: Submission, machine: Machine, default_image: str) -> Order:
    """Raises Invalid, and TooLarge for a script beyond its limit."""
    magic = _magic(submission.environment or {})
    image = _agreed("rootfs_type", submission.rootfs_type or None, "__MAGS_ROOTFS_TYPE", magic.image)
    memory = _agreed("memory_mb", submission.memory_mb, "__MAGS_MEM_GB", magic.memory_mb)
    timeout = _agreed("timeout", submission.timeout, "timeout_seconds", submission.timeout_seconds)
    most_memory = machine.largest_memory_mb
    return Order(
        work=Work(_script(submission), _environment(magic.environment)),
        name=_name(submission.name),
        image=image_name("rootfs_type", image or default_image),
        vcpus=_within("vcpus", submission.vcpus, MIN_VCPUS, machine.cpus, min(VCPUS, machine.cpus)),
        memory_mb=_within("memory_mb", memory, MIN_MEMORY_MB, most_memory, min(MEMORY_MB, most_memory)),
        disk_gb=_within("disk_gb", submission.disk_gb, 1, MAX_DISK_GB, DISK_GB),
        timeout_seconds=_within("timeout", timeout, 1, MAX_TIMEOUT, 0 if submission.persistent else TIMEOUT),
        keeping=_keeping(submission, magic),
        file_ids=_file_ids(submission.file_ids or []),
        input=bool(submission.input),
    )


def _keeping(submission: Submission, magic: Magic) -> Keeping:
    """Empty values count as absent, for clients send them."""
    idle = _agreed("idle_minutes", submission.idle_minutes, "__MAGS_IDLE_MIN", magic.idle_minutes)
    _refuse_contradictions(submission, idle, magic.no_sleep)
    persistent = bool(submission.persistent)
    own = submission.workspace_id or None
    base, revision = split(submission.base_workspace_id) if submission.base_workspace_id else (None, None)
    if own is not None and own == base:
        raise Invalid("base_workspace_id: the same as workspace_id; leave it out to go on from what is there")
    return Keeping(
        workspace=None if own is None else workspace_name("workspace_id", own),
        base_workspace=None if base is None else workspace_name("base_workspace_id", base),
        base_revision=_agreed("base_revision", submission.base_revision or None, "base_workspace_id", revision),
        persistent=persistent,
        no_sync=bool(submission.no_sync),
        no_sleep=bool(submission.no_sleep) or magic.no_sleep,
        startup_command=startup_command(submission.startup_command or None),
        idle_seconds=idle_seconds(idle),
    )


def idle_seconds(minutes: float | None) -> float | None:
    """Raises Invalid."""
    if minutes is not None and not 0 < minutes <= MAX_IDLE_MINUTES:
        raise Invalid(f"idle_minutes: {minutes:g} is out of range; give more than 0 and at most {MAX_IDLE_MINUTES}")
    return None if minutes is None else minutes * 60


def _refuse_contradictions(submission: Submission, idle: float | None, no_sleep: bool) -> None:
    if submission.ephemeral:
        for field in ("workspace_id", "persistent"):
            if getattr(submission, field):
                raise Invalid(f"ephemeral: cannot go with {field}, which keeps something; leave one of them out")
    if not submission.persistent:
        for field in ("no_sleep", "startup_command"):
            if getattr(submission, field):
                raise Invalid(_NEEDS_PERSISTENT.format(field))
        if idle is not None:
            raise Invalid(_NEEDS_PERSISTENT.format("idle_minutes"))
        if no_sleep:
            raise Invalid(_NEEDS_PERSISTENT.format("__MAGS_KEEP_ALIVE"))
    if submission.base_revision and not submission.base_workspace_id:
        raise Invalid("base_revision: needs base_workspace_id, the workspace that it is a revision of")


def workspace_name(field: str, name: str) -> str:
    """Raises Invalid."""
    _check_name(field, name)
    if split(name)[1] is not None:
        raise Invalid(f"{field}: may not end like a revision ('@' and 16 hex digits)")
    return name


def startup_command(command: str | None) -> str | None:
    if command is not None and ("\0" in command or len(command.encode()) > MAX_COMMAND):
        raise Invalid("startup_command: at most 64 KiB, none of it NUL")
    return command


def _file_ids(file_ids: list[str]) -> tuple[str, ...]:
    if len(file_ids) > MAX_FILES:
        raise Invalid(f"file_ids: {len(file_ids)} files; at most {MAX_FILES}: put more of them into one archive")
    if len(set(file_ids)) != len(file_ids):
        raise Invalid("file_ids: the same file twice; name it once")
    return tuple(file_ids)


def _script(submission: Submission) -> bytes:
    if (submission.type or INLINE) != INLINE:
        raise Invalid(
            f'type: {submission.type[:40] if submission.type else ""!r} is not supported; give "inline" with the text '
            'of the script, or "url" with its URL'
        )
    script = (submission.script or "").encode()
    if not script.strip():
        script = (submission.startup_command or "").encode()  # what starts it each time starts it the first time, too
    if not script.strip():
        raise Invalid("script: missing or empty; give the text of a shell script, or a startup_command")
    if len(script) > MAX_SCRIPT:
        raise TooLarge(f"script: {len(script)} bytes; at most {MAX_SCRIPT} (1 MiB): let the script fetch the rest")
    if b"\0" in script:
        raise Invalid(f"script: holds a NUL character (at byte {script.index(0)}), which no shell reads; remove it")
    return script


def _name(name: str | None) -> str | None:
    if not name:
        return None
    _check_name("name", name)
    return name


def _check_name(field: str, name: str) -> None:
    if len(name) > MAX_NAME:
        raise Invalid(f"{field}: {len(name)} characters; at most {MAX_NAME}")
    if "/" in name or name in (".", "..") or not name.strip():
        raise Invalid(f"{field}: may not be blank, '.' or '..', nor hold a slash, since it is used in URLs")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        raise Invalid(f"{field}: may not hold line breaks or other control characters")
    if unseen := INVISIBLE.search(name):
        raise Invalid(f"{field}: may not hold characters that nobody sees, as U+{ord(unseen[0]):04X}; leave them out")


def _environment(environment: dict[str, str]) -> dict[str, str]:
    for name, value in environment.items():
        if not _VARIABLE.match(name):
            raise Invalid(f"environment: {name[:80]!r} is no variable name (letters, digits and '_', no digit first)")
        if "\0" in value:
            raise Invalid(f"environment: the value of {name[:80]} holds a NUL character; remove it")
    size = sum(len(name) + len(value.encode()) + 2 for name, value in environment.items())
    if size > MAX_ENVIRONMENT:
        raise Invalid(f"environment: {size} bytes in all; at most {MAX_ENVIRONMENT} (128 KiB)")
    return environment


def _magic(environment: dict[str, str]) -> Magic:
    ordinary = {name: value for name, value in environment.items() if not name.startswith("__MAGS_")}
    image = memory_mb = idle_minutes = None
    no_sleep = False
    for name in environment.keys() - ordinary.keys():
        if name == "__MAGS_ROOTFS_TYPE":
            image = environment[name] or None
        elif name == "__MAGS_MEM_GB":
            memory_mb = _tier(environment[name])
        elif name == "__MAGS_IDLE_MIN":
            idle_minutes = _minutes(environment[name])
        elif name == "__MAGS_KEEP_ALIVE":
            no_sleep = _truth(name, environment[name])
        else:
            raise Invalid(f"environment: {name[:80]!r} has no meaning here; names that begin with __MAGS_ are reserved")
    return Magic(ordinary, image, memory_mb, idle_minutes, no_sleep)


def _minutes(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise Invalid(f"environment: __MAGS_IDLE_MIN must be a number of minutes, not {value[:40]!r}") from None


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", ""):
        raise Invalid(f'environment: {name} must be "true" or "false", not {value[:40]!r}')
    return value.lower() in ("true", "1")


def _tier(value: str) -> int:
    if value not in MAGIC_GB:
        raise Invalid('environment: __MAGS_MEM_GB must be "2" or "4"; memory_mb takes any size')
    return MAGIC_GB[value]


def _agreed(one: str, value: Any, other: str, other_value: Any) -> Any:
    """Two ways to say the same thing must say the same."""
    if value is not None and other_value is not None and value != other_value:
        raise Invalid(f"{one} and {other} say different things; give one of them")
    return other_value if value is None else value


def _within(field: str, value: Any, least: float, most: float, default: Any) -> Any:
    if value is None:
        return default
    if not least <= value <= most:
        raise Invalid(f"{field}: {value} is out of range; give {least} to {most}")
    return value
