"""What callers ask of processes, checked and put in guest init's terms: for sessions and for kept processes."""

from roost.errors import Invalid
from roost.node.guest.channel import GuestProcess
from roost.node.guest.frames import Command
from roost.node.images.config import HOME, Config
from roost.node.protocol import ChangeProcess, StartProcess, Terminal

LAST_SIGNAL = 64
UNKNOWN = "the sandbox ended, so the exit status is unknown"


def command_of(request: StartProcess, config: Config) -> Command:
    """config: of the sandbox's image. Raises Invalid."""
    if not request.arguments or not request.arguments[0]:
        raise Invalid("arguments: empty; the first is the program to execute")
    if any("=" in name or not name for name in request.environment):
        raise Invalid("environment: a name is empty or has a `=`")
    changes = request.environment
    if request.root and config.uid:
        config = config.as_root()
        changes = config.environment | changes
    return Command(
        request.arguments,
        environment=None,
        directory=request.directory or (HOME if request.root else config.directory),
        stdin=request.input,
        terminal=_size(request.terminal) if request.terminal else None,
        end_session=request.end_session,
        uid=config.uid,
        gid=config.gid,
        changes=changes,
    )


def apply(change: ChangeProcess, process: GuestProcess) -> None:
    """All but `close_input`, whose place among the input is the caller's matter. Raises Invalid."""
    if change.signal is not None and not 0 < change.signal <= LAST_SIGNAL:
        raise Invalid(f"there is no signal {change.signal}")
    if change.terminal:
        process.resize(*_size(change.terminal))
    if change.signal is not None:
        process.signal(change.signal)


def _size(terminal: Terminal) -> tuple[int, int]:
    if not (0 < terminal.rows < 65536 and 0 < terminal.columns < 65536):
        raise Invalid("a terminal has 1 to 65535 rows and columns")
    return terminal.rows, terminal.columns
