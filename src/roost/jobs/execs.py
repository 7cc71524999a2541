"""Processes beside a job's script, as its owner sees them: kept ones of its present sandbox, by number.

Whoever starts or changes one wakes the job first and counts as activity meanwhile. Every call here may be made again,
so a node that goes away is waited for. A sandbox takes its processes with it when it ends or its job goes cold.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from roost.clock import now_ns
from roost.errors import Conflict, NodeUnavailable, NotFound
from roost.jobs.job import Job
from roost.jobs.live import LiveJobs
from roost.jobs.run import Run
from roost.node.protocol import ChangeProcess, LogRecord, ProcessState, StartProcess

if TYPE_CHECKING:
    from roost.node.client import NodeClient

T = TypeVar("T")
WAKE_WITHIN = 90.0  # seconds
AGAIN_WITHIN = 60.0  # seconds that a node may be away; a restart takes a few
INPUT_STEP = 256 * 1024  # bytes of input in one call
NUMBERS = 2**30 - 1
GONE = "there is no exec {} in this job's present sandbox: execs are kept until their sandbox ends or goes cold"

LOST = "its sandbox has gone, so the exit status is unknown"


def new_number() -> int:
    return 1 + secrets.randbelow(NUMBERS)


def exec_id(number: int) -> str:
    """8 lower-case hex characters."""
    return f"{number:08x}"


def number_of(exec_id: str) -> int:
    """Raises NotFound."""
    known = len(exec_id) == 8 and set(exec_id) <= set("0123456789abcdef")
    if not known or not 0 < int(exec_id, 16) <= NUMBERS:
        raise NotFound(GONE.format(repr(exec_id[:40])))
    return int(exec_id, 16)


async def inside(live: LiveJobs, job: Job, call: Callable[[Run], Awaitable[T]], within: float = WAKE_WITHIN) -> T:
    """What `call` makes of the job's sandbox, which is woken for it, again if it fell asleep just then.

    Raises Conflict when the job has ended, Asleep, and whatever `call` raises.
    """
    while True:
        run = await live.awake(job, within)
        with run.use():
            try:
                return await call(run)
            except Conflict:
                if run.awake:
                    raise
        job = run.job


class Execs:
    def __init__(self, live: LiveJobs, node: "NodeClient") -> None:
        self._live = live
        self._node = node

    async def start(self, job: Job, number: int, process: StartProcess) -> ProcessState:
        """The same number again answers the state it has. Raises Conflict, Invalid."""
        with self._live.tracer.span("exec.start", {"request_id": job.request_id, "exec_id": exec_id(number)}):
            return await self._inside(job, lambda vm: self._node.start_process(vm, number, process))

    async def list(self, job: Job) -> "list[ProcessState]":
        try:
            return await self._again(lambda: self._node.processes(self._vm_of(job)))
        except NotFound:
            return []

    async def state(self, job: Job, number: int) -> ProcessState:
        """Raises NotFound."""
        try:
            return await self._again(lambda: self._node.process(self._vm_of(job), number))
        except NotFound:
            raise NotFound(GONE.format(exec_id(number))) from None

    async def end(self, job: Job, known: ProcessState) -> ProcessState:
        """Of one whose output is complete. A sandbox that is forgotten already leaves no exit code to tell."""
        try:
            return await self.state(job, known.id)
        except NotFound:
            return msgspec.structs.replace(known, ended_ns=now_ns(), reason=LOST)

    async def write(self, job: Job, number: int, at: int, data: bytes) -> int:
        """One step of input at most; the position behind what was taken. Raises Conflict (a gap, ended), NotFound."""
        step = data[:INPUT_STEP]
        return await self._inside(job, lambda vm: self._node.write_input(vm, number, at, step))

    async def write_to_script(self, job: Job, at: int, data: bytes, end: bool, within: float) -> tuple[int, bool]:
        """To a job that was submitted with `input`: the position behind what was taken; whether it was closed there.

        One step at most. Waits until it has begun. Raises Conflict (a gap, closed, its script is over).
        """
        run = self._live.run_of(job)
        if run is not None and not run.attached.is_set():
            try:
                async with asyncio.timeout(within):
                    await run.attached.wait()
            except TimeoutError:
                return at, False
        step = data[:INPUT_STEP]
        last = end and len(step) == len(data)
        position = await self._inside(job, lambda vm: self._node.write_to_script(vm, at, step, last))
        return position, last and position == at + len(step)

    async def change(self, job: Job, number: int, change: ChangeProcess) -> ProcessState:
        return await self._inside(job, lambda vm: self._node.change_process(vm, number, change))

    async def remove(self, job: Job, number: int) -> None:
        """Kills it, if it runs. Removing what is not there is no error."""
        try:
            await self._inside(job, lambda vm: self._node.remove_process(vm, number))
        except NotFound:
            return

    async def output(self, job: Job, number: int, after: int, follow: bool) -> AsyncGenerator[LogRecord]:
        """From record `after` on; with `follow` until it has ended. Raises NotFound, Invalid (no such position)."""
        vm = self._vm_of(job)
        try:
            while True:
                try:
                    async for record in self._node.process_output(vm, number, after, follow):
                        after = record.seq
                        yield record
                    return
                except NodeUnavailable:
                    await self._node_again()
        except NotFound:
            raise NotFound(GONE.format(exec_id(number))) from None

    def _vm_of(self, job: Job) -> str:
        run = self._live.run_of(job)
        return job.vm_id if run is None else run.job.vm_id

    async def _inside(self, job: Job, call: Callable[[str], Awaitable[T]]) -> T:
        return await inside(self._live, job, lambda run: self._again(lambda: call(run.job.vm_id)))

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except NodeUnavailable:
                await self._node_again()

    async def _node_again(self) -> None:
        """Raises NodeUnavailable when it stays away."""
        if self._live.closing:
            raise NodeUnavailable("Roost is shutting down; try again after its restart")
        try:
            async with asyncio.timeout(AGAIN_WITHIN):
                await self._live.link.again()
        except TimeoutError:
            raise NodeUnavailable("the node does not answer; try again later") from None
