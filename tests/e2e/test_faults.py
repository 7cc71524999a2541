"""Kills, full disks and losses: what was accepted ends as it really ended, once, with all of its output.

The programs are killed by SIGKILL at each step of a job; `roost up` starts them again, or is started again itself.
"""

import contextlib
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import (
    CGROUPS,
    PROGRAM,
    RUN,
    Api,
    Ended,
    RunningRoost,
    SandboxSite,
    clean_environment,
    eventually,
    mounts,
)

VICTIMS = [("node",), ("serve",), ("serve", "node"), ("up",)]  # the others end with `up`
LINES = 60
COUNTING = f"for i in $(seq {LINES}); do echo $i; echo e$i >&2; sleep 0.02; done; exit 3"
COUNTED = "".join(f"{i}\n" for i in range(1, LINES + 1)).encode()

each_victim = pytest.mark.parametrize("victims", VICTIMS, ids="+".join)


def kill_and_recover(roost: RunningRoost, victims: tuple[str, ...]) -> None:
    roost.kill(*victims)
    if "up" in victims:
        roost.start()
    roost.healthy()


def assert_counted(roost: RunningRoost, ended: Ended) -> None:
    """It ran once, to its end, and nothing of it was lost, repeated or reordered."""
    assert ended.stdout == COUNTED
    assert ended.stderr == b"".join(b"e" + line + b"\n" for line in COUNTED.split())
    assert (ended.status, ended.exit_code, ended.error) == ("error", 3, "")
    assert starts_of(roost, ended.state["vm_id"]) == 1


def starts_of(roost: RunningRoost, vm_id: str) -> int:
    states = [event for event in roost.events("sandbox.state") if event.get("id") == vm_id]
    return len({state["started_ns"] for state in states if state.get("started_ns")})


# ---- who comes meanwhile ----


def test_who_comes_while_the_control_plane_is_started_again_waits_and_is_served(mortal_roost: RunningRoost) -> None:
    """Its listening sockets are kept by `up`: the API's, the HTTP gateway's, SSH's."""
    mortal_roost.kill("serve")
    assert mortal_roost.api.ask("GET", "/mags-jobs", timeout=60)[0] == 200
    mortal_roost.kill("serve")
    for address in (mortal_roost.gateway, mortal_roost.ssh):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: nobody.apps.localhost\r\n\r\n")
            assert connection.recv(4) in (b"HTTP", b"SSH-")


# ---- killed at each step ----


@each_victim
def test_a_job_that_was_just_accepted(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    job = mortal_roost.api.submit(COUNTING)
    kill_and_recover(mortal_roost, victims)
    assert_counted(mortal_roost, mortal_roost.api.wait(job))


@each_victim
def test_jobs_that_are_starting(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    jobs = [mortal_roost.api.submit(COUNTING) for _ in range(6)]
    eventually(lambda: mortal_roost.api.status(jobs[1])["status"] == "running")
    kill_and_recover(mortal_roost, victims)
    for job in jobs:
        assert_counted(mortal_roost, mortal_roost.api.wait(job))


@each_victim
def test_a_job_that_is_writing_output(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    job = mortal_roost.api.submit(COUNTING)
    mortal_roost.api.said(job, b"10\n")
    kill_and_recover(mortal_roost, victims)
    assert_counted(mortal_roost, mortal_roost.api.wait(job))


@each_victim
def test_a_job_that_has_just_ended(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    job = mortal_roost.api.submit(COUNTING)
    mortal_roost.api.said(job, f"\n{LINES}\n".encode())
    time.sleep(0.025)  # the last pause of the script: it ends about when its programs do
    kill_and_recover(mortal_roost, victims)
    assert_counted(mortal_roost, mortal_roost.api.wait(job))


@each_victim
def test_a_job_that_is_being_stopped(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api = mortal_roost.api
    job = api.submit(
        "trap 'echo stopping; sleep 1; echo stopped; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    )
    api.said(job, b"ready")
    asked = threading.Thread(target=_stop_quietly, args=(api, job))
    asked.start()
    api.said(job, b"stopping")
    kill_and_recover(mortal_roost, victims)
    ended = mortal_roost.api.wait(job, 20)
    asked.join(60)
    assert ended.stdout.startswith(b"ready\nstopping\n")
    assert (ended.status, ended.state.get("stopped")) == ("completed", True)
    assert ended.exit_code in (5, 137)  # its own, or KILL's when its time was over before a node was there again


def _stop_quietly(api: Api, job: str) -> None:
    with contextlib.suppress(Exception):
        api.stop(job)


def test_jobs_submitted_while_the_programs_die_again_and_again(mortal_roost: RunningRoost) -> None:
    accepted: list[str] = []
    stop = threading.Event()

    def submit() -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):
                status, answer = mortal_roost.api.ask(
                    "POST", "/mags-jobs", {"script": "echo once", "type": "inline"}, 5
                )
                if status == 202:
                    accepted.append(answer["request_id"])
            stop.wait(0.05)

    submitter = threading.Thread(target=submit)
    submitter.start()
    try:
        for victims in (("serve",), ("node",), ("serve", "node")):
            before = len(accepted)
            mortal_roost.kill(*victims)
            eventually(lambda before=before: len(accepted) >= before + 5, 30)
    finally:
        stop.set()
        submitter.join()
    mortal_roost.healthy()
    for job in accepted:
        ended = mortal_roost.api.wait(job)
        assert (ended.status, ended.exit_code, ended.stdout) == ("completed", 0, b"once\n")
    assert mortal_roost.api.call("GET", "/mags-jobs")["total"] >= len(accepted)


def test_one_who_follows_sees_every_byte_once_across_restarts(mortal_roost: RunningRoost) -> None:
    command = [*PROGRAM, "run", "--state", str(mortal_roost.state), COUNTING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()) as run:
        assert run.stdout
        begun = run.stdout.readline() + run.stdout.readline()
        mortal_roost.kill("serve")
        begun += b"".join(run.stdout.readline() for _ in range(20))
        mortal_roost.kill("node")
        assert begun + run.stdout.read() == COUNTED
        assert run.wait(20) == 3
    mortal_roost.healthy()


def test_waiting_jobs_keep_their_order_across_a_kill() -> None:
    with an_instance("--min-pool-size", "1", "--max-pool-size", "1") as small:
        api = small.start().api
        jobs = [api.submit(f"echo {i}; sleep 0.5") for i in range(4)]
        api.said(jobs[0], b"0")
        kill_and_recover(small, ("serve", "node"))
        ended = [api.wait(job) for job in jobs]
        assert [job.stdout for job in ended] == [f"{i}\n".encode() for i in range(4)]
        begun = [job.state["started_at"] for job in ended]
        assert begun == sorted(begun)


def test_a_timeout_goes_on_while_the_programs_are_away(mortal_roost: RunningRoost) -> None:
    job = mortal_roost.api.submit("echo begun; sleep 100", timeout=3)
    mortal_roost.api.said(job, b"begun")
    kill_and_recover(mortal_roost, ("serve", "node"))
    ended = mortal_roost.api.wait(job, 15)
    assert (ended.status, ended.exit_code) == ("error", 137)
    assert "timed out" in ended.error


def test_exec_works_on_a_job_that_was_taken_over(mortal_roost: RunningRoost) -> None:
    job = mortal_roost.api.submit("echo ready; sleep 100")
    mortal_roost.api.said(job, b"ready")
    kill_and_recover(mortal_roost, ("node",))
    result = mortal_roost.api.exec(job, "echo here; exit 4")
    assert (result["stdout"], result["exit_code"]) == ("here\n", 4)
    mortal_roost.api.stop(job)
    assert mortal_roost.api.wait(job, 15).state["stopped"] is True


# ---- losses are told, never invented ----


def test_a_sandbox_that_loses_its_init_has_no_exit_status(mortal_roost: RunningRoost) -> None:
    job = mortal_roost.api.submit("echo ready; sleep 100")
    mortal_roost.api.said(job, b"ready")
    os.kill(mortal_roost.site_of(job).init, signal.SIGKILL)
    ended = mortal_roost.api.wait(job, 20)
    assert (ended.status, ended.state.get("exit_code"), ended.stdout) == ("error", None, b"ready\n")
    assert "exit status is unknown" in ended.error
    assert b"exit status is unknown" in ended.remarks


def test_what_a_loss_of_the_machine_took_is_called_lost(own_roost: RunningRoost) -> None:
    api = own_roost.api
    over = api.run("echo over; exit 4")
    job = api.submit("echo ready; sleep 100")
    api.said(job, b"ready")
    own_roost.kill("serve", "node", "up")
    eventually(lambda: not kill_all(own_roost.guests()))
    own_roost.start()
    lost = own_roost.api.wait(job)
    assert (lost.status, lost.exit_code, lost.stdout) == ("error", None, b"ready\n")
    assert "unknown" in lost.error
    again = own_roost.api.wait(over.request_id)
    assert (again.stdout, again.exit_code, again.state) == (b"over\n", 4, over.state)


def kill_all(pids: list[int]) -> list[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def test_waiting_jobs_outlast_an_orderly_restart() -> None:
    with an_instance("--min-pool-size", "1", "--max-pool-size", "1") as small:
        api = small.start().api
        jobs = [api.submit("echo ready; sleep 100"), api.submit("echo first"), api.submit("echo second")]
        api.said(jobs[0], b"ready")
        assert small.terminate() == 0
        assert small.left_behind() == []
        small.start()
        ended = [small.api.wait(job) for job in jobs]
        assert [(job.status, job.stdout) for job in ended[1:]] == [
            ("completed", b"first\n"),
            ("completed", b"second\n"),
        ]
        assert "shut down" in ended[0].error


def test_a_number_is_its_instances_own_until_all_of_it_has_stopped(
    own_roost: RunningRoost,
) -> None:
    """Another instance that starts in that moment must not get the same addresses, names and user ids."""
    assert own_roost.process
    claim = own_roost.runtime_dir / "state"
    own_roost.process.terminate()
    seen: list[bool] = []
    while own_roost.process.poll() is None:
        whole = claim.exists() or not own_roost.pid("node")
        seen.append(whole)
    assert seen
    assert all(seen[:-1])
    assert own_roost.process.wait() == 0


def test_history_and_logs_survive_an_orderly_restart(own_roost: RunningRoost) -> None:
    before = own_roost.api.run("echo kept; exit 9", name="kept", environment={"A": "b"})
    running = own_roost.api.submit("echo ready; sleep 100")
    own_roost.api.said(running, b"ready")
    assert own_roost.terminate() == 0
    assert own_roost.left_behind() == []
    own_roost.start()
    after = own_roost.api.wait("kept")
    assert (after.state, after.stdout) == (before.state, b"kept\n")
    ended = own_roost.api.wait(running)
    assert (ended.status, ended.stdout) == ("error", b"ready\n")
    assert "shut down" in ended.error


# ---- disks ----


@pytest.fixture
def small_roost(tmp_path: Path) -> Iterator[RunningRoost]:
    """Not started; its state lies on a file system of 400 MB of its own."""
    image = tmp_path / "state.img"
    subprocess.run(["truncate", "-s", "400M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with an_instance("--min-pool-size", "1") as instance:
        instance.state.mkdir(mode=0o711)
        subprocess.run(["mount", "-o", "loop", image, instance.state], check=True)
        try:
            yield instance
            if instance.process and instance.process.poll() is None:
                assert instance.terminate() == 0
        finally:
            if instance.process and instance.process.poll() is None:
                instance.process.kill()
                instance.process.wait(10)
            subprocess.run(["umount", instance.state], check=True)


def fill(directory: Path) -> Path:
    """Take all of the room that is left there."""
    filler = directory / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(b"x")
    return filler


def test_on_a_full_state_directory_nothing_is_lost_and_errors_are_clear(small_roost: RunningRoost) -> None:
    api = small_roost.start().api
    assert api.run("echo before").stdout == b"before\n"
    job = api.submit("echo ready; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo after; exit 6")
    api.said(job, b"ready")
    filler = fill(small_roost.state)
    accepted: list[str] = []
    refusals: list[tuple[int, str]] = []
    for _ in range(5):
        status, answer = api.ask("POST", "/mags-jobs", {"script": "echo during; " + "#" * 20_000, "type": "inline"})
        accepted += [answer["request_id"]] if status == 202 else []
        refusals += [] if status == 202 else [(status, answer["error"])]
    print("refusals:", refusals)
    assert api.ask("GET", "/mags-jobs")[0] == 200
    assert api.ask("GET", "/health")[0] == 200
    filler.unlink()
    for status, text in refusals:
        assert status == 503
        assert "full" in text or "cannot be written" in text or "No space" in text
    for one in accepted:
        ended = api.wait(one)
        assert (ended.status, ended.stdout) == ("completed", b"during\n")
    went_on, _ = api.ask("POST", f"/mags-jobs/{job}/exec", {"command": "touch /tmp/go"})
    ended = api.wait(job)
    if went_on == 200:
        assert (ended.exit_code, ended.stdout) == (6, b"ready\nafter\n")
    else:  # it was the largest when the disk was full
        assert "disk was nearly full" in ended.error
    assert api.run("echo again").stdout == b"again\n"


def test_a_start_on_a_full_or_read_only_state_directory_says_so(small_roost: RunningRoost) -> None:
    filler = fill(small_roost.state)
    small_roost.launch()
    assert small_roost.process
    assert small_roost.process.wait(60) == 1
    assert "Error: " in small_roost.said()
    assert "No space left" in small_roost.said()
    assert "Traceback" not in small_roost.said()
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_roost.state], check=True)
    small_roost.launch()
    assert small_roost.process.wait(60) == 1
    assert "Error: " in small_roost.said()
    assert "Read-only" in small_roost.said()
    assert "Traceback" not in small_roost.said()
    subprocess.run(["mount", "-o", "remount,rw", small_roost.state], check=True)
    assert small_roost.start().api.run("echo works").stdout == b"works\n"


def test_a_stop_during_the_start_leaves_nothing(unstarted_roost: RunningRoost) -> None:
    unstarted_roost.launch()
    eventually(lambda: any(str(RUN / f"{unstarted_roost.claimed()}/guest") in line for line in mounts()))
    assert unstarted_roost.terminate() == 0
    assert unstarted_roost.claimed() == -1  # what is there of a number that was not given back, the fixture looks for


# ---- privileges and secrets ----


def test_the_control_plane_cannot_read_what_is_the_nodes(own_roost: RunningRoost) -> None:
    serve = own_roost.pid("serve")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{serve}/status").read_text().splitlines())
    user = pwd.getpwnam("roost").pw_uid
    assert set(status["Uid"].split()) == {str(user)}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    inside = Path(f"/proc/{serve}/root{own_roost.state}")
    assert (inside / "serve").exists()
    assert not (inside / "node").exists()
    assert not (inside / "credentials.json").exists()
    for path in (own_roost.state / "node", own_roost.state / "credentials.json", Path("/var/lib/roost/images")):
        reading = ["setpriv", f"--reuid={user}", "--clear-groups", "ls" if path.is_dir() else "cat", str(path)]
        assert subprocess.run(reading, capture_output=True, check=False).returncode != 0, path
    socket = own_roost.runtime_dir / "node.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o660
    assert (socket.stat().st_uid, socket.stat().st_gid) == (0, pwd.getpwnam("roost").pw_gid)


def test_users_of_the_machine_find_nothing_of_guests_below_run(own_roost: RunningRoost) -> None:
    job = own_roost.api.submit("echo secret > /root/file; echo ready; exec sleep 100")
    own_roost.api.said(job, b"ready")
    member = own_roost.runtime_dir / "members" / str(own_roost.site_of(job).member)
    assert (member / "disk/upper/root/file").read_text() == "secret\n"  # root does
    roost = pwd.getpwnam("roost").pw_uid
    for user in (65534, roost):
        looking = [
            "find",
            own_roost.runtime_dir / "node.sock",
            own_roost.runtime_dir,
            member,
            member / "disk/upper",
            member / "guest.sock",
        ]
        found = subprocess.run(
            looking, user=user, group=user, capture_output=True, text=True, check=False
        ).stdout.split()
        assert str(own_roost.runtime_dir / "node.sock") in found  # they may pass, to what is theirs
        assert not [path for path in found if "/members/" in path or "/oci/" in path]


def test_secrets_are_in_no_file_and_no_log(own_roost: RunningRoost) -> None:
    secret, api = f"secret-{uuid.uuid4().hex}", own_roost.api
    job = api.submit("echo ready; sleep 100", environment={"PASSWORD": secret})
    waiting = {"script": "true", "type": "inline", "environment": {"PASSWORD": secret}, "nonsense": secret}
    assert api.ask("POST", "/mags-jobs", waiting)[0] == 400
    api.said(job, b"ready")
    assert api.exec(job, "echo $PASSWORD")["stdout"] in (f"{secret}\n", "\n")
    for moment in ("running", "over"):
        assert holders(own_roost, secret.encode()) == [], moment
        assert holders(own_roost, api.token.encode()) == [str(own_roost.state / "credentials.json")], moment
        if moment == "running":
            api.stop(job)
            api.wait(job)
            kill_and_recover(own_roost, ("serve", "node"))
    assert secret not in json.dumps(api.call("GET", f"/mags-jobs/{job}"))


def holders(roost: RunningRoost, secret: bytes) -> list[str]:
    """Files of this instance, and command lines on this machine, that hold these bytes."""
    files = [roost.log, *roost.state.rglob("*"), *roost.runtime_dir.glob("*"), *roost.runtime_dir.glob("members/*/*")]
    found: list[str] = []
    for path in files:
        if path.is_file() and "disks" not in path.parts and secret in path.read_bytes():
            found.append(str(path))
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if secret in process.read_bytes():
                found.append(str(process))
    return found


# ---- what does not die ----


@pytest.fixture
def undying(own_roost: RunningRoost) -> Iterator[SandboxSite]:
    """A sandbox with a process that SIGKILL does not reach, as one that waits in the kernel, until the test's end."""
    job = own_roost.api.submit("sleep 1000 & echo $!; wait")
    own_roost.api.said(job, b"\n")
    site = own_roost.site_of(job)
    freezer = CGROUPS / "freezer"
    if not freezer.is_dir():
        pytest.skip("on cgroup v2 what is frozen dies, and nothing else stays in the kernel on request")
    group = freezer / f"roost-{site.instance}" / f"roost-{site.instance}-{site.member}" / "stuck"
    group.mkdir()
    [asleep] = [pid for pid in site.pids() if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep")]
    (group / "cgroup.procs").write_text(str(asleep))
    (group / "freezer.state").write_text("FROZEN")
    yield site
    if group.exists():
        (group / "freezer.state").write_text("THAWED")


@pytest.mark.slow
def test_an_orderly_end_goes_on_past_what_does_not_die(own_roost: RunningRoost, undying: SandboxSite) -> None:
    """It says so, leaves nothing else, and the next start removes the rest."""
    number = own_roost.number
    name = f"roost-{number}-{undying.member}"
    others = [own_roost.api.submit("exec sleep 1000") for _ in range(2)]
    for job in others:
        own_roost.api.running(job)
    assert own_roost.terminate() == 0, own_roost.said()[-3000:]
    assert [event["containers"] for event in own_roost.events("members.left")] == [[name]]
    assert "Traceback" not in own_roost.said()
    assert own_roost.claimed() == number  # so that no other instance meets what is left
    assert not [line for line in mounts() if f" {own_roost.place}/" in line or f" {RUN / str(number)}/" in line]
    assert not list(Path("/sys/class/net").glob(f"r{number}v*"))
    assert {group.name for group in CGROUPS.glob(f"*/roost-{number}/*/")} == {name}
    assert {path.name for path in (RUN / str(number) / "members").iterdir()} == {str(undying.member)}

    own_roost.start()  # not held up by it either
    assert own_roost.api.run("echo here").stdout == b"here\n"
    for state in CGROUPS.glob(f"freezer/roost-{number}/{name}/stuck/freezer.state"):
        state.write_text("THAWED")
    eventually(lambda: not list(CGROUPS.glob(f"*/roost-{number}/{name}")), 30, "it is still there")
