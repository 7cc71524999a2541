"""Metrics for Prometheus: the installation as a whole, nothing by job, account or host name.

What is counted is counted where it happens, in plain integers; this module turns them into Prometheus' text when it is
asked, so that the library costs nothing until then.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from litestar import Request, Response, get
from sqlalchemy import func, select

from roost.api.plane import ControlPlane, Plane
from roost.api.timing import Durations
from roost.db.schema import jobs
from roost.errors import NodeUnavailable
from roost.workspaces.workspace import UNFINISHED

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from roost.gateways.http.server import Gateway

TEXT = "text/plain; version=0.0.4"  # the framework adds the charset
UNENDED = ("pending", "running", "sleeping")


@get("/metrics", include_in_schema=False, opt={"first": True})
async def metrics(request: Request[Any, Any, Any], plane: Plane) -> Response[bytes]:
    """Needs a token of the first account, scope read, as `authorization` in a scrape configuration gives it."""
    from prometheus_client.exposition import generate_latest

    state = request.app.state
    found = Found(
        [
            *await of_jobs(plane),
            *await of_node(plane),
            *(of_gateway(state.gateway) if state.gateway else ()),
            of_api(state.durations),
        ]
    )
    return Response(generate_latest(found), media_type=TEXT)


class Found:
    """What the library takes for a registry."""

    def __init__(self, found: "list[Metric]") -> None:
        self._found = found

    def collect(self) -> "Iterator[Metric]":
        return iter(self._found)


async def of_jobs(plane: ControlPlane) -> "list[Metric]":
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    query = select(jobs.c.status, func.count().label("jobs")).where(UNFINISHED).group_by(jobs.c.status)
    counted = {row.status: row.jobs for row in await plane.database.read(query)}
    unended = GaugeMetricFamily("roost_jobs", "Jobs that have not ended, by status.", labels=["status"])
    for status in UNENDED:
        unended.add_metric([status], counted.get(status, 0))
    queue = GaugeMetricFamily("roost_queue_length", "Jobs that wait for room.", plane.live.waiting)
    tally = plane.live.tally
    ended = CounterMetricFamily("roost_jobs_ended", "Jobs that have ended, by status.", labels=["status"])
    for status in ("completed", "error"):
        ended.add_metric([status], tally.ended[status])
    wakes = CounterMetricFamily("roost_wakes", "Sleepers woken, by how deep they slept.", labels=["depth"])
    for depth in ("frozen", "cold"):
        wakes.add_metric([depth], tally.wakes[depth])
    return [unended, queue, ended, wakes]


async def of_node(plane: ControlPlane) -> "list[Metric]":
    """Without its numbers while it does not answer."""
    from prometheus_client.metrics_core import GaugeMetricFamily

    up = GaugeMetricFamily("roost_node_up", "1 while the node answers.", int(plane.live.link.is_up))
    try:
        info = await plane.node.info()
    except NodeUnavailable:
        return [up]
    pool = GaugeMetricFamily("roost_pool_members", "Sandboxes of the pool, by state.", labels=["state"])
    for state in ("idle", "busy", "creating"):
        pool.add_metric([state], getattr(info.pool, state))
    unsaved = GaugeMetricFamily(
        "roost_unsaved_revisions", "Files that are kept and not saved yet.", await _unsaved(plane)
    )
    about = "Accounts whose space did not come back in the last collection, since revisions are missing in the store."
    refused = GaugeMetricFamily("roost_collections_refused", about, len(plane.collection.refused))
    memory = GaugeMetricFamily(
        "roost_node_memory_available_bytes", "Memory that is free.", info.memory_available_mb * 1024 * 1024
    )
    return [up, pool, memory, unsaved, refused]


async def _unsaved(plane: ControlPlane) -> int:
    try:
        return len(await plane.node.unsaved())
    except NodeUnavailable:
        return 0


def of_gateway(gateway: "Gateway") -> "list[Metric]":
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    return [
        GaugeMetricFamily("roost_gateway_connections", "Clients' connections that are open.", len(gateway.connections)),
        GaugeMetricFamily("roost_gateway_exchanges", "Requests and tunnels under way.", len(gateway.exchanges)),
        CounterMetricFamily("roost_gateway_requests", "Requests that have come.", gateway.requests),
    ]


def of_api(durations: Durations) -> "Metric":
    from prometheus_client.metrics_core import HistogramMetricFamily

    about = "From a request to the first byte of its answer, by method and class of status."
    family = HistogramMetricFamily("roost_api_request_seconds", about, labels=["method", "status"])
    for (method, status), buckets, total in durations.cumulative():
        family.add_metric([method, f"{status}xx"], buckets=buckets, sum_value=total)
    return family
