"""A job through the HTTP API, from submission to its last line."""

import os
import signal
import time
from datetime import datetime

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import Api, RunningRoost, eventually


def test_a_script_runs_and_its_output_comes_back(api: Api) -> None:
    ended = api.run("echo out; echo err >&2; exit 0")
    assert (ended.status, ended.exit_code, ended.stdout, ended.stderr) == ("completed", 0, b"out\n", b"err\n")
    assert ended.state["script_duration_ms"] >= 0
    assert ended.state["started_at"] <= ended.state["completed_at"]
    entries = {entry["source"]: entry for entry in api.logs(ended.request_id)}
    assert (entries["stdout"]["message"], entries["stdout"]["level"]) == ("out", "info")
    assert (entries["stderr"]["message"], entries["stderr"]["level"]) == ("err", "error")
    assert all(datetime.fromisoformat(entry["timestamp"]) for entry in entries.values())


def test_another_exit_status_is_an_error_with_that_status(api: Api) -> None:
    ended = api.run("echo before; exit 7")
    assert (ended.status, ended.exit_code, ended.stdout) == ("error", 7, b"before\n")


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGSEGV, 139), (signal.SIGKILL, 137), (signal.SIGTERM, 143)])
def test_a_script_that_a_signal_ends_has_128_and_the_signal_as_its_status(
    api: Api, number: int, exit_code: int
) -> None:
    ended = api.run(f"echo before; kill -{int(number)} $$; echo after")
    assert (ended.status, ended.exit_code, ended.stdout) == ("error", exit_code, b"before\n")


def test_the_first_line_is_seen_while_the_script_still_runs(api: Api) -> None:
    job = api.submit("echo first; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo last")
    events = api.follow(job)
    assert next(events)["data"]["message"] == "first"
    assert api.status(job)["status"] == "running"
    api.exec(job, "touch /tmp/go")
    rest = list(events)
    assert [event["data"]["message"] for event in rest[:-1]] == ["last"]
    assert (rest[-1]["event"], rest[-1]["data"]["status"], rest[-1]["data"]["exit_code"]) == ("end", "completed", 0)


def test_a_follower_that_comes_back_misses_nothing_and_sees_nothing_twice(api: Api) -> None:
    job = api.submit("for i in $(seq 200); do echo line $i; done")
    events = api.follow(job)
    seen = [next(events) for _ in range(50)]
    seen += list(api.follow(job, **{"Last-Event-ID": seen[-1]["id"]}))
    assert [event["data"]["message"] for event in seen[:-1]] == [f"line {i}" for i in range(1, 201)]


def test_both_streams_keep_the_order_in_which_they_were_written(api: Api) -> None:
    ended = api.run("for i in 1 2 3 4 5; do echo $i; sleep 0.05; echo $i >&2; sleep 0.05; done")
    shown = [(entry["message"], entry["source"]) for entry in api.logs(ended.request_id)]
    assert shown == [(f"{i}", source) for i in range(1, 6) for source in ("stdout", "stderr")]


def test_binary_output_comes_back_byte_for_byte(api: Api) -> None:
    ended = api.run("#!/usr/bin/python3\nimport sys\nsys.stdout.buffer.write(bytes(range(256)) * 3000)\n")
    assert ended.stdout == bytes(range(256)) * 3000
    content, end = api.follow_bytes(ended.request_id)
    assert content == ended.stdout
    assert end and end["exit_code"] == 0


def test_a_script_names_its_own_interpreter(api: Api) -> None:
    ended = api.run("#!/usr/bin/env python3\nimport sys\nprint(sys.version_info.major, sys.argv[1:])\nsys.exit(5)\n")
    assert (ended.lines, ended.exit_code) == (["3 []"], 5)


def test_the_environment_reaches_the_script_unchanged(api: Api) -> None:
    values = {"PLAIN": "value", "SPACES": "  a b  ", "QUOTES": "\"'`$HOME\\", "LINES": "one\ntwo", "UNICODE": "äß→🐦"}
    script = "#!/usr/bin/python3\nimport json, os\nprint(json.dumps(dict(os.environ)))\n"
    import json

    seen = json.loads(api.run(script, environment=values).stdout)
    assert {name: seen[name] for name in values} == values
    assert (seen["HOME"], seen["USER"]) == ("/root", "root")
    assert "/usr/bin" in seen["PATH"]


def test_the_limits_that_were_asked_for_hold(roost: RunningRoost, api: Api) -> None:
    job = api.submit("df -k / | tail -1; echo told; sleep 60", vcpus=0.5, memory_mb=96, disk_gb=1)
    line = api.said(job, b"told").decode().splitlines()[0].split()
    assert 0.9 * 1024**2 < int(line[1]) <= 1024**2
    site = roost.site_of(job)
    if os.path.isdir("/sys/fs/cgroup/memory"):
        assert site.control("memory", "memory.limit_in_bytes") == str(96 * 1024**2)
        quota, period = (int(site.control("cpu", f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        assert quota / period == pytest.approx(0.5)
        assert int(site.control("pids", "pids.max")) == 512
    else:
        assert site.control("", "memory.max") == str(96 * 1024**2)
        quota, period = (int(word) for word in site.control("", "cpu.max").split())
        assert quota / period == pytest.approx(0.5)
    api.stop(job)


def test_a_sandbox_gets_no_more_cpu_time_than_its_share(roost: RunningRoost, api: Api) -> None:
    job = api.submit("for i in 1 2 3 4; do while :; do :; done & done; wait", vcpus=0.25)
    site = roost.site_of(job)

    def used() -> float:
        if os.path.isdir("/sys/fs/cgroup/cpuacct"):
            return int(site.control("cpuacct", "cpuacct.usage")) / 1e9
        return int(site.control("", "cpu.stat").split()[1]) / 1e6

    eventually(lambda: used() > 0.3)
    begun, before = time.monotonic(), used()
    eventually(lambda: used() - before > 0.4)
    assert (used() - before) / (time.monotonic() - begun) < 0.35
    api.stop(job)


def test_a_script_that_runs_too_long_is_killed_with_all_its_children(roost: RunningRoost, api: Api) -> None:
    script = "echo begun; (setsid sleep 500 &); sleep 500 & (trap '' TERM; sleep 500) & sleep 500"
    job = api.submit(script, timeout=2)
    site = roost.site_of(job)
    ended = api.wait(job, 20)
    assert (ended.status, ended.exit_code, ended.stdout) == ("error", 137, b"begun\n")
    assert "timed out" in ended.error
    assert "2 s" in ended.error
    assert b"timed out" in ended.remarks
    eventually(lambda: not site.pids(), 10, "processes of the script are left")


def test_a_stopped_job_is_completed_and_says_so(roost: RunningRoost, api: Api) -> None:
    job = api.submit("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    api.said(job, b"ready")
    site = roost.site_of(job)
    assert api.stop(job)["success"] is True
    ended = api.wait(job, 5)
    assert (ended.status, ended.state["stopped"], ended.stdout) == ("completed", True, b"ready\nbye\n")
    eventually(lambda: not site.pids(), 10)
    assert api.stop(job)["success"] is True


def test_a_job_is_found_by_its_name_the_running_one_first(api: Api) -> None:
    name = f"häuschen {time.monotonic_ns()}"
    first = api.run("true", name=name).request_id
    import urllib.parse

    path = urllib.parse.quote(name)
    assert api.status(path)["request_id"] == first
    second = api.submit("echo second > /root/which; echo ready; sleep 60", name=name)
    api.said(second, b"ready")
    api.run("true", name=name)
    assert api.status(path)["request_id"] == second
    assert api.exec(path, "cat /root/which")["stdout"] == "second\n"
    assert api.stop(path)["success"] is True
    assert api.wait(second, 10).state["stopped"] is True


def test_jobs_are_listed_newest_first_in_pages(api: Api) -> None:
    jobs = [api.run("true").request_id for _ in range(3)]
    page = api.call("GET", "/mags-jobs?page=1&page_size=2")
    assert [job["request_id"] for job in page["jobs"]] == jobs[:0:-1]
    assert (page["page"], page["page_size"]) == (1, 2)
    assert page["total"] >= 3
    following = api.call("GET", "/mags-jobs?page=2&page_size=2")["jobs"]
    assert following[0]["request_id"] == jobs[0]


def test_unknown_jobs_and_wrong_tokens_are_refused(api: Api) -> None:
    for path in ("status", "logs"):
        status, answer = api.ask("GET", f"/mags-jobs/no-such-job/{path}")
        assert (status, list(answer)) == (404, ["error"])
    assert Api(api.url, "x" * 40).ask("GET", "/mags-jobs")[0] == 401
    assert api.ask("POST", "/mags-jobs", {"script": "", "type": "inline"})[0] == 400
    status, answer = api.ask("POST", "/mags-jobs", {"script": "true", "type": "inline", "rootfs_type": "no-such"})
    assert 400 <= status < 500
    assert "no-such" in answer["error"]


def test_the_pool_and_health_are_told(api: Api) -> None:
    job = api.submit("echo ready; sleep 60")
    api.said(job, b"ready")
    pool = api.call("GET", "/mags-jobs/pool-status")
    assert pool["busy_vms"] >= 1
    assert pool["total_vms"] >= pool["busy_vms"] + pool["idle_vms"]
    assert (pool["min_pool_size"], pool["max_pool_size"]) == (3, 0)
    assert api.call("GET", "/health")["node"] == "ready"
    api.stop(job)


# ---- exec ----
@pytest.fixture(scope="module")
def busy_job(roost: RunningRoost) -> str:
    """A job whose script does nothing for as long as the tests of this file run."""
    job = roost.api.submit("echo ready; exec sleep 1000")
    roost.api.said(job, b"ready")
    return job


def test_a_command_runs_beside_the_script(api: Api, busy_job: str) -> None:
    result = api.exec(busy_job, "echo out; echo err >&2; pwd; exit 9")
    assert (result["exit_code"], result["stderr"]) == (9, "err\n")
    assert result["stdout"].startswith("out\n")
    assert api.exec(busy_job, "kill -9 $$")["exit_code"] == 137


def test_a_command_that_takes_too_long_is_ended_and_says_so(api: Api, busy_job: str) -> None:
    result = api.exec(busy_job, "echo begun; sleep 100", timeout=0.5)
    assert (result["timed_out"], result["stdout"], result["exit_code"]) == (True, "begun\n", 137)
    assert result["duration_ms"] < 5000
    assert result["note"] == "the limit of 0.5 s ended it; give a larger timeout"


def running_with(api: Api, job: str, words: str) -> int:
    """Processes whose command line has `words`, whose last character is looked for as a class: grep is none of them."""
    pattern = f"{words[:-1]}[{words[-1]}]"
    return int(api.exec(job, f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o '{pattern}' | wc -l")["stdout"])


def test_what_a_command_leaves_in_its_session_ends_with_it(api: Api, busy_job: str) -> None:
    assert api.exec(busy_job, "sleep 7654 & echo done")["stdout"] == "done\n"
    eventually(lambda: running_with(api, busy_job, "sleep 7654") == 0)


@pytest.mark.parametrize("detach", ["setsid -f {} >/dev/null 2>&1", "nohup setsid {} >/dev/null 2>&1 &", "nohup {} &"])
def test_what_a_command_detaches_survives_each_time(api: Api, busy_job: str, detach: str) -> None:
    """Twenty at a time, so that the machine is busy and their parents end before them."""
    from concurrent.futures import ThreadPoolExecutor

    command, count = detach.format("sleep 8765"), 200
    with ThreadPoolExecutor(20) as threads:
        results = list(threads.map(lambda _: api.exec(busy_job, command), range(count)))
    assert [result["exit_code"] for result in results] == [0] * count
    api.exec(busy_job, "sleep 7655 &")
    eventually(lambda: running_with(api, busy_job, "sleep 7655") == 0)
    assert running_with(api, busy_job, "sleep 8765") == count
    api.exec(busy_job, "pkill -f 'sleep 876[5]'")
    eventually(lambda: running_with(api, busy_job, "sleep 8765") == 0)


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("#!/bin/bash\r\necho hi\r\n", 127, [b"no such interpreter: /bin/bash\\r", b"CRLF"]),
        ("#!/no/such\necho hi", 127, [b"no such interpreter: /no/such"]),
        ("nosuch", 127, [b"nosuch"]),
        ("\ufeff#!/bin/bash\n[[ a == a ]]", None, [b"byte order mark (BOM)"]),
    ],
)
def test_a_script_that_cannot_be_executed_ends_as_a_shells_would_and_says_why(
    api: Api, script: str, code: int | None, words: list[bytes]
) -> None:
    job = api.run(script)
    assert code in (None, job.exit_code)
    assert all(word in job.stderr + job.remarks for word in words)


def test_output_of_a_command_above_4_mb_is_cut_and_that_is_said(api: Api, busy_job: str) -> None:
    result = api.exec(busy_job, "head -c 6000000 /dev/zero | tr '\\0' x; echo end >&2; exit 3")
    assert result["truncated"] is True
    assert 3_900_000 < len(result["stdout"]) <= 4_194_304
    begin, gap, end = result["stdout"].split("\n")
    assert (result["exit_code"], set(begin), set(end)) == (3, {"x"}, {"x"})
    assert gap == f"[{6_000_000 - len(begin) - len(end)} bytes are left out here]"
    assert "4 MB" in result["note"] and result["stderr"] == "end\n"


def test_the_error_at_the_end_of_much_output_is_kept(api: Api) -> None:
    job = api.run("echo begin; seq 3000000; echo 'the error' >&2; exit 3")
    assert job.exit_code == 3
    lines = api.call("GET", f"/mags-jobs/{job.request_id}/logs")["logs"]
    assert (lines[0]["message"], lines[1]["message"]) == ("begin", "1")
    gap = next(at for at, line in enumerate(lines) if line["source"] == "system")
    assert "MB of output are left out here" in lines[gap]["message"]
    assert int(lines[gap - 1]["message"][:3])
    rest = [line["message"] for line in lines[gap:]]  # of two streams neither waits for the other
    assert "the error" in rest and "3000000" in rest[-4:]


def test_the_log_of_a_sandbox_that_stays_goes_on_for_good(api: Api) -> None:
    job = api.submit("seq 2000000; echo still here; sleep infinity", persistent=True)
    api.said(job, b"still here")
    with api.open("GET", f"/mags-jobs/{job}/logs?follow=true") as answer:
        first = [answer.readline() for _ in range(30)]
    assert b"id: 1\n" in first
    resumed = {"Last-Event-ID": "1999998"}
    with api.open("GET", f"/mags-jobs/{job}/logs?follow=true", None, 30, **resumed) as answer:
        ids = [answer.readline() for _ in range(9)][::3]
    assert ids == [b"id: 1999999\n", b"id: 2000000\n", b"id: 2000001\n"]  # as if nothing were missing
    api.stop(job)


def test_many_commands_at_once_get_their_own_answers(api: Api, busy_job: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda i: api.exec(busy_job, f"echo {i}; exit {i}"), range(40)))
    assert [(result["exit_code"], result["stdout"]) for result in results] == [(i, f"{i}\n") for i in range(40)]


def test_a_command_in_a_job_that_has_ended_is_a_conflict(api: Api) -> None:
    job = api.run("true").request_id
    status, answer = api.ask("POST", f"/mags-jobs/{job}/exec", {"command": "true"})
    assert status == 409
    assert "completed" in answer["error"]


# ---- many at once ----
def test_jobs_beyond_the_capacity_wait_their_turn() -> None:
    with an_instance("--min-pool-size", "1", "--max-pool-size", "2") as small:
        api = small.start().api
        jobs = [api.submit(f"echo {i}; sleep 0.3") for i in range(6)]
        assert "pending" in {api.status(job)["status"] for job in jobs[2:]}
        ended = [api.wait(job) for job in jobs]
        assert [job.stdout for job in ended] == [f"{i}\n".encode() for i in range(6)]
        assert {job.status for job in ended} == {"completed"}
        begun = [job.state["started_at"] for job in ended]
        assert begun == sorted(begun)


def test_a_job_that_waits_can_be_stopped_and_never_runs() -> None:
    with an_instance("--min-pool-size", "1", "--max-pool-size", "1") as small:
        api = small.start().api
        first, second = api.submit("echo ready; sleep 100"), api.submit("echo never")
        api.said(first, b"ready")
        api.stop(second)
        ended = api.wait(second)
        assert (ended.status, ended.state["stopped"], ended.stdout) == ("completed", True, b"")
        assert "vm_id" not in ended.state
        api.stop(first)


def test_the_largest_script_and_environment_reach_the_sandbox(api: Api) -> None:
    comment = "#" * (1024 * 1024 - 100)
    ended = api.run(f"echo ${{#BIG}}\n{comment}\necho end", environment={"BIG": "x" * 131_000})
    assert (ended.status, ended.lines) == ("completed", ["131000", "end"]), ended.error


def test_a_burst_larger_than_the_pool_completes(api: Api) -> None:
    jobs = [api.submit(f"echo {i}") for i in range(30)]
    ended = [api.wait(job) for job in jobs]
    assert [job.stdout for job in ended] == [f"{i}\n".encode() for i in range(30)]
    assert {job.status for job in ended} == {"completed"}


# ---- what programs are told of their machine ----
SEEN = """
nproc; python3 -c 'import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))'; grep -c ^processor /proc/cpuinfo
awk '/MemTotal/{print $2}' /proc/meminfo; free -m | awk '/Mem:/{print $2} /Swap:/{print $2}'
df --output=size -k /dev/shm | tail -1; awk '{print ($1 < 60)}' /proc/uptime; grep -c '^cpu[0-9]' /proc/stat
"""


@pytest.mark.parametrize(("vcpus", "seen"), [(0.5, 1), (1, 1), (1.5, 2)])
def test_programs_see_their_sandboxs_processors_memory_and_uptime(api: Api, vcpus: float, seen: int) -> None:
    lines = api.run(SEEN, vcpus=vcpus, memory_mb=512).lines
    assert [line.strip() for line in lines] == [
        *(str(seen), f"{seen} {seen}", str(seen), str(512 * 1024), "512", "0", str(256 * 1024), "1", str(seen)),
    ]


def test_shared_memory_counts_against_the_sandboxs(api: Api) -> None:
    fits = api.run("head -c 200M /dev/zero > /dev/shm/x && wc -c < /dev/shm/x", memory_mb=512)
    assert fits.text == "209715200\n"
    ended = api.run("head -c 300M /dev/zero > /dev/shm/x", memory_mb=512)
    assert b"No space left" in ended.stderr
