"""SSH across sleep, restarts and ends: what a login wakes, what survives `kill -9`, and the older official clients."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import PROGRAM, RunningRoost, clean_environment, eventually
from tests.e2e.ssh_client import SshClient, free_pair, free_port, uid, with_access, with_own_key
from tests.e2e.test_clients import program_with

pytestmark = pytest.mark.e2e


def persistent(roost: RunningRoost, script: str = "sleep infinity", **fields: object) -> str:
    name = uid()
    roost.api.submit(script, persistent=True, name=name, workspace_id=name, **fields)
    roost.api.running(name)
    return name


@pytest.fixture(scope="module")
def ported_roost() -> Iterator[RunningRoost]:
    """Running, with two ports for jobs that want one of their own."""
    low = free_pair()
    with an_instance("--min-pool-size", "1", "--ssh-ports", f"{low}-{low + 1}") as instance:
        yield instance.start()


# ---- sleep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", ["frozen", "cold"])
def test_a_login_wakes_a_sandbox_that_sleeps(roost: RunningRoost, tmp_path: Path, depth: str) -> None:
    name = persistent(roost)
    client = with_access(roost, name, tmp_path)
    assert client.ssh("echo kept > /root/file").returncode == 0
    roost.api.call("POST", f"/mags-jobs/{name}/sleep", {"depth": depth})
    assert roost.api.status(name)["status"] == "sleeping"
    done = client.ssh("cat /root/file")
    assert (done.stdout, done.stderr) == (b"kept\n", b"")
    assert roost.api.status(name)["status"] == "running"
    roost.api.stop(name)


def test_access_wakes_a_sandbox_that_sleeps(roost: RunningRoost, tmp_path: Path) -> None:
    name = persistent(roost)
    roost.api.call("POST", f"/mags-jobs/{name}/sleep", {"depth": "cold"})
    client = with_access(roost, name, tmp_path)
    assert roost.api.status(name)["status"] == "running"
    assert client.ssh("true").returncode == 0
    roost.api.stop(name)


def test_a_session_that_slept_goes_on_when_it_is_typed_to(roost: RunningRoost, tmp_path: Path) -> None:
    name = persistent(roost)
    client = with_access(roost, name, tmp_path)
    process = client.launch("echo begun; cat")
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"begun\n"
    roost.api.call("POST", f"/mags-jobs/{name}/sleep", {"depth": "frozen"})
    process.stdin.write(b"still here\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"still here\n"
    process.communicate()
    assert process.returncode == 0
    roost.api.stop(name)


def test_an_open_connection_keeps_its_sandbox_awake(roost: RunningRoost, tmp_path: Path) -> None:
    name = persistent(roost, environment={"__MAGS_IDLE_MIN": "0.05"})
    client = with_access(roost, name, tmp_path)
    with client.forwarding("-L", f"127.0.0.1:{free_port()}:localhost:1"):
        eventually(lambda: client.ssh("true").returncode == 0)
        time.sleep(5)
        assert roost.api.status(name)["status"] == "running"
    eventually(lambda: roost.api.status(name)["status"] == "sleeping", 30, "it does not fall asleep afterwards")
    roost.api.stop(name)


# ---- ends and restarts ---------------------------------------------------------------------------------------


def test_connections_close_when_their_sandbox_ends(roost: RunningRoost, tmp_path: Path) -> None:
    name = persistent(roost)
    client = with_access(roost, name, tmp_path)
    process = client.launch("echo open; cat")
    assert process.stdout
    assert process.stdout.readline() == b"open\n"
    roost.api.stop(name)
    assert process.wait(30) == 255
    process.communicate()
    again = client.ssh("true")
    assert again.returncode == 255
    assert b"not running" in again.stderr


def test_host_key_keys_and_running_sandboxes_survive_kill_9(mortal_roost: RunningRoost, tmp_path: Path) -> None:
    name = persistent(mortal_roost)
    client = with_access(mortal_roost, name, tmp_path / "job")
    own = with_own_key(mortal_roost, tmp_path / "own", name)
    for programs in (("serve",), ("node",), ("serve", "node")):
        mortal_roost.kill(*programs)
        mortal_roost.healthy()
        for one in (client, own):  # each checks the host key that it was told before
            done = one.ssh("echo here")
            assert done.stdout == b"here\n", done.stderr


def test_a_command_during_a_restart_of_the_node_waits_for_it(mortal_roost: RunningRoost, tmp_path: Path) -> None:
    name = persistent(mortal_roost)
    client = with_access(mortal_roost, name, tmp_path / "job")
    assert client.ssh("true").returncode == 0
    mortal_roost.kill("node")
    done = client.ssh("echo here")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"here\n", b"")
    mortal_roost.healthy()


def test_a_command_whose_node_dies_is_not_given_an_exit_status(mortal_roost: RunningRoost, tmp_path: Path) -> None:
    name = persistent(mortal_roost)
    client = with_access(mortal_roost, name, tmp_path / "job")
    process = client.launch("echo begun; sleep 1000")
    assert process.stdout
    assert process.stdout.readline() == b"begun\n"
    mortal_roost.kill("node")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 255
    assert b"roost:" in errors
    mortal_roost.healthy()


# ---- ports of one job ----------------------------------------------------------------------------------------


def test_a_dedicated_port_leads_to_one_job_through_sleep_and_restart_until_its_end(
    ported_roost: RunningRoost, tmp_path: Path
) -> None:
    roost = ported_roost
    name, other = persistent(roost), persistent(roost)
    client = with_access(roost, name, tmp_path / "one", dedicated=True)
    assert client.port != int(roost.ssh.rpartition(":")[2])
    assert client.ssh("echo here").stdout == b"here\n"
    stranger = with_access(roost, other, tmp_path / "other")
    wrong = SshClient(client.place, client.host, client.port, stranger.key)
    assert b"Permission denied" in wrong.ssh("true").stderr
    roost.api.call("POST", f"/mags-jobs/{name}/sleep", {"depth": "cold"})
    roost.kill("serve")
    roost.healthy()
    assert client.ssh("echo woken").stdout == b"woken\n"
    second = with_access(roost, other, tmp_path / "second", dedicated=True)
    assert second.port != client.port
    third = persistent(roost)
    status, answer = roost.api.ask("POST", f"/mags-jobs/{third}/access", {"port": 22, "dedicated": True})
    assert (status, "taken" in answer["error"]) == (429, True)
    roost.api.stop(name)
    eventually(lambda: b"refused" in client.ssh("true").stderr, 20, "the port still listens")
    freed = with_access(roost, third, tmp_path / "third", dedicated=True)
    assert freed.port == client.port
    for job in (other, third):
        roost.api.stop(job)


def test_without_ports_set_aside_a_dedicated_one_is_refused_with_the_cure(roost: RunningRoost) -> None:
    name = persistent(roost)
    status, answer = roost.api.ask("POST", f"/mags-jobs/{name}/access", {"port": 22, "dedicated": True})
    assert status == 400
    assert "--ssh-ports" in answer["error"]
    roost.api.stop(name)


# ---- the older official clients ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2.0", "1.3.6"])
def test_clients_that_run_commands_by_ssh_do(roost: RunningRoost, version: str) -> None:
    name = persistent(roost)
    results = program_with(version, roost)(
        f"""
first = client.exec({name!r}, "echo it\\\\'s here; id -u; echo err >&2; exit 7")
second = client.exec({name!r}, "pwd; python3 -c 'print(6 * 7)'")
tell([first, second])
"""
    )
    assert results[0]["exit_code"] == 7
    assert results[0]["output"] == "it's here\n0\n"
    assert results[0]["stderr"] == "err\n"
    assert results[1]["output"] == "/root\n42\n"
    roost.api.stop(name)


# ---- the command line ----------------------------------------------------------------------------------------


def test_roost_ssh_starts_a_sandbox_by_name_and_enters_the_same_one_again(roost: RunningRoost) -> None:
    name = uid()
    first = roost.command("ssh", name, "echo here > file; hostname; exit 4")
    assert first.returncode == 4, first.stderr
    assert b"starting a sandbox" in first.stderr
    second = roost.command("ssh", name, "cat", "file")
    assert (second.returncode, second.stdout, second.stderr) == (0, b"here\n", b"")
    piped = roost.command("ssh", name, "wc", "-c", input=b"12345")
    assert piped.stdout.strip() == b"5"
    assert roost.api.status(name)["workspace_id"] == name
    roost.api.stop(name)


def test_roost_ssh_key_adds_lists_and_removes(roost: RunningRoost, tmp_path: Path) -> None:
    key = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f", str(key)], check=True)
    state = ("--state", str(roost.state))

    def call(*words: str) -> "subprocess.CompletedProcess[bytes]":
        line = [*PROGRAM, "ssh-key", words[0], *state, *words[1:]]
        return subprocess.run(line, capture_output=True, env=clean_environment(), check=False)

    assert b"private" in call("add", str(key)).stderr
    added = call("add", f"{key}.pub")
    assert added.returncode == 0, added.stderr
    assert b"laptop" in added.stdout
    assert b"already" in call("add", f"{key}.pub").stderr
    assert b"laptop" in call("list").stdout
    assert call("remove", added.stdout.split()[0].decode()).returncode == 0
    assert b"laptop" not in call("list").stdout
