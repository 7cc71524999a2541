"""Webhooks of a real Roost: the command line, and that a kill loses no message."""

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import RunningRoost, eventually


class Receiver(http.server.BaseHTTPRequestHandler):
    got: list[tuple[str, dict[str, object]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.headers["webhook-id"], json.loads(body)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    Receiver.got = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_kills_of_the_control_plane_lose_no_message(receiver: str) -> None:
    with an_instance("--min-pool-size", "1", "--allow-private", "localhost") as roost:
        roost.start()
        roost.api.call("POST", "/webhooks", {"url": receiver, "events": ["job.submitted", "job.completed"]})
        jobs = []
        for _ in range(3):
            jobs += [roost.api.submit("sleep 0.3") for _ in range(3)]
            roost.kill("serve")
            roost.healthy()
        for job in jobs:
            assert roost.api.wait(job).status == "completed"

        def told(kind: str) -> set[object]:
            return {body["data"]["request_id"] for _, body in Receiver.got if body["type"] == kind}  # type: ignore[index]

        for kind in ("job.submitted", "job.completed"):
            eventually(lambda kind=kind: told(kind) == set(jobs), 30, f"{kind}: {len(told(kind))} of {len(jobs)}")
        bodies = dict(Receiver.got)
        assert len(bodies) == 2 * len(jobs)
        assert {body["sequence"] for body in bodies.values()} == set(range(1, 2 * len(jobs) + 1))


def test_the_command_line_adds_lists_changes_and_removes(roost: RunningRoost) -> None:
    def said(*words: str) -> str:
        done = roost.command("webhook", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    id, secret = said("add", "https://example.invalid/hook", "--event", "job.failed").split()
    assert secret.startswith("whsec_")
    assert f"{id}  yes      job.failed  https://example.invalid/hook" in said("list")
    message = said("test", id)
    assert message in said("deliveries", id)
    assert said("deliveries", id, "--status", "delivered", "--json") == '{\n  "deliveries": []\n}'
    said("redeliver", id, message)
    assert said("rotate", id).startswith("whsec_")
    said("set", id, "--disable")
    assert f"{id}  no" in said("list")
    said("remove", id)
    assert id not in said("list")
    assert roost.command("webhook", "add", "http://10.0.0.1/").returncode == 1
