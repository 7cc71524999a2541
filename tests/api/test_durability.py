"""What a 202 promises, and what the state directory holds, through kills and restarts."""

import os
import socket
import sqlite3
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from roost.accounts.tokens import FIRST_ACCOUNT
from roost.db import migrate
from tests.api.conftest import TOKEN, Served, launch, serving

JOBS = "/api/v1/mags-jobs"
OLD_JOB = """INSERT INTO jobs (request_id, account_id, name, vm_id, subdomain, status, script, image, vcpus, memory_mb,
    disk_gb, timeout_seconds, created_ns) VALUES ('old-id', 1, 'old', 'aabbccdd', 'aabbccddeeff', 'pending', 'echo hi',
    'standard', 1, 100, 2, 300, 1)"""
SECRET = "correct-horse-battery-staple"


def test_an_accepted_job_survives_kill_9(state: Path) -> None:
    for _ in range(2):
        served = serving(state)
        try:
            with served.client() as client:
                job = client.post(JOBS, json={"script": "echo hi", "name": "kept"}).json()["request_id"]
        finally:
            served.kill()
        served = serving(state)
        try:
            with served.client() as client:
                assert client.get(f"{JOBS}/{job}/status").json()["status"] == "pending"
                assert client.get(f"{JOBS}/kept/status").json()["request_id"] == job
        finally:
            served.kill()


def test_a_workspace_and_its_lock_survive_kill_9(state: Path) -> None:
    served = serving(state)
    with served.client() as client:
        job = client.post(JOBS, json={"script": "x", "workspace_id": "w", "persistent": True}).json()["request_id"]
    served.kill()
    served = serving(state)
    with served.client() as client:
        refusal = client.post(JOBS, json={"script": "echo hi", "workspace_id": "w"})
        assert refusal.status_code == 409
        assert job in refusal.json()["error"]
        assert client.get(f"{JOBS}/w/status").json()["workspace_id"] == "w"
        client.post(f"{JOBS}/{job}/stop")
        assert client.post(JOBS, json={"script": "echo hi", "workspace_id": "w"}).status_code == 202
    served.kill()


def test_a_database_of_the_first_schema_is_brought_up_with_its_jobs(state: Path) -> None:
    state.mkdir(exist_ok=True)
    migrate.upgrade(state / "roost.db", "0001")
    with sqlite3.connect(state / "roost.db") as database:
        database.execute("INSERT INTO accounts (id, name, created_ns) VALUES (1, ?, 1)", [FIRST_ACCOUNT])
        database.execute(OLD_JOB)
    for path in state.iterdir():
        os.chown(path, state.stat().st_uid, state.stat().st_gid)
    served = serving(state)
    with served.client() as client:
        shown = client.get(f"{JOBS}/old/status").json()
        assert (shown["request_id"], shown["status"], shown["persistent"]) == ("old-id", "pending", False)
        assert client.post(JOBS, json={"script": "true", "workspace_id": "w"}).status_code == 202
    assert served.stop() == 0


def test_a_stop_survives_kill_9(state: Path) -> None:
    served = serving(state)
    with served.client() as client:
        job = client.post(JOBS, json={"script": "echo hi"}).json()["request_id"]
        client.post(f"{JOBS}/{job}/stop")
    served.kill()
    served = serving(state)
    with served.client() as client:
        assert client.get(f"{JOBS}/{job}/status").json()["stopped"] is True
    assert served.stop() == 0


def test_secrets_lie_nowhere_readable(served: Served, state: Path) -> None:
    with served.client() as client:
        answer = client.post(JOBS, json={"script": "echo hi", "environment": {"PASSWORD": SECRET}})
        job = answer.json()["request_id"]
        files = [path.read_bytes() for path in [*state.iterdir(), served.events]]
        assert not any(text.encode() in content for text in (SECRET, TOKEN) for content in files)
        assert state.joinpath("secret.key").stat().st_mode & 0o777 == 0o600
        sealed = "SELECT environment IS NOT NULL FROM jobs WHERE request_id = ?"
        with sqlite3.connect(state / "roost.db") as database:
            assert database.execute(sealed, [job]).fetchone() == (1,)
            client.post(f"{JOBS}/{job}/stop")
            assert database.execute(sealed, [job]).fetchone() == (0,)


def test_sigterm_ends_it_in_order_with_pending_jobs_kept(state: Path) -> None:
    served = serving(state)
    with served.client() as client:
        job = client.post(JOBS, json={"script": "echo hi"}).json()["request_id"]
    assert served.stop() == 0
    served = serving(state)
    with served.client() as client:
        assert client.get(f"{JOBS}/{job}/status").json()["status"] == "pending"
    assert served.stop() == 0


def test_sigterm_does_not_wait_for_those_who_follow(served: Served) -> None:
    with served.client() as client:
        job = client.post(JOBS, json={"script": "echo hi"}).json()["request_id"]
        with client.stream("GET", f"{JOBS}/{job}/logs?follow=true") as events:
            assert served.stop() == 0
            assert "".join(events.iter_text()) == ""


def test_a_new_first_token_replaces_the_old_one(state: Path) -> None:
    served = serving(state)
    with served.client() as client:
        job = client.post(JOBS, json={"script": "echo hi"}).json()["request_id"]
    served.stop()
    served = serving(state, token="another-token-0123456789")
    with served.client() as old, served.client("another-token-0123456789") as new:
        assert old.get(JOBS).status_code == 401
        assert new.get(f"{JOBS}/{job}/status").status_code == 200
    assert served.stop() == 0


def test_a_taken_port_is_named_and_ends_it(state: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = launch(state, tmp_path / "events", port=port)
        assert process.wait(20) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in (tmp_path / "events").read_text()


def test_a_database_of_a_newer_roost_is_left_alone(state: Path, tmp_path: Path) -> None:
    served = serving(state)
    served.stop()
    with sqlite3.connect(state / "roost.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    process = launch(state, tmp_path / "events")
    assert process.wait(20) == 1
    assert "newer Roost" in (tmp_path / "events").read_text()


def test_a_file_that_is_no_database_is_left_alone(state: Path, tmp_path: Path) -> None:
    (state / "roost.db").write_bytes(b"something else" * 1000)
    process = launch(state, tmp_path / "events")
    assert process.wait(20) == 1
    assert "cannot be opened as a database" in (tmp_path / "events").read_text()
    assert (state / "roost.db").read_bytes() == b"something else" * 1000


def test_the_head_that_files_name_is_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.VERSIONS.parent))
    assert ScriptDirectory.from_config(config).get_current_head() == migrate.head()


def test_a_job_that_cannot_be_stored_is_not_accepted_and_service_goes_on(state: Path) -> None:
    served = serving(state, file_size=700_000)  # bytes in any file, as if the disk were full
    with served.client() as client:
        answer = client.post(JOBS, json={"script": "#" * 900_000})
        assert answer.status_code == 503, answer.text
        assert "cannot be written" in answer.json()["error"]
        assert client.post(JOBS, json={"script": "echo kept"}).status_code == 202
        assert client.get(JOBS).json()["total"] == 1
    assert served.stop() == 0
