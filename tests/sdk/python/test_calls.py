"""Every method of both clients against the real API."""

import asyncio
import inspect
import re
import secrets
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost import AsyncRoost, Roost
from roost.sdk import Conflict, Invalid, MagsError, NotFound, RoostError, TimedOut, Unauthenticated
from roost.sdk.client import Methods
from roost.sdk.drivers import method, streamed
from tests.workspaces.conftest import TOKEN

from .conftest import World

ROOT = Path(__file__).parents[3]


def unique(word: str) -> str:
    return f"{word}-{secrets.token_hex(4)}"


def test_a_job_is_run_and_waited_for(world: World, roost: Any) -> None:
    world.ends_next(b"hello\nthere\n", exit_code=3)
    result = roost.run_and_wait("echo hello", name=unique("a"), environment={"A": "b"}, timeout=20, poll_interval=0.1)
    assert list(result) == ["request_id", "status", "exit_code", "duration_ms", "logs"]
    assert (result["exit_code"], result["duration_ms"]) == (3, 5)
    assert [line["message"] for line in result["logs"]] == ["hello", "there"]
    assert roost.status(result["request_id"])["status"] == result["status"]
    assert b"".join(roost.output(result["request_id"])) == b"hello\nthere\n"
    assert roost.logs(result["request_id"])["logs"] == result["logs"]
    assert roost.wait(result["request_id"]) == result


def test_waiting_ends_with_the_time_that_was_given(world: World, roost: Any) -> None:
    with pytest.raises(TimedOut, match="timed out after"):
        roost.run_and_wait("sleep 1", timeout=0.1, poll_interval=0.01)


def status_is_asked(world: World) -> Callable[[], None]:
    """What it gives waits until somebody who waits for a job has been answered, and so knows which."""

    def answered() -> int:
        return sum(world.plane.app.state.durations.counts.get(("GET", 2), []))

    before = answered()

    def wait() -> None:
        deadline = time.monotonic() + 60
        while answered() == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    return wait


def test_who_is_interrupted_while_he_waits_stops_his_job(world: World) -> None:
    name = unique("interrupted")
    with Roost(TOKEN, world.url) as roost:
        asked = status_is_asked(world)

        def interrupt() -> None:
            asked()
            interrupt_main()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            roost.run_and_wait("sleep 100", name=name, poll_interval=0.02)
        thread.join()
        assert roost.status(name)["stopped"] is True


async def test_a_task_that_is_cancelled_while_it_waits_stops_its_job(world: World) -> None:
    name = unique("cancelled")
    async with AsyncRoost(TOKEN, world.url) as roost:
        asked = status_is_asked(world)
        task = asyncio.create_task(roost.run_and_wait("sleep 100", name=name, poll_interval=0.02))
        await asyncio.to_thread(asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await roost.status(name))["stopped"] is True


def test_jobs_are_listed_found_and_stopped(world: World, roost: Any) -> None:
    name = unique("job")
    accepted = roost.run("x", name=name, persistent=True)
    assert roost.list_jobs(page=1, page_size=1)["jobs"][0]["request_id"] == accepted["request_id"]
    assert roost.find_job(name)["request_id"] == roost.get_job(name)["request_id"] == accepted["request_id"]
    assert roost.find_job(unique("nobody")) is None
    assert roost.update_job(accepted["request_id"], no_sleep=True)["no_sleep"] is True
    assert roost.update_job(name, startup_command="true", idle_minutes=3)["idle_minutes"] == 3
    assert roost.stop(name)["success"] is True


def test_sandboxes_are_made_resized_put_to_sleep_and_woken(world: World, roost: Any) -> None:
    name, sandbox = unique("box"), world.next_job()
    made = roost.new(name, persistent=True, timeout=20, poll_interval=0.05)
    assert made == {"request_id": made["request_id"], "status": "running"}
    sandbox()
    assert roost.keepalive(name, seconds=1)["success"] is True
    assert roost.sync(made["request_id"])["success"] is True
    assert roost.sleep(name)["status"] == "sleeping"
    assert roost.wake(name)["status"] == "running"
    again = roost.resize(name, 4, timeout=20, poll_interval=0.05)
    assert again["request_id"] != made["request_id"]
    assert roost.get_job(name)["disk_gb"] == 4
    roost.stop(name)


def test_logs_are_followed_to_the_end(world: World, roost: Any) -> None:
    sandbox = world.next_job()
    job = roost.run("x")["request_id"]
    vm_id = sandbox()
    lines = roost.follow_logs(job)
    world.do(lambda: world.plane.node.say(vm_id, b"one\n"))
    assert next(lines)["message"] == "one"
    world.do(lambda: world.plane.node.say(vm_id, b"two\nthree\n"))
    world.do(lambda: world.plane.node.end(vm_id))
    assert [line["message"] for line in lines] == ["two", "three"]
    assert (lines.end["status"], lines.end["exit_code"]) == ("completed", 0)
    assert [line["message"] for line in roost.follow_logs(job, after=2)] == ["three"]
    output = roost.follow_output(job)
    assert b"".join(one["data"] for one in output) == b"one\ntwo\nthree\n"


def test_a_stream_may_be_left(world: World, roost: Any) -> None:
    world.ends_next(b"one\ntwo\n")
    lines = roost.follow_logs(roost.run("x")["request_id"])
    next(lines)
    lines.close()
    assert lines.end is None


def test_files_are_uploaded_with_progress(world: World, roost: Any, tmp_path: Path) -> None:
    (tmp_path / 'a "b".bin').write_bytes(b"x" * 600_000)
    (tmp_path / "empty").touch()
    seen = list[tuple[int, int]]()
    first = roost.upload_file(tmp_path / 'a "b".bin', progress=lambda sent, size: seen.append((sent, size)))
    assert seen[-1] == (600_000, 600_000)
    assert world.plane.node.uploads[first] == b"x" * 4096  # what it keeps of one
    both = roost.upload_files([str(tmp_path / "empty"), str(tmp_path / 'a "b".bin')])
    assert world.plane.node.uploads[both[0]] == b""
    with pytest.raises(MagsError, match="File not found"):
        roost.upload_file("/nowhere")


def test_files_of_a_workspace_are_written_read_listed_and_deleted(world: World, roost: Any, tmp_path: Path) -> None:
    name = saved(world, roost)
    assert roost.write_file(name, "dir/a b%é", "text")["revision"]
    assert roost.read_file(name, "/dir/a b%é") == b"text"
    assert [entry["name"] for entry in roost.list_files(name, "dir")["entries"]] == ["a b%é"]
    (tmp_path / "local").write_bytes(b"y" * 300_000)
    roost.write_file(name, "b", tmp_path / "local", mode="0755")
    assert b"".join(roost.stream_file(name, "b")) == b"y" * 300_000
    assert roost.download_file(name, "b", tmp_path / "copy") == 300_000
    assert (tmp_path / "copy").read_bytes() == b"y" * 300_000
    assert sorted(one.name for one in tmp_path.iterdir()) == ["copy", "local"]
    with pytest.raises(RoostError, match="list_files"):
        roost.read_file(name, "dir")
    with pytest.raises(RoostError, match="read_file"):
        roost.list_files(name, "b")
    with pytest.raises(RoostError, match="tar=True"):
        roost.download_file(name, "dir", tmp_path / "copy")
    roost.delete_file(name, "b")
    with pytest.raises(NotFound):
        roost.read_file(name, "b")


def saved(world: World, roost: Any) -> str:
    """A workspace with a revision."""
    name = unique("space")
    world.ends_next()
    job = roost.run("x", workspace_id=name)["request_id"]
    roost.wait(job, timeout=20, poll_interval=0.05)
    return name


def test_workspaces_and_their_revisions(world: World, roost: Any) -> None:
    name = saved(world, roost)
    assert name in [one["workspace_id"] for one in roost.list_workspaces()["workspaces"]]
    first = roost.list_revisions(name)["revisions"][0]["revision"]
    roost.write_file(name, "later", b"")
    assert roost.restore_workspace(name, first)["revision"]
    assert roost.recover_workspace(name) == {
        "success": True, "message": f"All of workspace '{name}' is saved", "recovered": [], "unsaved": []
    }  # fmt: skip
    assert roost.check_workspace(name)["ok"] is True
    assert roost.delete_workspace(name)["success"] is True
    with pytest.raises(NotFound):
        roost.delete_workspace(name)


def test_cron_jobs(roost: Any) -> None:
    made = roost.cron_create(name=unique("c"), cron_expression="0 3 * * *", script="x", timezone="Europe/Berlin")
    assert roost.cron_get(made["id"])["timezone"] == "Europe/Berlin"
    assert made["id"] in [one["id"] for one in roost.cron_list()["cron_jobs"]]
    assert roost.cron_update(made["id"], enabled=False)["enabled"] is False
    assert roost.cron_runs(made["id"])["runs"] == []
    assert roost.cron_delete(made["id"])["success"] is True
    with pytest.raises(Invalid):
        roost.cron_create(name="c", cron_expression="never", script="x")


def test_urls_aliases_and_keys(world: World, roost: Any) -> None:
    name, sandbox = unique("web"), world.next_job()
    roost.run("x", workspace_id=name, persistent=True)
    sandbox()
    opened = roost.url(name, port=3000, access="token")
    assert (opened["port"], bool(opened["access_token"])) == (3000, True)
    assert roost.enable_access(name)["port"] == 8080
    assert roost.get_access(name)["url"] == opened["url"]
    alias = roost.url_alias_create(unique("al"), name, access="signed")
    assert roost.url_alias_link(alias["subdomain"], expires_in=60)["url"] != alias["url"]
    assert alias["id"] in [one["id"] for one in roost.url_alias_list()["aliases"]]
    assert roost.url_alias_delete(alias["subdomain"])["success"] is True
    assert roost.list_ssh_keys(name)["keys"] == []
    assert roost.disable_access(name)["success"] is True
    with pytest.raises(NotFound):
        roost.get_access(name)
    roost.stop(name)


def test_ssh_keys(roost: Any) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    made = roost.add_ssh_key(public, name="mine")
    assert made["id"] in [one["id"] for one in roost.list_ssh_keys()["keys"]]
    assert roost.remove_ssh_key(made["id"])["success"] is True


def test_the_account_its_tokens_and_images(roost: Any) -> None:
    assert roost.health()["status"] == "ok"
    assert "admin" in roost.whoami()["scopes"]
    made = roost.create_token(unique("t"), scope="read", expires_in=60)
    with Roost(made["token"], url_of(roost)) as reader, pytest.raises(MagsError) as refusal:
        reader.run("x")
    assert refusal.value.status_code == 403
    assert made["id"] in [one["id"] for one in roost.list_tokens()["tokens"]]
    roost.revoke_token(made["id"])
    with Roost(made["token"], url_of(roost)) as reader, pytest.raises(Unauthenticated):
        reader.whoami()
    assert roost.usage(window_days=1)["window_days"] == 1
    assert roost.pool_status()
    assert "limits" in roost.quotas()
    assert [one["current"] for one in roost.list_accounts()["accounts"]] == [True]
    assert roost.list_members()["members"] == []
    changes = (roost.add_member, lambda user: roost.change_member(user, "member"), roost.remove_member)
    for change in (*changes, roost.withdraw_invitation):
        with pytest.raises(NotFound):
            change("nobody")
    assert roost.list_invited()["invited"] == []
    assert "images" in roost.list_images()


def test_invitations_are_answered_by_whom_they_invite(world: World, roost: Any) -> None:
    name = unique("guest")
    with Roost(a_login(world.url, name), world.url) as guest:
        roost.add_member(name)
        assert [one["user"] for one in roost.list_invited()["invited"]] == [name]
        assert [one["account"] for one in guest.list_invitations()["invitations"]] == ["default"]
        assert guest.decline_invitation("default")["success"] is True
        assert roost.add_member(name, role="viewer")["role"] == "viewer"
        assert guest.accept_invitation("default") == {"name": "default", "role": "viewer", "current": False}
        roost.remove_member(name)


def a_login(url: str, name: str) -> str:
    """The token that `roost login` gets for a new user."""
    credentials = {"user": name, "password": "correct horse battery"}
    origin = {"Origin": url}
    with httpx.Client(base_url=url, follow_redirects=True) as browser:
        new = {"name": name, "password": credentials["password"]}
        browser.post("/api/v1/users", json=new, headers={"Authorization": f"Bearer {TOKEN}"}).raise_for_status()
        device = browser.post("/api/v1/device/code", json={"client_name": "a test"}).json()
        browser.post("/login", data=credentials, headers=origin).raise_for_status()
        page = browser.get("/device", params={"user_code": device["user_code"]}).text
        form = dict(re.findall(r'name="(\w+)" value="([^"]+)"', page)) | {"decision": "approve"}
        browser.post("/device", data=form, headers=origin).raise_for_status()
        asked = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": device["device_code"]}
        return str(browser.post("/api/v1/device/token", json=asked).json()["access_token"])


def url_of(roost: Any) -> str:
    return getattr(roost, "client", roost).api_url


def test_saved_jobs_templates_and_schedules(world: World, roost: Any) -> None:
    begun = roost.saved_job_create("x", name=unique("s"), environment={"A": "1"})
    job, run = begun["job_id"], begun["request_id"]
    assert roost.saved_job_get(job)["id"] in [one["id"] for one in roost.saved_job_list()["jobs"]]
    assert roost.saved_job_update(job, description="what for")["description"] == "what for"
    assert roost.saved_job_run(job, environment={"A": "2"})["job_id"] == job
    assert roost.saved_job_status(run)["request_id"] == run
    assert roost.saved_job_details(run)["run"]["request_id"] == run
    assert isinstance(roost.saved_job_vm_info(run), dict)
    assert roost.saved_job_cancel(run)["success"] is True
    template = roost.template_create("x", name=unique("t"), comment="first")["id"]
    assert roost.template_update(template, script="y", comment="why")["latest_revision"]["revision"] == 2
    assert roost.template_restore(template, 1)["latest_revision"]["script"] == "x"
    assert roost.template_revision(template, 2)["script"] == "y"
    assert roost.template_revisions(template)["total"] == 3
    assert roost.template_get(template)["id"] in [one["id"] for one in roost.template_list()["templates"]]
    assert roost.template_run(template, revision=2)["request_id"]
    schedule = roost.schedule_create(template, "0 0 * * *", enabled=False)["id"]
    assert roost.schedule_update(schedule, timezone="Asia/Tokyo")["timezone"] == "Asia/Tokyo"
    assert roost.schedule_get(schedule)["enabled"] is False
    assert [one["id"] for one in roost.schedule_list(job_id=template)["schedules"]] == [schedule]
    assert roost.schedule_runs(schedule)["runs"] == []
    assert roost.schedule_delete(schedule)["success"] is True
    assert roost.template_delete(template)["success"] is True
    assert roost.saved_job_delete(job)["success"] is True


def test_webhooks(roost: Any) -> None:
    made = roost.webhook_create("http://127.0.0.1:9/", events=["job.completed"])
    assert roost.webhook_update(made["id"], description="d")["description"] == "d"
    sent = roost.webhook_test(made["id"])
    assert sent["id"] in [one["id"] for one in roost.webhook_deliveries(made["id"])["deliveries"]]
    assert roost.webhook_redeliver(made["id"], sent["id"])["id"] == sent["id"]
    assert roost.webhook_rotate(made["id"])["secret"] != made["secret"]
    assert roost.webhook_get(made["id"])["id"] in [one["id"] for one in roost.webhook_list()["webhooks"]]
    assert roost.webhook_delete(made["id"])["success"] is True


def test_what_is_refused_has_a_type_a_status_and_the_servers_words(world: World, roost: Any) -> None:
    name = unique("w")
    roost.run("x", workspace_id=name, persistent=True)
    with pytest.raises(Conflict) as refusal:
        roost.delete_workspace(name)
    assert (refusal.value.status_code, name in refusal.value.message) == (409, True)
    with pytest.raises(NotFound):
        roost.status("nobody")
    with pytest.raises(Invalid, match="persistent"):
        roost.run("x", no_sleep=True)
    with pytest.raises(NotFound, match="No running or sleeping VM"):
        roost.exec(unique("nobody"), "true")
    for call in (roost.start_exec, lambda job, _: roost.list_execs(job), roost.exec_status):
        with pytest.raises(NotFound):
            call("nobody", "0000abcd")
    roost.stop(name)


def test_a_client_serves_several_threads(world: World) -> None:
    with Roost("t" * 32, world.url) as client:
        found = list[str]()
        threads = [threading.Thread(target=lambda: found.append(client.health()["status"])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == ["ok"] * 8


def test_both_clients_have_the_same_methods_with_names_and_words() -> None:
    assert [name for name in dir(Roost) if name[0] != "_"] != []
    for name, call in inspect.getmembers(Roost, inspect.isfunction):
        if name.startswith("_") or name in ("close", "do", "line"):
            continue
        other = getattr(AsyncRoost, name)
        assert inspect.signature(call) == inspect.signature(other), name
        assert (call.__doc__, call.__name__) == (other.__doc__, name)
        assert call.__doc__, name


def test_every_method_is_called_by_a_test() -> None:
    tests = Path(__file__).read_text() + (ROOT / "tests/e2e/test_python_sdk.py").read_text()
    methods = [name for name, kind in vars(Methods).items() if isinstance(kind, method | streamed)]
    assert len(methods) > 90
    assert not [name for name in methods if not re.search(rf"\.{name}\b", tests)]
