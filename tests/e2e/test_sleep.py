"""Persistent jobs sleep, frozen or cold, and go on: by idle time and on demand, through kills and restarts."""

import contextlib
import http.client
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import Api, RunningRoost, SandboxSite, eventually, named
from tests.e2e.test_clients import Program, program_with
from tests.e2e.test_faults import kill_and_recover

pytestmark = pytest.mark.e2e

# The count is replaced whole: a file that is truncated and then written is empty when its writer is ended in between.
COUNTING = (
    "echo $$ > /root/pid; i=0; while :; do i=$((i+1)); echo $i > /root/.c; mv /root/.c /root/count; sleep 0.01; done"
)
VICTIMS = [("node",), ("serve",), ("serve", "node"), ("up",)]

each_victim = pytest.mark.parametrize("victims", VICTIMS, ids="+".join)


def persistent(api: Api, script: str = "sleep infinity", **fields: object) -> str:
    job = api.submit(script, persistent=True, **fields)
    api.running(job)
    return job


def sleep(api: Api, job: str, depth: str = "frozen") -> dict[str, Any]:
    return api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": depth})


def asleep(api: Api, job: str, depth: str) -> bool:
    state = api.status(job)
    return (state["status"], state.get("sleep_depth")) == ("sleeping", depth)


def count(api: Api, job: str) -> int:
    return int(eventually(lambda: api.exec(job, "cat /root/count")["stdout"].strip()))


def text_of(api: Api, job: str, command: str) -> str:
    answer = api.exec(job, command)
    assert answer["exit_code"] == 0, answer
    return answer["stdout"].strip()


# ---- frozen ------------------------------------------------------------------------------------------------


def test_an_unused_job_is_frozen_and_its_processes_go_on_where_they_were(api: Api) -> None:
    job = persistent(api, COUNTING, idle_minutes=0.02)
    before = text_of(api, job, "cat /root/pid"), count(api, job), api.status(job)["vm_id"]
    eventually(lambda: asleep(api, job, "frozen"))
    assert count(api, job) >= before[1]
    first = count(api, job)
    eventually(lambda: count(api, job) > first)
    assert (text_of(api, job, "cat /root/pid"), api.status(job)["vm_id"]) == (before[0], before[2])
    assert text_of(api, job, f"kill -0 {before[0]} && echo there") == "there"
    api.stop(job)


def test_a_frozen_job_stands_still(roost: RunningRoost) -> None:
    api = roost.api
    job = persistent(api, COUNTING)
    assert sleep(api, job)["sleep_depth"] == "frozen"
    used = eventually(lambda: cpu_of(roost, api.status(job)["vm_id"]))
    assert cpu_of(roost, api.status(job)["vm_id"]) == used
    api.stop(job)


def cpu_of(roost: RunningRoost, vm_id: str) -> int:
    """Nanoseconds of CPU that its sandbox has used."""
    member = next(event["member"] for event in reversed(members_of(roost)) if event["id"] == vm_id)
    return int(SandboxSite(roost.number, member).control("cpuacct", "cpuacct.usage"))


def members_of(roost: RunningRoost) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for path in (roost.state / "node" / "sandboxes").glob("*.json"):
        record = json.loads(path.read_text())
        records.append({"id": record["state"]["id"], "member": record["member"]})
    return records


def test_commands_followers_and_leases_keep_a_job_awake(api: Api) -> None:
    job = persistent(api, "echo begun; sleep infinity", idle_minutes=0.02)
    api.call("POST", f"/mags-jobs/{job}/keepalive", {"seconds": 60})
    assert "awake_until" in api.status(job)
    api.exec(job, "sleep 3")
    assert api.status(job)["status"] == "running"
    api.call("POST", f"/mags-jobs/{job}/keepalive", {"seconds": 0.001})
    events = api.follow(job)
    assert next(events)["data"]["message"] == "begun"
    api.exec(job, "sleep 2.5")
    assert api.status(job)["status"] == "running"
    events.close()
    eventually(lambda: asleep(api, job, "frozen"))
    api.stop(job)


def test_many_commands_at_once_on_a_sleeping_job_all_succeed(api: Api) -> None:
    job = persistent(api)
    for depth in ("frozen", "cold"):
        sleep(api, job, depth)
        with ThreadPoolExecutor(20) as callers:
            answers = list(callers.map(lambda n: api.exec(job, f"echo {n}", 60)["stdout"], range(20)))
        assert answers == [f"{n}\n" for n in range(20)]
    api.stop(job)


# ---- cold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keeps", [{}, {"workspace_id": "slept-on"}, {"workspace_id": "slept-on-local", "no_sync": True}], ids=str
)
def test_a_cold_job_keeps_its_files_and_runs_its_startup_command(api: Api, keeps: dict[str, Any]) -> None:
    job = persistent(
        api,
        "echo first; echo kept > /root/file; apt-get --version > /root/apt; exit 3",
        startup_command="echo woken $(cat /root/file) $KEY; cat /proc/sys/kernel/random/uuid > /root/startup",
        environment={"KEY": "value"},
        **keeps,
    )
    api.said(job, b"first")
    eventually(lambda: api.status(job).get("exit_code") == 3)
    before = api.status(job)
    state = sleep(api, job, "cold")
    assert (state["status"], state["sleeping"], state.get("vm_id"), state["exit_code"]) == ("sleeping", True, None, 3)
    if keeps:
        assert api.ask("POST", "/mags-jobs", {"script": "x", "type": "inline", **keeps})[0] == 409
    assert text_of(api, job, "cat /root/file") == "kept"
    after = api.status(job)
    assert (after["status"], after["exit_code"]) == ("running", 3) and after["vm_id"] != before["vm_id"]
    assert api.said(job, b"woken") == b"first\nwoken kept value\n"
    sleep(api, job, "cold")
    api.call("POST", f"/mags-jobs/{job}/wake")
    eventually(lambda: api.raw(job).count(b"woken") == 2)
    api.stop(job)
    ended = api.wait(job)
    assert (ended.status, ended.exit_code) == ("completed", 3)
    if keeps:
        assert api.run("cat /root/file", workspace_id=keeps["workspace_id"]).text == "kept\n"


@pytest.mark.parametrize("keeps", [{}, {"workspace_id": "rebooted"}], ids=str)
def test_a_cold_wake_clears_what_a_reboot_clears_and_keeps_what_it_keeps(api: Api, keeps: dict[str, Any]) -> None:
    name = f"Web_{len(keeps)}.{os.getpid()}"
    job = persistent(api, "sleep infinity", name=name, **keeps)
    host = f"web-{len(keeps)}-{os.getpid()}"
    assert text_of(api, job, "hostname; cat /etc/hostname; getent hosts $(hostname)").split() == [
        host,
        host,
        "127.0.1.1",
        host,
    ]
    text_of(
        api, job, "echo 1 > /run/app.pid; mkdir /run/app; mkfifo /run/app/p; echo x > /tmp/x; echo kept > /var/tmp/kept"
    )
    text_of(
        api,
        job,
        "echo 10.0.0.9 db >> /etc/hosts; echo pid > /var/run/other.pid; touch /run/lock/held; ls /run > /root/run",
    )
    sleep(api, job, "cold")
    assert text_of(api, job, "cat /var/tmp/kept; ls -A /tmp; stat -c %a /tmp; hostname") == f"kept\n1777\n{host}"
    left = text_of(api, job, "ls /run /run/lock").split()
    assert not {"app.pid", "app", "other.pid", "held"} & set(left) and "lock" in left
    assert (
        text_of(api, job, "getent hosts db; getent hosts $(hostname) | cut -d' ' -f1")
        == "10.0.0.9        db\n127.0.1.1"
    )
    text_of(api, job, "echo mine.example > /etc/hostname; printf 'nameserver 192.0.2.1\\n' > /etc/resolv.conf")
    for _ in range(2):
        sleep(api, job, "cold")
        told = text_of(api, job, "hostname; cat /etc/hostname /etc/resolv.conf; grep -c db /etc/hosts")
        assert told.split() == ["mine.example", "mine.example", "nameserver", "192.0.2.1", "1"]
    api.stop(job)
    if keeps:
        api.wait(job)
        fork = api.run("hostname; ls /run/app.pid", base_workspace_id=keeps["workspace_id"], name="fork")
        assert fork.lines == ["mine.example"] and fork.exit_code == 2


def test_what_nobody_edited_follows_the_sandbox_that_it_is_in(api: Api) -> None:
    assert api.run("hostname", workspace_id="first-home").text == "first-home\n"
    told = api.run(
        "hostname; cat /etc/hostname; tail -n 1 /etc/hosts", base_workspace_id="first-home", name="second home"
    )
    assert told.text.split() == ["second-home", "second-home", "127.0.1.1", "second-home"]


def test_a_sleeping_job_can_be_stopped_and_its_workspace_deleted(api: Api) -> None:
    for depth in ("frozen", "cold"):
        job = persistent(api, "echo x > /root/x; sleep infinity", workspace_id=f"asleep-{depth}")
        sleep(api, job, depth)
        assert api.ask("DELETE", f"/mags-workspaces/asleep-{depth}")[0] == 409
        api.stop(job)
        assert api.wait(job).status == "completed"
        assert api.ask("DELETE", f"/mags-workspaces/asleep-{depth}")[0] == 200


def test_settings_are_changed_while_it_lives(api: Api) -> None:
    job = persistent(api, "sleep infinity")
    changed = api.call("PATCH", f"/mags-jobs/{job}", {"startup_command": "echo again", "idle_minutes": 5})
    assert (changed["startup_command"], changed["idle_minutes"], changed.get("no_sleep")) == ("echo again", 5, None)
    sleep(api, job, "cold")
    assert api.call("PATCH", f"/mags-jobs/{job}", {"no_sleep": True})["status"] == "running"
    assert api.said(job, b"again")
    assert api.ask("POST", f"/mags-jobs/{job}/sleep")[0] == 409
    api.call("PATCH", f"/mags-jobs/{job}", {"no_sleep": False})
    assert sleep(api, job)["status"] == "sleeping"
    api.stop(job)
    assert api.ask("PATCH", f"/mags-jobs/{job}", {"no_sleep": True})[0] == 409


# ---- faults ------------------------------------------------------------------------------------------------


@each_victim
def test_frozen_and_cold_jobs_outlive_kills_and_wake(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api = mortal_roost.api
    jobs = {depth: persistent(api, COUNTING, workspace_id=named(depth)) for depth in ("frozen", "cold")}
    counts = {depth: count(api, job) for depth, job in jobs.items()}
    for depth, job in jobs.items():
        sleep(api, job, depth)
    kill_and_recover(mortal_roost, victims)
    for depth, job in jobs.items():
        eventually(lambda depth=depth, job=job: asleep(mortal_roost.api, job, depth))
        assert count(mortal_roost.api, job) >= counts[depth]
    first = count(mortal_roost.api, jobs["frozen"])
    eventually(lambda: count(mortal_roost.api, jobs["frozen"]) > first)
    for job in jobs.values():
        mortal_roost.api.stop(job)


@each_victim
def test_a_kill_while_it_goes_cold_loses_no_file(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api = mortal_roost.api
    script = "trap '' TERM; echo begun; while :; do sleep 1; done"  # five seconds pass before it is ended by KILL
    job = persistent(api, script, workspace_id=named("w"), startup_command="echo woken")
    api.said(job, b"begun")
    text_of(api, job, "echo kept > /root/file; sync")
    going = threading.Thread(target=lambda: api.ask("POST", f"/mags-jobs/{job}/sleep", {"depth": "cold"}))
    going.start()
    eventually(lambda: asleep(api, job, "cooling"))
    kill_and_recover(mortal_roost, victims)
    eventually(lambda: asleep(mortal_roost.api, job, "cold"))
    assert text_of(mortal_roost.api, job, "cat /root/file") == "kept"
    going.join()
    mortal_roost.api.stop(job)


@each_victim
def test_a_kill_during_a_wake_starts_it_once(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api = mortal_roost.api
    job = persistent(api, "true", workspace_id=named("w"), startup_command="echo woken; sleep infinity")
    sleep(api, job, "cold")
    waking = threading.Thread(target=lambda: wake(api, job))
    waking.start()
    mortal_roost.kill(*victims)
    waking.join()
    if "up" in victims:
        mortal_roost.start()
    mortal_roost.healthy()
    eventually(lambda: mortal_roost.api.ask("POST", f"/mags-jobs/{job}/wake")[0] == 200)
    assert mortal_roost.api.said(job, b"woken") == b"woken\n"
    mortal_roost.api.stop(job)


def wake(api: Api, job: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        api.ask("POST", f"/mags-jobs/{job}/wake")


def test_a_no_sleep_job_is_started_again_from_its_files_when_its_sandbox_dies(mortal_roost: RunningRoost) -> None:
    api = mortal_roost.api
    job = persistent(
        api,
        "echo kept > /root/file",
        workspace_id=named("w"),
        no_sleep=True,
        startup_command="echo again $(cat /root/file)",
    )
    eventually(lambda: api.status(job).get("exit_code") == 0)
    api.call("POST", f"/mags-jobs/{job}/sync")
    member = next(m["member"] for m in members_of(mortal_roost) if m["id"] == api.status(job)["vm_id"])
    os.kill(SandboxSite(mortal_roost.number, member).init, signal.SIGKILL)
    assert api.said(job, b"again") == b"again kept\n"
    assert "started again" in eventually(lambda: api.status(job).get("error"))
    assert api.status(job)["status"] == "running"
    api.stop(job)


def test_an_orderly_restart_puts_jobs_to_sleep_and_wakes_those_that_never_sleep() -> None:
    with an_instance("--min-pool-size", "1") as roost:
        api = roost.start().api
        sleeper = persistent(api, "echo x > /root/x; sleep infinity")
        always = {"no_sleep": True, "startup_command": "echo again; sleep infinity"}
        never = persistent(api, "echo first; sleep infinity", **always)
        roost.terminate()
        assert not roost.left_behind()
        api = roost.start().api
        assert asleep(api, sleeper, "cold")
        assert api.said(never, b"again") == b"first\nagain\n"
        assert text_of(api, sleeper, "cat /root/x") == "x"
        assert api.status(never)["status"] == "running"
        for job in (sleeper, never):
            api.stop(job)


def test_sleepers_make_room_after_their_time() -> None:
    with an_instance("--min-pool-size", "1", "--cold-after-minutes", "0.02", "--idle-minutes", "0.02") as roost:
        api = roost.start().api
        job = persistent(api, COUNTING)
        eventually(lambda: asleep(api, job, "cold"))
        assert count(api, job) > 0
        api.stop(job)


# ---- official clients --------------------------------------------------------------------------------------


@pytest.fixture
def program(roost: RunningRoost) -> Program:
    return program_with("1.3.8", roost)


def test_the_official_client_changes_wakes_and_enters_a_sleeping_job(program: Program, api: Api) -> None:
    made = program("tell(client.new('client-sleeper'))")
    sleep(api, made["request_id"], "cold")
    status, listed, output, changed = program("""
status = client.status(client.find_job('client-sleeper')['request_id'])['status']
listed = client.find_job('client-sleeper')['status']
output = client.exec('client-sleeper', 'echo $((20+22))')
changed = client.update_job('client-sleeper', startup_command='echo hi', no_sleep=False)
client.stop('client-sleeper')
tell([status, listed, output, changed])
""")
    assert (status, listed) == ("sleeping", "sleeping")
    assert (output["exit_code"], output["output"].strip()) == (0, "42")
    assert changed["startup_command"] == "echo hi"
