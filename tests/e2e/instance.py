"""A running `roost up` with a state directory of its own on a free port, and a client of its API.

`RunningRoost` starts, kills and stops it and knows where its parts are on the machine; `Api` speaks HTTP with nothing
but the standard library; `left_behind` tells what an instance that has stopped should have taken with it.
"""

import base64
import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

RUN = Path("/run/roost")
CGROUPS = Path("/sys/fs/cgroup")
FIRST_ID, IDS_PER_MEMBER, MEMBERS = 2**30, 65536, 1024
FINAL = ("completed", "error")
PATIENCE = 4  # times as long as usual: the machine may be busy or emulated, and a limit costs only what fails
READY_SECONDS = 60 * PATIENCE
STOP_SECONDS = 60 * PATIENCE
PROGRAM = (sys.executable, "-m", "roost.cli")

T = TypeVar("T")


def eventually(what: Callable[[], T], seconds: float = 30, says: str = "") -> T:
    """The first true value of `what`; a test that waits PATIENCE times as long has failed."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (value := what()):
        assert time.monotonic() < deadline, says or "it did not come to pass"
        time.sleep(0.01)
    return value


@dataclass
class Ended:
    """A job that has ended: its status as the API tells it, and its exact output."""

    request_id: str
    state: dict[str, Any]
    stdout: bytes
    stderr: bytes
    remarks: bytes

    @property
    def status(self) -> str:
        return self.state["status"]

    @property
    def exit_code(self) -> int | None:
        return self.state.get("exit_code")

    @property
    def error(self) -> str:
        return self.state.get("error") or ""

    @property
    def text(self) -> str:
        return self.stdout.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


class Api:
    """One server and token; each call opens a connection of its own."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        self._address = urllib.parse.urlsplit(url).netloc

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, body: object = None, timeout: float = 60, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._address, timeout=timeout)
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"} | headers
        try:
            connection.request(method, "/api/v1" + path, body=data, headers=sent)
            yield connection.getresponse()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: object = None, timeout: float = 60) -> tuple[int, Any]:
        """Status and decoded answer, whatever the status is."""
        with self.open(method, path, body, timeout) as answer:
            return answer.status, json.loads(answer.read() or b"null")

    def call(self, method: str, path: str, body: object = None, timeout: float = 60) -> Any:
        status, answer = self.ask(method, path, body, timeout)
        assert status < 400, f"{method} {path}: {status} {answer}"
        return answer

    def submit(self, script: str, **fields: object) -> str:
        answer = self.call("POST", "/mags-jobs", {"script": script, "type": "inline", **fields})
        return answer["request_id"]

    def status(self, job: str) -> dict[str, Any]:
        return self.call("GET", f"/mags-jobs/{job}/status")

    def jobs(self, page_size: int = 100) -> list[dict[str, Any]]:
        return self.call("GET", f"/mags-jobs?page_size={page_size}")["jobs"]

    def logs(self, job: str) -> list[dict[str, str]]:
        return self.call("GET", f"/mags-jobs/{job}/logs")["logs"]

    def raw(self, job: str, source: str = "stdout") -> bytes:
        with self.open("GET", f"/mags-jobs/{job}/logs?format=raw&source={source}") as answer:
            content = answer.read()
            assert answer.status == 200, content
            return content

    def stop(self, job: str) -> dict[str, Any]:
        return self.call("POST", f"/mags-jobs/{job}/stop")

    def exec(self, job: str, command: str, timeout: float = 30) -> dict[str, Any]:
        return self.call("POST", f"/mags-jobs/{job}/exec", {"command": command, "timeout": timeout}, timeout + 30)

    def follow(self, job: str, query: str = "", timeout: float = 60, **headers: str) -> Iterator[dict[str, Any]]:
        """Server-sent events as they come: `event`, `id` and the decoded `data` of each."""
        with self.open("GET", f"/mags-jobs/{job}/logs?follow=true{query}", None, timeout, **headers) as answer:
            assert answer.status == 200, answer.read()
            event: dict[str, Any] = {"event": "message"}
            while line := answer.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "data":
                    event["data"] = json.loads(value)
                elif name in ("id", "event"):
                    event[name] = value
                elif not line.strip() and "data" in event:
                    yield event
                    event = {"event": "message"}

    def follow_bytes(self, job: str) -> tuple[bytes, dict[str, Any] | None]:
        """Standard output up to where the stream ends, and the last event if the job has ended."""
        content = b""
        for event in self.follow(job, "&raw=true"):
            if event["event"] == "end":
                return content, event["data"]
            if event["data"]["source"] == "stdout":
                content += base64.b64decode(event["data"]["data"])
        return content, None

    def running(self, job: str, seconds: float = 30) -> dict[str, Any]:
        """The job's status once it runs."""

        def begun() -> dict[str, Any] | None:
            state = self.status(job)
            assert state["status"] not in FINAL, state
            return state if state["status"] == "running" else None

        return eventually(begun, seconds, f"{job} did not begin")

    def said(self, job: str, words: bytes, seconds: float = 30) -> bytes:
        """Standard output once it holds `words`."""
        eventually(lambda: words in self.raw(job), seconds, f"{job} did not say {words!r}")
        return self.raw(job)

    def wait(self, job: str, seconds: float = 60) -> Ended:
        def final() -> dict[str, Any] | None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                code, state = self.ask("GET", f"/mags-jobs/{job}/status", timeout=10)
                assert code in (200, 503), state
                return state if code == 200 and state["status"] in FINAL else None
            return None

        state = eventually(final, seconds, f"{job} did not end within {seconds} s")
        sources = ("stdout", "stderr", "system")
        outputs = [eventually(lambda source=source: self._read(job, source), 30) for source in sources]
        return Ended(job, state, *(content[1:] for content in outputs))

    def _read(self, job: str, source: str) -> bytes:
        """What is there, behind a mark that tells nothing from not yet readable."""
        path = f"/mags-jobs/{job}/logs?format=raw&source={source}"
        with contextlib.suppress(OSError, http.client.HTTPException), self.open("GET", path) as answer:
            content = answer.read()
            if answer.status == 200:
                return b"+" + content
            assert answer.status == 503, content
        return b""

    def run(self, script: str, seconds: float = 60, **fields: object) -> Ended:
        return self.wait(self.submit(script, **fields), seconds)


@dataclass
class SandboxSite:
    """Where a running job's sandbox is on this machine."""

    instance: int
    member: int

    @property
    def first_id(self) -> int:
        return FIRST_ID + (self.instance * MEMBERS + self.member) * IDS_PER_MEMBER

    @property
    def init(self) -> int:
        """Process id of its guest init."""
        return int((RUN / str(self.instance) / "members" / str(self.member) / "pid").read_text())

    def control(self, controller: str, file: str) -> str:
        """A file of its control group."""
        place = CGROUPS / controller if (CGROUPS / controller).is_dir() else CGROUPS
        name = f"roost-{self.instance}-{self.member}"
        return (place / f"roost-{self.instance}" / name / file).read_text().strip()

    def pids(self) -> list[int]:
        return pids_of(self.first_id, self.first_id + IDS_PER_MEMBER)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def pids_of(first: int, behind: int) -> list[int]:
    """Processes whose uid lies in this range, without those that have ended and wait for their parent."""
    found: list[int] = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = place.joinpath("stat").read_text().rpartition(")")[2].split()[0]
            if first <= place.stat().st_uid < behind and state not in "ZX":
                found.append(int(place.name))
    return found


@dataclass
class RunningRoost:
    """One `roost up`; every start writes on in the same log."""

    place: Path
    arguments: tuple[str, ...] = ()
    listen: str = "127.0.0.1:0"
    gateway: str = ""  # HOST:PORT, chosen by the first start
    ssh: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    number: int = field(default=-1, init=False)
    _remembered: str = field(default="", init=False)

    @property
    def state(self) -> Path:
        return self.place / "state"

    @property
    def log(self) -> Path:
        return self.place / "up.log"

    @property
    def runtime_dir(self) -> Path:
        return RUN / str(self.number)

    @property
    def api(self) -> Api:
        credentials = json.loads((self.state / "credentials.json").read_text())
        return Api(credentials["api_url"], credentials["api_token"])

    def launch(self) -> "RunningRoost":
        """Begin a start; `ready` waits for it."""
        self.gateway, self.ssh = self.gateway or free_address(), self.ssh or free_address()
        places = ["--listen", self.listen, "--gateway", self.gateway, "--ssh", self.ssh]
        command = [*PROGRAM, "up", "--state", str(self.state), *places, *self.arguments]
        with self.log.open("ab") as log:
            self._begun_at = log.tell()
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def ready(self) -> "RunningRoost":
        assert self.process
        up = self.process
        eventually(lambda: "Roost is ready" in self.said() or up.poll() is not None, READY_SECONDS, "it is not ready")
        assert up.poll() is None, self.said()
        self.number = self.claimed()
        self.listen = urllib.parse.urlsplit(self.api.url).netloc  # the same address after a restart
        return self

    def start(self) -> "RunningRoost":
        return self.launch().ready()

    def said(self) -> str:
        """Since the last start."""
        with self.log.open("rb") as log:
            log.seek(self._begun_at)
            return log.read().decode(errors="replace")

    def tail(self, characters: int) -> str:
        """The end of the log, also when its directory is gone."""
        if self.log.exists():
            self.remember()
        return self._remembered[-characters:]

    def remember(self) -> None:
        self._remembered = self.log.read_text(errors="replace") if self.log.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log events of all starts with this name."""
        found: list[dict[str, Any]] = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    found.append(event)
        return found

    def pid(self, program: str) -> int:
        """Of `serve` or `node`; 0 while there is none."""
        assert self.process
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = place.joinpath("stat").read_text().rpartition(")")[2].split()[1]
                words = place.joinpath("cmdline").read_bytes().split(b"\0")
                if int(parent) == self.process.pid and program.encode() in words:
                    return int(place.name)
        return 0

    def kill(self, *programs: str) -> None:
        """SIGKILL to `serve`, `node` or `up`, all at once."""
        assert self.process
        pids = [self.process.pid if program == "up" else self.pid(program) for program in programs]
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if "up" in programs:
            self.process.wait(10)

    def healthy(self, seconds: float = 30) -> None:
        """Waits until both programs answer."""

        def answers() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                code, _ = self.api.ask("GET", "/mags-jobs/pool-status", timeout=5)
                return code == 200 and self.api.ask("GET", "/health", timeout=5)[1]["node"] == "ready"
            return False

        eventually(answers, seconds, f"not healthy again: {self.said()[-2000:]}")

    def terminate(self) -> int:
        """Exit status after SIGTERM."""
        assert self.process
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(STOP_SECONDS)

    def site_of(self, job: str) -> SandboxSite:
        """Of a job that runs."""
        vm_id = self.api.running(job)["vm_id"]
        return SandboxSite(self.number, self.record_of(vm_id)["member"])

    def record_of(self, vm_id: str) -> dict[str, Any]:
        return json.loads((self.state / "node" / "sandboxes" / f"{vm_id}.json").read_text())

    def guests(self) -> list[int]:
        """Processes of all its sandboxes, idle ones too."""
        first = FIRST_ID + self.number * MEMBERS * IDS_PER_MEMBER
        return pids_of(first, first + MEMBERS * IDS_PER_MEMBER)

    def command(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """A `roost` command against this instance, to its end."""
        words = [*arguments]
        at = 2 if words[0] in ("image", "quota", "schedule", "template", "vm", "webhook", "workspace") else 1
        at = 3 if words[:2] == ["url", "alias"] else at
        words[at:at] = ["--state", str(self.state)]
        options = {"capture_output": True, "timeout": 60, "env": clean_environment()} | more
        return subprocess.run([*PROGRAM, *words], check=False, **options)

    def left_behind(self) -> list[str]:
        """What is still there of it, to be asked once it has stopped."""
        found = [f"mount: {line}" for line in mounts() if f" {self.place}/" in line]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if backing.read_text().startswith(f"{self.place}/"):
                    found.append(f"loop device: {backing}")
        if self.number < 0:  # it never became ready; a number that is still its own was not given back
            self.number = self.claimed()
        if self.number >= 0:
            named = self._left_by_number()
            if _owner(self.number) in (None, str(self.state)):  # else another instance has the number by now
                found += named
        return found

    def claimed(self) -> int:
        """The number that its state has now; -1: none."""
        return next((number for number in range(16) if _owner(number) == str(self.state)), -1)

    def _left_by_number(self) -> list[str]:
        number = self.number
        found = [str(self.runtime_dir)] if self.runtime_dir.exists() else []
        found += [f"mount: {line}" for line in mounts() if f" {self.runtime_dir}/" in line]
        found += [str(link) for link in Path("/sys/class/net").glob(f"r{number}v*")]
        found += [str(group) for group in CGROUPS.glob(f"*/roost-{number}")]
        found += [f"process: {pid}" for pid in self.guests()]
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        found += [line for line in tables.splitlines() if line.split()[-1] == f"roost{number}"]
        return found


def named(stem: str) -> str:
    """A name that no other test has."""
    return f"{stem}-{secrets.token_hex(4)}"


def clean_environment() -> dict[str, str]:
    """Ours, without what would lead a client elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAGS_", "ROOST_"))}


def _owner(number: int) -> str | None:
    with contextlib.suppress(OSError):
        return (RUN / str(number) / "state").read_text().strip() or None
    return None


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()
