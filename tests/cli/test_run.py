"""`roost run` and what all commands have in common, against a control plane with a node in memory behind it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.cli.run import kept, refuse_contradictions, spelled_out
from roost.errors import Invalid
from tests.jobs.memory_node import until
from tests.workspaces.conftest import TOKEN
from tests.workspaces.test_commands import Shell, a_shell

in_process = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")
pytestmark = in_process


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with a_shell(tmp_path) as shell:
        yield shell


async def sandbox(shell: Shell, count: int = 1) -> str:
    """The newest sandbox, once there are `count`."""
    await until(lambda: len(shell.plane.node.requests) >= count)
    return list(shell.plane.node.requests)[-1]


async def ended(shell: Shell, *words: str, exit_code: int = 0, says: bytes = b"", status: int = 0) -> str:
    """What a command shows that waits for its job, which says something and ends."""
    before = len(shell.plane.node.requests)
    showing = asyncio.create_task(shell.roost(*words, status=status))
    vm_id = await sandbox(shell, before + 1)
    if says:
        shell.plane.node.say(vm_id, says)
    shell.plane.node.end(vm_id, exit_code=exit_code)
    return await showing


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["-e", "npm test"], ["-e", "npm test"]),
        (["-e", "A=1", "true"], ["--env", "A=1", "true"]),
        (["-e", "-e", "A=1", "true"], ["-e", "--env", "A=1", "true"]),
        (["-p", "-e", "30", "true"], ["-p", "--idle-minutes", "30", "true"]),
        (["true", "-e"], ["true", "-e"]),
        (["-e", "--", "A=1"], ["-e", "--", "A=1"]),
        (["--env", "A=1", "-e", "B=2 3", "x"], ["--env", "A=1", "--env", "B=2 3", "x"]),
    ],
)
def test_e_has_three_meanings(words: list[str], read: list[str]) -> None:
    assert spelled_out(words) == read


def options(**given: object) -> dict[str, object]:
    names = ("workspace", "name", "ephemeral", "persistent", "no_sleep", "startup_command")
    return dict.fromkeys(names) | given


@pytest.mark.parametrize(
    ("given", "workspace", "name"),
    [
        ({"workspace": "w"}, "w", "w"),
        ({"name": "n"}, "n", "n"),
        ({"workspace": "w", "name": "n"}, "w", "n"),
        ({"name": "n", "ephemeral": True}, None, "n"),
        ({}, None, None),
    ],
)
def test_a_workspace_names_its_job_and_a_name_its_workspace(
    given: dict[str, object], workspace: str | None, name: str | None
) -> None:
    asked = kept(options(**given))
    assert (asked["workspace"], asked["name"], "ephemeral" in asked) == (workspace, name, False)


@pytest.mark.parametrize(
    ("given", "public", "port", "text"),
    [
        ({"ephemeral": True, "workspace": "w"}, False, None, "-e keeps nothing and -w does"),
        ({"ephemeral": True, "persistent": True}, False, None, "-e keeps nothing and -p does"),
        ({}, True, None, "--url needs -p"),
        ({"no_sleep": True}, False, None, "--no-sleep needs -p"),
        ({"startup_command": "x"}, False, None, "--startup-command needs -p"),
        ({"persistent": True}, False, 80, "add --url"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    given: dict[str, object], public: bool, port: int | None, text: str
) -> None:
    with pytest.raises(Invalid, match=text):
        refuse_contradictions(options(**given), public, port)


async def test_a_name_behind_e_is_a_variable_where_there_is_another_script(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "from here")
    await ended(shell, "run", "-e", "OURS", "echo $OURS")
    await ended(shell, "run", "-e", "uname")
    first, second = shell.plane.node.requests.values()
    assert (first.script, first.environment.get("OURS")) == (b"echo $OURS", "from here")
    assert second.script == b"uname"
    assert "no such variable" in await shell.roost("run", "-e", "NOT_OURS", "x", status=125)


async def test_a_script_that_follows_e_and_looks_like_a_variable_is_the_script(shell: Shell) -> None:
    await ended(shell, "run", "-e", "A=1; echo $A")
    (started,) = shell.plane.node.requests.values()
    assert (started.script, started.environment.get("A")) == (b"A=1; echo $A", None)


async def test_run_ends_as_the_script_does_and_shows_its_output(shell: Shell) -> None:
    assert await ended(shell, "run", "x", says=b"line\n", exit_code=7, status=7) == "line\n"


async def test_run_as_json_is_one_document_with_the_logs(shell: Shell) -> None:
    shown = json.loads(await ended(shell, "run", "--json", "-n", "j", "x", says=b"line\n", exit_code=3, status=3))
    assert (shown["name"], shown["workspace_id"], shown["status"], shown["exit_code"]) == ("j", "j", "error", 3)
    assert [entry["message"] for entry in shown["logs"]] == ["line"]


async def test_following_as_json_is_a_line_for_each_piece_and_one_for_the_end(shell: Shell) -> None:
    await shell.roost("run", "--detach", "-n", "j", "x")
    shell.plane.node.say(await sandbox(shell), b"line\n")
    following = asyncio.create_task(shell.roost("logs", "-f", "--json", "j"))
    shell.plane.node.end(await sandbox(shell), exit_code=2)
    steps = [json.loads(line) for line in (await following).splitlines()]
    assert steps[0] == {"source": "stdout", "message": "line\n"}
    assert (steps[-1]["status"], steps[-1]["exit_code"]) == ("error", 2)


async def test_run_opens_a_url(shell: Shell) -> None:
    shown = await shell.roost("run", "-w", "webapp", "-p", "--url", "--port", "3000", "npm start")
    assert shown.startswith("http://") and ".apps.localhost:8485\nroost: port 3000 of job" in shown
    opened = json.loads(await shell.roost("run", "-p", "--url", "--json", "x"))
    assert opened["status"] == "accepted" and opened["port"] == 8080 and opened["url"].startswith("http://")


async def test_run_detached_prints_the_id_alone(shell: Shell) -> None:
    job = (await shell.roost("run", "-d", "x")).splitlines()[0]
    assert json.loads(await shell.roost("status", job, "--json"))["request_id"] == job
    assert json.loads(await shell.roost("run", "-d", "--json", "x"))["status"] == "accepted"


@pytest.mark.parametrize(("wish", "said", "stopped"), [("stop", b"stopping", True), ("detach", b"goes on", False)])
async def test_ctrl_c_stops_the_job_or_leaves_it(shell: Shell, wish: str, said: bytes, stopped: bool) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "roost.cli", "run", "--on-interrupt", wish, "-n", "j", "x",
        "--api-url", shell.url, "--token", TOKEN, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    shell.plane.node.say(await sandbox(shell), b"ready\n")
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    assert process.returncode == 130 and said in errors
    assert json.loads(await shell.roost("status", "j", "--json")).get("stopped", False) is stopped


async def test_new_takes_a_sandbox_along_that_has_not_started(shell: Shell) -> None:
    shell.plane.node.room = 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "roost.cli", "new", "w", "--api-url", shell.url, "--token", TOKEN,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        while not json.loads(await shell.roost("list", "--json"))["jobs"]:
            pass
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert (process.returncode, b"stopping" in errors, b"Aborted" in errors) == (130, True, False)
    assert json.loads(await shell.roost("status", "w", "--json"))["stopped"] is True


async def test_jobs_are_listed_by_status(shell: Shell) -> None:
    await ended(shell, "run", "-n", "fine", "x")
    await ended(shell, "run", "-n", "bad", "x", exit_code=3, status=3)
    await shell.roost("run", "-d", "-n", "going", "x")
    await until(lambda: len(shell.plane.node.requests) == 3)

    async def named(*words: str) -> list[str]:
        return [job["name"] for job in json.loads(await shell.roost(*words, "--json"))["jobs"]]

    assert await named("list", "--status", "completed") == ["fine"]
    assert await named("list", "--status", "error") == ["bad"]
    assert await named("list", "--status", "running") == ["going"]
    assert await named("ps") == ["going"]
    assert await named("ps", "-a") == ["going", "bad", "fine"]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["status", "none", "--json"], 1, "no job has the id"),
        (["run", "--json", "--image", "none", "x"], 125, "no image 'none'"),
        (["run", "--json", "-e", "-p", "x"], 125, "-e keeps nothing"),
        (["workspace", "delete", "--json", "--force", "none"], 1, "no workspace"),
        (["run", "--json"], 125, "Missing argument 'SCRIPT'"),
        (["list", "--json", "--bogus"], 2, "No such option"),
        (["url", "x", "70000", "--json"], 2, "65535"),
    ],
)
async def test_errors_are_json_when_answers_are(shell: Shell, words: list[str], status: int, text: str) -> None:
    said = json.loads(await shell.roost(*words, status=status))
    assert list(said) == ["error"] and text in said["error"]


async def test_every_answer_is_also_json(shell: Shell) -> None:
    await shell.roost("run", "-p", "-w", "w", "x")
    await sandbox(shell)
    for words in (
        "list", "status w", "logs w", "pool", "usage", "workspace list", "workspace revisions w", "url w",
        "url alias list", "cron list", "ssh-key list", "image list", "set w --no-sleep", "sync w", "stop w",
        "workspace check",
    ):  # fmt: skip
        json.loads(await shell.roost(*words.split(), "--json"))


async def test_a_url_takes_its_port_in_either_way(shell: Shell) -> None:
    await shell.roost("run", "-p", "-n", "web", "x")
    assert json.loads(await shell.roost("url", "web", "--port", "3000", "--json"))["port"] == 3000
    assert json.loads(await shell.roost("url", "web", "3001", "--json"))["port"] == 3001
    assert "give one of them" in await shell.roost("url", "web", "3001", "--port", "3000", status=1)


async def test_resize_makes_the_sandbox_anew_with_its_files(shell: Shell) -> None:
    node = shell.plane.node
    await shell.roost("new", "w", "--startup-command", "serve")
    first = await sandbox(shell)
    node.files[first] |= {"root/kept": b"kept"}
    shown = json.loads(await shell.roost("resize", "w", "--disk", "5", "--json"))
    assert (shown["status"], shown["workspace_id"]) == ("running", "w")
    second = await sandbox(shell, 2)
    started = node.requests[second]
    assert (started.limits.disk_gb, started.script) == (5, b"serve")
    assert node.files[second]["root/kept"] == b"kept"
    assert "has 5 GB already" in await shell.roost("resize", "w", "--disk", "5", status=1)
    refused = await shell.roost("resize", "w", "--disk", "1000", status=1)
    assert "out of range" in refused and "started as before" in refused
    assert node.files[await sandbox(shell, 3)]["root/kept"] == b"kept"


async def test_resize_refuses_what_would_lose_files(shell: Shell) -> None:
    await shell.roost("run", "-d", "-e", "-n", "bare", "x")
    assert "has no workspace" in await shell.roost("resize", "bare", "--disk", "5", status=1)
    await shell.roost("run", "-d", "-n", "ends", "x")
    assert "ends with its script" in await shell.roost("resize", "ends", "--disk", "5", status=1)


@pytest.mark.parametrize("program", ["roost", "mags"])
async def test_a_shell_completes_commands_jobs_and_workspaces(shell: Shell, program: str) -> None:
    await shell.roost("run", "-p", "-n", "web-one", "-w", "files-one", "x")

    async def completed(*words: str) -> list[str]:
        environment = {
            f"_{program.upper()}_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join([program, *words]),
            "COMP_CWORD": str(len(words)),
            "MAGS_API_URL": shell.url,
            "MAGS_API_TOKEN": TOKEN,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"from roost.cli.main import main; main(prog_name={program!r})",
            env=os.environ | environment, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return [line.partition(",")[2] for line in out.decode().splitlines()]

    assert await completed("sta") == ["status"]
    assert await completed("logs", "web") == ["web-one"]
    assert await completed("workspace", "delete", "fi") == ["files-one"]
    assert await completed("run", "--base", "fi") == ["files-one"]
    assert await completed("url", "we") == ["web-one"]
    assert "--follow" in await completed("logs", "--f")
