"""The Python SDK against real sandboxes; and a program for `mags` that has nothing but its import changed."""

import asyncio
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost import AsyncRoost, Roost
from roost.sdk import Conflict, Invalid, JobFailed, RoostError
from tests.e2e.instance import RunningRoost, clean_environment
from tests.e2e.test_clients import PREAMBLE, program_with
from tests.e2e.test_mags_program import DEVTOOLS
from tests.e2e.test_whole_surface import STEPS, checks

IMPORTS = "from mags import Mags\nfrom mags.client import MagsError\n"
OURS = "from roost import Roost as Mags, MagsError\n"


@pytest.fixture
def client(roost: RunningRoost) -> Iterator[Roost]:
    with Roost(roost.api.token, roost.api.url) as client:
        yield client


def surface(tmp_path: Path) -> tuple[str, str]:
    name = f"surface-{time.monotonic_ns()}"
    (tmp_path / "one.txt").write_text("first\n")
    (tmp_path / "two.txt").write_text("second\n")
    return name, f"name, directory = {name!r}, {str(tmp_path)!r}\n{STEPS}"


def keys_of(value: Any) -> Any:
    """Of a result, without what is in lists, which depends on what else is there."""
    return set(value) if isinstance(value, dict) else type(value)


def test_a_program_for_mags_works_with_its_import_changed(roost: RunningRoost, tmp_path: Path) -> None:
    _, program = surface(tmp_path)
    public, _, theirs = program_with("1.3.8", roost)(program)
    name, program = surface(tmp_path)
    assert IMPORTS in PREAMBLE
    program = PREAMBLE.replace(IMPORTS, OURS) + program.replace("public = [", f"public = {public}\n_ = [")
    access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=clean_environment() | access,
    )
    assert done.returncode == 0, done.stderr
    _, request, ours = json.loads(done.stdout)
    right = checks(name, request)
    assert set(ours) == set(theirs)
    for method, results in ours.items():
        for mine, other in zip(results, theirs[method], strict=True):
            assert right[method](mine), f"{method}: {mine}"
            if isinstance(other, dict):
                assert keys_of(other) <= keys_of(mine), method


def test_a_process_takes_input_and_signals_and_its_output_is_followed(client: Roost) -> None:
    name = f"exec-{time.monotonic_ns()}"
    client.new(name, poll_interval=0.05)
    try:
        started = client.start_exec(
            name, "trap 'echo told; exit 7' TERM; cat; echo over >&2; sleep 60 & wait", input=True
        )
        with client.follow_exec(name, started["exec_id"]) as output:
            client.write_exec(name, started["exec_id"], b"a" * 3_000_000 + b"\n")
            client.write_exec(name, started["exec_id"], "end\n", end=True)
            said = dict[str, bytes]()
            for one in output:
                said[one["source"]] = said.get(one["source"], b"") + one["data"]
                if one["source"] == "stderr":
                    client.signal_exec(name, started["exec_id"], "TERM")
        assert said == {"stdout": b"a" * 3_000_000 + b"\nend\ntold\n", "stderr": b"over\n"}
        assert output.end["exit_code"] == 7
        assert client.wait_exec(name, started["exec_id"])["exit_code"] == 7
        assert b"".join(client.read_exec(name, started["exec_id"], "stderr")) == b"over\n"
        terminal = client.start_exec(name, ["stty", "size"], terminal=(40, 100))
        assert client.wait_exec(name, terminal["exec_id"])["exit_code"] == 0
        assert b"".join(client.read_exec(name, terminal["exec_id"])).strip() == b"40 100"
        assert len(client.list_execs(name)["execs"]) == 2
        waiting = client.start_exec(name, "sleep 60", terminal=(24, 80))["exec_id"]
        assert client.resize_exec(name, waiting, 30, 90)["status"] == "running"
        client.remove_exec(name, waiting)
        assert waiting not in [one["exec_id"] for one in client.list_execs(name)["execs"]]
    finally:
        client.stop(name)


def test_files_commands_and_logs_of_a_live_sandbox(roost: RunningRoost, tmp_path: Path) -> None:
    name = f"live-{time.monotonic_ns()}"

    async def work() -> None:
        async with AsyncRoost(roost.api.token, roost.api.url) as client:
            await client.run("for i in 1 2 3; do echo $i; sleep 0.2; done", workspace_id=name, persistent=True)
            lines = list[str]()
            async with client.follow_logs(name) as log:
                async for line in log:
                    lines.append(line["message"])
                    if len(lines) == 3:
                        break
            assert lines == ["1", "2", "3"]
            (tmp_path / "big").write_bytes(bytes(2_000_000))
            await client.write_file(name, "/root/in", tmp_path / "big", mode="0600")
            told = await client.exec(name, "stat -c '%s %a' /root/in; echo made > /root/out")
            assert (told["exit_code"], told["output"]) == (0, "2000000 600\n")
            assert await client.read_file(name, "root/out") == b"made\n"
            assert {"in", "out"} <= {one["name"] for one in (await client.list_files(name, "/root"))["entries"]}
            assert await client.download_file(name, "root", tmp_path / "root.tar", tar=True) > 2_000_000
            await client.delete_file(name, "/root/in")
            await client.stop(name)

    asyncio.run(work())


def test_a_browser_is_started_used_again_by_its_name_and_told_where_it_is_missing(client: Roost) -> None:
    profile = f"profile-{time.monotonic_ns()}"
    client.run_and_wait(DEVTOOLS, workspace_id=profile)  # installs what stands in for Chromium there
    found = client.browser(profile, rootfs_type="standard", timeout=60)
    try:
        assert found["ws_endpoint"] == f"{found['cdp_url']}/devtools/browser/7"
        assert found["cdp_http_url"].startswith("http://")
        assert client.browser(profile, rootfs_type="standard") == found
        with pytest.raises(JobFailed, match="there is no chromium in this image"):
            client.browser(rootfs_type="standard")
    finally:
        client.stop(found["request_id"])


def test_images_are_listed_made_and_removed(client: Roost, probe_shell: bytes) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        shell = tarfile.TarInfo("bin/sh")
        shell.size, shell.mode = len(probe_shell), 0o755
        tar.addfile(shell, io.BytesIO(probe_shell))
    name, steps = f"sdk-{time.monotonic_ns()}", list[str]()
    made = client.import_image(name, archive.getvalue(), steps=steps.append)
    assert (made["name"], bool(steps)) == (name, True)
    assert made in client.list_images()["images"]
    assert client.choose_default_image(name) == {"name": name, "chosen": True, "installation": "standard"}
    with pytest.raises(Conflict, match="default image of 1 account"):
        client.remove_image(name)
    client.choose_default_image(None)
    assert client.default_image()["name"] == "standard"
    assert client.remove_image(name)["success"] is True
    with pytest.raises(Invalid, match="reference"):
        client.pull_image(name, " ")
    with pytest.raises(RoostError):
        client.build_image(name, ["no such package"])
