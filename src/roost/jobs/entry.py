"""A scheduled script inside a sandbox that is there already: woken, run as a kept process, followed to its end.

The number of the process is recorded before anything is asked, and the sandbox before the process is started. So the
script runs at most once: starting the same number in the same sandbox again changes nothing, and a sandbox that is
another one by now has lost it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from roost.clock import now_ns
from roost.errors import Asleep, Conflict, Invalid, NoCapacity, NodeUnavailable, NotFound
from roost.jobs.cron import CronRun
from roost.jobs.job import Job, Order
from roost.jobs.live import LiveJobs
from roost.node.protocol import ChangeProcess, ProcessState, StartProcess

if TYPE_CHECKING:
    from roost.node.client import NodeClient

T = TypeVar("T")
WAKE_WITHIN = 90.0  # seconds
KILL = 9
LOST = "its sandbox ended before the script had"
# a script with a `#!` line is executed as it says, as a job's is; any other is the shell's
SHELL = ["/bin/sh", "-c"]
EXECUTE = 'f=$(mktemp) && printf "%s\\n" "$1" > "$f" && chmod 700 "$f" && { "$f"; s=$?; rm -f "$f"; exit $s; }'


@dataclass(frozen=True)
class Outcome:
    """Of a scheduled run."""

    status: Literal["completed", "error"]
    exit_code: int | None = None
    reason: str | None = None


class Entries:
    def __init__(self, live: LiveJobs, node: "NodeClient") -> None:
        self._live = live
        self._node = node

    async def run(
        self, run: CronRun, holder: Job, order: Order, entered: Callable[[str], Awaitable[None]]
    ) -> Outcome | None:
        """None when Roost shuts down first. `entered` makes durable which sandbox it is.

        Raises Conflict when the job has ended, or is just ending, before anything was asked of its sandbox.
        """
        assert run.exec_number is not None
        if run.vm_id is not None and self._vm_of(holder) != run.vm_id:
            return Outcome("error", reason=LOST)
        try:
            awake = await self._live.awake(holder, WAKE_WITHIN)
        except Asleep as error:
            return Outcome("error", reason=str(error))
        except NodeUnavailable:
            return None
        if run.vm_id is None and awake.stop_requested:
            raise Conflict(f"job {holder.name!r} is being stopped")
        with awake.use():
            vm_id = awake.job.vm_id
            if run.vm_id is None:
                await entered(vm_id)
            elif run.vm_id != vm_id:
                return Outcome("error", reason=LOST)
            return await self._process(vm_id, run, run.exec_number, order)

    def _vm_of(self, job: Job) -> str:
        run = self._live.run_of(job)
        return job.vm_id if run is None else run.job.vm_id

    async def _process(self, vm_id: str, run: CronRun, number: int, order: Order) -> Outcome:
        process = process_of(order)
        limit = (
            order.timeout_seconds - (now_ns() - (run.started_ns or now_ns())) / 1e9 if order.timeout_seconds else None
        )
        try:
            await self._again(lambda: self._node.start_process(vm_id, number, process))
            state = await self._end(vm_id, number, limit)
        except NotFound:
            return Outcome("error", reason=LOST)
        except (Conflict, Invalid, NoCapacity) as refusal:
            return Outcome("error", reason=str(refusal))
        if state is None:
            return Outcome("error", reason="the script ran into its timeout")
        return Outcome("completed" if state.exit_code == 0 else "error", state.exit_code, state.reason)

    async def _end(self, vm_id: str, number: int, limit: float | None) -> ProcessState | None:
        """None when it took longer than `limit` seconds and was killed."""
        try:
            async with asyncio.timeout(None if limit is None else max(limit, 0.0)):
                return await self._ended(vm_id, number)
        except TimeoutError:
            await self._again(lambda: self._node.change_process(vm_id, number, ChangeProcess(signal=KILL)))
            return None

    async def _ended(self, vm_id: str, number: int) -> ProcessState:
        after = 0
        while True:
            try:
                async for record in self._node.process_output(vm_id, number, after, follow=True):
                    after = record.seq
                state = await self._node.process(vm_id, number)
                if state.ended_ns is not None:
                    return state
                await asyncio.sleep(0.1)
            except NodeUnavailable:
                await self._live.link.again()

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except NodeUnavailable:
                await self._live.link.again()


def process_of(order: Order) -> StartProcess:
    script = order.work.script.decode()
    arguments = [*SHELL, EXECUTE, "sh", script] if script.startswith("#!") else [*SHELL, script]
    return StartProcess(arguments=arguments, environment=order.work.environment, input=False)
