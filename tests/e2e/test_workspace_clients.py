"""What the official `magpie-mags` clients do with workspaces and uploads, as their users write it."""

from pathlib import Path

import pytest

from tests.e2e.instance import RunningRoost, named
from tests.e2e.test_clients import VERSIONS, Program, program_with


@pytest.fixture(params=VERSIONS)
def program(request: pytest.FixtureRequest, roost: RunningRoost) -> Program:
    return program_with(request.param, roost)


@pytest.fixture
def new_program(roost: RunningRoost) -> Program:
    return program_with("1.3.8", roost)


def test_a_workspace_is_made_entered_synced_resized_and_deleted(new_program: Program) -> None:
    name = named("client")
    made, size, synced, kept, resized, listed, refused, deleted, after = new_program(f"""
name = {name!r}
made = client.new(name)
client.exec(name, 'echo kept > /root/file')
size = client.exec(name, 'df -k / | tail -1')
synced = client.sync(made['request_id'])
resized = client.resize(name, 4)
kept = client.exec(name, 'cat /root/file; df -k / | tail -1')
listed = [one for one in client.list_workspaces()['workspaces'] if one['workspace_id'] == name]
try: client.delete_workspace(name)
except MagsError as e: refused = str(e)
client.stop(name)
for _ in range(200):
    if client.status(resized['request_id'])['status'] == 'completed': break
    time.sleep(0.05)
deleted = client.delete_workspace(name)
after = [one for one in client.list_workspaces()['workspaces'] if one['workspace_id'] == name]
tell([made, size, synced, kept, resized, listed, refused, deleted, after])
""")
    assert (made["status"], synced["success"], resized["status"]) == ("running", True, "running")
    content, blocks = kept["output"].splitlines()
    assert content == "kept"
    assert int(blocks.split()[1]) > 3.5 * 1024**2 > int(size["output"].split()[1])
    assert (listed[0]["has_active"], listed[0]["job_count"]) == (True, 2)
    assert "1 active job" in refused
    assert (deleted["success"], after) == (True, [])


def test_uploads_are_placed_where_jobs_look_for_them(program: Program, tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("one\n")
    second.write_text("two\n")
    result = program(f"""
ids = client.upload_files([{str(first)!r}, {str(second)!r}])
tell(client.run_and_wait('cat /root/first.txt /uploads/second.txt', file_ids=ids, poll_interval=0.05))
""")
    assert [entry["message"] for entry in result["logs"]] == ["one", "two"]


def test_what_one_job_leaves_in_a_workspace_the_next_one_finds(program: Program) -> None:
    name = named("client")
    result = program(f"""
client.run_and_wait('echo left > /root/file', workspace_id={name!r}, poll_interval=0.05)
tell(client.run_and_wait('cat /root/file', workspace_id={name!r}, poll_interval=0.05))
""")
    assert [entry["message"] for entry in result["logs"]] == ["left"]
