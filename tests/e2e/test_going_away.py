"""Whoever goes away stops what he waited for: by a signal, with his terminal, with his reader, as an HTTP client."""

import json
import os
import pty
import signal
import socket
import subprocess
import time

import pytest

from tests.e2e.instance import PROGRAM, Api, RunningRoost, clean_environment, eventually
from tests.e2e.test_cli import begin
from tests.e2e.test_sleep import persistent


@pytest.fixture(scope="module")
def dev(roost: RunningRoost) -> str:
    return persistent(roost.api, "sleep infinity", name="going-away")


def runs(api: Api, job: str, mark: str) -> bool:
    """Whether a process with that word in its command line is in the sandbox."""
    found = api.exec(job, f"grep -lz '[{mark[0]}]{mark[1:]}' /proc/[0-9]*/cmdline 2>/dev/null | grep -vc self")
    return int(found["stdout"] or 0) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_takes_its_job_along(roost: RunningRoost, api: Api, number: signal.Signals) -> None:
    name = f"taken-along-{time.monotonic_ns()}"
    with begin(roost, "run", "-n", name, "echo ready; sleep 100") as run:
        assert run.stdout and run.stdout.readline() == b"ready\n"
        run.send_signal(number)
        assert run.wait(30) == 128 + number
    assert api.wait(name, 10).state["stopped"] is True


def test_the_end_of_its_reader_stops_a_job(roost: RunningRoost, api: Api) -> None:
    name = f"unread-{time.monotonic_ns()}"
    with begin(roost, "run", "-e", "-n", name, "yes") as run:
        assert run.stdout and run.stderr
        assert run.stdout.readline() == b"y\n"
        run.stdout.close()
        assert run.wait(30) == 141
        assert b"Traceback" not in run.stderr.read()
    assert api.wait(name, 10).state["stopped"] is True


def test_what_was_detached_on_request_goes_on(roost: RunningRoost, api: Api) -> None:
    name = f"detached-{time.monotonic_ns()}"
    with begin(roost, "run", "--on-interrupt", "detach", "-n", name, "echo ready; sleep 100") as run:
        assert run.stdout and run.stdout.readline() == b"ready\n"
        run.terminate()
        assert run.wait(30) == 143
        assert run.stderr and b"goes on" in run.stderr.read()
    assert api.status(name)["status"] == "running"
    api.call("POST", f"/mags-jobs/{name}/stop")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_exec_takes_its_command_along(roost: RunningRoost, api: Api, dev: str, number: signal.Signals) -> None:
    mark = f"1{time.monotonic_ns() % 10**8:08}"
    with begin(roost, "exec", dev, f"echo ready; sleep {mark}") as run:
        assert run.stdout and run.stdout.readline() == b"ready\n"
        assert runs(api, dev, mark)
        run.send_signal(number)
        assert run.wait(30) == (128 + number if number != signal.SIGKILL else -number)
        assert run.stderr and run.stderr.read() == b""
    eventually(lambda: not runs(api, dev, mark), 20)


def test_the_end_of_a_terminal_ends_exec_and_its_command(roost: RunningRoost, api: Api, dev: str) -> None:
    mark = f"2{time.monotonic_ns() % 10**8:08}"
    command = [*PROGRAM, "exec", "--state", str(roost.state), dev, f"echo ready; sleep {mark}"]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(command[0], command, clean_environment())
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 4096)
    assert runs(api, dev, mark)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    eventually(lambda: not runs(api, dev, mark), 20)


@pytest.mark.parametrize("path", ["exec", "exec/follow"])
def test_an_http_client_that_leaves_a_one_shot_exec_ends_it(api: Api, dev: str, path: str) -> None:
    mark = f"3{time.monotonic_ns() % 10**8:08}"
    body = json.dumps({"command": f"sleep {mark}", "timeout": 600}).encode()
    host, _, port = api.url.removeprefix("http://").partition(":")
    head = f"POST /api/v1/mags-jobs/{dev}/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        eventually(lambda: runs(api, dev, mark), 20)
    eventually(lambda: not runs(api, dev, mark), 20)


def test_a_follower_that_is_interrupted_ends_with_130_and_the_job_goes_on(roost: RunningRoost, api: Api) -> None:
    name = f"followed-{time.monotonic_ns()}"
    job = api.submit("echo line; sleep 100", name=name)
    with begin(roost, "logs", "-f", name) as follower:
        assert follower.stdout and follower.stdout.readline() == b"line\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
        assert follower.stderr and follower.stderr.read() == b""
    assert api.status(job)["status"] == "running"
    api.call("POST", f"/mags-jobs/{job}/stop")


def test_login_that_is_interrupted_ends_with_130(roost: RunningRoost) -> None:
    command = [*PROGRAM, "login", "--no-browser", "--api-url", roost.api.url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=clean_environment()) as login:
        assert login.stderr and b"Open" in login.stderr.readline()
        login.send_signal(signal.SIGINT)
        assert login.wait(30) == 130
        assert b"Aborted" not in login.stderr.read()
