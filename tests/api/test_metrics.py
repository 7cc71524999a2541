"""What Prometheus reads: by the library's own parser, from the application and from a served one."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from roost.api.timing import BOUNDS, Durations
from tests.api.conftest import Served
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

LIMITED = {"status", "depth", "state", "method", "le"}  # labels; none of them grows with use


def parsed(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels' values."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {label for sample in samples for label in sample.labels} <= LIMITED
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


async def scraped(api: Api) -> dict[tuple[str, ...], float]:
    answer = await api.client.get("http://roost/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.text)


async def test_jobs_and_the_pool_are_counted(api: Api) -> None:
    vm_id = await api.run()
    await api.run(persistent=True, name="stays")
    await api.json("/mags-jobs/stays/sleep", method="POST", json={"depth": "frozen"})
    await api.json("/mags-jobs/stays/wake", method="POST")
    await api.json("/mags-jobs/stays/sleep", method="POST", json={"depth": "frozen"})
    api.node.end(vm_id)
    await until(lambda: vm_id not in api.node.states)
    found = await scraped(api)
    assert found["roost_jobs", "sleeping"] == 1
    assert found["roost_jobs", "running"] == 0
    assert found["roost_jobs_ended_total", "completed"] == 1
    assert found["roost_wakes_total", "frozen"] == 1
    assert found["roost_wakes_total", "cold"] == 0
    assert found["roost_queue_length",] == 0
    assert found["roost_pool_members", "idle"] == 3
    assert found["roost_node_up",] == 1


async def test_a_node_that_is_away_is_told_as_down(api: Api) -> None:
    api.node.go()
    await until(lambda: not api.live.link.is_up)
    found = await scraped(api)
    assert found["roost_node_up",] == 0
    assert ("roost_pool_members", "idle") not in found


async def test_metrics_need_a_token(api: Api) -> None:
    answer = await api.client.get("http://roost/metrics", headers={"Authorization": ""})
    assert answer.status_code == 401


def test_a_served_api_counts_its_requests_and_its_gateway(served: Served) -> None:
    with served.client() as client:
        for _ in range(3):
            assert client.get("/api/v1/mags-jobs").status_code == 200
        assert client.get("/api/v1/mags-jobs/none").status_code == 404
        found = parsed(client.get("/metrics").text)
    assert found["roost_api_request_seconds_count", "GET", "2xx"] == 3
    assert found["roost_api_request_seconds_count", "GET", "4xx"] == 1
    assert found["roost_api_request_seconds_bucket", "+Inf", "GET", "2xx"] == 3
    assert found["roost_gateway_requests_total",] == 0
    assert found["roost_gateway_connections",] == 0


def test_a_strangers_method_makes_no_series_of_its_own(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        for method in ("BREW", "PROPFIND"):
            client.request(method, "/api/v1/mags-jobs")
    with served.client() as client:
        found = parsed(client.get("/metrics").text)
    methods = {key[1] for key in found if key[0] == "roost_api_request_seconds_count"}
    assert methods <= {"GET", "other"}


def test_durations_fall_into_the_bucket_that_holds_them() -> None:
    durations = Durations()
    for seconds in (0.0005, 0.001, 0.002, 99.0):
        durations.add("GET", 200, seconds)
    ((key, buckets, total),) = durations.cumulative()
    assert key == ("GET", 2)
    assert [count for _, count in buckets] == [2, 3, *[3] * (len(BOUNDS) - 2), 4]
    assert total == 99.0035
