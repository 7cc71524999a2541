"""The `roost` command against a running instance, as a person or a script uses it."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.e2e.instance import PROGRAM, Api, RunningRoost, clean_environment, eventually
from tests.node.image_world import Tarball


def begin(roost: RunningRoost, *words: str) -> subprocess.Popen[bytes]:
    command = [*PROGRAM, words[0], "--state", str(roost.state), *words[1:]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())


def test_run_shows_output_as_it_comes_and_ends_with_the_scripts_status(roost: RunningRoost, api: Api) -> None:
    name = f"streaming-{time.monotonic_ns()}"
    with begin(roost, "run", "-n", name, "echo first; while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 42") as run:
        assert run.stdout and run.stdout.readline() == b"first\n"
        assert api.status(name)["status"] == "running"
        api.exec(name, "touch /tmp/go")
        assert run.wait(20) == 42


def test_run_passes_bytes_through_unchanged_on_their_own_streams(roost: RunningRoost) -> None:
    script = "i=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %03o $i)\"; i=$((i+1)); done; printf 'e\\377' >&2"
    shown = roost.command("run", script)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, bytes(range(256)), b"e\xff")


def test_run_reads_a_file_or_standard_input(roost: RunningRoost, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("#!/usr/bin/python3\nprint('from python')\n")
    assert roost.command("run", str(script)).stdout == b"from python\n"
    assert roost.command("run", "-", input=b"echo from stdin").stdout == b"from stdin\n"


def test_standard_input_reaches_the_script(roost: RunningRoost) -> None:
    assert roost.command("run", "cat", input=b"x\n").stdout == b"x\n"
    every = bytes(range(256)) * 20_000  # more than any window on the way
    counted = roost.command("run", "sha256sum; echo over", input=every)
    assert counted.stdout == f"{hashlib.sha256(every).hexdigest()}  -\nover\n".encode()
    assert roost.command("run", "--no-stdin", "cat", input=b"x\n").stdout == b""
    assert roost.command("run", "head -c 2", input=b"y\n" * 5_000_000).stdout == b"y\n"
    program = "#!/usr/bin/python3\nimport sys; print(sys.stdin.read().upper())"
    assert roost.command("run", program, input=b"upper").stdout == b"UPPER\n"


def test_a_pipe_that_nobody_writes_holds_up_only_who_reads_it(roost: RunningRoost) -> None:
    command = [*PROGRAM, "run", "--state", str(roost.state)]
    reading, writing = os.pipe()
    try:
        done = subprocess.run([*command, "echo done"], stdin=reading, capture_output=True, env=clean_environment())
        assert (done.returncode, done.stdout) == (0, b"done\n")
        with subprocess.Popen(
            [*command, "echo ready; cat"], stdin=reading, stdout=subprocess.PIPE, env=clean_environment()
        ) as run:
            assert run.stdout and run.stdout.readline() == b"ready\n"
            for word in (b"one\n", b"two\n"):  # as it comes
                os.write(writing, word)
                assert run.stdout.readline() == word
            os.close(writing)
            writing = -1
            assert run.wait(20) == 0
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def test_run_takes_variables_of_the_callers(roost: RunningRoost) -> None:
    variables = clean_environment() | {"OURS": "from here"}
    command = [*PROGRAM, "run", "--state", str(roost.state), "--env", "OURS", "echo $OURS"]
    assert subprocess.run(command, capture_output=True, env=variables, check=False).stdout == b"from here\n"


def test_run_hands_on_environment_timeout_and_image(roost: RunningRoost) -> None:
    shown = roost.command("run", "-e", "A=1", "-e", "B=x=y", "--image", "standard", "echo $A $B")
    assert shown.stdout == b"1 x=y\n"
    late = roost.command("run", "--timeout", "1", "echo begun; sleep 60")
    assert (late.returncode, late.stdout) == (137, b"begun\n")
    assert b"timed out" in late.stderr


def test_ctrl_c_stops_the_job(roost: RunningRoost, api: Api) -> None:
    name = f"interrupted-{time.monotonic_ns()}"
    with begin(roost, "run", "-n", name, "echo ready; sleep 100") as run:
        assert run.stdout and run.stdout.readline() == b"ready\n"
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
        assert run.stderr and b"stopping" in run.stderr.read()
    assert api.wait(name, 10).state["stopped"] is True


def test_a_reader_that_goes_away_ends_run_quietly(roost: RunningRoost) -> None:
    command = f"{' '.join(PROGRAM)} run --state {roost.state} 'seq 100000' | head -n 1"
    shown = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=False, env=clean_environment())
    assert (shown.stdout, shown.stderr) == (b"1\n", b"")


def test_list_status_logs_stop_and_exec_name_the_same_job(roost: RunningRoost, api: Api) -> None:
    name = f"commands-{time.monotonic_ns()}"
    job = api.submit("echo line; echo wrong >&2; sleep 100", name=name)
    api.said(job, b"line")
    assert name.encode() in roost.command("list").stdout
    assert json.loads(roost.command("list", "--json").stdout)["jobs"][0]["request_id"] == job
    assert b"running" in roost.command("status", name).stdout
    assert json.loads(roost.command("status", job, "--json").stdout)["name"] == name
    eventually(lambda: api.raw(job, "stderr"))
    logs = roost.command("logs", name)
    assert (logs.returncode, logs.stdout, logs.stderr) == (0, b"line\n", b"wrong\n")
    result = roost.command("exec", name, "printf '%s' in-it; echo no >&2; exit 4")
    assert (result.returncode, result.stdout, result.stderr) == (4, b"in-it", b"no\n")
    assert roost.command("exec", name, "echo", "a  b", "$HOME").stdout == b"a  b $HOME\n"
    assert roost.command("exec", name, "--", "echo", "-n", "a  b").stdout == b"a  b"
    with begin(roost, "logs", "-f", name) as follower:
        assert follower.stdout and follower.stdout.readline() == b"line\n"
        assert roost.command("stop", name).returncode == 0
        assert follower.wait(20) == 0
    assert b"completed" in roost.command("status", name).stdout


def test_exec_passes_bytes_through_unchanged_and_without_a_limit(roost: RunningRoost, api: Api) -> None:
    name = f"bytes-{time.monotonic_ns()}"
    api.said(api.submit("echo up; sleep 100", name=name), b"up")
    every = (
        "printf \"$(i=0; while [ $i -lt 256 ]; do printf '\\\\%03o' $i; i=$((i+1)); done)\"; printf '\\033[31mred' >&2"
    )
    shown = roost.command("exec", name, every)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, bytes(range(256)), b"\x1b[31mred")
    big = roost.command("exec", name, "head -c 9000000 /dev/zero | tr '\\0' x")
    assert (big.returncode, len(big.stdout)) == (0, 9_000_000)
    api.call("POST", f"/mags-jobs/{name}/stop")


def test_our_own_failures_are_told_from_a_commands_status(roost: RunningRoost, api: Api) -> None:
    name = f"statuses-{time.monotonic_ns()}"
    api.said(api.submit("echo up; sleep 100", name=name), b"up")
    for code in (0, 1, 2, 125, 255):
        assert roost.command("exec", name, f"exit {code}").returncode == code
    for words in (("exec", "no-such-job", "true"), ("exec", name), ("exec", "--bogus", name, "true"), ("run",)):
        assert roost.command(*words).returncode == 125, words
    late = roost.command("exec", "--timeout", "1", name, "sleep 50")
    assert (late.returncode, b"its limit of 1 s" in late.stderr) == (137, True)
    variables = clean_environment() | {"MAGS_API_URL": "http://127.0.0.1:9", "MAGS_API_TOKEN": "x" * 32}
    away = subprocess.run([*PROGRAM, "run", "true"], capture_output=True, env=variables, check=False)
    assert away.returncode == 125
    api.call("POST", f"/mags-jobs/{name}/stop")


def test_what_a_one_shot_command_leaves_in_its_group_is_ended_with_it(roost: RunningRoost, api: Api) -> None:
    name = f"left-{time.monotonic_ns()}"
    api.said(api.submit("echo up; sleep 100", name=name), b"up")
    shown = roost.command("exec", name, "sleep 7654 & setsid sleep 7655 >/dev/null 2>&1 & sleep 0.3; echo done")
    assert (shown.returncode, shown.stdout) == (0, b"done\n")
    left = roost.command("exec", name, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert (b"sleep 7654" in left, b"sleep 7655 " in left) == (False, True)
    api.call("POST", f"/mags-jobs/{name}/stop")


def test_logs_are_byte_for_byte_and_can_begin_late(roost: RunningRoost, api: Api) -> None:
    name = f"logged-{time.monotonic_ns()}"
    api.wait(api.submit("printf '\\033[32mone\\033[0m\\n\\377\\r\\n'; echo two >&2; sleep 0.2; printf end", name=name))
    shown = roost.command("logs", name)
    assert (shown.stdout, shown.stderr) == (b"\x1b[32mone\x1b[0m\n\xff\r\nend", b"two\n")
    assert roost.command("logs", "--tail", "1", name).stdout == b"end"
    assert roost.command("logs", "--since", "1h", name).stdout == shown.stdout
    assert roost.command("logs", "--since", "2999-01-01", name).stdout == b""
    assert roost.command("logs", "-f", "--tail", "2", name).stdout == b"end"
    assert [one["message"] for one in json.loads(roost.command("logs", "--json", "-n", "1", name).stdout)["logs"]] == [
        "end"
    ]


def test_ids_may_be_given_by_how_they_begin(roost: RunningRoost, api: Api) -> None:
    job = api.submit("true")
    assert roost.command("status", job[:8]).stdout.startswith(b"request_id:")
    assert roost.command("status", "00000000").returncode == 1


def test_images_are_listed_and_imported_and_run(roost: RunningRoost, tmp_path: Path, probe_shell: bytes) -> None:
    assert b"standard" in roost.command("image", "list").stdout
    name = f"e2e-cli-{os.getpid()}"
    tarball = Tarball().file("bin/sh", probe_shell, 0o755).file("etc/mark", b"imported\n").save(tmp_path / "image.tar")
    try:
        imported = roost.command("image", "import", "-n", name, str(tarball))
        assert imported.returncode == 0, imported.stderr
        assert name.encode() in roost.command("image", "list").stdout
        shown = roost.command("run", "--image", name, "read /etc/mark")
        assert (shown.returncode, shown.stdout) == (0, b"read /etc/mark: imported\n"), shown.stderr
    finally:
        eventually(lambda: roost.api.ask("DELETE", f"/images/{name}")[0] in (200, 404), 30, "its sandbox goes soon")
    assert name.encode() not in roost.command("image", "list").stdout


def test_errors_say_what_to_do(roost: RunningRoost, tmp_path: Path) -> None:
    unknown = roost.command("status", "no-such-job")
    assert (unknown.returncode, unknown.stdout) == (1, b"")
    assert b"no job has the id, name or workspace 'no-such-job'" in unknown.stderr
    image = roost.command("run", "--image", "no-such-image", "true")
    assert image.returncode == 125
    assert b"no-such-image" in image.stderr
    assert b"standard" in image.stderr
    nowhere = subprocess.run(
        [*PROGRAM, "list", "--state", str(tmp_path)], capture_output=True, env=clean_environment(), check=False
    )
    assert nowhere.returncode == 1
    assert b"roost up" in nowhere.stderr
    variables = clean_environment() | {"MAGS_API_URL": "http://127.0.0.1:9", "MAGS_API_TOKEN": "x" * 32}
    away = subprocess.run([*PROGRAM, "list"], capture_output=True, env=variables, check=False)
    assert away.returncode == 1
    assert b"is Roost running?" in away.stderr
    for shown in (unknown, image, nowhere, away):
        assert b"Traceback" not in shown.stderr


def test_the_environment_names_the_server_and_token(roost: RunningRoost) -> None:
    variables = clean_environment() | {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    shown = subprocess.run([*PROGRAM, "run", "echo here"], capture_output=True, env=variables, check=False)
    assert (shown.returncode, shown.stdout) == (0, b"here\n")


def test_the_pool_is_shown(roost: RunningRoost) -> None:
    assert json.loads(roost.command("pool", "--json").stdout)["min_pool_size"] == 3


def test_doctor_finds_nothing_missing_here() -> None:
    found = subprocess.run([*PROGRAM, "doctor"], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout
    listed = json.loads(subprocess.run([*PROGRAM, "doctor", "--json"], capture_output=True, check=True).stdout)
    assert {"name", "verdict", "detail"} <= set(listed[0])
