"""Every bad input gets a status and a text that says what to change, and leaves no job behind."""

import json

import httpx
import pytest

JOBS = "/api/v1/mags-jobs"
MIB = 1024 * 1024
UNKNOWN = "11111111-2222-4333-8444-555555555555"


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    for word in words:
        assert word in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"script": ""}, ["script", "empty"]),
        ({"script": None}, ["script", "missing"]),
        ({"script": " \n\t"}, ["script", "empty"]),
        ({"script": "echo a\0b"}, ["script", "NUL"]),
        ({"script": 7}, ["script", "expected string, got whole number"]),
        ({"script": ["echo"]}, ["script", "string"]),
        ({"type": "url"}, ["script", "http"]),
        ({"type": "docker"}, ["type", "inline"]),
        ({"type": 1}, ["type", "string"]),
        ({"name": "a/b"}, ["name", "slash"]),
        ({"name": ".."}, ["name"]),
        ({"name": "a\nb"}, ["name", "line break"]),
        ({"name": "x" * 129}, ["name", "128"]),
        ({"environment": {"A": 1}}, ["environment", "string"]),
        ({"environment": ["A=1"]}, ["environment"]),
        ({"environment": {"A B": "1"}}, ["environment", "A B"]),
        ({"environment": {"1A": "1"}}, ["environment", "1A"]),
        ({"environment": {"": "1"}}, ["environment"]),
        ({"environment": {"A\n": "1"}}, ["environment"]),
        ({"environment": {"A": "\0"}}, ["environment", "NUL"]),
        ({"environment": {"A": "x" * 131_072}}, ["environment", "128 KiB"]),
        ({"environment": {"__MAGS_MEM_GB": "3"}}, ["__MAGS_MEM_GB", "memory_mb"]),
        ({"environment": {"__MAGS_KEEP_ALIVE": "true"}}, ["__MAGS_KEEP_ALIVE", "persistent"]),
        ({"environment": {"__MAGS_KEEP_ALIVE": "maybe"}}, ["__MAGS_KEEP_ALIVE", "true"]),
        ({"environment": {"__MAGS_IDLE_MIN": "5"}}, ["idle_minutes", "persistent"]),
        ({"environment": {"__MAGS_IDLE_MIN": "soon"}, "persistent": True}, ["__MAGS_IDLE_MIN", "number"]),
        ({"idle_minutes": 0, "persistent": True}, ["idle_minutes", "more than 0"]),
        ({"idle_minutes": 5, "environment": {"__MAGS_IDLE_MIN": "6"}}, ["idle_minutes", "different"]),
        ({"environment": {"__MAGS_X": "5"}}, ["__MAGS_X", "reserved"]),
        ({"environment": {"__MAGS_MEM_GB": "2"}, "memory_mb": 512}, ["memory_mb", "__MAGS_MEM_GB"]),
        ({"rootfs_type": "../etc"}, ["rootfs_type"]),
        ({"disk_gb": 0}, ["disk_gb", "1 to 64"]),
        ({"disk_gb": -5}, ["disk_gb", "1 to 64"]),
        ({"disk_gb": 65}, ["disk_gb", "1 to 64"]),
        ({"disk_gb": 1.5}, ["disk_gb"]),
        ({"disk_gb": "2"}, ["disk_gb", "whole number"]),
        ({"disk_gb": True}, ["disk_gb"]),
        ({"disk_gb": 10**30}, ["disk_gb"]),
        ({"vcpus": 0}, ["vcpus", "0.1"]),
        ({"vcpus": -1}, ["vcpus"]),
        ({"vcpus": 100_000}, ["vcpus"]),
        ({"memory_mb": 31}, ["memory_mb", "32"]),
        ({"memory_mb": 10**9}, ["memory_mb"]),
        ({"timeout": 0}, ["timeout", "1 to 86400"]),
        ({"timeout_seconds": 86_401}, ["timeout", "1 to 86400"]),
        ({"timeout": 5, "timeout_seconds": 6}, ["timeout", "timeout_seconds"]),
        ({"ephemeral": True, "workspace_id": "w"}, ["ephemeral", "workspace_id"]),
        ({"ephemeral": True, "persistent": True}, ["ephemeral", "persistent"]),
        ({"no_sleep": True}, ["no_sleep", "persistent: true"]),
        ({"startup_command": "x"}, ["startup_command", "persistent: true"]),
        ({"startup_command": "x" * 70_000, "persistent": True}, ["startup_command", "64 KiB"]),
        ({"workspace_id": "a/b"}, ["workspace_id", "slash"]),
        ({"workspace_id": 7}, ["workspace_id", "string"]),
        ({"workspace_id": "x" * 129}, ["workspace_id", "128"]),
        ({"base_workspace_id": "w", "workspace_id": "w"}, ["base_workspace_id", "same"]),
        ({"base_revision": "0" * 16}, ["base_revision", "base_workspace_id"]),
        ({"file_ids": ["f"]}, ["file_ids", "upload it again"]),
        ({"file_ids": ["f", "f"]}, ["file_ids", "twice"]),
        ({"file_ids": "f"}, ["file_ids"]),
        ({"memory": 512}, ["memory", "did you mean 'memory_mb'"]),
        ({"zzzzz": 1}, ["zzzzz", "known are"]),
    ],
)
def test_a_bad_field_is_refused_with_its_name_and_the_cure(
    shared: httpx.Client, change: dict[str, object], words: list[str]
) -> None:
    before = shared.get(JOBS).json()["total"]
    refused(shared.post(JOBS, json={"script": "echo hi", **change}), 400, *words)
    assert shared.get(JOBS).json()["total"] == before


@pytest.mark.parametrize(
    "body",
    [b"{", b"nonsense", b"[]", b'"text"', b"null", b"", b"\xff\xfe", b'{"script": "\xff"}', b'{"script":"\\ud800"}'],
)
def test_a_body_that_is_no_json_object_is_refused(shared: httpx.Client, body: bytes) -> None:
    refused(shared.post(JOBS, content=body), 400, "body")


def test_deeply_nested_json_is_refused(shared: httpx.Client) -> None:
    refused(shared.post(JOBS, content=b'{"script":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400)


def test_a_form_is_refused(shared: httpx.Client) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    refused(shared.post(JOBS, content=b"script=echo", headers=form), 400, "JSON")


def test_a_script_beyond_one_mebibyte_is_too_large(shared: httpx.Client) -> None:
    refused(shared.post(JOBS, json={"script": "#" * (MIB + 1)}), 413, "1 MiB")


def test_a_script_of_one_mebibyte_is_accepted(shared: httpx.Client) -> None:
    accepted = shared.post(JOBS, json={"script": "#" * MIB})
    assert accepted.status_code == 202
    assert len(shared.get(f"{JOBS}/{accepted.json()['request_id']}").json()["script"]) == MIB


@pytest.mark.parametrize("size", [2 * MIB + 1, 8 * MIB])
def test_a_body_beyond_two_mebibytes_is_too_large(shared: httpx.Client, size: int) -> None:
    refused(shared.post(JOBS, content=b"x" * size), 413, "2 MiB")


def test_a_body_beyond_the_limit_is_refused_when_it_does_not_tell_its_length(shared: httpx.Client) -> None:
    refused(shared.post(JOBS, content=(b"x" * MIB for _ in range(3))), 413, "2 MiB")


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "wrong", "Basic dTpw", ""])
@pytest.mark.parametrize("path", [JOBS, f"{JOBS}/x/status", "/api/v2/mags-jobs", "/api/v1/images"])
def test_a_wrong_token_is_refused(shared: httpx.Client, path: str, header: str) -> None:
    refused(shared.get(path, headers={"Authorization": header}), 401, "token")


def test_a_wrong_token_is_refused_before_the_body_is_looked_at(shared: httpx.Client) -> None:
    refused(shared.post(JOBS, content=b"{", headers={"Authorization": "Bearer wrong"}), 401)


def test_health_is_open_but_tells_a_wrong_token(shared: httpx.Client) -> None:
    assert httpx.get(f"{shared.base_url}/api/v1/health").json()["status"] == "ok"
    assert shared.get("/api/v1/health").status_code == 200
    refused(shared.get("/api/v1/health", headers={"Authorization": "Bearer wrong"}), 401)


@pytest.mark.parametrize("reference", [UNKNOWN, "no-such-job", "n%C3%B6", "%00", "%27%20OR%201=1", "x" * 3000])
@pytest.mark.parametrize("call", ["GET {}", "GET {}/status", "GET {}/logs", "GET {}/logs?follow=true", "POST {}/stop"])
def test_an_unknown_job_is_not_found(shared: httpx.Client, call: str, reference: str) -> None:
    method, path = call.format(f"{JOBS}/{reference}").split()
    refused(shared.request(method, path), 404)


@pytest.mark.parametrize(
    "query", ["page=0", "page=x", "page=-1", "page_size=0", "page_size=101", "page=9999999999999999999999"]
)
def test_a_page_out_of_range_is_refused(shared: httpx.Client, query: str) -> None:
    refused(shared.get(f"{JOBS}?{query}"), 400, "page")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"command": ""}, "command"),
        ({"command": "a\0b"}, "NUL"),
        ({"command": "x" * 200_000}, "command"),
        ({"command": "ls", "timeout": 0}, "timeout"),
        ({"command": "ls", "timeout": 1e9}, "timeout"),
        ({"command": "ls", "timeout": "1"}, "timeout"),
        ({}, "command"),
        ({"cmd": "ls"}, "cmd"),
    ],
)
def test_a_bad_command_is_refused(shared: httpx.Client, body: dict[str, object], word: str) -> None:
    refused(shared.post(f"{JOBS}/{UNKNOWN}/exec", json=body), 400, word)


def test_unknown_paths_and_methods_answer_in_the_same_shape(shared: httpx.Client) -> None:
    refused(shared.get("/api/v1/docs"), 404)
    refused(shared.put(JOBS), 405)


@pytest.mark.parametrize("form", [None, False, "", [], {}])
def test_absent_forms_of_optional_fields_are_accepted(shared: httpx.Client, form: object) -> None:
    types = {type(None): ["persistent", "workspace_id", "file_ids", "no_sleep"], bool: ["persistent", "no_sync"]}
    types |= {str: ["workspace_id", "startup_command", "name"], list: ["file_ids"], dict: ["environment"]}
    body = {"script": "true", "type": "inline", "ephemeral": True} | dict.fromkeys(types[type(form)], form)
    assert shared.post(JOBS, content=json.dumps(body)).status_code == 202
