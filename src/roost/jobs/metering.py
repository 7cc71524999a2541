"""What sandboxes have used, added up by account, workspace and day (UTC).

The node tells counters that only grow; the newest of each sandbox is in the table `metered`, and what a reading
exceeds it by is added to `usage_days` in the same transaction. So a reading may come twice, late or again after a
crash, and counts once. A sandbox's last counters are written before the node may forget it.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
import structlog
from sqlalchemy import Executable, delete, select, text, update
from structlog.typing import FilteringBoundLogger

from roost.db.database import Database
from roost.db.schema import metered
from roost.errors import NodeUnavailable, RoostError
from roost.jobs.job import Job, find_by_vm
from roost.node.protocol import SandboxState, Usage

if TYPE_CHECKING:
    from roost.node.client import NodeClient

EVERY = 30.0  # seconds between readings: of what the node may lose with its machine, at most a minute is not here
DAY_NS = 86_400 * 10**9

ADD = text("""
    INSERT INTO usage_days AS d
      (account_id, day, workspace, cpu_ns, memory_mb_seconds, rx_bytes, tx_bytes, awake_ns, frozen_ns)
    SELECT coalesce(m.account_id, r.value ->> 1) AS account, r.value ->> 3, coalesce(m.workspace, r.value ->> 2),
      sum(max(0, (r.value ->> 4) - coalesce(m.cpu_ns, 0))),
      sum(max(0, (r.value ->> 5) - coalesce(m.memory_mb_seconds, 0))),
      sum(max(0, (r.value ->> 6) - coalesce(m.rx_bytes, 0))),
      sum(max(0, (r.value ->> 7) - coalesce(m.tx_bytes, 0))),
      sum(max(0, (r.value ->> 8) - coalesce(m.awake_ns, 0))),
      sum(max(0, (r.value ->> 9) - coalesce(m.frozen_ns, 0)))
    FROM json_each(:readings) AS r LEFT JOIN metered AS m ON m.vm_id = r.value ->> 0
    WHERE account IS NOT NULL
    GROUP BY 1, 2, 3
    ON CONFLICT (account_id, day, workspace) DO UPDATE SET
      cpu_ns = d.cpu_ns + excluded.cpu_ns,
      memory_mb_seconds = d.memory_mb_seconds + excluded.memory_mb_seconds,
      rx_bytes = d.rx_bytes + excluded.rx_bytes,
      tx_bytes = d.tx_bytes + excluded.tx_bytes,
      awake_ns = d.awake_ns + excluded.awake_ns,
      frozen_ns = d.frozen_ns + excluded.frozen_ns
""")
REMEMBER = text("""
    INSERT INTO metered AS m
      (vm_id, account_id, workspace, cpu_ns, memory_mb_seconds, rx_bytes, tx_bytes, awake_ns, frozen_ns, ended)
    SELECT r.value ->> 0, coalesce(k.account_id, r.value ->> 1) AS account, coalesce(k.workspace, r.value ->> 2),
      r.value ->> 4, r.value ->> 5, r.value ->> 6, r.value ->> 7, r.value ->> 8, r.value ->> 9, r.value ->> 10
    FROM json_each(:readings) AS r LEFT JOIN metered AS k ON k.vm_id = r.value ->> 0
    WHERE account IS NOT NULL
    ON CONFLICT (vm_id) DO UPDATE SET
      cpu_ns = max(m.cpu_ns, excluded.cpu_ns),
      memory_mb_seconds = max(m.memory_mb_seconds, excluded.memory_mb_seconds),
      rx_bytes = max(m.rx_bytes, excluded.rx_bytes),
      tx_bytes = max(m.tx_bytes, excluded.tx_bytes),
      awake_ns = max(m.awake_ns, excluded.awake_ns),
      frozen_ns = max(m.frozen_ns, excluded.frozen_ns),
      ended = max(m.ended, excluded.ended)
""")

log: FilteringBoundLogger = structlog.get_logger()


def recorded(readings: Iterable[tuple[Job | None, Usage]], ended: bool) -> tuple[Executable, Executable]:
    """What takes effect together. A sandbox whose job is not known counts if it was read before."""
    rows = [
        (
            *(usage.sandbox, job and job.account_id, job and (job.workspace or ""), usage.at_ns // DAY_NS),
            *(usage.cpu_ns, usage.memory_mb_seconds, usage.rx_bytes, usage.tx_bytes),
            *(usage.awake_ns, usage.frozen_ns, int(ended)),
        )
        for job, usage in readings
    ]
    readings_json = msgspec.json.encode(rows).decode()
    return ADD.bindparams(readings=readings_json), REMEMBER.bindparams(readings=readings_json)


class Metering:
    """`job_of` tells the job of a sandbox that is in flight."""

    def __init__(self, database: Database, node: "NodeClient", job_of: Callable[[str], Job | None]) -> None:
        self._database = database
        self._node = node
        self._job_of = job_of

    async def watch(self, up: Callable[[], object]) -> None:
        """For ever; reads only while the node is `up`."""
        while True:
            await asyncio.sleep(EVERY)
            if not up():
                continue
            try:
                await self.read()
            except NodeUnavailable:
                continue
            except RoostError as error:
                log.warning("usage.unread", error=str(error))

    async def read(self) -> None:
        """Raises NodeUnavailable, StateUnwritable; whatever is missed is in the next reading."""
        over = [row.vm_id for row in await self._database.read(select(metered.c.vm_id).where(metered.c.ended))]
        told = await self._node.usage()
        readings = [(self._job_of(usage.sandbox), usage) for usage in told]
        forgotten = set(over) - {usage.sandbox for usage in told}  # by the node, which tells of them no more
        statements: list[Executable] = list(recorded(readings, ended=False)) if readings else []
        if forgotten:
            statements.append(delete(metered).where(metered.c.vm_id.in_(forgotten)))
        if statements:
            await self._database.write(*statements)

    async def record_end(self, state: SandboxState, job: Job | None = None) -> None:
        """Its last counters, before the node is told to forget it; again is the same, until then.

        Raises StateUnwritable.
        """
        if state.usage is None:  # lost, or it never began: what was read of it stays
            over = update(metered).where(metered.c.vm_id == state.id).values(ended=True)
            await self._database.write(over)
            return
        job = job or await find_by_vm(self._database, state.id)
        await self._database.write(*recorded([(job, state.usage)], ended=True))
