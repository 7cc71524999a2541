"""Jobs over HTTP, as far as they go without a node: accepted, listed, found and stopped."""

import re
import urllib.parse

import httpx
import pytest

JOBS = "/api/v1/mags-jobs"


def submit(client: httpx.Client, **fields: object) -> str:
    answer = client.post(JOBS, json={"script": "echo hi", **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()["request_id"]


def test_submitting_answers_exactly_three_keys(shared: httpx.Client) -> None:
    answer = shared.post(JOBS, json={"script": "echo hi", "type": "inline", "persistent": False})
    request_id = answer.json()["request_id"]
    told = f'{{"message":"Mags job submitted successfully","request_id":"{request_id}","status":"accepted"}}'
    assert (answer.status_code, answer.text) == (202, told)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", request_id)


def test_without_a_node_a_job_stays_pending_and_tells_nothing_it_does_not_know(shared: httpx.Client) -> None:
    status = shared.get(f"{JOBS}/{submit(shared)}/status").json()
    assert status["status"] == "pending"
    assert (status["persistent"], status["sleeping"]) == (False, False)
    assert re.fullmatch(r"[0-9a-f]{12}", status["subdomain"])
    assert not {"exit_code", "vm_id", "started_at", "script_duration_ms", "error"} & status.keys()


def test_a_job_shows_what_it_was_asked_for_but_not_its_environment(shared: httpx.Client) -> None:
    job = submit(shared, environment={"KEY": "hidden"}, memory_mb=64, vcpus=0.5, disk_gb=3, timeout=9, name="shown")
    record = shared.get(f"{JOBS}/{job}").json()
    told = {key: record[key] for key in ("script", "name", "memory_mb", "vcpus", "disk_gb", "timeout_seconds")}
    assert told == {
        "script": "echo hi", "name": "shown", "memory_mb": 64, "vcpus": 0.5, "disk_gb": 3, "timeout_seconds": 9,
    }  # fmt: skip
    assert "hidden" not in shared.get(f"{JOBS}/{job}").text


def test_magic_keys_choose_memory_and_image(shared: httpx.Client) -> None:
    magic = {"__MAGS_MEM_GB": "2", "__MAGS_ROOTFS_TYPE": "claude"}
    record = shared.get(f"{JOBS}/{submit(shared, environment=magic)}").json()
    assert (record["memory_mb"], record["rootfs_type"]) == (2048, "claude")


@pytest.mark.parametrize("name", ["plain", "with space", "übergröße-日本-🚀", "per%cent", "q?x#y&z", "-e"])
def test_a_job_is_found_by_its_name_under_both_versions(shared: httpx.Client, name: str) -> None:
    job = submit(shared, name=name)
    quoted = urllib.parse.quote(name, safe="")
    for version in ("v1", "v2"):
        found = shared.get(f"/api/{version}/mags-jobs/{quoted}/status").json()
        assert (found["request_id"], found["name"]) == (job, name)


def test_of_several_jobs_of_one_name_the_newest_live_one_is_meant(shared: httpx.Client) -> None:
    older, newer, newest = (submit(shared, name="twins") for _ in range(3))
    assert shared.post(f"{JOBS}/{newest}/stop").json()["success"] is True
    assert shared.get(f"{JOBS}/twins/status").json()["request_id"] == newer
    shared.post(f"{JOBS}/{newer}/stop")
    assert shared.get(f"{JOBS}/twins/status").json()["request_id"] == older


def test_a_request_id_wins_over_a_name(shared: httpx.Client) -> None:
    job = submit(shared)
    submit(shared, name=job)
    assert shared.get(f"{JOBS}/{job}/status").json()["request_id"] == job


def test_lists_are_newest_first_with_totals(shared: httpx.Client) -> None:
    before = shared.get(JOBS).json()["total"]
    submitted = [submit(shared) for _ in range(5)]
    first = shared.get(f"{JOBS}?page=1&page_size=3").json()
    second = shared.get(f"{JOBS}?page=2&page_size=3").json()
    assert [job["request_id"] for job in first["jobs"]] == submitted[:1:-1]
    assert [job["request_id"] for job in second["jobs"]][:2] == submitted[1::-1]
    assert (first["total"], first["page"], first["page_size"]) == (before + 5, 1, 3)
    assert shared.get(f"{JOBS}?page=1000&page_size=50").json()["jobs"] == []
    assert shared.get(JOBS).json()["page_size"] == 20


def test_stopping_a_pending_job_completes_it_without_an_exit_code(shared: httpx.Client) -> None:
    job = submit(shared)
    assert shared.post(f"{JOBS}/{job}/stop").json() == {"success": True, "message": "Job stopped"}
    status = shared.get(f"{JOBS}/{job}/status").json()
    assert (status["status"], status["stopped"], status.get("exit_code"), "vm_id" in status) == (
        "completed", True, None, False,
    )  # fmt: skip
    assert shared.post(f"{JOBS}/{job}/stop").status_code == 200
    assert shared.get(f"{JOBS}/{job}/logs").json() == {"logs": []}


def test_following_a_job_that_never_starts_ends_when_it_is_stopped(shared: httpx.Client) -> None:
    job = submit(shared)
    with shared.stream("GET", f"{JOBS}/{job}/logs?follow=true") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        shared.post(f"{JOBS}/{job}/stop")
        assert "".join(events.iter_text()) == (
            'event: end\ndata: {"status":"completed","exit_code":null,"stopped":true}\n\n'
        )


def test_commands_need_a_running_job(shared: httpx.Client) -> None:
    answer = shared.post(f"{JOBS}/{submit(shared, name='waits')}/exec", json={"command": "ls"})
    assert answer.status_code == 409
    assert "pending" in answer.json()["error"]


def test_what_only_a_node_knows_is_unavailable_without_one(shared: httpx.Client) -> None:
    for path in ("/api/v1/mags-jobs/pool-status", "/api/v1/images"):
        assert shared.get(path).status_code == 503
    assert shared.post("/api/v1/images/standard/build").status_code == 503
    assert shared.get("/api/v1/health").json()["node"] == "unavailable"


def test_the_openapi_document_describes_every_route(shared: httpx.Client) -> None:
    document = httpx.get(f"{shared.base_url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"get", "post"} <= document["paths"]["/api/v1/mags-jobs"].keys()
    for path in ("/{id}/status", "/{id}/logs", "/{id}/stop", "/{id}/exec", "/{id}", "/pool-status"):
        assert f"/api/v1/mags-jobs{path}" in document["paths"]
    for path in ("", "/{id}", "/{id}/revisions", "/{id}/restore", "/{id}/check", "/{id}/files", "/{id}/files/{path}"):
        assert f"/api/v1/mags-workspaces{path}" in document["paths"]
    assert "/api/v1/mags-files" in document["paths"]
    text = httpx.get(f"{shared.base_url}/openapi.json").text
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert name in document["components"]["schemas"]
    identifiers = [call["operationId"] for calls in document["paths"].values() for call in calls.values()]
    assert len(identifiers) == len(set(identifiers))
    assert "memory_mb" in text and "script" in text


def test_the_docs_page_names_every_path_and_loads_nothing(shared: httpx.Client) -> None:
    page = httpx.get(f"{shared.base_url}/docs").text
    for path in httpx.get(f"{shared.base_url}/openapi.json").json()["paths"]:
        assert path in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
