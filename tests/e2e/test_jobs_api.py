"""The Jobs API from outside: the official `magpie-cloud` client, images of a registry, scripts at URLs."""

import contextlib
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import Api, RunningRoost, clean_environment, eventually
from tests.e2e.test_clients import interpreter
from tests.node.image_world import Layout, registry, root_with, skopeo_copy

STEPS = """
import inspect, json, os, sys
from magpie import Magpie
client = Magpie(api_key=os.environ["TOKEN"])
client.base_url = os.environ["URL"]
jobs, told = client.jobs, {}
public = [one for one, _ in inspect.getmembers(type(jobs), callable) if not one.startswith("_")]

def plain(value):
    if isinstance(value, list): return [plain(one) for one in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value

def do(method, *values, **named):
    result = getattr(jobs, method)(*values, **named)
    told.setdefault(method, []).append(plain(result))
    return result

fast = {"poll_interval": 0.05}
greet = "echo hello $WHO; echo wrong >&2"
result = do("run_and_wait", name="greeting", script=greet, environment={"WHO": "you"}, **fast)
failed = do("run_and_wait", name="failing", script="echo before; exit 4", **fast)
program = "import sys; print(sys.version_info.major)"
python = do("run_and_wait", name="python", script=program, script_type="python", **fast)
first = do("run", name="stateful", script="echo kept > /workspace/data.txt", stateful=True, workspace_size_gb=1)
do("wait_for_completion", first["request_id"], **fast)
second = do("send_command", first["request_id"], "cat /workspace/data.txt")
do("wait_for_completion", second.id, **fast)
do("get_result", second.id)
do("get_logs", second.id)
listed = do("list", page=1, page_size=100)
saved = do("get", result.request_id)
do("update", saved.id, script="echo changed $WHO", memory_mb=256)
again = do("execute", saved.id, environment={"WHO": "them"})
do("wait_for_completion", again.id, **fast)
do("get_status", again.id)
handle = do("create_persistent_vm", name="stays", script="echo up", register_proxy=True, poll_interval=1)
do("get_vm_info", handle.request_id, poll_timeout=10, poll_interval=1)
do("ssh", handle.request_id, "echo inside; echo err >&2; exit 6", timeout=20)
do("get_proxy_url", handle.request_id)
do("cancel", handle.request_id)
do("delete", saved.id)
try:
    do("stream_logs", handle.request_id)
except NotImplementedError as error:
    told["stream_logs"] = str(error)
gone = None
try:
    jobs.get(saved.id)
except Exception as error:
    gone = type(error).__name__
print(json.dumps([public, told, gone, client.test_connection(), Magpie(api_key="wrong").test_connection()]))
"""


def test_every_method_of_the_official_client_works(roost: RunningRoost) -> None:
    done = subprocess.run(
        [interpreter("0.1.5", "magpie-cloud"), "-c", STEPS],
        env=clean_environment() | {"TOKEN": roost.api.token, "URL": roost.api.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    public, told, gone, connected, _ = json.loads(done.stdout.splitlines()[-1])
    assert set(public) == set(told)
    greeting, failing, python = told["run_and_wait"]
    assert (greeting["success"], greeting["exit_code"], sorted(greeting["logs"])) == (True, 0, ["hello you", "wrong"])
    assert greeting["duration_ms"] >= 0 and greeting["script_duration_ms"] >= 0
    assert (failing["success"], failing["status"], failing["exit_code"]) == (False, "failed", 4)
    assert python["logs"] == ["3"]
    assert told["run"][0]["status"] == "not_started"
    assert told["send_command"][0]["status"] == "not_started"
    assert told["get_result"][0]["logs"] == ["kept"]
    assert [entry["message"] for entry in told["get_logs"][0]] == ["kept"]
    assert {one["name"] for one in told["list"][0]} >= {"greeting", "failing", "python", "stateful"}
    assert told["get"][0]["environment"] == {"WHO": "you"}
    assert (told["update"][0]["script"], told["update"][0]["memory_mb"]) == ("echo changed $WHO", 256)
    assert told["execute"][0]["job_id"] == told["get"][0]["id"]
    assert told["get_status"][0]["logs"] == ["changed them"]
    assert told["create_persistent_vm"][0]["ip_address"] == told["get_vm_info"][0]["ip_address"]
    ssh = told["ssh"][0]
    assert (ssh["exit_code"], ssh["stdout"], ssh["stderr"]) == (6, "inside\n", "err\n")
    assert told["get_proxy_url"][0] == told["create_persistent_vm"][0]["proxy_url"]
    assert (gone, connected) == ("JobNotFoundError", True)


def test_a_run_is_followed_to_its_end_and_taken_up_in_the_middle(roost: RunningRoost) -> None:
    api = roost.api
    run = api.call("POST", "/jobs", {"script": "for n in 1 2 3; do echo $n; sleep 0.2; done"})["request_id"]

    def followed(**headers: str) -> list[str]:
        with api.open("GET", f"/jobs/{run}/logs?follow=true", None, 60, **headers) as answer:
            return answer.read().decode().split("\n\n")

    events = followed()
    assert ['"message":"1"' in events[0], '"message":"3"' in events[2], "event: end" in events[3]] == [True] * 3
    rest = followed(**{"Last-Event-ID": "2"})
    assert '"message":"3"' in rest[0] and "event: end" in rest[1]


# ---- images and URLs, which want a Roost that may reach this machine ------------------------------------------


class Pages(http.server.BaseHTTPRequestHandler):
    """What scripts are fetched from; `served` is by path."""

    served: dict[str, tuple[int, dict[str, str], bytes]] = {}

    def do_GET(self) -> None:
        status, headers, body = self.served.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def open_roost(images: str) -> Iterator[RunningRoost]:
    with an_instance("--min-pool-size", "1", "--registry", f"http://{images}", "--allow-private", "localhost") as made:
        yield made.start()


def finished(api: Api, run: str) -> dict[str, Any]:
    final = ("completed", "failed", "error", "cancelled")
    return eventually(lambda: (now := api.call("GET", f"/jobs/{run}/status"))["status"] in final and now, 60)


def test_a_script_runs_in_an_image_from_a_registry(
    open_roost: RunningRoost, images: str, tmp_path: Path, probe_shell: bytes
) -> None:
    Layout(tmp_path / "layout").create().image("one", root_with(probe_shell))
    skopeo_copy(f"oci:{tmp_path}/layout:one", f"docker://{images}/tools/probe:1")
    api = open_roost.api
    wanted = {"type": "docker", "docker_image": f"{images}/tools/probe:1", "script": "say probed"}
    runs = [api.call("POST", "/jobs", wanted)["request_id"] for _ in range(2)]
    for run in runs:
        state = finished(api, run)
        assert (state["status"], "probed" in state["logs"][0]) == ("completed", True), state
    missing = api.call("POST", "/jobs", wanted | {"docker_image": f"{images}/tools/none:1"})["request_id"]
    state = finished(api, missing)
    assert (state["status"], "tools/none:1" in state["error_message"]) == ("error", True)
    for image in api.call("GET", "/images")["images"]:
        if image["name"].startswith("docker-"):
            api.call("DELETE", f"/images/{image['name']}")


def test_a_script_at_a_url_is_fetched_and_run(open_roost: RunningRoost, pages: str) -> None:
    Pages.served["/script"] = (200, {}, b"echo fetched")
    Pages.served["/moved"] = (302, {"Location": "/script"}, b"")
    ended = open_roost.api.run(f"{pages}/moved", type="url")
    assert ended.text == "fetched\n"


@pytest.mark.parametrize(
    ("path", "answer", "status", "words"),
    [
        ("/none", None, 502, "404"),
        ("/large", (200, {}, b"#" * (1024 * 1024 + 1)), 413, "1 MiB"),
        ("/binary", (200, {}, b"\xff\xfe"), 400, "UTF-8"),
        ("/loop", (302, {"Location": "/loop"}, b""), 502, "redirects"),
        ("/inward", (302, {"Location": "http://127.0.0.1:1/"}, b""), 400, "127.0.0.1"),
        ("/file", (302, {"Location": "file:///etc/passwd"}, b""), 400, "http"),
    ],
)
def test_what_cannot_be_fetched_is_said_and_nothing_runs(
    open_roost: RunningRoost, pages: str, path: str, answer: Any, status: int, words: str
) -> None:
    if answer is not None:
        Pages.served[path] = answer
    before = open_roost.api.call("GET", "/mags-jobs")["total"]
    refused, told = open_roost.api.ask("POST", "/mags-jobs", {"type": "url", "script": pages + path})
    assert (refused, words in told["error"]) == (status, True), told
    assert open_roost.api.call("GET", "/mags-jobs")["total"] == before


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://[fd00::1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://2130706433/",
        "http://0/",
        "http://localhost/",
        "http://localhost.localdomain/",
        "ftp://example.com/",
        "http://user:secret@example.com/",
        "echo hello",
    ],
)
def test_private_addresses_are_never_fetched_from(roost: RunningRoost, url: str) -> None:
    status, told = roost.api.ask("POST", "/mags-jobs", {"type": "url", "script": url})
    assert status in (400, 502), told
    assert "script" in told["error"]


def test_the_guides_program_works_as_written(roost: RunningRoost) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "jobs-api.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", guide, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [interpreter("0.1.5", "magpie-cloud"), "-c", program],
        env=clean_environment() | {"MAGS_API_TOKEN": roost.api.token, "MAGS_API_URL": roost.api.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("['hello'] 0\n", "")
