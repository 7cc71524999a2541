"""How a child of `roost up` is kept running and stopped."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from roost import program
from roost.errors import SetupMissing
from roost.program import Program


def child(tmp_path: Path, script: str) -> Program:
    """A shell program that notes each of its starts in the file `starts`."""
    text = f"echo $$ >> {tmp_path}/starts; {script}"
    return Program("child", lambda: program.launch(["/bin/sh", "-c", text], program.environment(), None, _nothing))


def _nothing() -> None: ...


async def starts(tmp_path: Path, count: int) -> list[int]:
    """The process ids of the first `count` starts, as soon as there are so many."""
    file = tmp_path / "starts"
    async with asyncio.timeout(10):
        while True:
            pids = file.read_text().split() if file.exists() else []
            if len(pids) >= count:
                return [int(pid) for pid in pids]
            await asyncio.sleep(0.01)


async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    kept = child(tmp_path, "exec sleep 60")
    task = asyncio.create_task(kept.keep())
    [first] = await starts(tmp_path, 1)
    os.kill(first, signal.SIGKILL)
    _, second = await starts(tmp_path, 2)
    assert not Path(f"/proc/{first}").exists()
    await kept.stop(task, 5, asyncio.Event())
    assert not Path(f"/proc/{second}").exists()
    assert task.exception() is None


async def test_a_child_that_keeps_failing_at_the_start_is_given_up(tmp_path: Path) -> None:
    kept = child(tmp_path, "exit 3")
    with pytest.raises(SetupMissing, match="cannot start"):
        await asyncio.wait_for(kept.keep(), 10)
    assert len(await starts(tmp_path, 5)) == program.EARLY_DEATHS


async def test_a_configuration_error_is_final_at_once(tmp_path: Path) -> None:
    with pytest.raises(SetupMissing):
        await asyncio.wait_for(child(tmp_path, "exit 78").keep(), 10)
    assert len(await starts(tmp_path, 1)) == 1


async def test_a_child_that_has_worked_is_never_given_up(tmp_path: Path) -> None:
    kept = child(tmp_path, "exit 78")
    kept.healthy = True
    task = asyncio.create_task(kept.keep())
    await starts(tmp_path, 5)
    await kept.stop(task, 5, asyncio.Event())
    assert task.exception() is None


async def test_a_child_that_ignores_term_is_killed_after_the_limit(tmp_path: Path) -> None:
    kept = child(tmp_path, "trap '' TERM; while :; do sleep 0.1; done")
    task = asyncio.create_task(kept.keep())
    [pid] = await starts(tmp_path, 1)
    await kept.stop(task, 0.3, asyncio.Event())
    assert not Path(f"/proc/{pid}").exists()


async def test_impatience_shortens_the_limit(tmp_path: Path) -> None:
    kept = child(tmp_path, "trap '' TERM; while :; do sleep 0.1; done")
    task = asyncio.create_task(kept.keep())
    await starts(tmp_path, 1)
    hasten = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, hasten.set)
    async with asyncio.timeout(5):
        await kept.stop(task, 60, hasten)


async def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    code = f"""
import os, signal
from roost import program
program.launch(["/bin/sh", "-c", "echo $$ > {tmp_path}/starts; exec sleep 60"], {{}}, None, lambda: None)
while not os.path.exists("{tmp_path}/starts") or not open("{tmp_path}/starts").read().endswith("\\n"):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await parent.wait()
    [pid] = await starts(tmp_path, 1)
    async with asyncio.timeout(5):
        while _runs(pid):
            await asyncio.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether it is there and not a zombie that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
