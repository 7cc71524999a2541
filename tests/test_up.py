"""`roost up` as an operator sees it: one process that brings an instance up, keeps it up, and takes it down."""

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from roost.errors import Invalid
from roost.instance import read_credentials
from roost.listening import address_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="roost up needs root")
Start = Callable[..., "Up"]


class Up:
    """A running `roost up` with its own state, on a free port."""

    def __init__(self, state: Path, *arguments: str, listen: str = "127.0.0.1:0") -> None:
        self.state = state
        self.log = state.parent / f"{state.name}.{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "roost.cli", "up", "--state", str(state), "--listen", listen]
        command += ["--gateway", "127.0.0.1:0", "--ssh", "127.0.0.1:0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--min-pool-size", "0", *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def wait_until_ready(self) -> "Up":
        eventually(lambda: "Roost is ready" in self.output() or self.process.poll() is not None)
        assert self.process.poll() is None, self.output()
        return self

    def output(self) -> str:
        return self.log.read_text()

    @property
    def address(self) -> str:
        return urlsplit(read_credentials(self.state).api_url).netloc

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        token = read_credentials(self.state).api_token
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def child(self, program: str) -> int:
        """The process id of `serve` or `node`; 0 when there is none now."""
        for place in Path("/proc").glob("[0-9]*"):
            try:
                parent = place.joinpath("stat").read_text().rpartition(")")[2].split()[1]
                words = place.joinpath("cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(parent) == self.process.pid and program.encode() in words:
                return int(place.name)
        return 0

    def runtime_dir(self) -> Path:
        found = [f for f in Path("/run/roost").glob("*/state") if f.read_text().strip() == str(self.state)]
        return found[0].parent

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(90)


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Up] = []

    def begin(name: str = "state", *arguments: str, listen: str = "127.0.0.1:0") -> Up:
        started.append(Up(tmp_path / name, *arguments, listen=listen))
        return started[-1]

    yield begin
    for up in started:
        up.stop()


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8484", ("127.0.0.1", 8484)), ("[::1]:0", ("::1", 0)), ("localhost:80", ("localhost", 80))],
)
def test_an_address_to_listen_on_has_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert address_of(text, "--listen") == address


@pytest.mark.parametrize("text", ["", "8484", ":8484", "host:", "host:x", "host:65536", "host:-1", "host:²"])
def test_any_other_address_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="HOST:PORT"):
        address_of(text, "--listen")


@pytest.mark.e2e
@needs_root
def test_it_starts_two_programs_and_stops_both(start: Start) -> None:
    up = start().wait_until_ready()
    assert up.get("/api/v1/health") == 200
    assert up.get("/api/v1/mags-jobs") == 200
    runtime_dir, serve, node = up.runtime_dir(), up.child("serve"), up.child("node")
    assert stat.S_IMODE((up.state / "credentials.json").stat().st_mode) == 0o600
    assert {"credentials.json", "serve", "node", "lock"} == {path.name for path in up.state.iterdir()}
    assert up.stop() == 0
    assert not runtime_dir.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in (serve, node))


@pytest.mark.e2e
@needs_root
def test_the_control_plane_has_no_privilege_and_no_token_to_show(start: Start) -> None:
    up = start().wait_until_ready()
    place = Path(f"/proc/{up.child('serve')}")
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) != {"0"}
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    token = read_credentials(up.state).api_token.encode()
    assert token not in (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
    assert not (place / "root" / str(up.state).lstrip("/") / "credentials.json").exists()


@pytest.mark.e2e
@needs_root
@pytest.mark.parametrize("program", ["serve", "node"])
def test_a_killed_program_is_started_again(start: Start, program: str) -> None:
    up = start().wait_until_ready()
    first = up.child(program)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: up.child(program) not in (0, first))
    eventually(lambda: up.get("/api/v1/mags-jobs/pool-status") == 200)
    assert up.stop(signal.SIGINT) == 0


@pytest.mark.e2e
@needs_root
def test_a_second_one_on_the_same_state_is_refused(start: Start) -> None:
    up = start().wait_until_ready()
    second = start()
    assert second.process.wait(30) == 1
    assert "another `roost up` runs on" in second.output()
    assert up.get("/api/v1/health") == 200


@pytest.mark.e2e
@needs_root
def test_two_states_coexist(start: Start) -> None:
    one, two = start("one").wait_until_ready(), start("two").wait_until_ready()
    assert one.runtime_dir() != two.runtime_dir()
    assert one.get("/api/v1/health") == two.get("/api/v1/health") == 200


@pytest.mark.e2e
@needs_root
def test_a_taken_port_is_refused_and_nothing_is_left(start: Start) -> None:
    up = start().wait_until_ready()
    late = start("late", listen=up.address)
    assert late.process.wait(30) == 1
    assert "--listen" in late.output()
    assert not late.state.exists()


@pytest.mark.e2e
@needs_root
def test_both_programs_end_when_it_is_killed_and_the_next_start_works(start: Start) -> None:
    up = start().wait_until_ready()
    token, number = read_credentials(up.state).api_token, up.runtime_dir().name
    children = [up.child("serve"), up.child("node")]
    up.stop(signal.SIGKILL)
    eventually(lambda: not any(_runs(pid) for pid in children))
    again = start().wait_until_ready()
    assert read_credentials(again.state).api_token == token
    assert again.runtime_dir().name == number
    assert again.get("/api/v1/mags-jobs") == 200


@pytest.mark.e2e
@needs_root
def test_an_unknown_user_is_refused_with_the_cure(start: Start) -> None:
    up = start("state", "--user", "nobody-of-that-name")
    assert up.process.wait(30) == 1
    assert "adduser" in up.output()
    assert not up.state.exists()


@needs_root
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--gateway-tls", "127.0.0.1:0"), "--gateway-tls needs certificates"),
        (("--acme", "https://acme.test/dir"), "give --gateway-tls HOST:PORT as well"),
        (("--gateway-tls", "127.0.0.1:0", "--acme", "ftp://acme.test"), "is not an https:// URL"),
        (("--default-quota", "wishes=3"), "wishes"),
        (("--images", "/tmp/nothing-is-here"), "`make setup` builds one"),
        (("--runtime", "nosuch"), "the configured OCI runtime 'nosuch' was not found"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(
    start: Start, options: tuple[str, ...], words: str
) -> None:
    up = start("state", *options)
    assert up.process.wait(30) != 0
    assert words in up.output()
    assert "starting Roost" not in up.output()
    assert not up.state.exists()
    assert not Path("/tmp/nothing-is-here").exists()


@pytest.mark.e2e
@needs_root
def test_events_are_json_where_nobody_reads_them_and_text_on_request(start: Start) -> None:
    for_programs, for_people = start("one"), start("two", "--log-format", "text")
    assert '{"' in for_programs.wait_until_ready().output()
    told = for_people.wait_until_ready().output()
    assert "serve.listening" in told
    assert '{"' not in told


@pytest.mark.e2e
@needs_root
def test_the_command_to_try_works_from_any_directory(start: Start) -> None:
    told = start().wait_until_ready().output()
    [line] = [line for line in told.splitlines() if line.startswith("  try ")]
    tried = subprocess.run(line.split(maxsplit=1)[1], shell=True, cwd="/", capture_output=True, timeout=60)
    assert tried.stdout == b"hello\n", tried.stderr


@pytest.mark.e2e
@needs_root
def test_a_first_job_says_hello(start: Start) -> None:
    up = start("state", "--hello").wait_until_ready()
    assert "Hello from a sandbox" in up.output().replace("$ roost run 'echo Hello", "")
    assert "failed" not in up.output()


@pytest.mark.e2e
@needs_root
def test_a_script_runs_from_the_command_line(start: Start) -> None:
    up = start().wait_until_ready()
    script = "printf 'out\\377'; echo err >&2; exit 3"
    shown = roost(up, "run", "-n", "demo", "-e", "A=b", script)
    assert (shown.returncode, shown.stdout, shown.stderr) == (3, b"out\xff", b"err\n")
    [job] = json.loads(roost(up, "list", "--json").stdout)["jobs"]
    assert (job["name"], job["exit_code"]) == ("demo", 3)
    assert json.loads(roost(up, "status", "demo", "--json").stdout)["request_id"] == job["request_id"]
    assert roost(up, "logs", "demo").stderr == b"err\n"
    assert roost(up, "logs", "-f", "demo").stdout == b"out\xff"
    assert b"standard" in roost(up, "image", "list").stdout
    assert b"min_pool_size" in roost(up, "pool").stdout


@pytest.mark.e2e
@needs_root
def test_ctrl_c_stops_the_job(start: Start) -> None:
    up = start().wait_until_ready()
    command = [sys.executable, "-m", "roost.cli", "run", "--state", str(up.state), "-n", "long"]
    with subprocess.Popen([*command, "echo ready; sleep 100"], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        assert roost(up, "exec", "long", "echo", "in it").stdout == b"in it\n"
        assert roost(up, "exec", "long", "exit 4").returncode == 4
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 130
    status = json.loads(roost(up, "status", "long", "--json").stdout)
    assert status["status"] in ("completed", "error")


def roost(up: Up, command: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("MAGS_", "ROOST_"))}
    words = [sys.executable, "-m", "roost.cli", *command.split()]
    if command == "image":
        words, arguments = [*words, arguments[0]], arguments[1:]
    words += ["--state", str(up.state), *arguments]
    return subprocess.run(words, capture_output=True, env=variables, timeout=60, check=False)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
