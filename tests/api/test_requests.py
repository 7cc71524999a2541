"""What holds for every call: HEAD is GET without a body, and a query parameter counts or is refused."""

import asyncio
from typing import Any

import pytest

from roost.api.app import ROUTES
from roost.api.bodies import BOM_UTF8
from roost.jobs import live
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

OPEN = ["/docs", "/openapi.json", "/llms.txt", "/mags.sh", "/mags.md", "/docs/scripts.md", "/login", "/api/v1/health"]
READ = ["/mags-jobs", "/mags-jobs/usage", "/mags-workspaces", "/whoami", "/tokens", "/images", "/jobs", "/quotas"]


def upload_form(disposition: str) -> dict[str, Any]:
    head = f'--B\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\n'.encode()
    return {"content": head + b"x\r\n--B--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=B"}}


@pytest.mark.parametrize("path", [*OPEN, *(f"/api/v1{path}" for path in READ), "/metrics", "/api/v2/mags-jobs"])
async def test_head_tells_what_get_would(api: Api, path: str) -> None:
    get = await api.client.get(f"http://roost{path}")
    head = await api.client.head(f"http://roost{path}")
    assert get.status_code == head.status_code == 200
    assert head.content == b""
    kinds = ("content-type", "content-length", "cache-control")
    if path in ("/metrics", "/api/v1/mags-jobs/usage", "/api/v1/tokens"):
        kinds = kinds[:1]  # what they tell changes with every request
    assert {kind: head.headers.get(kind) for kind in kinds} == {kind: get.headers.get(kind) for kind in kinds}


async def test_head_of_what_is_not_there_or_not_ones_own_is_refused_as_get(api: Api) -> None:
    assert (await api.client.head("/mags-jobs/no-such-job")).status_code == 404
    assert (await api.client.head("/nowhere")).status_code == 404
    assert (await api.client.head("/mags-jobs", headers={"Authorization": "Bearer wrong"})).status_code == 401
    assert (await api.client.head("/mags-jobs?statsu=running")).status_code == 400


async def test_head_of_a_file_has_its_size_and_of_a_part_the_parts(api: Api) -> None:
    await api.fill("files", **{"root/word": b"hello"})
    path = "/mags-workspaces/files/files/root/word"
    whole = await api.client.head(path)
    assert (whole.status_code, whole.headers["content-length"], whole.content) == (200, "5", b"")
    part = await api.client.head(path, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.headers["content-length"]) == (206, "3")


async def test_head_of_a_log_that_is_followed_ends_at_once(api: Api) -> None:
    await api.run()
    (job,) = (await api.client.get("/mags-jobs")).json()["jobs"]
    head = await api.client.head(f"/mags-jobs/{job['request_id']}/logs?follow=true")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert head.content == b""


async def test_head_does_not_use_up_what_is_told_once(api: Api) -> None:
    made = await api.json("/microvms", 201, "POST", json={"name": "dev", "image": "standard"})
    path = f"/microvms/{made['id']}/ssh-keys/download"
    assert (await api.client.head(path)).status_code == 405
    assert "PRIVATE KEY" in (await api.client.get(path)).text


async def test_a_query_parameter_that_a_call_does_not_have_is_refused_with_those_that_it_has(api: Api) -> None:
    for path, name, known in (
        ("/mags-jobs", "pagesize", "did you mean 'page_size'?"),
        ("/mags-jobs", "colour", "known are page, page_size, status"),
        ("/mags-workspaces", "x", "known are"),
        ("/tokens", "x", "this call takes none"),
        ("/health", "x", "this call takes none"),
    ):
        answer = await api.json(f"{path}?{name}=1", 400)
        assert f"unknown query parameter '{name}'" in str(answer["error"])
        assert known in str(answer["error"])
    assert "error" in await api.json("/mags-jobs?x=1", 400, "POST", json={"type": "inline", "script": "true"})
    assert (await api.client.get("/mags-jobs")).json()["jobs"] == []


async def test_every_parameter_that_the_document_names_is_taken(api: Api) -> None:
    document = (await api.client.get("http://roost/openapi.json")).json()
    asked = 0
    for path, calls in document["paths"].items():
        for parameter in calls.get("get", {}).get("parameters", []):
            if parameter["in"] == "query":
                answer = await api.client.get(f"http://roost{path}", params={parameter["name"]: "1"})
                assert "unknown query parameter" not in answer.text
                asked += 1
    assert asked > 20
    assert len(ROUTES) > asked


async def test_json_may_begin_with_a_byte_order_mark(api: Api) -> None:
    body = BOM_UTF8 + b'{"type": "inline", "script": "true"}'
    assert (await api.client.post("/mags-jobs", content=body)).status_code == 202
    answer = await api.client.post("/mags-jobs", content=BOM_UTF8 + body)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("filename*=UTF-8''na%C3%AFve%20%E2%82%AC.txt", "naïve €.txt"),
        ("filename*=utf-8'en'a.txt", "a.txt"),
        ("filename*=ISO-8859-1''na%EFve.txt", "naïve.txt"),
        ("filename=\"naive.txt\"; filename*=UTF-8''na%C3%AFve.txt", "naïve.txt"),
        ("filename*=UTF-8''..%2F..%2Fetc%2Fpasswd", "passwd"),
    ],
)
async def test_an_upload_may_have_its_name_in_the_extended_form_alone(api: Api, disposition: str, name: str) -> None:
    answer = await api.client.post("/mags-files", **upload_form(disposition))
    assert (answer.status_code, answer.json()["file_name"]) == (201, name)


@pytest.mark.parametrize(
    "disposition", ["filename*=UTF-8''%FF", "filename*=plain.txt", "filename*=utf-7''x", "filename*=UTF-8''a%0Ab"]
)
async def test_an_extended_name_that_cannot_be_read_is_refused(api: Api, disposition: str) -> None:
    answer = await api.client.post("/mags-files", **upload_form(disposition))
    assert answer.status_code == 400
    assert "file: its" in answer.json()["error"]


async def test_the_first_question_after_a_job_that_is_about_to_end_is_answered_with_its_end(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Official clients ask at once, and again a second later."""
    monkeypatch.setattr(live, "HELD", 30.0)
    monkeypatch.setattr(live, "YOUNG", 30.0)
    job = (await api.json("/mags-jobs", 202, "POST", json={"script": "echo", "type": "inline"}))["request_id"]
    asking = asyncio.create_task(api.json(f"/mags-jobs/{job}/status"))
    present = api.live._present  # pyright: ignore[reportPrivateUsage]
    await until(lambda: bool(api.node.requests) and any(run.asked_after for run in present.values()))
    assert await api.json("/whoami")  # others are not held
    assert (await api.json(f"/mags-jobs/{job}/status"))["status"] in ("pending", "running")  # nor is the next question
    assert not asking.done()
    api.node.end(next(iter(api.node.requests)))
    assert (await asking)["status"] == "completed"


async def test_a_question_is_held_for_a_moment_only(api: Api) -> None:
    job = (await api.json("/mags-jobs", 202, "POST", json={"script": "sleep 9", "type": "inline"}))["request_id"]
    assert (await api.json(f"/mags-jobs/{job}/status"))["status"] in ("pending", "running")
