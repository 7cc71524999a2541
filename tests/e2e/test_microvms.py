"""MicroVMs: OpenSSH as `ubuntu`, sudo without set-uid, files over stops, and keys that are told once."""

import contextlib
import os
import pty
import re
import select
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.instance import PROGRAM, Api, RunningRoost, clean_environment, eventually
from tests.e2e.ssh_client import SshClient, run, uid

pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parents[2] / "docs" / "microvms.md"


def created(api: Api, **fields: object) -> dict[str, Any]:
    made = api.call("POST", "/microvms", {"image": "standard", "memory": 256, "disk": 2, **fields})
    eventually(lambda: state_of(api, made["id"]) == "running", 30, "it does not run")
    return made


def state_of(api: Api, id: str) -> str:
    return str(api.call("GET", f"/microvms/{id}")["state"])


def client_of(api: Api, id: str, place: Path, key: Path) -> SshClient:
    """As the API says how to log in."""
    told = api.call("GET", f"/microvms/{id}/ssh-connection")
    words = shlex.split(told["ssh_command"])
    assert words[-1] == f"{told['ssh_user']}@{told['ssh_host']}"
    assert words[words.index("-p") + 1] == str(told["ssh_port"])
    (place / "known_hosts").write_text(f"[{told['ssh_host']}]:{told['ssh_port']} {told['host_key']}\n")
    return SshClient(place, told["ssh_host"], told["ssh_port"], key, told["ssh_user"])


def downloaded(api: Api, id: str, place: Path) -> Path:
    with api.open("GET", f"/microvms/{id}/ssh-keys/download") as answer:
        content = answer.read()
        assert answer.status == 200, content
        assert f"vm-{id}-key.pem" in (answer.getheader("Content-Disposition") or "")
    key = place / f"vm-{id}-key.pem"
    key.touch(0o600)
    key.write_bytes(content)
    return key


@pytest.fixture(scope="module")
def microvm(roost: RunningRoost) -> Iterator[str]:
    """Runs, with a generated key."""
    id = str(created(roost.api, name=uid())["id"])
    yield id
    roost.api.call("DELETE", f"/microvms/{id}")


@pytest.fixture(scope="module")
def client(roost: RunningRoost, microvm: str, tmp_path_factory: pytest.TempPathFactory) -> SshClient:
    place = tmp_path_factory.mktemp("microvm")
    return client_of(roost.api, microvm, place, downloaded(roost.api, microvm, place))


def test_the_user_is_ubuntu_at_home(client: SshClient) -> None:
    assert client.user == "ubuntu"
    done = client.ssh("id -un; id -u; pwd; echo $HOME $USER; id -Gn; touch mine && stat -c %U mine")
    assert done.stdout.decode().split() == [
        "ubuntu",
        "1000",
        *["/home/ubuntu"] * 2,
        "ubuntu",
        "ubuntu",
        "sudo",
        "ubuntu",
    ]
    refused = client.ssh("touch /etc/mine; cat /etc/shadow; ls /run/roost")
    assert refused.returncode != 0
    assert refused.stdout == b""


def test_sudo_makes_root_without_a_password(client: SshClient) -> None:
    done = client.ssh(
        "sudo id -u; sudo -n -u ubuntu id -un; sudo -iu root pwd; sudo sh -c 'echo x > /etc/mine'; cat /etc/mine"
    )
    assert done.stdout.decode().split() == ["0", "ubuntu", "/root", "x"], done.stderr
    kept = client.ssh(
        "cd /tmp; A=1 sudo -E sh -c 'echo $A $HOME $SUDO_USER $PWD'; A=1 sudo sh -c 'echo -$A-'; sudo B=2 env | grep ^B"
    )
    assert kept.stdout.decode().split() == ["1", "/root", "ubuntu", "/tmp", "--", "B=2"]
    assert client.ssh("sudo grep NoNewPrivs /proc/self/status").stdout.split() == [b"NoNewPrivs:", b"1"]


def test_sudo_passes_streams_and_status(client: SshClient) -> None:
    content = os.urandom(2_000_000)
    assert client.ssh("sudo cat", input=content).stdout == content
    assert client.ssh("sudo sh -c 'exit 7'").returncode == 7
    assert client.ssh("sudo sh -c 'echo no >&2; kill -TERM $$'").stderr == b"no\n"
    missing = client.ssh("sudo no-such-program")
    assert (missing.returncode, missing.stderr) == (1, b"sudo: no-such-program: command not found\n")
    assert b"not known here" in client.ssh("sudo --frobnicate id").stderr


def test_sudo_refuses_who_is_not_in_the_group(client: SshClient) -> None:
    done = client.ssh("sudo sudo -u nobody sudo id -u")
    assert done.returncode == 1
    assert b"not in the group sudo" in done.stderr


def test_sudo_on_a_terminal_has_one_with_ctrl_c_and_leaves_it_as_it_was(client: SshClient) -> None:
    master, slave = pty.openpty()
    words = client.ssh_words("sudo -s", flags=("-tt",))
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        type_into(master, "stty -a | tr ' ' '\\n' | grep -x isig; tty; id -u\n", rb"isig\s+[^ ]*/dev/pts/\d+\s+0\s")
        type_into(master, "sleep 1000; echo status $?\n", rb"sleep 1000")
        time.sleep(0.3)  # until it is in the foreground
        type_into(master, "\x03", rb"status 130|\^C")
        type_into(master, "echo sti''ll here\n", rb"still here")
        type_into(master, "exit 5\n", rb"closed")
        assert process.wait(10) == 5
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_command_of_sudo_is_stopped_and_continued_like_any_job_of_the_shell(client: SshClient) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        client.ssh_words(flags=("-tt",)), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        type_into(master, "sudo sh -c 'echo be''gun; sleep 1000'\n", rb"begun")
        time.sleep(0.5)  # until it sleeps
        type_into(master, "\x03", rb"(?s)\^C.*\$ $")
        type_into(master, "echo st''atus $?\n", rb"status 130")
        type_into(master, "sudo sh -c 'echo be''gun; exec sleep 1234'\n", rb"begun")
        time.sleep(0.5)
        type_into(master, "\x1a", rb"(?s)Stopped.*\$ $")
        type_into(master, "ps -o stat= -C sleep | tail -n 1; echo lo''oked\n", rb"T\S*\s+looked")
        type_into(master, "fg\n", rb"1234'")
        type_into(master, "\x03", rb"(?s)\^C.*\$ $")
        type_into(master, "pgrep -f 'sleep 123''4'; echo le''ft\n", rb"left")
        type_into(master, "exit 3\n", rb"logout|closed")
        assert process.wait(10) == 3
    finally:
        process.kill()
        process.wait()
        os.close(master)


def type_into(terminal: int, text: str, until: bytes) -> None:
    os.write(terminal, text.encode())
    said, deadline = b"", time.monotonic() + 20
    while not re.search(until, said):
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
        try:
            said += os.read(terminal, 65536)
        except OSError:  # the other side has closed it
            return


def test_files_are_copied_as_ubuntu_and_users_added(client: SshClient, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello")
    assert client.scp(str(tmp_path / "notes"), ":").returncode == 0
    assert client.sftp("get notes " + str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_text() == "hello"
    done = client.ssh("stat -c %U notes; sudo useradd -m eve && sudo -u eve -i pwd")
    assert done.stdout.decode().split() == ["ubuntu", "/home/eve"], done.stderr


def test_files_outlive_stop_start_and_restart(roost: RunningRoost, microvm: str, client: SshClient) -> None:
    api = roost.api
    client.ssh("echo kept > kept; sudo sh -c 'echo too > /etc/kept'").check_returncode()
    host = client.ssh("hostname").stdout
    assert api.call("POST", f"/microvms/{microvm}/stop")["state"] == "stopped"
    assert api.call("POST", f"/microvms/{microvm}/stop")["state"] == "stopped"
    refused = client.ssh("true")
    assert (refused.returncode, b"is stopped" in refused.stderr) == (255, True)
    assert api.ask("POST", f"/mags-jobs/{microvm}/exec", {"command": "true"})[0] == 409
    assert api.call("GET", f"/microvms/{microvm}/ssh-connection")["ip_address"] is None
    assert api.call("POST", f"/microvms/{microvm}/start")["state"] == "running"
    look = "cat kept /etc/kept; sudo id -u; cut -d. -f1 /proc/uptime >/dev/null; cat /tmp/gone 2>/dev/null"
    assert client.ssh(look).stdout.split() == [b"kept", b"too", b"0"]
    client.ssh("nohup sleep 1000 >/dev/null 2>&1 &").check_returncode()
    assert api.call("POST", f"/microvms/{microvm}/restart")["state"] == "running"
    assert client.ssh("cat kept; pgrep -x sleep; hostname").stdout.split() == [b"kept", host.strip()]


def test_the_generated_key_is_told_once(roost: RunningRoost, microvm: str, client: SshClient) -> None:
    assert client.ssh("true").returncode == 0  # it was downloaded
    status, answer = roost.api.ask("GET", f"/microvms/{microvm}/ssh-keys/download")
    assert status == 404
    assert "roost vm ssh" in answer["error"]


def test_keys_of_ones_own_lead_to_the_microvm_that_is_named(roost: RunningRoost, tmp_path: Path) -> None:
    key = tmp_path / "id"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]).check_returncode()
    keys = [key.with_suffix(".pub").read_text()]
    first, second = (created(roost.api, name=uid(), ssh_public_keys=keys) for _ in range(2))
    try:
        for one in (first, second):
            client = client_of(roost.api, one["id"], tmp_path, key)
            assert client.ssh("hostname; sudo id -u").stdout.decode().split() == [one["name"], "0"]
            assert roost.api.ask("GET", f"/microvms/{one['id']}/ssh-keys/download")[0] == 404
        client.user = "ubuntu"
        assert b"Permission denied" in client.ssh("true").stderr
        done = roost.command("vm", "ssh", first["name"], "--", "id", "-un")
        assert (done.stdout, done.returncode) == (b"ubuntu\n", 0), done.stderr
    finally:
        for one in (first, second):
            roost.api.call("DELETE", f"/microvms/{one['id']}")
    names = [one["workspace_id"] for one in roost.api.call("GET", "/mags-workspaces")["workspaces"]]
    assert not [one for one in (first, second) if f"microvm-{one['id']}" in names]
    assert roost.api.ask("GET", f"/microvms/{first['id']}")[0] == 404


def test_what_was_asked_for_outlives_kills(own_roost: RunningRoost, tmp_path: Path) -> None:
    api = own_roost.api
    made = api.call("POST", "/microvms", {"name": "edge", "image": "standard", "memory": 256, "disk": 2})
    own_roost.kill("serve", "node")
    own_roost.healthy()
    eventually(lambda: state_of(api, "edge") == "running", 30, "it was lost")
    key = downloaded(api, made["id"], tmp_path)
    client = client_of(api, made["id"], tmp_path, key)
    assert client.ssh("echo kept > kept; sudo id -u").stdout == b"0\n"
    with contextlib.suppress(OSError, TimeoutError, ValueError):
        api.ask("POST", "/microvms/edge/stop", timeout=0.1)  # killed on the way
    own_roost.kill("serve", "node")
    own_roost.healthy()
    assert api.ask("GET", "/microvms/edge/ssh-keys/download")[0] == 404
    eventually(lambda: state_of(api, "edge") == "stopped", 30, "it was not stopped")
    api.call("POST", "/microvms/edge/start")
    assert client_of(api, made["id"], tmp_path, key).ssh("cat kept").stdout == b"kept\n"
    api.call("DELETE", "/microvms/edge")
    assert api.call("GET", "/mags-workspaces")["total"] == 0


def test_the_guides_commands_work_as_they_stand(roost: RunningRoost, tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    script = "set -eux\n" + "\n".join(blocks)
    host, _, port = roost.ssh.rpartition(":")
    assert "-p 2222 ubuntu@127.0.0.1" in script
    trusting = f"ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile={tmp_path}/known -i"
    script = script.replace("-p 2222 ubuntu@127.0.0.1", f"-p {port} ubuntu@{host}").replace("\nssh -i", f"\n{trusting}")
    script = script.replace("\nroost ", f"\n{shlex.join(PROGRAM)} ")
    environment = clean_environment() | {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    done = run(["/bin/sh", "-c", script], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode().splitlines()
    assert said[1:6] == ["edge", "root", "stopped", "running", "running"]
    assert {f"ssh -i edge.pem -p {port} ubuntu@{host}", "0", "MicroVM 'edge' deleted"} <= set(said)
    assert (tmp_path / "edge.pem").stat().st_mode & 0o777 == 0o600
