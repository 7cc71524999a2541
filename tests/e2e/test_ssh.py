"""SSH into sandboxes with OpenSSH's own ssh, scp and sftp, with rsync and with paramiko."""

import fcntl
import io
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from tests.e2e.instance import Api, RunningRoost, eventually
from tests.e2e.ssh_client import SshClient, free_port, run, uid, with_access, with_own_key
from tests.node.image_world import Tarball

pytestmark = pytest.mark.e2e

SESSIONS = 50
WEB = "python3 -u -m http.server 8000 --bind 127.0.0.1 --directory /srv"


@pytest.fixture(scope="module")
def sandbox(roost: RunningRoost) -> Iterator[str]:
    """The name of a persistent job that runs and serves /srv on its own 127.0.0.1:8000."""
    name = uid()
    roost.api.submit(
        f"mkdir -p /srv; echo from the sandbox > /srv/page; {WEB}", persistent=True, name=name, workspace_id=name
    )
    roost.api.running(name)
    yield name
    roost.api.stop(name)


@pytest.fixture(scope="module")
def client(roost: RunningRoost, sandbox: str, tmp_path_factory: pytest.TempPathFactory) -> SshClient:
    """By a key of the sandbox's own."""
    return with_access(roost, sandbox, tmp_path_factory.mktemp("ssh"))


# ---- commands ------------------------------------------------------------------------------------------------


def test_a_command_runs_as_root_in_its_home_with_the_jobs_environment(client: SshClient) -> None:
    done = client.ssh("id -u; pwd; echo $HOME; uname -n; echo wrong >&2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == [b"0", b"/root", b"/root"]
    assert done.stderr == b"wrong\n"


@pytest.mark.parametrize("status", [0, 1, 7, 126, 254])
def test_a_commands_exit_status_is_the_clients(client: SshClient, status: int) -> None:
    assert client.ssh(f"exit {status}").returncode == status


def test_short_output_always_arrives_before_the_exit(client: SshClient) -> None:
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda n: client.ssh(f"echo {n}; echo {n} >&2").stdout, range(40)))
    assert done == [b"%d\n" % n for n in range(40)]


def test_bytes_pass_unchanged_both_ways(client: SshClient) -> None:
    content = os.urandom(3_000_000) + bytes(range(256))
    assert client.ssh("cat", input=content).stdout == content


def test_keys_are_exchanged_anew_under_way(client: SshClient) -> None:
    content = os.urandom(6_000_000)
    assert client.ssh("cat", input=content, options=("RekeyLimit=300K",)).stdout == content


def test_the_end_of_input_is_told(client: SshClient) -> None:
    assert client.ssh("wc -c", input=b"12345").stdout.strip() == b"5"


def test_a_command_that_is_ended_by_a_signal_is_told_as_that(client: SshClient) -> None:
    assert client.ssh("kill -TERM $$").returncode == 255


def test_a_client_that_leaves_takes_its_command_with_it(client: SshClient) -> None:
    mark = f"6{time.monotonic_ns() % 10**8}"
    process = client.launch(f"echo begun; sleep {mark}")
    assert process.stdout
    assert process.stdout.readline() == b"begun\n"
    process.kill()
    process.communicate()
    eventually(lambda: client.ssh(f"pgrep -f 'sleep {mark}' | grep -v $$").stdout == b"", 10, "it still runs")


def test_output_that_nobody_reads_holds_the_command_back(client: SshClient) -> None:
    process = client.launch("yes | tee /dev/null | head -c 100000000; echo done > /tmp/flooded")
    try:
        time.sleep(1.5)
        assert client.ssh("test -e /tmp/flooded").returncode == 1
    finally:
        process.kill()
        process.communicate()


def test_environment_is_accepted_by_name_and_size(client: SshClient) -> None:
    done = client.ssh("echo $GREETING $LC_ALL", options=("SetEnv=GREETING=hello LC_ALL=C",))
    assert done.stdout == b"hello C\n"
    refused = client.ssh("echo -$TOO_MUCH-", options=(f"SetEnv=TOO_MUCH={'x' * 40_000}",))
    assert refused.stdout == b"--\n"


def test_a_command_that_cannot_be_is_refused(client: SshClient) -> None:
    done = client.ssh("/no/such/program")
    assert done.returncode == 127
    assert b"/no/such/program" in done.stderr


# ---- terminals -----------------------------------------------------------------------------------------------


class Terminal:
    """`ssh -tt` in a terminal of ours."""

    def __init__(self, words: list[str], rows: int, columns: int) -> None:
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        environment = os.environ | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def until(self, words: bytes, seconds: float = 20) -> bytes:
        deadline = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._master, 65536)
                except OSError:
                    break
        assert words in self.seen, self.seen
        return self.seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._master)


@pytest.fixture
def terminal(client: SshClient) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def make(*command: str) -> Terminal:
        opened.append(Terminal(client.ssh_words(*command, flags=("-tt",)), 33, 111))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_a_shell_has_a_terminal_of_the_clients_size_and_kind(terminal: Callable[..., Terminal]) -> None:
    shell = terminal()
    shell.type(b"stty size; echo term=$TERM; tty; echo $0-is-login\n")
    shell.until(b"33 111")
    shell.until(b"term=xterm-256color")
    shell.until(b"/dev/pts/")
    shell.type(b"exit 5\n")
    assert shell.process.wait(20) == 5


def test_a_window_that_changes_its_size_is_told(terminal: Callable[..., Terminal]) -> None:
    shell = terminal("trap 'stty size; exit 0' WINCH; echo begun; while :; do sleep 0.1; done")
    shell.until(b"begun")
    shell.resize(44, 99)
    os.killpg(shell.process.pid, signal.SIGWINCH)
    shell.until(b"44 99")


def test_control_c_interrupts_what_runs_in_the_terminal(terminal: Callable[..., Terminal]) -> None:
    shell = terminal()
    shell.type(b"sh -c \"echo be''gun; exec sleep 1000\"\n")
    shell.until(b"begun")
    shell.type(b"\x03")
    shell.type(b"echo st=$?=\n")
    shell.until(b"st=130=")


# ---- files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a large file, an empty one and one with an odd name."""
    place = tmp_path / "files"
    (place / "below").mkdir(parents=True)
    (place / "large").write_bytes(os.urandom(5_000_000))
    (place / "empty").touch()
    (place / "below" / "odd näme 'x'").write_text("odd")
    (place / "below" / "program").write_text("#!/bin/sh\n")
    (place / "below" / "program").chmod(0o755)
    return place


def same(one: Path, other: Path) -> bool:
    return run(["diff", "-r", str(one), str(other)]).returncode == 0


@pytest.mark.parametrize("legacy", [False, True], ids=["sftp", "legacy"])
def test_scp_copies_a_tree_there_and_back(client: SshClient, files: Path, tmp_path: Path, legacy: bool) -> None:
    there = f"/root/{uid()}"
    sent = client.scp("-r", "-p", str(files), f":{there}", legacy=legacy)
    assert sent.returncode == 0, sent.stderr
    back = client.scp("-r", "-p", f":{there}", str(tmp_path / "back"), legacy=legacy)
    assert back.returncode == 0, back.stderr
    assert same(files, tmp_path / "back")
    assert (tmp_path / "back" / "below" / "program").stat().st_mode & 0o777 == 0o755


def test_sftp_lists_puts_gets_renames_and_removes(client: SshClient, files: Path, tmp_path: Path) -> None:
    there = f"/root/{uid()}"
    back = tmp_path / "back"
    commands = (f"put {files}/large {there}.part", f"rename {there}.part {there}", f"ls -l {there}")
    done = client.sftp(*commands, f"get {there} {back}", f"chmod 600 {there}", f"rm {there}")
    assert done.returncode == 0, done.stderr
    assert back.read_bytes() == (files / "large").read_bytes()
    assert client.ssh(f"test -e {there}").returncode == 1


def test_rsync_sends_only_what_has_changed(client: SshClient, files: Path, tmp_path: Path) -> None:
    there = f"/root/{uid()}"
    first = client.rsync("-a", "--stats", f"{files}/", f":{there}/")
    assert first.returncode == 0, first.stderr
    (files / "empty").write_text("no longer")
    second = client.rsync("-a", "--stats", "--checksum", f"{files}/", f":{there}/")
    assert b"Number of regular files transferred: 1" in second.stdout, second.stdout + second.stderr
    assert client.rsync("-a", f":{there}/", f"{tmp_path / 'back'}/").returncode == 0
    assert same(files, tmp_path / "back")


@pytest.fixture
def foreign_sandbox(roost: RunningRoost, tmp_path: Path) -> Iterator[str]:
    """The name of a sandbox of an image that holds a static busybox, a line about root, and no C library at all."""
    name = uid()
    image = Tarball().file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    for applet in ("sh", "cat", "sleep", "mkdir"):
        image.symlink(f"bin/{applet}", "busybox")
    image.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n").directory("root", 0o700)
    tarball = image.save(tmp_path / "image.tar")
    imported = roost.command("image", "import", "-n", name, str(tarball))
    assert imported.returncode == 0, imported.stderr
    roost.api.submit("sleep 1000", persistent=True, name=name, rootfs_type=name)
    roost.api.running(name)
    yield name
    roost.api.stop(name)
    eventually(lambda: roost.api.ask("DELETE", f"/images/{name}")[0] < 400, 20)


def test_files_are_copied_into_an_image_that_holds_no_such_programs(
    roost: RunningRoost, foreign_sandbox: str, files: Path, tmp_path: Path
) -> None:
    client = with_access(roost, foreign_sandbox, tmp_path / "ssh")
    ways = {
        "sftp": lambda there: client.scp("-r", str(files), f":{there}"),
        "scp": lambda there: client.scp("-r", str(files), f":{there}", legacy=True),
        "rsync": lambda there: client.rsync("-a", f"{files}/", f":{there}/"),
    }
    for way, send in ways.items():
        sent = send(f"/root/{way}")
        assert sent.returncode == 0, (way, sent.stderr)
        assert client.scp("-r", f":/root/{way}", str(tmp_path / way)).returncode == 0
        assert same(files, tmp_path / way)
    assert client.ssh("cat /root/rsync/below/odd*").stdout == b"odd"


# ---- forwarding ----------------------------------------------------------------------------------------------


def fetched(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=10) as answer:
        return answer.read()


def reached(port: int) -> bytes:
    def get() -> bytes:
        try:
            return fetched(port)
        except OSError:
            return b""

    return eventually(get, 15, "nothing answers through the tunnel")


@pytest.mark.parametrize("target", ["localhost", "127.0.0.1"])
def test_a_local_port_leads_to_an_app_that_listens_on_the_sandboxs_loopback(client: SshClient, target: str) -> None:
    port = free_port()
    with client.forwarding("-L", f"127.0.0.1:{port}:{target}:8000"):
        assert reached(port) == b"from the sandbox\n"


def test_a_port_on_which_nothing_listens_is_refused_and_the_connection_goes_on(client: SshClient) -> None:
    port = free_port()
    with client.forwarding("-L", f"127.0.0.1:{port}:localhost:9") as process:
        eventually(lambda: _closed_at_once(port), 15)
        assert process.poll() is None


def _closed_at_once(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return connection.recv(1) == b""
    except ConnectionRefusedError:
        return False
    except OSError:
        return True


def test_much_passes_a_forwarded_connection_unchanged(client: SshClient) -> None:
    port, content = free_port(), os.urandom(8_000_000)
    client.ssh("cat > /srv/large", input=content)
    with client.forwarding("-L", f"127.0.0.1:{port}:localhost:8000"):
        reached(port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/large", timeout=30) as answer:
            assert answer.read() == content


def test_a_socks_proxy_leads_into_the_sandbox(client: SshClient) -> None:
    port = free_port()
    with client.forwarding("-D", f"127.0.0.1:{port}"):
        words = ["curl", "-sf", "--socks5-hostname", f"127.0.0.1:{port}", "http://localhost:8000/page"]
        assert eventually(lambda: run(words).stdout, 15) == b"from the sandbox\n"


def test_a_port_in_the_sandbox_leads_to_the_client(client: SshClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as here:
        here.settimeout(20)
        answering = threading.Thread(target=_answer_once, args=(here,))
        answering.start()
        with client.forwarding("-R", f"0:127.0.0.1:{here.getsockname()[1]}") as process:
            assert process.stderr
            told = eventually(process.stderr.readline, 20).decode()
            port = int(told.split("port ")[1].split()[0])
            script = f"import socket; s = socket.create_connection(('127.0.0.1', {port})); print(s.recv(99).decode())"
            assert client.ssh(f'python3 -c "{script}"').stdout == b"hello from outside\n"
        answering.join(20)


def _answer_once(here: socket.socket) -> None:
    connection, _ = here.accept()
    with connection:
        connection.sendall(b"hello from outside")


def test_agent_forwarding_is_refused(client: SshClient, tmp_path: Path) -> None:
    agent = run(["ssh-agent", "-a", str(tmp_path / "agent")])
    pid = int(agent.stdout.decode().split("SSH_AGENT_PID=")[1].split(";")[0])
    try:
        environment = os.environ | {"SSH_AUTH_SOCK": str(tmp_path / "agent")}
        done = client.ssh("echo -$SSH_AUTH_SOCK-", flags=("-A",), env=environment)
        assert done.stdout == b"--\n"
    finally:
        os.kill(pid, signal.SIGTERM)


# ---- many ----------------------------------------------------------------------------------------------------


def test_fifty_sessions_at_once_each_get_their_own_answer(client: SshClient) -> None:
    processes = [client.launch(f"echo {n}; cat; exit {n}") for n in range(SESSIONS)]
    for process in processes:
        assert process.stdout
        process.stdout.readline()  # all of them are open now
    ends = [process.communicate(input=b"%d" % n, timeout=60) for n, process in enumerate(processes)]
    assert [out for out, _ in ends] == [b"%d" % n for n in range(SESSIONS)], [err for _, err in ends if err]
    assert [process.returncode for process in processes] == list(range(SESSIONS))


def test_sessions_share_one_connection(client: SshClient, tmp_path: Path) -> None:
    control = (f"ControlPath={tmp_path}/c",)
    master = client.launch(flags=("-N", "-M"), options=control, stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: (tmp_path / "c").exists(), 15)
        with ThreadPoolExecutor(10) as threads:
            done = list(threads.map(lambda n: client.ssh(f"echo {n}", options=control).stdout, range(30)))
        assert done == [b"%d\n" % n for n in range(30)]
    finally:
        master.terminate()
        master.communicate(timeout=10)


def test_logins_leave_nothing_open_in_the_gateway(roost: RunningRoost, client: SshClient) -> None:
    serve = roost.pid("serve")
    assert serve
    descriptors = Path(f"/proc/{serve}/fd")
    client.ssh("true")
    before = len(list(descriptors.iterdir()))
    with ThreadPoolExecutor(5) as threads:
        for done in threads.map(lambda _: client.ssh("head -c 300000 /dev/zero"), range(40)):
            assert done.returncode == 0
    for _ in range(5):
        process = client.launch("sleep 1000")
        time.sleep(0.2)
        process.kill()
        process.communicate()
    eventually(lambda: len(list(descriptors.iterdir())) <= before + 2, 20, "descriptors are left")


# ---- who may come in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_an_accounts_own_key_opens_each_of_its_sandboxes_by_name(
    roost: RunningRoost, sandbox: str, tmp_path: Path, kind: str
) -> None:
    own = with_own_key(roost, tmp_path, sandbox, kind)
    done = own.ssh("cat /srv/page")
    assert done.stdout == b"from the sandbox\n", done.stderr


def test_an_accounts_key_as_roost_is_told_what_there_is(roost: RunningRoost, sandbox: str, tmp_path: Path) -> None:
    lobby = with_own_key(roost, tmp_path, "roost")
    for command in ((), ("list",)):
        done = lobby.ssh(*command)
        assert done.returncode == 0
        assert sandbox in done.stdout.decode()
    assert lobby.ssh("rm -rf /").returncode == 2


def test_a_name_that_is_none_of_the_accounts_is_said(roost: RunningRoost, tmp_path: Path) -> None:
    done = with_own_key(roost, tmp_path, "nobody-has-this-name").ssh("true")
    assert done.returncode == 255
    assert "nobody-has-this-name" in done.stderr.decode()


def test_an_unknown_key_a_wrong_user_and_a_password_are_refused(client: SshClient, tmp_path: Path) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "unknown")])
    unknown = SshClient(client.place, client.host, client.port, tmp_path / "unknown")
    wrong_user = SshClient(client.place, client.host, client.port, client.key, "somebody")
    for one in (unknown, wrong_user):
        done = one.ssh("true")
        assert done.returncode == 255
        assert b"Permission denied (publickey)" in done.stderr


def test_a_removed_key_is_refused_and_what_it_opened_closes(
    roost: RunningRoost, api: Api, sandbox: str, tmp_path: Path
) -> None:
    guest = with_access(roost, sandbox, tmp_path / "guest")
    before = {key["id"] for key in api.call("GET", f"/mags-jobs/{sandbox}/ssh-keys")["keys"]}
    process = guest.launch("echo open; cat")
    assert process.stdout
    assert process.stdout.readline() == b"open\n"
    newest = api.call("GET", f"/mags-jobs/{sandbox}/ssh-keys")["keys"][-1]["id"]
    assert newest in before
    api.call("DELETE", f"/mags-jobs/{sandbox}/ssh-keys/{newest}")
    assert process.wait(20) == 255
    process.communicate()
    assert b"Permission denied" in guest.ssh("true").stderr
    assert api.ask("DELETE", f"/mags-jobs/{sandbox}/ssh-keys/{newest}")[0] == 404


def test_a_job_that_is_not_persistent_has_no_way_in(api: Api) -> None:
    job = api.submit("sleep 100")
    api.running(job)
    status, answer = api.ask("POST", f"/mags-jobs/{job}/access", {"port": 22})
    assert status in (400, 409)
    assert "persistent" in answer["error"]
    api.stop(job)


def test_paramiko_loads_the_key_and_runs_copies_and_pins(
    roost: RunningRoost, api: Api, sandbox: str, tmp_path: Path
) -> None:
    access = api.call("POST", f"/mags-jobs/{sandbox}/access", {"port": 22})
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(access["ssh_private_key"]))
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        kind, encoded = access["host_key"].split()
        pinned = paramiko.PKey.from_type_string(kind, __import__("base64").b64decode(encoded))
        client.get_host_keys().add(f"[{access['ssh_host']}]:{access['ssh_port']}", kind, pinned)
        client.connect(
            access["ssh_host"], int(access["ssh_port"]), access["ssh_user"], pkey=key, look_for_keys=False,
            allow_agent=False,
        )  # fmt: skip
        _, out, error = client.exec_command("echo out; echo err >&2; exit 9")
        assert (out.read(), error.read(), out.channel.recv_exit_status()) == (b"out\n", b"err\n", 9)
        with client.open_sftp() as sftp:
            sftp.putfo(io.BytesIO(b"by paramiko"), "/root/paramiko")
            assert sftp.stat("/root/paramiko").st_size == 11


# ---- a job's own PATH ----------------------------------------------------------------------------------------


def test_a_login_shell_keeps_the_jobs_path_and_what_its_profile_adds(roost: RunningRoost, tmp_path: Path) -> None:
    name = uid()
    script = "mkdir -p /opt/tool/bin; cd /opt/tool/bin; printf '#!/bin/sh\\necho tool runs\\n' > tool; chmod +x tool; "
    script += "echo 'PATH=$PATH:/opt/profile' >> /root/.profile; sleep infinity"
    environment = {"PATH": "/opt/tool/bin:/usr/bin:/bin"}
    roost.api.submit(script, persistent=True, name=name, environment=environment)
    roost.api.running(name)
    client = with_access(roost, name, tmp_path)
    assert client.ssh("echo $PATH; echo $SSH_TTY").stdout.splitlines() == [b"/opt/tool/bin:/usr/bin:/bin", b""]
    shell = Terminal(client.ssh_words(flags=("-tt",)), 33, 111)
    try:
        shell.type(b"tool; echo path=$PATH=; echo tty=$SSH_TTY=$(tty)=; echo from=$SSH_CLIENT=$SSH_CONNECTION=\n")
        shell.until(b"tool runs")
        shell.until(b"path=/opt/tool/bin:/usr/bin:/bin:/usr/local/sbin")
        shell.until(b":/opt/profile=")
        shell.until(b"tty=/dev/pts/0=/dev/pts/0=")
        shell.until(b"from=127.0.0.1 ")
        shell.type(b"exit 6\n")
        assert shell.process.wait(20) == 6
    finally:
        shell.close()
        roost.api.stop(name)
