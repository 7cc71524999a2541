"""Every snippet of Mags' own documentation runs as it stands once URL and token are set: `seed_snippets.py`.

Command lines of `mags` are in `test_mags_program.py`. Where those documents stand beside the repository (../shared), it
is also checked that the snippets are theirs and that none was forgotten.
"""

import contextlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import RunningRoost, clean_environment, eventually
from tests.e2e.seed_snippets import (
    CURL,
    HTTP,
    JOBS_CURL,
    JOBS_HTTP,
    JOBS_PYTHON,
    MICROVM_HTTP,
    NODE,
    NODE_PRINTS,
    PYTHON,
    SHELL,
    VM_HTTP,
    Snippet,
)
from tests.e2e.test_clients import interpreter
from tests.sdk.node import NODE as NODE_PROGRAM
from tests.sdk.node import SDK

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("mags-api-reference.txt", "mags-and-magpie-docs.txt")
ID = "eab1e214-..."

# `curl` that goes to this Roost, and keeps the answer
BASH = r"""
set -euo pipefail
curl() {
	local theirs=https://raw.githubusercontent.com/magpie/magpie-api-layer/main/mags words
	words=("${@//https:\/\/api.magpiecloud.com/$MAGS_API_URL}")
	words=("${words[@]//$theirs\/mags.sh/$MAGS_API_URL/mags.sh}")
	words=("${words[@]//$theirs\/skill.md/$MAGS_API_URL/mags.md}")
	command curl -sS --fail-with-body "${words[@]}" | tee last
}
the() { jq -er "$1" last; }
is() { jq -e --arg id "${ID:-}" "$1" last >/dev/null || { echo "not so: $1" >&2; cat last >&2; exit 1; }; }
api() { command curl -sS --fail-with-body -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" "$@"; }
JOBS=$MAGS_API_URL/api/v1/mags-jobs
ended() { until api "$JOBS/$ID/status" | jq -e '.status == "completed"' >/dev/null; do sleep 0.05; done; }
persistent() {
	jq -n --arg name "$1" '{script: "echo begun", type: "inline", persistent: true, workspace_id: $name}' |
		api "$JOBS" -d @- | jq -r .request_id
}
remove() { api -X DELETE "$MAGS_API_URL/api/v1$1" >/dev/null; }
"""

PYTHON_GLUE = """
import time
def ended(id):
    while m.status(id)["status"] not in ("completed", "error"): time.sleep(0.02)
def persistent(name):
    global ID
    ID = m.run("echo begun", workspace_id=name, persistent=True)["request_id"]
    while not m.logs(ID)["logs"]: time.sleep(0.02)
    return ID
"""

NODE_GLUE = """
const fs = require('node:fs');
const Mags = require('@magpiecloud/mags');
const mags = new Mags();
let requestId;
const pause = () => new Promise((resolve) => setTimeout(resolve, 20));
async function ended(id) {
  while (!['completed', 'error'].includes((await mags.status(id)).status)) await pause();
}
async function persistent(name) {
  const { requestId: id } = await mags.run('echo begun', { workspaceId: name, persistent: true });
  while ((await mags.logs(id)).logs.length === 0) await pause();
  return id;
}
"""


class User:
    """Somebody with this Roost's URL and token, at home in a directory of their own."""

    def __init__(self, roost: RunningRoost, home: Path) -> None:
        self.roost, self.home = roost, home
        access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token, "TOKEN": roost.api.token}
        self._environment = clean_environment() | access | {"HOME": str(home)}

    def runs(self, *command: str | Path) -> list[str]:
        """The lines that it prints."""
        done = subprocess.run(
            command, cwd=self.home, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout.splitlines()

    def bash(self, text: str, *arguments: str) -> list[str]:
        return self.runs("bash", "-c", BASH + text, "bash", *arguments)


@pytest.fixture(scope="module")
def roost() -> Iterator[RunningRoost]:
    """Of these tests alone, whose names others use, too."""
    with an_instance("--min-pool-size", "1") as instance:
        yield instance.start()


@pytest.fixture
def user(roost: RunningRoost, tmp_path: Path) -> Iterator[User]:
    """Whatever a snippet makes is removed afterwards, for its names are those of the documents."""
    jobs, kept = {one["request_id"] for one in roost.api.jobs()}, workspaces(roost)
    yield User(roost, tmp_path)
    for job in roost.api.jobs():
        if job["request_id"] not in jobs and job["status"] not in ("completed", "error"):
            roost.api.stop(job["request_id"])
    for name in workspaces(roost) - kept:
        with contextlib.suppress(AssertionError):
            roost.api.call("DELETE", f"/mags-workspaces/{name}")


def workspaces(roost: RunningRoost) -> set[str]:
    return {one["workspace_id"] for one in roost.api.call("GET", "/mags-workspaces")["workspaces"]}


def test_what_is_shown_for_curl(user: User) -> None:
    user.bash("\n".join(CURL))


def test_what_is_shown_for_python(user: User) -> None:
    first, *rest = PYTHON
    program = "\n".join([first, PYTHON_GLUE, *rest])
    program = program.replace("your-token", user.roost.api.token).replace(f'"{ID}"', "ID")
    printed = user.runs(interpreter("1.3.8"), "-c", program)
    assert printed[0] == "completed"
    assert "[stdout] begun" in printed


def test_what_is_shown_for_node(user: User) -> None:
    (user.home / "node_modules" / "@magpiecloud").mkdir(parents=True)
    (user.home / "node_modules" / "@magpiecloud" / "mags").symlink_to(SDK)
    blocks = [f"{{\n{part}\n}}" if isinstance(part, Snippet) else part for part in NODE]
    text = NODE_GLUE + "(async () => {\n" + "\n".join(blocks) + "\n})();\n"
    text = text.replace("your-token", user.roost.api.token).replace(f"'{ID}'", "requestId")
    (user.home / "program.js").write_text(text)
    printed = user.runs(NODE_PROGRAM, "--unhandled-rejections=strict", "program.js")
    at = 0
    for expected in NODE_PRINTS:
        pattern = re.escape(expected).replace("REQUEST_ID", "[0-9a-f-]{36}").replace("…", ".*")
        at = next((i + 1 for i, line in enumerate(printed) if i >= at and re.fullmatch(pattern, line)), 0)
        assert at, (expected, printed)


def test_what_is_shown_for_the_shell_script_and_the_skill(user: User) -> None:
    download, simple, workspace, url, *existing, skill, project = SHELL
    user.bash(download)
    assert user.bash(simple)[-1] == "Hello"
    user.bash(workspace)
    job = user.roost.api.jobs()[0]
    assert (job["workspace_id"], job["status"], job["exit_code"]) == ("my-project", "completed", 0)
    begun, address = user.bash(url)
    id = begun.removeprefix("job ")
    assert address.startswith("http")
    said = "\n".join(user.bash("\n".join(existing).replace("<job-id>", id)))
    assert address in said and '"status": "running"' in said and f"{id}\trunning" in said
    user.bash(skill + "\n" + project)
    installed = [(user.home / ".claude/commands/mags.md").read_text(), (ROOT / "sdk/skill/mags.md").read_text()]
    assert installed[0] == installed[1]


RUN = "import flask, requests\nprint('ran with', requests.__name__, flask.__name__)"  # the documents' run.py
STORED = f"cat > run.py <<'END'\n{RUN}\nEND"


@pytest.mark.timeout(400)
def test_the_shown_base_serves_the_shown_workers(user: User) -> None:
    """The first two requests: packages of Alpine's names and of Python's, installed once and then used."""
    base, worker = (json.loads(snippet.partition("\n")[2]) for snippet in HTTP[:2])
    made = user.roost.api.run(seconds=300, **base)
    assert made.status == "completed", made.stderr
    assert user.roost.api.run(STORED, workspace_id=base["workspace_id"]).status == "completed"
    done = user.roost.api.run(**worker)
    assert (done.status, done.text) == ("completed", "ran with requests flask\n"), done.stderr


def test_what_is_shown_as_requests(user: User) -> None:
    job = ""
    for snippet in HTTP[2:]:
        head, _, body = snippet.partition("\n")
        method, path = head.split()
        content: Any = json.loads(re.sub(r"^#.*\n", "", body)) if body else None
        answer = user.roost.api.call(method, path.removeprefix("/api/v1").replace(":id", job), content)
        if method == "POST" and path == "/api/v1/mags-jobs":
            job = answer["request_id"]
            if content.get("persistent"):
                user.roost.api.running(job)
            else:
                user.roost.api.wait(job)
        elif path.endswith("/access"):
            assert answer["success"] and answer["port"] == 8080 and answer["url"]
        elif path.endswith("/pool-status"):
            assert {"idle_vms", "busy_vms", "total_vms", "min_pool_size", "max_pool_size"} <= answer.keys()


def test_what_is_shown_of_the_jobs_api(user: User) -> None:
    api, (create, *rest) = user.roost.api, JOBS_HTTP
    head, _, body = create.partition("\n")
    assert head == "POST /api/v1/jobs"
    job = api.call("POST", "/jobs", json.loads(body))["request_id"]
    eventually(lambda: api.call("GET", f"/jobs/{job}/status")["status"] == "completed")
    answers = [api.call("GET", line.split()[1].removeprefix("/api/v1").replace(":id", job)) for line in lines(rest)]
    listed, shown, status, logs = answers
    assert "nightly-billing-rollup" in [one["name"] for one in listed["jobs"]]
    assert shown["vcpus"] == 2 and status["exit_code"] == 0
    assert "hello" in str(logs)
    followed = JOBS_CURL.replace("REQ_ID", job) + ' -H "Authorization: Bearer $TOKEN"'  # as all calls take
    assert any("hello" in line for line in user.bash(followed))


def test_what_is_shown_of_persistent_vms_and_templates(user: User) -> None:
    api, (vm, templates) = user.roost.api, VM_HTTP
    info, ssh, command = vm.splitlines()
    body = {"name": "dev-shell", "script": "echo ready", "type": "inline", "persist": True, "ip_lease": True}
    job = api.call("POST", "/jobs", body)["request_id"]

    def called(line: str, id: str, body: Any = None) -> Any:
        method, path = line.split()
        return api.call(method, path.removeprefix("/api/v1").replace(":id", id), body)

    assert eventually(lambda: called(info, job).get("ip_address"))
    assert called(ssh, job, json.loads(command))["stdout"].startswith("Linux")
    api.call("POST", f"/jobs/{job}/cancel")
    create, run = templates.splitlines()
    template = called(create, "", {"name": "t", "script": "echo from a template", "script_type": "inline"})["id"]
    started = called(run, template)["id"]
    eventually(lambda: api.call("GET", f"/jobs/{started}/status")["status"] == "completed")
    api.call("DELETE", f"/job-templates/{template}")


def test_what_is_shown_of_microvms(user: User) -> None:
    api, (create, *calls) = user.roost.api, MICROVM_HTTP
    user.runs("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", user.home / "key")
    head, _, body = create.partition("\n")
    assert head == "POST /api/v1/microvms"
    key = (user.home / "key.pub").read_text().strip()
    made = api.call("POST", "/microvms", json.loads(body.replace("ssh-ed25519 AAAA...", key)))
    try:
        assert made["name"] == "ingest-edge"
        assert made["image"] == "ubuntu-22.04" or made["image_note"].startswith("ubuntu-22.04 ")
        eventually(lambda: api.call("GET", f"/microvms/{made['id']}")["state"] == "running", 120)
        for call in calls:
            method, path = call.split()
            status, answer = api.ask(method, path.removeprefix("/api/v1").replace(":id", made["id"]))
            if path.endswith("/ssh-connection"):
                words = [*shlex.split(answer["ssh_command"]), "id -un; sudo id -u"]
                words[1:1] = ["-i", str(user.home / "key"), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
                words[1:1] = ["-o", f"UserKnownHostsFile={user.home / 'known'}"]
                assert user.runs(*words) == ["ubuntu", "0"]
                assert answer["key_generated"] is False and {"ip_address", "ipv6_address"} <= answer.keys()
            elif path.endswith("/download"):
                assert status == 404  # "if server generated one"
            else:
                assert (status, answer["state"]) == (200, "stopped" if path.endswith("/stop") else "running")
    finally:
        api.call("DELETE", f"/microvms/{made['id']}")


def lines(parts: list[str]) -> list[str]:
    return [line for part in parts for line in part.splitlines()]


def test_what_is_shown_for_the_jobs_sdk(user: User) -> None:
    program = "\n".join(JOBS_PYTHON).replace("YOUR_API_KEY", user.roost.api.token)
    printed = user.runs(interpreter("0.1.5", "magpie-cloud"), "-c", program)
    id, address, url = printed[0].split()
    assert len(id) == 36 and ":" in address and id[:12] in url


def documents() -> dict[str, str]:
    """Those that Roost implements, where they stand beside the repository."""
    places = [parent / "shared" / "seeds" for parent in ROOT.parents]
    place = next((one for one in places if one.is_dir()), None)
    return {name: (place / name).read_text() for name in DOCUMENTS} if place else {}


def test_the_snippets_are_those_of_the_documents_and_none_is_missing() -> None:
    texts = documents()
    if not texts:
        pytest.skip("the documents are not beside this repository; the snippets themselves ran")
    whole = "\n".join(texts.values())
    ours = [
        part
        for parts in (CURL, PYTHON, NODE, SHELL, HTTP, JOBS_HTTP, VM_HTTP, MICROVM_HTTP, [JOBS_CURL], JOBS_PYTHON)
        for part in parts
        if isinstance(part, Snippet)
    ]
    assert [part for part in ours if part not in whole] == []
    tested = "\n".join(ours) + Path(__file__).with_name("test_mags_program.py").read_text()
    begins = r"(?:curl |await mags\.|const \w+ = await mags\.|m\.|\w+ = m\.|\./mags\.sh |(?:GET|POST|PATCH) /api).*"
    shown = [line for line in whole.splitlines() if re.fullmatch(begins, line)]
    assert len(shown) > 60
    assert [line for line in shown if line not in tested and not line.startswith(ELSEWHERE)] == []


# calls that are shown without their body, which others make; a program that ours takes the place of
ELSEWHERE = (
    "POST /api/v1/mags-url-aliases", "POST /api/v1/mags-cron",
    "PATCH /api/v1/mags-cron/:id", "POST /api/v1/mags-files", "curl -L https://releases.magpiecloud.com",
)  # fmt: skip
