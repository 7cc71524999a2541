"""Execs over HTTP and as streams: kept whoever watches, whole after lost connections and kills."""

import base64
import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.e2e.exec_client import Stream, show, start
from tests.e2e.instance import PROGRAM, Api, RunningRoost, clean_environment, eventually
from tests.e2e.test_faults import kill_and_recover
from tests.e2e.test_sleep import asleep, persistent, sleep

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def job(roost: RunningRoost) -> str:
    """Shared by tests that leave no process in it."""
    return persistent(roost.api, "echo ready; sleep infinity", name="execs", environment={"COLOR": "red"})


def path(job: str, exec: str, more: str = "") -> str:
    return f"/mags-jobs/{job}/execs/{exec}{more}"


def ended(api: Api, job: str, exec: str) -> dict[str, Any]:
    return eventually(lambda: (state := show(api, job, exec))["status"] == "ended" and state)


def raw(api: Api, job: str, exec: str, source: str = "stdout") -> bytes:
    with api.open("GET", path(job, exec, f"/output?format=raw&source={source}")) as answer:
        assert answer.status == 200
        return answer.read()


def post(api: Api, url: str, data: bytes) -> tuple[int, Any]:
    with api.open("POST", url, data, 60, **{"Content-Type": "application/octet-stream"}) as answer:
        return answer.status, json.loads(answer.read())


def end_input(api: Api, job: str, exec: str) -> None:
    assert post(api, path(job, exec, "/input?end=true"), b"")[1]["closed"]


# ---- plain HTTP


def test_an_exec_is_kept_with_its_output_and_exit_code(api: Api, job: str) -> None:
    exec = start(api, job, "echo $COLOR $SIZE; pwd; echo no >&2; exit 7", environment={"SIZE": "1"}, directory="/tmp")
    state = ended(api, job, exec)
    assert (state["exit_code"], state["arguments"][:2]) == (7, ["/bin/sh", "-c"])
    assert (raw(api, job, exec), raw(api, job, exec, "stderr")) == (b"red 1\n/tmp\n", b"no\n")
    records = api.call("GET", path(job, exec, "/output"))["records"]
    assert b"".join(base64.b64decode(r["data"]) for r in records if r["source"] == "stdout") == b"red 1\n/tmp\n"
    later = api.call("GET", path(job, exec, f"/output?after={records[0]['seq']}"))["records"]
    assert later == records[1:]
    assert state in api.call("GET", f"/mags-jobs/{job}/execs")["execs"]
    api.call("DELETE", path(job, exec))
    api.call("DELETE", path(job, exec))
    assert api.ask("GET", path(job, exec))[0] == 404


def test_arguments_need_no_shell_and_a_text_is_the_whole_input(api: Api, job: str) -> None:
    status, answer = api.ask("POST", f"/mags-jobs/{job}/execs", {"arguments": ["cat", "-"], "input": "a $b\n"})
    assert status == 201
    ended(api, job, answer["exec_id"])
    assert raw(api, job, answer["exec_id"]) == b"a $b\n"


def test_the_same_exec_id_again_starts_nothing(api: Api, job: str) -> None:
    for _ in range(3):
        assert start(api, job, "echo x >> /root/once", exec_id="0badcafe") == "0badcafe"
    ended(api, job, "0badcafe")
    assert api.exec(job, "cat /root/once")["stdout"] == "x\n"


def test_output_can_be_followed_as_events_from_where_one_was(api: Api, job: str) -> None:
    exec = start(api, job, "for i in 1 2 3; do echo line $i; sleep 0.1; done; exit 3")
    seen, last, end = b"", "0", None
    for _ in range(4):
        with api.open("GET", path(job, exec, "/output?follow=true"), None, 60, **{"Last-Event-ID": last}) as answer:
            for line in iter(answer.readline, b""):
                name, _, value = line.decode().strip().partition(": ")
                if name == "data" and end is None:
                    data = json.loads(value)
                    if "exec_id" in data:
                        end = data
                        break
                    seen += base64.b64decode(data["data"])
                    if seen.endswith(b"2\n"):
                        break  # the connection is lost
                elif name == "id":
                    last = value
    assert (seen, end and end["exit_code"]) == (b"line 1\nline 2\nline 3\n", 3)


def test_input_by_position_over_http(api: Api, job: str) -> None:
    exec = start(api, job, "cat", input=True)
    assert post(api, path(job, exec, "/input?at=0"), b"hello ")[1] == {"position": 6, "closed": False}
    assert post(api, path(job, exec, "/input?at=3"), b"lo world")[1] == {"position": 11, "closed": False}
    status, answer = post(api, path(job, exec, "/input?at=20"), b"x")
    assert (status, "11 bytes were taken" in answer["error"]) == (409, True)
    assert post(api, path(job, exec, "/input?end=true"), b"!")[1] == {"position": 12, "closed": True}
    assert ended(api, job, exec)["exit_code"] == 0
    assert raw(api, job, exec) == b"hello world!"


def test_signals_and_sizes_over_http(api: Api, job: str) -> None:
    terminal = {"rows": 20, "columns": 60}
    exec = start(api, job, "trap 'stty size; exit 5' USR1; stty size; while :; do sleep 0.05; done", terminal=terminal)
    eventually(lambda: b"20 60" in raw(api, job, exec))
    api.call("POST", path(job, exec, "/resize"), {"rows": 41, "columns": 99})
    api.call("POST", path(job, exec, "/signal"), {"signal": "USR1"})
    assert ended(api, job, exec)["exit_code"] == 5
    assert b"41 99" in raw(api, job, exec)
    exec = start(api, job, "sleep 1000")
    api.call("POST", path(job, exec, "/signal"), {"signal": 9})
    state = ended(api, job, exec)
    assert (state["exit_code"], state["signal"]) == (137, "KILL")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either command"),
        ({"command": "x", "arguments": ["x"]}, "either command"),
        ({"command": " "}, "empty"),
        ({"arguments": []}, "empty"),
        ({"command": "a\0b"}, "NUL"),
        ({"command": "x" * 140_000}, "at most"),
        ({"command": "x", "environment": {"a=b": "c"}}, "environment"),
        ({"command": "x", "directory": "tmp"}, "not absolute"),
        ({"command": "x", "terminal": {"rows": 0}}, "rows"),
        ({"command": "x", "exec_id": "zzz"}, "8 lower-case hex"),
        ({"command": "x", "wrong": 1}, "unknown field"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(api: Api, job: str, body: dict[str, Any], words: str) -> None:
    status, answer = api.ask("POST", f"/mags-jobs/{job}/execs", body)
    assert (status, words in answer["error"]) == (400, True), answer


def test_what_is_not_there_is_not_found(api: Api, job: str) -> None:
    for method, more in (("GET", ""), ("GET", "/output"), ("GET", "/output?follow=true"), ("POST", "/input?at=0")):
        for exec in ("00000001", "nonsense", "ffffffff"):
            assert api.ask(method, path(job, exec, more), b"x" if method == "POST" else None)[0] == 404
    assert api.ask("GET", path("no-such-job", "00000001"))[0] == 404
    status, answer = api.ask("POST", path(job, start(api, job, "true"), "/signal"), {"signal": "NOPE"})
    assert (status, "no signal" in answer["error"]) == (400, True)


def test_a_program_that_is_missing_ends_as_a_shell_ends(api: Api, job: str) -> None:
    status, answer = api.ask("POST", f"/mags-jobs/{job}/execs", {"arguments": ["/no/such"]})
    assert status == 201
    assert ended(api, job, answer["exec_id"])["exit_code"] == 127
    assert raw(api, job, answer["exec_id"], "stderr") == b"roost: /no/such: no such program\n"


def test_an_exec_of_a_job_that_has_ended_is_refused_truly(api: Api) -> None:
    job = api.submit("true")
    api.wait(job)
    for call in ("execs", "exec"):
        status, answer = api.ask("POST", f"/mags-jobs/{job}/{call}", {"command": "true"})
        assert status == 409 and "not running (status: completed" in answer["error"], answer
    assert api.call("GET", f"/mags-jobs/{job}/execs") == {"execs": []}


def test_output_beyond_4_mb_of_the_old_exec_is_said(api: Api, job: str) -> None:
    answer = api.exec(job, "head -c 5000000 /dev/zero | tr '\\0' x; sleep 654321 & true")
    assert (answer["truncated"], answer["stdout"].count("x"), "4 MB" in answer["note"]) == (True, 4_000_000, True)
    eventually(lambda: "654321" not in api.exec(job, "ps -eo args | grep -v grep | grep 65432 || true")["stdout"])


# ---- the stream


def test_ten_megabytes_come_whole_and_in_order(api: Api, job: str) -> None:
    exec = start(api, job, "seq -f '%01023.0f' 0 10239")
    stream = Stream(api, job, exec).open()
    assert stream.to_the_end()["exit_code"] == 0
    expected = b"".join(b"%01023d\n" % i for i in range(10240))
    assert hashlib.sha256(stream.output[1]).digest() == hashlib.sha256(expected).digest()


def echo_with_cuts(stream: Stream, content: bytes, cut_at: list[int], between: Callable[[], None]) -> None:
    """Sends all of it in pieces and reads it back; the connection breaks at these positions of input."""
    sent = 0
    while len(stream.output[1]) < len(content):
        try:
            if not stream.connection:
                between()
                stream.open()
                sent = stream.taken
            while sent < len(content) and sent - stream.taken < 256 * 1024:
                piece = content[sent : sent + 50_000]
                stream.send(sent, piece)
                sent += len(piece)
            stream.hear()
            if cut_at and stream.taken > cut_at[0]:
                cut_at.pop(0)
                stream.cut()
        except (ConnectionClosed, OSError, InvalidStatus):
            stream.connection = None
            time.sleep(0.1)
    assert bytes(stream.output[1]) == content
    assert not stream.errors


def test_five_megabytes_of_input_come_back_though_the_connection_is_cut(api: Api, job: str) -> None:
    content = os.urandom(5_000_000)
    stream = Stream(api, job, start(api, job, "cat", input=True)).open()
    echo_with_cuts(stream, content, [1_000_000, 2_500_000, 4_000_000], lambda: None)
    if not stream.connection:
        stream.open()
    stream.order("close_input")
    assert stream.to_the_end()["exit_code"] == 0
    assert stream.end and stream.end["input_taken"] == len(content)


@pytest.mark.parametrize("victims", [("node",), ("serve",), ("serve", "node")], ids="+".join)
def test_nothing_is_lost_when_programs_are_killed(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api = mortal_roost.api
    job = persistent(api)
    content = os.urandom(3_000_000)
    stream = Stream(api, job, start(api, job, "cat; exit 23", input=True)).open()
    finished = start(api, job, "echo done; exit 9")
    ended(api, job, finished)
    echo_with_cuts(stream, content, [1_000_000], lambda: kill_and_recover(mortal_roost, victims))
    if not stream.connection:
        stream.open()
    stream.order("close_input")
    assert stream.to_the_end()["exit_code"] == 23
    assert show(api, job, finished)["exit_code"] == 9
    assert raw(api, job, finished) == b"done\n"


@pytest.mark.parametrize("victims", [("node",), ("serve",)], ids="+".join)
def test_a_scripts_input_is_whole_when_programs_are_killed(
    mortal_roost: RunningRoost, victims: tuple[str, ...]
) -> None:
    content = os.urandom(3_000_000)
    command = [*PROGRAM, "run", "--state", str(mortal_roost.state), "sha256sum; exit 5"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": clean_environment()}
    with subprocess.Popen(command, **pipes) as run:  # type: ignore[call-overload]
        assert run.stdin and run.stdout
        run.stdin.write(content[:1_000_000])
        run.stdin.flush()
        kill_and_recover(mortal_roost, victims)
        run.stdin.write(content[1_000_000:])
        run.stdin.close()
        assert run.stdout.read() == f"{hashlib.sha256(content).hexdigest()}  -\n".encode()
        assert run.wait(60) == 5


def test_a_stream_goes_on_by_itself_when_only_the_node_was_killed(mortal_roost: RunningRoost) -> None:
    api = mortal_roost.api
    job = persistent(api)
    stream = Stream(api, job, start(api, job, "for i in $(seq 40); do echo $i; sleep 0.05; done; exit 4")).open()
    stream.until(b"\n5\n")
    mortal_roost.kill("node")
    assert stream.to_the_end()["exit_code"] == 4
    assert stream.output[1] == b"".join(b"%d\n" % i for i in range(1, 41))


def test_a_terminal_by_stream_with_sizes_signals_and_control_keys(api: Api, job: str) -> None:
    exec = start(api, job, "stty size; tty; exec sh", terminal={"rows": 30, "columns": 90})
    stream = Stream(api, job, exec).open()
    assert b"/dev/pts/" in stream.until(b"30 90\r\n") + stream.until(b"/dev/pts/")
    stream.order("resize", rows=50, columns=120)
    at = 0
    for line, words in ((b"stty size\n", b"50 120"), (b"sleep 1000\n", b"sleep 1000"), (b"\x03", b"^C")):
        stream.send(at, line)
        at += len(line)
        stream.until(words)
        time.sleep(0.2)  # for the shell to begin it
    stream.send(at, b"exit 12\n")
    assert stream.to_the_end()["exit_code"] == 12


def test_a_signal_overtakes_input_that_is_not_read(api: Api, job: str) -> None:
    exec = start(api, job, "trap 'echo got' USR1; echo ready; while :; do sleep 0.05; done", input=True)
    stream = Stream(api, job, exec).open()
    stream.until(b"ready")
    for at in range(0, 500_000, 50_000):
        stream.send(at, bytes(50_000))
    stream.order("signal", signal="USR1")
    stream.until(b"got")
    stream.order("signal", signal="KILL")
    assert stream.to_the_end()["signal"] == "KILL"


def test_what_breaks_the_rules_is_told(api: Api, job: str) -> None:
    exec = start(api, job, "cat", input=True)
    stream = Stream(api, job, exec).open()
    stream.send(5, b"x")
    stream.hear()
    assert "0 bytes were taken" in stream.errors[0]
    for message in ("nonsense", '{"type": "dance"}', '{"type": "signal", "signal": "NOPE"}', b"short"):
        stream = Stream(api, job, exec).open()
        assert stream.connection
        stream.connection.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            stream.hear()
        assert closed.value.rcvd and closed.value.rcvd.code == 1008
    assert show(api, job, exec)["status"] == "running"
    api.call("DELETE", path(job, exec))


def test_a_browser_gives_its_token_as_a_subprotocol(api: Api, job: str) -> None:
    url = api.url.replace("http", "ws", 1) + f"/api/v1/mags-jobs/{job}/execs/{start(api, job, 'echo hi')}/stream"
    with connect(url, subprotocols=["roost.exec", f"roost.token.{api.token}"]) as connection:  # type: ignore[list-item]
        assert connection.subprotocol == "roost.exec"
        assert json.loads(connection.recv())["type"] == "state"
    for subprotocols, status in (([], 401), (["roost.exec", "roost.token.wrong"], 401)):
        with pytest.raises(InvalidStatus) as refusal, connect(url, subprotocols=subprotocols or None):  # type: ignore[arg-type]
            pass
        assert refusal.value.response.status_code == status
        assert b"token" in (refusal.value.response.body or b"")
    with pytest.raises(InvalidStatus) as refusal, connect(f"{url}?token={api.token}"):
        pass
    assert refusal.value.response.status_code == 401
    assert api.ask("GET", url.split("/api/v1")[1])[0] in (404, 405)


def test_what_a_stream_cannot_be_opened_to_has_a_status(api: Api, job: str) -> None:
    exec = start(api, job, "echo hi")
    ended(api, job, exec)
    for where, status in ((path(job, "00000001"), 404), (path("nowhere", exec), 404), (path(job, exec) + "x", 404)):
        with pytest.raises(InvalidStatus) as refusal:
            connect(f"{api.url.replace('http', 'ws', 1)}/api/v1{where}/stream", additional_headers=bearer(api))
        assert refusal.value.response.status_code == status
    for after in ("x", "3"):
        with pytest.raises(InvalidStatus) as refusal:
            url = f"{api.url.replace('http', 'ws', 1)}/api/v1{path(job, exec)}/stream?after={after}"
            connect(url, additional_headers=bearer(api))
        assert refusal.value.response.status_code == 400


def bearer(api: Api) -> dict[str, str]:
    return {"Authorization": f"Bearer {api.token}"}


# ---- sleep


def test_a_call_wakes_a_job_that_sleeps(api: Api) -> None:
    job = persistent(api, "sleep infinity", workspace_id="execs-wake")
    exec = start(api, job, "cat", input=True)
    sleep(api, job)
    assert asleep(api, job, "frozen")
    assert show(api, job, exec)["status"] == "running"
    assert asleep(api, job, "frozen")
    assert post(api, path(job, exec, "/input?at=0"), b"x")[1]["position"] == 1
    assert not asleep(api, job, "frozen")
    sleep(api, job, "cold")
    assert api.call("GET", f"/mags-jobs/{job}/execs") == {"execs": []}
    assert api.exec(job, "echo awake")["stdout"] == "awake\n"
    assert api.ask("GET", path(job, exec))[0] == 404
    stream = Stream(api, job, start(api, job, "echo again")).open()
    assert stream.to_the_end()["exit_code"] == 0
    api.stop(job)


def test_an_exec_that_runs_keeps_its_job_awake(api: Api) -> None:
    job = persistent(api, "sleep infinity", idle_minutes=0.02)
    exec = start(api, job, "sleep 5")
    time.sleep(3.5)
    assert api.status(job)["status"] == "running"
    ended(api, job, exec)
    eventually(lambda: asleep(api, job, "frozen"))
    api.stop(job)


def test_when_the_job_is_stopped_no_exit_code_is_invented(api: Api) -> None:
    job = persistent(api)
    stream = Stream(api, job, start(api, job, "trap '' TERM; sleep 1000")).open()
    api.stop(job)
    end = stream.to_the_end()
    assert end["status"] == "ended"
    assert end.get("exit_code") == 137 or ("exit_code" not in end and "unknown" in end["reason"])


# ---- the command


def test_roost_exec_i_is_a_pipe_into_the_sandbox(roost: RunningRoost, job: str) -> None:
    content = os.urandom(2_000_000)
    result = roost.command("exec", "-i", job, "cat; echo no >&2; exit 6", input=content)
    assert (result.stdout == content, result.stderr, result.returncode) == (True, b"no\n", 6)
    result = roost.command("exec", "-i", job, "printf", "%s", "a  b $HOME", input=b"")
    assert (result.stdout, result.returncode) == (b"a  b $HOME", 0)
    assert not [e for e in roost.api.call("GET", f"/mags-jobs/{job}/execs")["execs"] if "printf" in e["arguments"]]


def test_roost_exec_i_goes_on_after_the_programs_were_killed(mortal_roost: RunningRoost) -> None:
    job = persistent(mortal_roost.api)
    words = [*PROGRAM, "exec", "--state", str(mortal_roost.state), "-i", job, "cat; exit 17"]
    program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment())
    assert program.stdin and program.stdout
    for line in (b"one\n", b"two\n", b"three\n"):
        program.stdin.write(line)
        program.stdin.flush()
        assert program.stdout.readline() == line
        kill_and_recover(mortal_roost, ("serve", "node"))
    program.stdin.close()
    assert program.stdout.read() == b""
    assert program.wait(60) == 17


def test_roost_exec_t_is_a_terminal(roost: RunningRoost, job: str) -> None:
    words = [*PROGRAM, "exec", "--state", str(roost.state), "-it", job, "sh"]
    pid, terminal = pty.fork()
    if not pid:
        os.execve(words[0], words, clean_environment() | {"TERM": "vt100"})
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen:
            assert select.select([terminal], [], [], deadline - time.monotonic())[0], seen
            seen += os.read(terminal, 65536)
        seen = seen.partition(text)[2]

    termios.tcsetwinsize(terminal, (37, 111))
    os.write(terminal, b"stty size; echo $TERM-\n")
    until(b"vt100-\r\n")
    termios.tcsetwinsize(terminal, (22, 77))
    os.kill(pid, signal.SIGWINCH)
    os.write(terminal, b"sleep 1; stty size\n")
    until(b"22 77\r\n")
    os.write(terminal, b"sleep 1000\n")
    until(b"sleep 1000")
    time.sleep(0.3)
    os.write(terminal, b"\x03")
    os.write(terminal, b"echo a$((1+1))b; exit 8\n")
    until(b"a2b")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 8


def test_roost_exec_i_passes_signals_on(roost: RunningRoost, job: str) -> None:
    words = [*PROGRAM, "exec", "--state", str(roost.state), "-i", job]
    script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    program = subprocess.Popen([*words, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment())
    assert program.stdout and program.stdin
    assert program.stdout.readline() == b"ready\n"
    program.send_signal(signal.SIGINT)
    assert program.stdout.read() == b"interrupted\n"
    assert program.wait(30) == 3
