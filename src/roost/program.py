"""A child program of `roost up`: how it is started, kept running and stopped.

A child leads its own session, so that Ctrl-C reaches `up` alone, and the kernel kills it when `up` ends in any
way. Starting one is a plain fork: only the main thread may do it, while the process has no other.
"""

import asyncio
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from roost import linux
from roost.errors import SetupMissing

CONFIGURATION = os.EX_CONFIG  # exit status of a program that cannot work here until somebody changes something
EARLY_DEATHS = 5  # this many …
EARLY_SECONDS = 10  # … in this time before the first sign of health are final
MAX_BACKOFF = 5.0
FIRST_KEPT = 3  # descriptor


def roost() -> list[str]:
    return [sys.executable, "-P", "-m", "roost.cli"]  # -P: no code from the working directory


def environment(*names: str) -> dict[str, str]:
    """Those of our variables, with a PATH that has the system's own programs."""
    kept = {name: os.environ[name] for name in names if name in os.environ}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # it would double each start-up
    return kept | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def launch(
    command: list[str],
    variables: Mapping[str, str],
    stdin: int | None,
    prepare: Callable[[], None],
    kept: Sequence[int] = (),
) -> int:
    """Start a child, which ends with this process; `prepare` runs in it before the program does.

    `kept` are descriptors that it gets, as 3, 4 and so on, in this order.
    """
    parent = os.getpid()
    handled = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    # a signal between fork and exec would run our handlers in the child
    signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        os.setsid()  # Ctrl-C reaches `up` only, which stops its children in order
        os.dup2(os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin, 0)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        prepare()
        _keep(kept)
        os.closerange(FIRST_KEPT + len(kept), most)  # nothing else of ours, nor of whoever started us, crosses over
        linux.set_parent_death_signal(signal.SIGKILL)  # after the change of user, which would forget it
        if os.getppid() == parent:
            os.execve(command[0], command, variables)  # noqa: S606
    except Exception as error:
        os.write(2, f"Error: cannot start `{' '.join(command[3:5])}`: {error}\n".encode())
    finally:
        os._exit(CONFIGURATION)


def _keep(descriptors: Sequence[int]) -> None:
    out_of_the_way = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, FIRST_KEPT + len(descriptors)) for one in descriptors]
    for number, descriptor in enumerate(out_of_the_way, FIRST_KEPT):
        os.dup2(descriptor, number, inheritable=True)


class Program:
    """A child that is started again whenever it ends by itself."""

    def __init__(self, name: str, launch: Callable[[], int]) -> None:
        self.name = name
        self.healthy = False  # set once it has been seen to work
        self._launch = launch
        self._pid: int | None = None
        self._stopping = asyncio.Event()
        self._deaths: list[float] = []

    async def keep(self) -> None:
        """Ends after `stop`. SetupMissing: it cannot work here, its own message says why."""
        while not self._stopping.is_set():
            self._pid = self._launch()
            status = await exit_status(self._pid)
            self._pid = None
            if not self._stopping.is_set():
                await self._pause_after(status)

    async def _pause_after(self, status: int) -> None:
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if death > now - EARLY_SECONDS] + [now]
        say(f"roost {self.name} ended unexpectedly ({manner(status)})")
        hopeless = status == CONFIGURATION or len(self._deaths) >= EARLY_DEATHS
        if not self.healthy and hopeless:
            raise SetupMissing(f"`roost {self.name}` cannot start; its message above says why")
        pause = min(MAX_BACKOFF, 0.1 * 2 ** (len(self._deaths) - 1))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pause)

    async def stop(self, kept: asyncio.Task[None], limit: float, hasten: asyncio.Event) -> None:
        """TERM, then KILL after `limit` seconds or when `hasten` is set; returns when it has ended."""
        self._stopping.set()
        hasten.clear()
        self._signal(signal.SIGTERM)
        impatient = asyncio.create_task(hasten.wait())
        await asyncio.wait([kept, impatient], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        if not kept.done():
            say(f"roost {self.name} did not stop by itself and is killed")
            self._signal(signal.SIGKILL)
        await asyncio.wait([kept])

    def _signal(self, number: signal.Signals) -> None:
        if self._pid is not None:  # not yet reaped, so the number is still its own
            os.kill(self._pid, number)


async def exit_status(pid: int) -> int:
    """Waits for the child; negative for a signal."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    pidfd = os.pidfd_open(pid)
    try:
        loop.add_reader(pidfd, lambda: ended.done() or ended.set_result(None))
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])  # noqa: ASYNC222 - it has ended


def manner(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
