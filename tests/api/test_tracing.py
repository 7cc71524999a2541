"""What a receiver of traces is told of a request, its job and the script in the sandbox; off, it costs nothing."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from roost.accounts.tokens import ensure_account
from roost.db import secret
from roost.db.database import Database
from roost.errors import Invalid
from roost.gateways.http.server import Gateway
from roost.jobs import job as jobs
from roost.jobs.live import LiveJobs
from roost.otlp import Otlp
from roost.sandboxes.placement import Machine, SingleNode
from roost.settings import ServeSettings
from roost.tracing import CURRENT, Tracer, require_endpoint, tracing
from roost.up import serve_options
from tests.jobs.fresh import fresh_database
from tests.jobs.memory_node import Node, order, until
from tests.otlp_receiver import Receiver, Span, receiver
from tests.workspaces.conftest import JOBS, Api, an_api

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def told() -> Iterator[Receiver]:
    with receiver() as server:
        yield server


@pytest.fixture
async def tracer(told: Receiver) -> AsyncIterator[Otlp]:
    async with tracing(told.url) as tracer:
        assert isinstance(tracer, Otlp)
        yield tracer


@pytest.fixture
async def traced(tmp_path: Path, tracer: Otlp) -> AsyncIterator[Api]:
    async with an_api(tmp_path, tracer) as api:
        yield api


async def ended_job(api: Api, exit_code: int = 0, **headers: str) -> str:
    answer = await api.client.post(JOBS, json={"script": "x", "type": "inline"}, headers=headers)
    assert answer.status_code == 202, answer.text
    request_id = answer.json()["request_id"]
    await until(lambda: bool(api.node.states))
    (vm_id,) = api.node.states
    api.node.end(vm_id, exit_code=exit_code)
    await until(lambda: vm_id not in api.node.states)
    return request_id


def ids(spans: list[Span]) -> set[str]:
    return {span.trace_id for span in spans}


async def test_one_tree_leads_from_the_callers_span_to_the_script_in_the_guest(
    traced: Api, tracer: Otlp, told: Receiver
) -> None:
    request_id = await ended_job(traced, traceparent=CALLER)
    await tracer.close()
    request, job = told.one("POST /api/v1/mags-jobs"), told.one("job")
    submit, queue = told.one("job.submit"), told.one("job.queue")
    start, script = told.one("node.start_sandbox"), told.one("script")
    assert ids(told.spans) == {CALLER.split("-")[1]}
    assert request.parent == CALLER.split("-")[2]
    assert [job.parent, submit.parent] == [request.id] * 2
    assert [queue.parent, start.parent, script.parent] == [job.id] * 3
    assert request.attributes["http.response.status_code"] == 202
    assert request.attributes["http.route"] == "/api/v1/mags-jobs"
    vm_id = start.attributes["vm_id"]
    assert job.attributes == {
        "request_id": request_id, "image": "standard", "exit_code": 0, "vm_id": vm_id, "status": "completed",
        "stopped": False,
    }  # fmt: skip
    assert (script.begun_ns, script.ended_ns) == (10**18, 10**18 + 5_000_000)  # as the node said
    assert script.attributes["vm_id"] == vm_id
    assert job.begun_ns == queue.begun_ns <= queue.ended_ns == start.begun_ns <= start.ended_ns <= job.ended_ns
    assert traced.node.environments == [{"TRACEPARENT": f"00-{script.trace_id}-{script.id}-01"}]
    assert job.resource["service.name"] == "roost"


async def test_a_script_that_fails_marks_its_job_failed(traced: Api, tracer: Otlp, told: Receiver) -> None:
    await ended_job(traced, exit_code=3)
    await tracer.close()
    assert [told.one(name).failed for name in ("job", "script", "job.queue")] == [True, True, False]
    assert told.one("job").attributes["exit_code"] == 3
    assert told.one("POST /api/v1/mags-jobs").parent == ""


async def test_what_a_caller_does_not_sample_is_not_sent(traced: Api, tracer: Otlp, told: Receiver) -> None:
    await ended_job(traced, traceparent=CALLER[:-1] + "0")
    await tracer.close()
    assert told.spans == []


async def test_the_routes_name_is_told_and_health_leaves_no_span(traced: Api, tracer: Otlp, told: Receiver) -> None:
    request_id = await ended_job(traced)
    await traced.client.get(f"{JOBS}/{request_id}/status")
    await traced.client.get("/health")
    await traced.client.get(f"{JOBS}/nosuch/status", headers={"traceparent": "nonsense"})
    await tracer.close()
    seen = told.named("GET /api/v1/mags-jobs/{id}/status")
    assert sorted(span.attributes["http.response.status_code"] for span in seen) == [200, 404]
    assert not any("health" in span.name for span in told.spans)
    assert CURRENT.get() is None


async def test_the_standard_variables_hold(told: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=ours,deployment.environment=test")
    async with tracing(told.url) as tracer, an_api(tmp_path, tracer) as api:
        await api.client.get(JOBS)
    span = told.one("GET /api/v1/mags-jobs")
    assert (span.resource["service.name"], span.resource["deployment.environment"]) == ("ours", "test")
    told.spans.clear()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with tracing(told.url) as tracer, an_api(tmp_path, tracer) as api:
        await api.client.get(JOBS)
    assert told.spans == []
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(Invalid, match="http/protobuf"):
        async with tracing(told.url):
            pass


async def test_a_restart_in_between_does_not_lose_the_jobs_span(tmp_path: Path, told: Receiver) -> None:
    fresh_database(tmp_path / "roost.db")
    node, key = Node(), secret.load(tmp_path / "key")
    async with Database(tmp_path / "roost.db") as database:
        await ensure_account(database, "t" * 32)
        async with tracing(told.url) as tracer, live_jobs(database, key, node, tracer) as live:
            with tracer.span("request"):
                job = await live.submit(1, order())
            await until(lambda: job.vm_id in node.states)
            await until(lambda: (run := live.run_of(job)) is not None and run.job.status == "running")
        assert not told.named("job")
        async with tracing(told.url) as tracer, live_jobs(database, key, node, tracer) as live:
            await until(lambda: live.link.is_up)
            node.end(job.vm_id)
            await until(lambda: job.vm_id not in node.states)
        assert (await jobs.reread(database, job)).status == "completed"
    request, ended = told.one("request"), told.one("job")
    assert (ended.parent, ended.trace_id, ended.begun_ns) == (request.id, request.trace_id, job.created_ns)
    assert told.one("script").parent == told.one("node.start_sandbox").parent == ended.id


@contextlib.asynccontextmanager
async def live_jobs(database: Database, key: secret.Secret, node: Node, tracer: Tracer) -> AsyncIterator[LiveJobs]:
    async with LiveJobs(database, key, node, SingleNode(Machine(2, 4000)), tracer=tracer) as live:  # type: ignore[arg-type]
        yield live


async def test_a_request_to_a_sleeping_sandbox_shows_its_wake_and_its_dial(
    traced: Api, tracer: Otlp, told: Receiver, tmp_path: Path
) -> None:
    vm_id = await traced.run(persistent=True)
    (job,) = [run.job for run in traced.live.runs()]
    await traced.json(f"{JOBS}/{job.request_id}/access", method="POST", json={"port": 80})
    application = await asyncio.start_server(answer, "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    traced.node.doors[vm_id, 80] = application.sockets[0].getsockname()[1]
    settings = ServeSettings(tmp_path, tmp_path / "none")
    async with (
        application,
        Gateway(traced.routes, traced.node, settings, tracer) as gateway,
        httpx.AsyncClient() as web,
    ):
        await gateway.listen(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {"host": f"{job.subdomain}.apps.localhost", "traceparent": CALLER}
        assert (await web.get(url, headers=headers)).text == "hi"
        await traced.json(f"{JOBS}/{job.request_id}/sleep", method="POST", json={"depth": "frozen"})
        assert (await web.get(url, headers=headers)).text == "hi"
    await tracer.close()
    request, wake = told.one("gateway.request"), told.one("sandbox.wake")
    assert (request.trace_id, request.parent) == tuple(CALLER.split("-")[1:3])
    assert wake.parent == request.id
    assert wake.attributes["vm_id"] == vm_id
    assert all(span.parent == request.id for span in told.named("sandbox.dial"))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
    await writer.drain()
    writer.close()


async def test_a_receiver_that_is_down_breaks_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with tracing(url) as tracer, an_api(tmp_path, tracer) as api:
            request_id = await ended_job(api)
            assert (await api.json(f"{JOBS}/{request_id}/status"))["status"] == "completed"


async def test_without_an_endpoint_no_script_gets_a_trace_and_no_library_is_loaded(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        await ended_job(api, traceparent=CALLER)
        assert api.node.environments == [{}]
    program = "import sys, roost.serve, roost.up; print([name for name in sys.modules if 'opentelemetry' in name])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize(
    "url", ["localhost:4318", "ftp://host", "http://", "http://host:99999", "http://user:pass@host", "http://host?x=1"]
)
def test_a_bad_endpoint_is_refused_with_what_to_give(url: str) -> None:
    with pytest.raises(Invalid, match="--otlp-endpoint") as refused:
        require_endpoint(url)
    assert "http://127.0.0.1:4318" in str(refused.value)
    assert "pass@" not in str(refused.value)


def test_up_passes_the_endpoint_on() -> None:
    assert serve_options({"otlp_endpoint": "http://h:4318"}) == ["--otlp-endpoint", "http://h:4318"]
