"""From a route to a connection into its sandbox: woken if it sleeps, dialled until it listens, and never another's.

The generation fence: a sandbox that went, or went to sleep, while it was dialled is left, and the host name is resolved
anew. What names a sandbox is its id, which is never given twice.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from roost.errors import Conflict, NodeUnavailable, NotFound, Refused
from roost.gateways.http import traces
from roost.gateways.http.routing import Route, Run
from roost.gateways.http.upstream import Upstream

if TYPE_CHECKING:
    from roost.gateways.http.server import Gateway

NODE_RESTART = 30.0  # seconds that a node may be away before requests fail for it
NODE_AGAIN = 0.2


async def connection(
    gateway: "Gateway", host: str, route: Route, unused: float, deadline: float
) -> tuple[Run, Upstream]:
    """An idle one that was used at most `unused` seconds ago, or a new one; `deadline` is monotonic.

    Raises what Routes.find, Routes.awake and Pool.reach do.
    """
    begun = time.monotonic()
    while True:
        try:
            run = route.run
            if run is None or not run.awake:
                run = await gateway.routes.awake(route, deadline - time.monotonic())
            upstream = await _dial(gateway, route, run, unused, deadline)
        except NodeUnavailable:
            if time.monotonic() - begun > NODE_RESTART:
                raise
            await asyncio.sleep(NODE_AGAIN)
        else:
            if upstream is not None:
                return run, upstream
        route = await gateway.routes.find(host)


async def _dial(gateway: "Gateway", route: Route, run: Run, unused: float, deadline: float) -> Upstream | None:
    """None: the sandbox went while it was dialled."""
    vm_id = run.job.vm_id
    with run.use():
        upstream = gateway.pool.take((vm_id, route.port), unused)
        if upstream is None:
            try:
                with traces.of_dial(gateway.tracer, vm_id, route.port):
                    upstream = await gateway.pool.reach(run, route.port, deadline)
            except (NotFound, Conflict, Refused):
                if run.awake and run.job.vm_id == vm_id:
                    raise
                return None
        if run.awake and run.job.vm_id == vm_id:
            return upstream
    upstream.close()
    return None
