"""A node that is killed while it makes member 0 and mounts its root.

A program that reads delays in milliseconds, one per line. For each it forks, makes the member in the child, kills the
child with SIGKILL after the delay, and answers "made" or "killed".

Run as `python -m tests.node.half_made DIRECTORY INSTANCE`.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from roost.node import daemon
from roost.node import member as members

from .guest_world import settings_of


async def make(directory: Path, number: int) -> None:
    member = await members.make(daemon.build_ground(settings_of(directory, number)), 0)
    await member.mount([directory / "image"], members.IDLE)


def main() -> None:
    directory, number = Path(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(make(directory, number))
            os._exit(0)
        time.sleep(int(line) / 1000)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print("made" if os.waitstatus_to_exitcode(status) == 0 else "killed", flush=True)


if __name__ == "__main__":
    main()
