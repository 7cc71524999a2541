"""sdk/sh/mags.sh against a control plane that listens, with a node in memory; more is in tests/e2e/test_mags_sh.py."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.jobs.memory_node import until
from tests.sdk.node import environment
from tests.workspaces.conftest import TOKEN
from tests.workspaces.test_commands import Shell

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")

PROGRAM = Path(__file__).parents[2] / "sdk" / "sh" / "mags.sh"
HARD = 'echo it\'s "hard" \\ $HOME `date`\n  {"a": \'ü €\'} \\n %s'


async def sh(shell: Shell, *arguments: str, status: int = 0, stdin: str = "", **variables: str) -> str:
    """Standard output, and standard error behind it."""
    access = {"MAGS_API_URL": shell.url, "MAGS_API_TOKEN": TOKEN} | variables
    process = await asyncio.create_subprocess_exec(
        PROGRAM, *arguments, env=environment(**access), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, errors = await process.communicate(stdin.encode())
    assert process.returncode == status, (process.returncode, out, errors)
    return (out + errors).decode()


async def test_a_script_arrives_as_it_was_written_and_its_output_and_exit_status_come_back(shell: Shell) -> None:
    assert (await sh(shell, "run", "echo hello")).startswith("hello\n")
    await sh(shell, "run", "exit 3", status=3)
    await sh(shell, "run", HARD)
    await sh(shell, "run", "-", stdin=HARD + "\n" + "# x" * 100_000)
    started = shell.plane.node.started
    assert started[2] == HARD
    assert started[3].startswith(HARD) and len(started[3]) > 300_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_who_goes_away_stops_the_job_that_he_waits_for(shell: Shell, number: signal.Signals) -> None:
    access = {"MAGS_API_URL": shell.url, "MAGS_API_TOKEN": TOKEN}
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "run", "--name", "left", "sleep 100", env=environment(**access), stdin=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(60):
        await until(lambda: bool(shell.plane.node.requests))
        while '"status": "running"' not in await sh(shell, "status", "left"):
            pass
        process.send_signal(number)
        assert await process.wait() == 128 + number
    assert '"stopped": true' in await sh(shell, "status", "left")


async def test_a_variable_without_a_value_has_the_callers(shell: Shell) -> None:
    await sh(shell, "run", "--env", "OURS", "exit 0", OURS="from here")
    assert shell.plane.node.environments == [{"OURS": "from here"}]
    assert "no such variable here" in await sh(shell, "run", "--env", "NOT_OURS", "x", status=2)


async def test_every_option_of_run_arrives(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / 'da"ta, x;y.csv').write_text("content")
    url = await sh(
        shell, "run", "-w", "w s", "-p", "--url", "--port", "3000", "--name", "n'1", "--startup-command", "npm start",
        "--no-sleep", "--disk", "3", "-t", "60", "--env", 'A=b="c"', "-f", str(tmp_path / 'da"ta, x;y.csv'), "sleep 60",
    )  # fmt: skip
    _, id, address = url.split()
    assert address.startswith("http")
    (vm_id,) = shell.plane.node.requests
    assert shell.plane.node.environments == [{"A": 'b="c"'}]
    assert shell.plane.node.files[vm_id] == {'root/da"ta, x;y.csv': b"content"}
    assert '"workspace_id": "w s"' in await sh(shell, "status", "n'1")
    assert "Job stopped" in await sh(shell, "stop", id)


async def test_sandboxes_schedules_aliases_and_workspaces_from_making_to_end(shell: Shell) -> None:
    job = (await sh(shell, "new", "stays")).strip()
    assert (await sh(shell, "url", job)).startswith("http")
    assert (await sh(shell, "url", "stays", "3000")).startswith("http")
    assert f"{job}\trunning\tstays\tstays\n" in await sh(shell, "list")
    assert "http" in await sh(shell, "url", "alias", "my-stays", "stays")
    assert "my-stays\tstays\thttp" in await sh(shell, "url", "alias", "list")
    assert "deleted" in await sh(shell, "url", "alias", "remove", "my-stays")
    await sh(shell, "sync", "stays")
    await sh(shell, "set", "stays", "--no-sleep")
    assert '"sleeping": false' in await sh(shell, "status", "stays")
    await sh(shell, "set", "stays", "--sleep")
    await sh(shell, "stop", "stays")
    assert "stays\t1\t" in await sh(shell, "workspace", "list")
    assert "nothing was deleted" in await sh(shell, "workspace", "delete", "stays", stdin="n\n", status=1)
    assert "'stays' deleted" in await sh(shell, "workspace", "delete", "stays", "--force")
    id = (await sh(shell, "cron", "add", "--name", "nightly", "--schedule", "0 0 * * *", "-w", "b", HARD)).strip()
    assert f"{id}\t0 0 * * *\ttrue\tnightly\n" in await sh(shell, "cron", "list")
    await sh(shell, "cron", "disable", id)
    assert "\tfalse\t" in await sh(shell, "cron", "list")
    await sh(shell, "cron", "enable", id)
    assert "'nightly' deleted" in await sh(shell, "cron", "remove", id)


async def test_mistakes_are_said_with_their_cure(shell: Shell) -> None:
    assert "give a script" in await sh(shell, "run", status=2)
    assert "--url needs -p" in await sh(shell, "run", "--url", "true", status=2)
    assert "unknown option --colour" in await sh(shell, "run", "--colour", "red", "true", status=2)
    assert "--name needs a value" in await sh(shell, "run", "--name", status=2)
    assert "no job has the id, name or workspace 'x y'" in await sh(shell, "logs", "x y", status=1)
    assert "export MAGS_API_TOKEN" in await sh(shell, "list", status=1, MAGS_API_TOKEN="")
    assert "check MAGS_API_TOKEN" in await sh(shell, "list", status=1, MAGS_API_TOKEN="wrong")
    assert "roost up" in await sh(shell, "list", status=1, MAGS_API_URL="http://127.0.0.1:9")
    assert "unknown command 'fly'" in await sh(shell, "fly", status=2)
    assert "five fields" in await sh(shell, "cron", "add", "--name", "x", "--schedule", "hourly", "true", status=1)
    assert "usage:" in await sh(shell, "help")
