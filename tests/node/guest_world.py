"""Real pool members for the tests: a node's ground under an instance number of the tests' own, and an image.

Numbers 8 to 11 are the tests', one for whoever holds its lock; what a killed run left under it is removed first.
"""

import asyncio
import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from roost.node import cgroup, daemon
from roost.node import member as members
from roost.node.disk import unmount
from roost.node.guest import build
from roost.node.guest.channel import Guest, GuestProcess
from roost.node.guest.frames import STDERR, STDOUT, Command, Exited
from roost.node.member import Ground, Member
from roost.settings import NodeSettings

NUMBERS = range(8, 12)
PATH = {"PATH": "/bin"}
LIMIT = 20.0  # seconds that anything may take here


def loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The node's own kind of event loop."""
    return uvloop.EventLoopPolicy()


@contextlib.contextmanager
def own_number() -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        for number in (*NUMBERS, NUMBERS[0]):
            lock = stack.enter_context(open(f"/tmp/roost-test-instance-{number}.lock", "a"))
            wait = fcntl.LOCK_EX if lock.name == f"/tmp/roost-test-instance-{NUMBERS[0]}.lock" else 0
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if number != NUMBERS[0] or not wait:
                    continue
                continue
            yield number
            return
        raise RuntimeError(f"instances {NUMBERS} are all in use by other tests")
