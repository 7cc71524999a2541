"""Ports of the gateway that belong to one job each, for clients that insist on one.

A row says whose a port is; it outlives sleep and restarts and goes when its job has ended. `gateway.py` listens.
"""

from sqlalchemy import delete, insert, select
from sqlalchemy.exc import IntegrityError

from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import jobs, ssh_ports
from roost.errors import Invalid, NoCapacity

CURE = "start Roost with `--ssh-ports LOW-HIGH`, or leave out `dedicated` and use the gateway's own port"


async def port_of(database: Database, job_seq: int, among: tuple[int, int] | None, busy: frozenset[int]) -> int:
    """The job's own port, now and later; `busy` ones are taken by other programs. Raises Invalid, NoCapacity."""
    if among is None:
        raise Invalid(f"dedicated: no ports are set aside for this; {CURE}")
    while True:
        taken = {row.port: row.job_seq for row in await database.read(select(ssh_ports))}
        mine = next((port for port, seq in taken.items() if seq == job_seq), None)
        if mine is not None and mine not in busy:
            return mine
        free = next((port for port in range(among[0], among[1] + 1) if port not in taken and port not in busy), None)
        if free is None:
            raise NoCapacity(f"all ports of {among[0]}-{among[1]} are taken; stop a job that has one, or {CURE}")
        try:
            await database.write(
                delete(ssh_ports).where(ssh_ports.c.job_seq == job_seq),
                insert(ssh_ports).values(port=free, job_seq=job_seq, created_ns=now_ns()),
            )
        except IntegrityError:
            continue  # another request took it between our look and our write
        return free


async def assigned(database: Database) -> dict[int, int]:
    """Port to job, of jobs that have not ended."""
    query = select(ssh_ports).join(jobs, jobs.c.seq == ssh_ports.c.job_seq).where(jobs.c.ended_ns.is_(None))
    return {row.port: row.job_seq for row in await database.read(query)}


async def free_those_of_ended_jobs(database: Database) -> None:
    ended = select(jobs.c.seq).where(jobs.c.ended_ns.is_not(None))
    await database.write(delete(ssh_ports).where(ssh_ports.c.job_seq.in_(ended)))
