"""What must work on a machine, tried there through the installed program by an ordinary user who may use sudo.

`python3 -m tests.machines.checks GROUP…` in the checkout, with the machine's own Python and nothing but its
standard library. Each check prints a line with its time; the first that fails ends the run with status 1.
"""

import contextlib
import json
import re
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.instance import Api, eventually

STATE = Path("/var/lib/roost")
ROOST = Path(".venv/bin/roost")
GATEWAY = "127.0.0.1:8485"
LONG = 120  # seconds: a machine under emulation is 10 to 20 times slower than itself
KEPT = Path("/var/tmp/machine-checks.json")  # what the groups tell each other, across a reboot too

CHECKS: dict[str, list[Callable[[Api], None]]] = {}
Check = Callable[[Api], None]


def check(*groups: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        for group in groups:
            CHECKS.setdefault(group, []).append(function)
        return function

    return add


def api() -> Api:
    credentials = json.loads((STATE / "credentials.json").read_text())
    return Api(credentials["api_url"], credentials["api_token"])


def program(*words: str, limit: float = LONG, stdin: bytes = b"") -> bytes:
    """Standard output of a `roost` command that must succeed."""
    done = subprocess.run([ROOST, *words], input=stdin, capture_output=True, timeout=limit)
    assert done.returncode == 0, f"roost {' '.join(words)}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
    return done.stdout


def root(command: str, limit: float = LONG) -> str:
    """Standard output of a shell command of root's."""
    done = subprocess.run(["sudo", "sh", "-c", command], capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, f"{command}: {done.returncode} {done.stdout} {done.stderr}"
    return done.stdout


def ended(api: Api, script: str, **fields: object) -> tuple[str, int | None, str, str]:
    """Status, exit code, output and error of a job."""
    job = api.run(script, LONG, **fields)
    return job.status, job.exit_code, job.text.strip(), job.error


def standing(api: Api, **fields: object) -> str:
    """A persistent job whose script has ended well."""
    job = api.submit("mkdir -p /root/site; echo from-the-site > /root/site/index.html", persistent=True, **fields)
    eventually(lambda: api.status(job).get("exit_code") == 0, LONG, "its script did not end")
    return job


def said(api: Api, job: str, command: str) -> str:
    answer = api.exec(job, command, LONG)
    assert answer["exit_code"] == 0, answer
    return str(answer["output"] if "output" in answer else answer["stdout"]).strip()


# ---- what was installed ------------------------------------------------------------------------------------


@check("first")
def running_needs_nothing_that_only_tests_need(_: Api) -> None:
    found = [place.name for place in Path(".venv").glob("lib/python3*/site-packages/*.dist-info")]
    assert found
    assert not [name for name in found if name.startswith(("pytest", "playwright", "pyright", "ruff"))]


@check("first")
def doctor_finds_nothing_missing(_: Api) -> None:
    done = subprocess.run(["sudo", ROOST, "doctor"], capture_output=True, text=True, timeout=2 * LONG)
    assert done.returncode == 0, done.stdout + done.stderr


@check("first", "brief")
def a_script_says_hello(_: Api) -> None:
    assert program("run", "echo hello from $(hostname); echo 6*7 | sed s/6.7/42/").splitlines()[-1] == b"42"


# ---- limits ------------------------------------------------------------------------------------------------


MANY_THREADS = """#!/usr/bin/python3
import os, threading, time
threading.stack_size(65536)
for number in range(1500):
    try:
        threading.Thread(target=time.sleep, args=(300,), daemon=True).start()
    except RuntimeError:
        break
print(number, flush=True)
os._exit(0)
"""


@check("limits", "brief")
def memory_is_limited(api: Api) -> None:
    script = "#!/usr/bin/python3\nhoard = [b'x' * 1048576 for _ in range(400)]\n"
    _, code, _, error = ended(api, script, memory_mb=128)
    assert code == 137
    assert "out of memory" in error, error


@check("limits", "brief")
def processes_are_limited(api: Api) -> None:
    _, code, output, error = ended(api, MANY_THREADS, memory_mb=1024)  # they count as processes, and are made faster
    assert (code, 100 < int(output or 1500) < 1100) == (0, True), (output, error)


@check("limits", "brief")
def cpu_is_limited(api: Api) -> None:
    script = "from time import *; b, c = time(), process_time()\nwhile time() - b < 6: pass\nprint(process_time() - c)"
    status, _, output, error = ended(api, f"python3 -c '{script}'", vcpus=0.3)
    assert status == "completed", (output, error)
    assert float(output) < 0.45 * 6, output


@check("limits", "brief")
def disk_is_limited(api: Api) -> None:
    _, code, output, error = ended(api, "fallocate -l 1500M /root/big 2>&1; df -m / | tail -1; rm /root/big", disk_gb=1)
    assert code == 0, (output, error)
    assert "No space left" in output, output


@check("limits", "brief")
def time_is_limited(api: Api) -> None:
    status, _, _, error = ended(api, "sleep 600", timeout=3)
    assert (status, "3 s" in error) == ("error", True), error


@check("limits")
def limits_hold_after_systemd_has_looked_at_its_groups_again(api: Api) -> None:
    job = standing(api, memory_mb=300)
    root("systemctl daemon-reload")
    assert f"{300 * 2**20}" in controls("memory.max").split()
    cpus = controls("cpu.max")
    assert re.search(r"^\d+ 100000$", cpus, re.MULTILINE), cpus
    api.stop(job)


def controls(file: str) -> str:
    """That file of every sandbox's control group."""
    return root(f"cat $(find /sys/fs/cgroup -type d -name 'roost-0-*' | sed 's,$,/{file},')")


# ---- sleep -------------------------------------------------------------------------------------------------


@check("sleep", "brief")
def a_frozen_sandbox_wakes_where_it_was(api: Api) -> None:
    job = standing(api)
    said(api, job, "setsid -f sleep 4711")
    before = said(api, job, "pgrep -x sleep")
    api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": "frozen"}, LONG)
    eventually(lambda: api.status(job).get("sleep_depth") == "frozen", LONG)
    assert "frozen 1" in controls("cgroup.events")
    assert said(api, job, "pgrep -x sleep") == before
    api.stop(job)


@check("sleep")
def a_cold_sandbox_wakes_with_its_files(api: Api) -> None:
    job = standing(api, startup_command="date > /run/woken; cd /root/site && exec python3 -m http.server 8080")
    api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": "cold"}, LONG)
    eventually(lambda: api.status(job).get("sleep_depth") == "cold", LONG)
    assert said(api, job, "cat /root/site/index.html") == "from-the-site"
    eventually(lambda: api.exec(job, "test -s /run/woken")["exit_code"] == 0, LONG)
    api.stop(job)


# ---- files -------------------------------------------------------------------------------------------------


@check("files", "brief")
def a_workspace_is_saved_forked_and_restored(api: Api) -> None:
    w, v = f"w{time.time_ns()}", f"v{time.time_ns()}"
    assert ended(api, "echo one > /root/f", workspace_id=w)[0] == "completed"
    assert ended(api, "cat /root/f; echo two > /root/f; mv /var/log /var/log2", workspace_id=w)[2] == "one"
    assert ended(api, "cat /root/f; ls -d /var/log2", base_workspace_id=w)[2] == "two\n/var/log2"
    assert ended(api, "cat /root/f; echo fork > /root/f", workspace_id=v, base_workspace_id=w)[2] == "two"
    revisions = api.call("GET", f"/mags-workspaces/{w}/revisions")["revisions"]
    program("workspace", "restore", w, revisions[-1]["revision"])
    assert ended(api, "cat /root/f", workspace_id=w)[2] == "one"
    assert ended(api, "cat /root/f", base_workspace_id=v)[2] == "fork"


@check("files")
def an_upload_is_there(api: Api) -> None:
    Path("/tmp/upload.bin").write_bytes(bytes(range(256)) * 512)
    told = program("run", "-f", "/tmp/upload.bin", "sha256sum < upload.bin").decode().split()[0]
    assert told == subprocess.run(["sha256sum", "/tmp/upload.bin"], capture_output=True, text=True).stdout.split()[0]


@check("files")
def output_of_commands_is_byte_for_byte(api: Api) -> None:
    job = standing(api, name="bytes")
    assert program("exec", "-i", "bytes", "cat", stdin=b"in\xff\n") == b"in\xff\n"
    api.stop(job)


# ---- doors -------------------------------------------------------------------------------------------------


@check("doors", "brief")
def a_url_leads_into_the_sandbox(api: Api) -> None:
    job = standing(api, name="site", startup_command="cd /root/site && exec python3 -m http.server 8080")
    api.exec(job, "cd /root/site && setsid -f python3 -m http.server 8080 >/dev/null 2>&1")
    url = program("url", "site", "8080").decode().split()[-1]
    host = url.split("//")[1].split("/")[0].split(":")[0]
    request = urllib.request.Request(f"http://{GATEWAY}/", headers={"Host": host})
    with urllib.request.urlopen(request, timeout=LONG) as answer:
        assert answer.read() == b"from-the-site\n"
    api.stop(job)


@check("doors")
def somebody_logs_in_by_ssh(api: Api) -> None:
    job = standing(api, name="door", workspace_id="door")
    assert program("ssh", "door", "id -un; cat /root/site/index.html").decode().split() == ["root", "from-the-site"]
    api.stop(job)


def sources() -> str:
    return Path("/etc/apt/sources.list.d/machine.sources").read_text()


@check("doors")
def a_sandbox_reaches_the_machines_resolver(api: Api) -> None:
    name = next(line.split("//")[1].split("/")[0] for line in sources().splitlines() if line.startswith("URIs:"))
    _, code, output, _ = ended(api, f"getent hosts {name} || {{ cat /etc/resolv.conf; exit 1; }}")
    assert code == 0, output


@check("cron")
def a_schedule_runs_at_its_minute(api: Api) -> None:
    fields = {"name": "each", "cron_expression": "* * * * *", "script": "echo from-cron"}
    cron = api.call("POST", "/mags-cron", fields)["id"]

    def over() -> dict[str, Any] | None:
        runs = api.call("GET", f"/mags-cron/{cron}/runs")["runs"]
        return runs[-1] if runs and "ended_at" in runs[-1] else None

    run = eventually(over, 60 + LONG)
    assert run and run["exit_code"] == 0
    api.call("DELETE", f"/mags-cron/{cron}")


# ---- kills -------------------------------------------------------------------------------------------------


@check("kills")
def a_job_outlives_each_program(api: Api) -> None:
    job = api.submit("for i in $(seq 100000); do echo $i; sleep 1; done", timeout=3600)
    api.said(job, b"2\n", LONG)
    for name in ("node", "serve"):
        pid = pid_of(name)
        root(f"kill -9 {pid}")
        eventually(lambda name=name, pid=pid: pid_of(name) not in ("", pid), LONG, f"{name} was not started again")
        healthy(api)
    count = len(api.raw(job).splitlines())
    lines = eventually(lambda: (found := api.raw(job).splitlines())[count + 2 :] and found, LONG)
    assert [int(line) for line in lines] == list(range(1, len(lines) + 1)), "output was lost or came twice"
    api.stop(job)
    assert api.wait(job, LONG).status in ("completed", "error")


def pid_of(name: str) -> str:
    """Of `serve`, `node` or `up`; empty where there is none."""
    found = subprocess.run(["pgrep", "-f", f"python.* -m roost.cli {name}( |$)"], capture_output=True, text=True).stdout
    return next((pid for pid in found.split() if _parent_is_no_sudo(pid, name)), "")


def _parent_is_no_sudo(pid: str, name: str) -> bool:
    with contextlib.suppress(OSError):
        return b"sudo" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    return False


def healthy(api: Api) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return api.ask("GET", "/health", timeout=10)[1]["node"] == "ready"
        return False

    eventually(answers, 2 * LONG, "it did not become healthy again")


# ---- across a reboot ---------------------------------------------------------------------------------------


@check("before-reboot")
def a_service_holds_two_persistent_jobs(api: Api) -> None:
    sleeper = standing(api, workspace_id="asleep")
    awake = standing(
        api, workspace_id="awake", no_sleep=True, startup_command="cd /root/site && exec python3 -m http.server 8080"
    )
    for job in (sleeper, awake):
        api.call("POST", f"/mags-jobs/{job}/sync", None, LONG)
    KEPT.write_text(json.dumps({"sleeper": sleeper, "awake": awake}))


@check("before-reboot")
def a_service_that_is_killed_starts_again_beside_its_sandboxes(api: Api) -> None:
    job = api.submit("for i in $(seq 100000); do echo $i; sleep 1; done", timeout=3600)
    api.said(job, b"2\n", LONG)
    pid = pid_of("up")
    root(f"kill -9 {pid}")
    eventually(lambda: pid_of("up") not in ("", pid), LONG, "systemd did not start it again")
    healthy(api)
    count = len(api.raw(job).splitlines())
    eventually(lambda: api.raw(job).splitlines()[count + 2 :], LONG, "the job does not go on")
    api.stop(job)


@check("after-reboot")
def the_service_is_there_after_a_reboot(api: Api) -> None:
    eventually(lambda: subprocess.run(["systemctl", "is-active", "-q", "roost"]).returncode == 0, 3 * LONG)
    healthy(api)
    assert program("service", "status")


@check("after-reboot")
def persistent_jobs_have_their_files_after_a_reboot(api: Api) -> None:
    jobs = json.loads(KEPT.read_text())
    eventually(lambda: api.status(jobs["awake"])["status"] == "running", LONG, "no_sleep was not started again")
    for job in jobs.values():
        assert said(api, job, "cat /root/site/index.html") == "from-the-site"


@check("after-reboot")
def the_journal_is_readable(_: Api) -> None:
    told = root("journalctl -u roost -b --no-pager -o cat | head -200")
    assert "Roost is ready" in told, told
    assert "node.ready" in told, told
    assert '{"' not in told, told


# ---- what is left ------------------------------------------------------------------------------------------

TRACES = """
grep -E ' /(run/roost|var/lib/roost)/' /proc/self/mountinfo
find /sys/fs/cgroup -type d -name 'roost-[0-9]*'
ip -o link | grep -oE ' r[0-9]+v[^:@]*'
nft list tables | grep roost
losetup -a | grep roost
ls -d /run/roost/[0-9]*
ps -eo uid=,pid=,args= | awk '$1 >= 1073741824'
pgrep -af 'roost.cli (up|node|serve)' | grep -v pgrep
true
"""


@check("stopped")
def nothing_is_left(_: Api) -> None:
    left = [line for line in root(f"({TRACES}) 2>/dev/null").splitlines() if "machines.checks" not in line]
    assert not left, "\n".join(left)


def run(groups: list[str]) -> int:
    chosen = [one for group in groups for one in CHECKS[group]]
    for function in chosen:
        begun = time.monotonic()
        try:
            function(api() if "stopped" not in groups else Api("", ""))
        except Exception:
            traceback.print_exc()
            print(f"FAILED  {time.monotonic() - begun:6.1f} s  {sentence(function)}", flush=True)
            return 1
        print(f"ok      {time.monotonic() - begun:6.1f} s  {sentence(function)}", flush=True)
    return 0


def sentence(function: Check) -> str:
    return function.__name__.replace("_", " ")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
