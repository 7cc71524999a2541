"""`roost cron` against a control plane that listens, with a node in memory behind it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.workspaces.test_commands import Shell, a_shell

pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with a_shell(tmp_path) as shell:
        yield shell


async def test_a_schedule_from_its_making_to_its_end(shell: Shell) -> None:
    said = await shell.roost("cron", "add", "--name", "nightly", "--schedule", "0 0 * * *", "-w", "backups", "echo hi")
    id = said.splitlines()[0]
    assert "runs next at" in said
    shown = await shell.roost("cron", "list")
    assert id in shown and "0 0 * * *" in shown and "backups" in shown
    assert "nightly: disabled" in await shell.roost("cron", "disable", id)
    listed = json.loads(await shell.roost("cron", "list", "--json"))
    assert [(one["id"], one["enabled"]) for one in listed["cron_jobs"]] == [(id, False)]
    assert "runs next at" in await shell.roost("cron", "enable", id)
    assert json.loads(await shell.roost("cron", "runs", "--json", id)) == {"runs": []}
    assert "SCHEDULED" in await shell.roost("cron", "runs", id)
    assert "Cron job 'nightly' deleted" in await shell.roost("cron", "remove", id)
    assert "there is no cron job" in await shell.roost("cron", "remove", id, status=1)


async def test_every_option_arrives(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("echo from a file")
    options = ["--timezone", "Europe/Berlin", "--missed", "all", "--overlap", "queue", "-p", "-e", "A=1", "-t", "60"]
    said = await shell.roost(
        "cron",
        "add",
        "-n",
        "x",
        "--schedule",
        "*/5 * * * *",
        *options,
        "--disabled",
        "--json",
        str(tmp_path / "job.sh"),
    )
    cron = json.loads(said)
    told = ("timezone", "missed", "overlap", "persistent", "environment_names", "timeout_seconds", "enabled", "script")
    assert [cron[name] for name in told] == [
        "Europe/Berlin", "all", "queue", True, ["A"], 60, False, "echo from a file",
    ]  # fmt: skip


async def test_a_bad_schedule_is_refused_in_words(shell: Shell) -> None:
    said = await shell.roost("cron", "add", "--name", "x", "--schedule", "hourly", "true", status=1)
    assert "give five fields" in said
