"""Workspaces with everything real: what a job changed is there for the next one, whole, and nothing else ever is.

Saved on the node, in a directory and in an S3 server; forked, synced, restored, edited; and killed at each step.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.guest_tree import CHANGE, MAKE, telling
from tests.e2e.instance import Api, Ended, RunningRoost, eventually, named
from tests.node.sync import radosgw
from tests.node.sync.bucket import create_bucket

WORKERS = 50
DEEP = 45  # saves, which are more than one mount's layers
TREE = "/srv/tree"
CHANGED = (TREE, "/etc", "/opt", "/usr/share/man")  # what MAKE and CHANGE touch, and what lies around it
VICTIMS = [("node",), ("serve",), ("serve", "node"), ("up",)]  # the others end with `up`

each_victim = pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
node_or_all = pytest.mark.parametrize("victims", [("node",), ("up",)], ids="+".join)


def good(ended: Ended) -> Ended:
    assert (ended.status, ended.exit_code) == ("completed", 0), (ended.error, ended.stderr[-2000:], ended.remarks)
    return ended


def saved(api: Api, workspace: str, script: str, **fields: object) -> Ended:
    return good(api.run(script, workspace_id=workspace, **fields))


def seen(api: Api, workspace: str, script: str, **fields: object) -> str:
    """What a job says that begins from the workspace and leaves it alone."""
    return good(api.run(script, base_workspace_id=workspace, **fields)).text


def tree(api: Api, workspace: str, *directories: str) -> list[str]:
    """What a job finds; without sockets, which are nothing without the program that listens."""
    return without_sockets(good(api.run(telling(*(directories or CHANGED)), base_workspace_id=workspace)).lines)


def without_sockets(lines: list[str]) -> list[str]:
    return [line for line in lines if not json.loads(line)["mode"].startswith("0o14")]


def assert_same(before: list[str], after: list[str]) -> None:
    lost, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    assert (lost, new) == ([], [])
    assert before == after


def revisions(api: Api, workspace: str) -> list[dict[str, object]]:
    return api.call("GET", f"/mags-workspaces/{workspace}/revisions")["revisions"]


def head(api: Api, workspace: str) -> str:
    return next(str(one["revision"]) for one in revisions(api, workspace) if one["head"])


def listed(api: Api, workspace: str) -> dict[str, object] | None:
    found = api.call("GET", "/mags-workspaces")["workspaces"]
    return next((one for one in found if one["workspace_id"] == workspace), None)


def file(workspace: str, path: str, query: str = "") -> str:
    return f"/mags-workspaces/{workspace}/files/{quote(path)}{query}"


def fetched(api: Api, workspace: str, path: str, query: str = "", **headers: str) -> tuple[int, bytes]:
    with api.open("GET", file(workspace, path, query), None, **headers) as answer:
        return answer.status, answer.read()


def archived(api: Api, workspace: str) -> str:
    """Hash of a tar archive of all of it."""
    found = hashlib.sha256()
    with api.open("GET", file(workspace, "", "?tar=true")) as answer:
        assert answer.status == 200
        while part := answer.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def put(api: Api, workspace: str, path: str, content: bytes, query: str = "") -> None:
    status, answer = api.ask("PUT", file(workspace, path, query), content)
    assert status == 200, answer


def uploaded(api: Api, name: str, content: bytes) -> str:
    boundary = secrets.token_hex(16)
    disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"'
    body = f"--{boundary}\r\n{disposition}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
    with api.open(
        "POST", "/mags-files", body, **{"Content-Type": f"multipart/form-data; boundary={boundary}"}
    ) as answer:
        assert answer.status == 201, answer.read()
        return str(json.loads(answer.read())["file_id"])


def assert_whole(roost: RunningRoost, *workspaces: str) -> None:
    done = roost.command("workspace", "check", "--read-data", *workspaces)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def persistent(api: Api, script: str, **fields: object) -> Iterator[str]:
    """A running persistent job, stopped on the way out."""
    job = api.submit(script, persistent=True, **fields)
    try:
        api.running(job)
        yield job
    finally:
        with contextlib.suppress(AssertionError):
            api.stop(job)
            api.wait(job)


# ---- the four modes ----


def test_without_a_workspace_nothing_is_kept(api: Api) -> None:
    good(api.run("echo x > /root/kept"))
    assert good(api.run("ls /root")).text == ""


def test_a_workspace_is_made_by_its_first_job_and_gone_on_from_by_the_next(api: Api) -> None:
    name = named("kept")
    saved(api, name, "echo one > /root/file; rm /etc/issue; echo more >> /etc/profile")
    saved(api, name, "cat /root/file; test ! -e /etc/issue; echo two >> /root/file")
    assert seen(api, name, "cat /root/file; tail -n 1 /etc/profile; ls /etc/issue || true") == "one\ntwo\nmore\n"
    workspace = listed(api, name)
    assert workspace is not None
    assert (workspace["job_count"], workspace["has_active"], workspace["persistent"]) == (2, False, False)


def test_what_a_job_changes_in_its_base_is_dropped(api: Api) -> None:
    name = named("base")
    saved(api, name, "echo base > /root/file")
    before = head(api, name)
    seen(api, name, "echo changed > /root/file; rm -r /etc/apt")
    assert seen(api, name, "cat /root/file; ls -d /etc/apt") == "base\n/etc/apt\n"
    assert head(api, name) == before


def test_a_fork_begins_from_its_base_and_then_goes_its_own_way(api: Api) -> None:
    base, fork = named("base"), named("fork")
    saved(api, base, "echo base > /root/file")
    saved(api, fork, "cat /root/file; echo fork >> /root/file", base_workspace_id=base)
    saved(api, base, "echo moved on > /root/file")
    again = saved(api, fork, "cat /root/file", base_workspace_id=base)
    assert again.text == "base\nfork\n"
    assert seen(api, base, "cat /root/file") == "moved on\n"


def test_a_job_that_fails_still_saves_and_keeps_its_status(api: Api) -> None:
    name = named("failed")
    ended = api.run("echo partly > /root/file; exit 3", workspace_id=name)
    assert (ended.status, ended.exit_code) == ("error", 3)
    assert seen(api, name, "cat /root/file") == "partly\n"


def test_a_stopped_job_and_one_beyond_its_time_are_saved_too(api: Api) -> None:
    stopped, late = named("stopped"), named("late")
    job = api.submit("echo s > /root/file; echo ready; sleep 100", workspace_id=stopped)
    api.said(job, b"ready")
    api.stop(job)
    assert api.wait(job).status == "completed"
    assert api.run("echo l > /root/file; sleep 100", workspace_id=late, timeout=1).status == "error"
    assert (seen(api, stopped, "cat /root/file"), seen(api, late, "cat /root/file")) == ("s\n", "l\n")


def test_fifty_workers_begin_from_an_installed_base_that_stays_as_it_is_bit_for_bit(api: Api) -> None:
    base = named("python-base")
    install = """set -e
site=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'); mkdir -p "$site/greeting"
echo 'def hello(name): return "hello " + name' > "$site/greeting/__init__.py"
python3 -m compileall -q "$site/greeting"; mkdir /opt/data; seq 100000 > /opt/data/numbers"""
    saved(api, base, install)
    before, archive = tree(api, base, "/"), archived(api, base)
    script = """python3 -c 'import os, greeting; print(greeting.hello(os.environ["WORKER"]))'
echo $WORKER > /opt/data/numbers; rm -rf /usr/share/doc; chmod 0 /etc/passwd
mkdir /made-by-$WORKER; ls -d /made-by-*"""
    jobs = [
        api.submit(script, base_workspace_id=base, memory_mb=64, environment={"WORKER": str(worker)})
        for worker in range(WORKERS)
    ]
    for worker, job in enumerate(jobs):
        assert good(api.wait(job)).text == f"hello {worker}\n/made-by-{worker}\n"
    assert_same(before, tree(api, base, "/"))
    assert archived(api, base) == archive
    assert len(revisions(api, base)) == 1


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"base_workspace_id": "never-made"}, 404, "never-made"),
        ({"workspace_id": "same", "base_workspace_id": "same"}, 400, "base_workspace_id"),
        ({"workspace_id": "w", "ephemeral": True}, 400, "ephemeral"),
        ({"persistent": True, "ephemeral": True}, 400, "ephemeral"),
        ({"workspace_id": "../etc"}, 400, "workspace_id"),
        ({"file_ids": ["no-such-file"]}, 400, "no-such-file"),
    ],
)
def test_submissions_that_contradict_themselves_are_refused(
    api: Api, fields: dict[str, object], status: int, words: str
) -> None:
    code, answer = api.ask("POST", "/mags-jobs", {"script": "true", "type": "inline", **fields})
    assert code == status, answer
    assert words in answer["error"]


# ---- whole file systems ----


def test_everything_that_a_file_system_holds_is_there_for_the_next_job(api: Api) -> None:
    name = named("whole")
    with persistent(api, f"{_together(MAKE)}\nsleep 100", workspace_id=name) as job:
        eventually(lambda: api.status(job)["status"] == "running" and b"made" in api.raw(job))
        before = exec_lines(api, job, telling(*CHANGED))
    assert len(before) > 50
    assert_same(without_sockets(before), tree(api, name))
    with persistent(api, f"{_together(CHANGE)}\nsleep 100", workspace_id=name) as job:
        api.said(job, b"made")
        before = exec_lines(api, job, telling(*CHANGED))
    assert_same(without_sockets(before), tree(api, name))


def _together(program: str) -> str:
    return f"set -e\npython3 - <<'PROGRAM'\n{program}\nPROGRAM\necho made"


def exec_lines(api: Api, job: str, program: str) -> list[str]:
    result = api.exec(job, f"python3 - <<'PROGRAM'\n{program}\nPROGRAM")
    assert result["exit_code"] == 0, result
    return result["stdout"].splitlines()


def test_a_workspace_comes_back_whole_from_the_store_alone(own_roost: RunningRoost) -> None:
    api, name, other = own_roost.api, named("stored"), named("fork")
    good_end(api, MAKE, name)
    good_end(api, CHANGE, name)
    before = tree(api, name)
    old = [str(one["revision"]) for one in revisions(api, name)][-1]
    before_old = tree(api, f"{name}@{old}")
    assert_whole(own_roost, name)
    without_its_node(own_roost)
    assert_same(before, tree(api, name))
    saved(api, other, "echo fork > /root/fork", base_workspace_id=name)
    assert_same(before, tree(api, other))
    assert_same(before_old, tree(api, f"{name}@{old}"))
    assert_whole(own_roost, name)


def good_end(api: Api, script: str, workspace: str, **fields: object) -> str:
    """A persistent job on the workspace, stopped after its script; it is in the store then."""
    job = api.submit(script, workspace_id=workspace, persistent=True, **fields)
    eventually(lambda: api.status(job).get("exit_code") is not None, says=f"{job}: {api.status(job)}")
    assert api.status(job)["exit_code"] == 0, api.raw(job, "stderr")
    api.stop(job)
    ended = api.wait(job)
    assert ended.status == "completed", ended.state
    return job


def without_its_node(roost: RunningRoost) -> None:
    """As if the workspace had been used on another machine."""
    assert roost.terminate() == 0
    shutil.rmtree(roost.state / "node" / "layers")
    roost.start()
    roost.healthy()


def test_a_stack_of_many_saves_is_as_good_as_one(api: Api) -> None:
    name = named("deep")
    saved(api, name, MAKE)
    saved(api, name, CHANGE)
    before = tree(api, name)
    saved(api, name, "rm -r /usr/share/zoneinfo; mkdir /usr/share/zoneinfo; echo > /usr/share/zoneinfo/mine")
    for number in range(DEEP):
        put(api, name, f"root/{number}", b"%d" % number)
        if number % 15 == 14:
            saved(api, name, f"rm /root/{number - 1}")
    assert_same(before, tree(api, name))
    assert seen(api, name, "ls /root | wc -l; ls /usr/share/zoneinfo") == f"{DEEP - 3}\nmine\n"


def test_of_two_names_of_a_file_of_the_base_one_is_changed_alone(api: Api) -> None:
    name = named("links")
    saved(api, name, "echo old > /srv/one; ln /srv/one /srv/two")
    assert saved(api, name, "echo new > /srv/one; cat /srv/two").text == "old\n"
    assert seen(api, name, "cat /srv/one /srv/two") == "new\nold\n"


def test_device_nodes_cannot_be_made_in_a_workspace(api: Api) -> None:
    name = named("devices")
    saved(api, name, "! mknod /root/null c 1 3 && ! mknod /root/disk b 8 0 && echo fine > /root/file")
    assert seen(api, name, "ls /root") == "file\n"


def test_installed_packages_survive(api: Api) -> None:
    """Without an index: what dpkg knows and what it put there."""
    name = named("packages")
    script = """set -e
mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin; cd /tmp
printf 'Package: greeting\\nVersion: 1\\nArchitecture: all\\n' > p/DEBIAN/control
printf 'Maintainer: me <me@example.org>\\nDescription: x\\n' >> p/DEBIAN/control
printf '#!/bin/sh\\necho good day\\n' > p/usr/bin/greeting; chmod 755 p/usr/bin/greeting
dpkg-deb -b p greeting.deb; dpkg -i greeting.deb"""
    saved(api, name, script)
    assert seen(api, name, "greeting; dpkg-query -W greeting") == "good day\ngreeting\t1\n"


# ---- persistent jobs ----


def test_a_persistent_job_stays_after_its_script_until_it_is_stopped(api: Api) -> None:
    name = named("stays")
    job = api.submit("echo done > /root/file; exit 4", persistent=True, workspace_id=name)
    state = eventually(lambda: (now := api.status(job)).get("exit_code") is not None and now)
    assert (state["status"], state["exit_code"], state["workspace_id"]) == ("running", 4, name)
    assert api.exec(job, "cat /root/file; echo more >> /root/file")["stdout"] == "done\n"
    assert api.exec(name, "cat /root/file")["stdout"] == "done\nmore\n"  # by the workspace's name
    mine = next(one for one in api.jobs() if one["request_id"] == job)
    assert (mine["workspace_id"], mine["status"]) == (name, "running")
    api.stop(job)
    ended = api.wait(job)
    assert (ended.status, ended.exit_code) == ("completed", 4)
    assert seen(api, name, "cat /root/file") == "done\nmore\n"


def test_a_sync_is_durable_and_forks_begin_from_it(api: Api) -> None:
    name, fork = named("synced"), named("fork")
    with persistent(api, "sleep infinity", workspace_id=name) as job:
        api.exec(job, "echo synced > /root/file")
        answer = api.call("POST", f"/mags-jobs/{job}/sync")
        assert answer["success"] is True
        api.exec(job, "echo later > /root/file")
        assert seen(api, name, "cat /root/file") == "synced\n"
        saved(api, fork, "echo of the fork >> /root/file", base_workspace_id=name)
        assert api.exec(job, "cat /root/file")["stdout"] == "later\n"
    assert seen(api, name, "cat /root/file") == "later\n"
    assert seen(api, fork, "cat /root/file") == "synced\nof the fork\n"
    kept = listed(api, name)
    assert kept is not None
    assert kept["persistent"] is True


def test_a_workspace_has_one_writer_and_cannot_be_deleted_under_it(api: Api) -> None:
    name = named("mine")
    with persistent(api, "sleep infinity", workspace_id=name) as job:
        code, answer = api.ask("POST", "/mags-jobs", {"script": "true", "type": "inline", "workspace_id": name})
        wanted = f"workspace '{name}' is already in use by job {job}; stop it, or fork it with base_workspace_id"
        assert (code, answer["error"]) == (409, wanted)
        code, answer = api.ask("DELETE", f"/mags-workspaces/{name}")
        assert (code, answer["error"]) == (409, f"workspace '{name}' has 1 active job(s); stop them first")
        code, answer = api.ask("POST", f"/mags-workspaces/{name}/restore", {"revision": "0123456789abcdef"})
        assert code in (404, 409), answer
        kept = listed(api, name)
        assert kept is not None
        assert kept["has_active"] is True
    assert api.call("DELETE", f"/mags-workspaces/{name}")["success"] is True
    assert listed(api, name) is None
    assert api.ask("DELETE", f"/mags-workspaces/{name}")[0] == 404
    assert api.ask("GET", f"/mags-workspaces/{name}/revisions")[0] == 404


def test_many_submissions_at_once_have_the_workspace_one_after_the_other(api: Api) -> None:
    name = named("race")
    jobs: list[str] = []
    script = "echo begin >> /root/turns; sleep 0.1; echo end >> /root/turns"
    threads = [threading.Thread(target=lambda: jobs.append(api.submit(script, workspace_id=name))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [good(api.wait(job)).exit_code for job in jobs] == [0] * 12
    assert seen(api, name, "cat /root/turns") == "begin\nend\n" * 12


def test_a_base_cannot_be_deleted_while_a_job_stands_on_it(api: Api) -> None:
    name = named("base")
    saved(api, name, "echo x > /root/file")
    job = api.submit("echo ready; sleep 100; cat /root/file", base_workspace_id=name)
    api.said(job, b"ready")
    code, answer = api.ask("DELETE", f"/mags-workspaces/{name}")
    assert (code, answer["error"]) == (409, f"workspace '{name}' has 1 active job(s); stop them first")
    saved(api, name, "rm /root/file")
    assert api.exec(job, "cat /root/file")["stdout"] == "x\n"
    api.stop(job)


# ---- revisions ----


def test_an_older_revision_is_restored_and_forked_from(api: Api) -> None:
    name, fork = named("history"), named("fork")
    for number in (1, 2, 3):
        saved(api, name, f"echo {number} >> /root/file")
    found = revisions(api, name)
    assert [one["head"] for one in found] == [True, False, False]
    assert [one.get("parent") for one in found] == [found[1]["revision"], found[2]["revision"], None]
    first, second = found[2]["revision"], found[1]["revision"]
    assert seen(api, f"{name}@{first}", "cat /root/file") == "1\n"
    assert seen(api, name, "cat /root/file", base_revision=second) == "1\n2\n"
    saved(api, fork, "echo fork >> /root/file", base_workspace_id=f"{name}@{second}")
    assert api.call("POST", f"/mags-workspaces/{name}/restore", {"revision": first})["revision"] == first
    assert saved(api, name, "cat /root/file; echo other >> /root/file").text == "1\n"
    assert seen(api, name, "cat /root/file") == "1\nother\n"
    assert seen(api, fork, "cat /root/file") == "1\n2\nfork\n"
    assert len(revisions(api, name)) == 4
    assert api.ask("POST", f"/mags-workspaces/{name}/restore", {"revision": "0" * 16})[0] == 404


# ---- files ----


def test_uploads_lie_in_root_and_under_uploads(api: Api) -> None:
    content = os.urandom(2_500_000)
    files = [uploaded(api, "data.bin", content), uploaded(api, "n\u00e4me with space", b"")]
    job = api.submit("ls -l /root | tail -n +2 | wc -l; cmp /root/data.bin /uploads/data.bin && echo same; "
                     "cat /uploads/data.bin | base64", file_ids=files)  # fmt: skip
    lines = good(api.wait(job)).lines
    assert lines[:2] == ["2", "same"]
    assert base64.b64decode("".join(lines[2:])) == content


def test_files_of_a_stored_workspace_are_read_written_and_deleted(api: Api) -> None:
    name = named("files")
    saved(api, name, "mkdir -p /srv/d/e; printf 0123456789 > /srv/d/f; chmod 640 /srv/d/f; chown 3:4 /srv/d/f; "
                     "ln -s f /srv/d/l; printf x > \"/srv/d/$(printf '\\377')\"")  # fmt: skip
    assert_files(api, name)
    assert saved(api, name, "cat /srv/new/file; stat -c '%a %u' /srv/new/file").lines[:2] == ["written", "600 0"]
    makers = [one.get("request_id") for one in revisions(api, name)]
    assert makers.count(None) == 2  # a PUT and a DELETE


@pytest.mark.parametrize("where", ["of the sandbox itself", "of the workspace's earlier layer", "stored"])
def test_a_file_that_is_written_stays_whose_it_was(api: Api, where: str) -> None:
    name, other = named("owners"), where != "of the sandbox itself"
    make = (
        "useradd -m ubuntu; cd /home/ubuntu; umask 077; for f in secret tool linked; do echo old > $f; done; "
        "chmod 755 tool; chown ubuntu:ubuntu secret tool linked; ln linked second"
    )
    look = (
        "cd /home/ubuntu; stat -c '%n %U:%G %a' secret tool linked sub sub/new; cat secret tool linked second sub/new"
    )
    if other:
        good_end(api, make, name)
    with contextlib.ExitStack() as opened:
        if where != "stored":
            job = opened.enter_context(persistent(api, "true" if other else make, workspace_id=name))
            eventually(lambda: api.status(job).get("exit_code") == 0)
        for path in ("secret", "tool", "linked", "sub/new"):
            put(api, name, f"home/ubuntu/{path}", f"new {path}\n".encode())
        if where != "stored":
            said = api.exec(job, look)["stdout"]
    if where == "stored":
        said = seen(api, name, look)
    *owners, secret, tool, linked, second, new = said.splitlines()
    assert owners == [
        "secret ubuntu:ubuntu 600", "tool ubuntu:ubuntu 755", "linked ubuntu:ubuntu 600", "sub ubuntu:ubuntu 755",
        "sub/new ubuntu:ubuntu 644",
    ]  # fmt: skip
    assert (secret, tool, linked, new) == ("new secret", "new tool", "new linked", "new sub/new")
    assert second == ("old" if other else "new linked")  # names of a file of an earlier layer part when it is written


def test_files_of_a_live_sandbox_are_read_written_and_deleted(api: Api) -> None:
    name = named("files")
    with persistent(api, "mkdir -p /srv/d/e; printf 0123456789 > /srv/d/f; chmod 640 /srv/d/f; chown 3:4 /srv/d/f; "
                    "ln -s f /srv/d/l; printf x > \"/srv/d/$(printf '\\377')\"; echo ready",
                    workspace_id=name) as job:  # fmt: skip
        api.said(job, b"ready")
        assert_files(api, name)
        assert (
            api.exec(job, "cat /srv/new/file; stat -c '%a %u' /srv/new/file; ls /srv/d/f")["stdout"]
            == "written\n600 0\n"
        )


def assert_files(api: Api, name: str) -> None:
    assert fetched(api, name, "srv/d/f") == (200, b"0123456789")
    assert fetched(api, name, "srv/d/l") == (200, b"0123456789")
    assert fetched(api, name, "srv/d/f", Range="bytes=2-4") == (206, b"234")
    assert fetched(api, name, "srv/d/f", Range="bytes=-3") == (206, b"789")
    assert fetched(api, name, "srv/d/f", Range="bytes=10-")[0] == 416
    assert fetched(api, name, "srv/none")[0] == 404
    entries = {one["name"]: one for one in json.loads(fetched(api, name, "srv/d")[1])["entries"]}
    assert set(entries) == {"e", "f", "l", "\ufffd"}
    f = entries["f"]
    assert (f["type"], f["size"], f["mode"], f["uid"], f["gid"]) == ("file", 10, "0640", 3, 4)
    assert (entries["e"]["type"], entries["l"]["type"], entries["l"]["target"]) == ("directory", "symlink", "f")
    assert fetched(api, name, "srv/d/")[0] == 200
    with api.open("GET", f"/mags-workspaces/{name}/files/srv/d/{entries[chr(0xFFFD)]['encoded']}") as answer:
        assert (answer.status, answer.read()) == (200, b"x")
    with tarfile.open(fileobj=io.BytesIO(fetched(api, name, "srv/d", "?tar=true")[1])) as archive:
        names = {member.name.removeprefix("d/").removeprefix("./") for member in archive}
        assert {"e", "f", "l"} <= names
    put(api, name, "srv/new/file", b"written\n", "?mode=0600")
    assert fetched(api, name, "srv/new/file") == (200, b"written\n")
    status, answer = api.ask("DELETE", file(name, "srv/d/f"))
    assert status == 200, answer
    assert fetched(api, name, "srv/d/f")[0] == 404


def test_paths_do_not_lead_out_of_a_workspace(api: Api, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the machine")
    name = named("escape")
    script = f"""mkdir -p /srv/x; ln -s / /srv/x/root; ln -s {secret} /srv/x/secret; ln -s {tmp_path} /srv/x/dir
ln -s ../../../../../../../..{tmp_path} /srv/x/up; ln -s /proc/1/root /srv/x/proc; echo ready"""
    saved(api, name, script)
    assert_no_escape(api, name, secret)
    with persistent(api, "echo ready", workspace_id=name):
        assert_no_escape(api, name, secret)
    assert secret.read_text() == "of the machine"
    assert os.listdir(tmp_path) == ["secret"]


def assert_no_escape(api: Api, name: str, secret: Path) -> None:
    for path in ("srv/x/secret", "srv/x/dir/secret", "srv/x/up/secret", f"srv/x/root{secret}", f"srv/x/proc{secret}"):
        status, answer = fetched(api, name, path)
        assert status >= 400, (path, answer)
        assert b"of the machine" not in answer
    for path in (
        "../etc/shadow",
        "srv/../../etc/shadow",
        "%2e%2e/%2e%2e/etc/shadow",
        "srv/x/..%2f..%2f..%2fetc/shadow",
    ):
        with api.open("GET", f"/mags-workspaces/{name}/files/{path}") as answer:
            assert answer.status in (400, 404), (path, answer.read())
    for path in ("srv/x/dir/made", "srv/x/up/made"):
        api.ask("PUT", file(name, path), b"x")  # within the workspace, or refused
        api.ask("DELETE", file(name, path.replace("made", "secret")))


# ---- killed at each step ----


def kill_and_recover(roost: RunningRoost, victims: tuple[str, ...]) -> None:
    roost.kill(*victims)
    if "up" in victims:
        roost.start()
    roost.healthy()


def assert_usable(roost: RunningRoost, name: str, among: set[str]) -> str:
    """The workspace holds one of these contents, whole, and takes a next job; which one."""
    script = "cat /root/file; sha256sum -c /root/sum > /dev/null"
    content = seen(roost.api, name, script).strip()
    assert content in among
    assert saved(roost.api, name, "cat /root/file; echo after > /root/next").text.strip() == content
    assert_whole(roost, name)
    return content


def writing(word: str, megabytes: int = 24) -> str:
    return (
        f"head -c {megabytes}M /dev/urandom > /root/big; for i in $(seq 300); do echo {word} > /srv/$i; done; "
        f"echo {word} > /root/file; cd /root; sha256sum big file /srv/* > sum; sync"
    )


@each_victim
def test_killed_while_a_job_on_a_workspace_runs(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api, name = mortal_roost.api, named("killed")
    saved(api, name, writing("old", 1))
    job = api.submit(f"echo ready; sleep 1.5; {writing('new', 1)}", workspace_id=name)
    api.said(job, b"ready")
    kill_and_recover(mortal_roost, victims)
    good(mortal_roost.api.wait(job))
    assert assert_usable(mortal_roost, name, {"new"}) == "new"


@node_or_all
@pytest.mark.parametrize("later", [0.05, 0.4], ids=lambda later: f"{later}s")
def test_killed_while_a_stored_workspace_is_saved_at_the_end(
    mortal_roost: RunningRoost, victims: tuple[str, ...], later: float
) -> None:
    api, name = mortal_roost.api, named("killed")
    good_end(api, writing("old", 1), name)
    job = api.submit(f"{writing('new')}; echo ready", workspace_id=name)
    vm_id = eventually(lambda: api.status(job).get("vm_id"))
    eventually(lambda: _script_over(mortal_roost, str(vm_id)))
    time.sleep(later)
    kill_and_recover(mortal_roost, victims)
    good(mortal_roost.api.wait(job))
    assert assert_usable(mortal_roost, name, {"new"}) == "new"


def _script_over(roost: RunningRoost, vm_id: str) -> bool:
    return any(one.get("id") == vm_id and one.get("script_ended_ns") for one in roost.events("sandbox.state"))


@node_or_all
def test_killed_during_a_sync(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api, name = mortal_roost.api, named("killed")
    job = api.submit("sleep infinity", workspace_id=name, persistent=True)
    api.running(job)
    assert api.exec(job, writing("old", 1))["exit_code"] == 0
    api.call("POST", f"/mags-jobs/{job}/sync")
    assert api.exec(job, writing("new"))["exit_code"] == 0
    asked = threading.Thread(target=_sync_quietly, args=(api, job))
    asked.start()
    time.sleep(0.4)
    kill_and_recover(mortal_roost, victims)
    asked.join(60)
    assert seen(mortal_roost.api, name, "cat /root/file; sha256sum -c /root/sum > /dev/null").strip() in ("old", "new")
    assert mortal_roost.api.status(job)["status"] == "running"
    assert mortal_roost.api.exec(job, "cat /root/file")["stdout"] == "new\n"
    mortal_roost.api.call("POST", f"/mags-jobs/{job}/sync")
    assert seen(mortal_roost.api, name, "cat /root/file; sha256sum -c /root/sum > /dev/null") == "new\n"
    mortal_roost.api.stop(job)
    assert mortal_roost.api.wait(job).status == "completed"
    assert assert_usable(mortal_roost, name, {"new"}) == "new"


def _sync_quietly(api: Api, job: str) -> None:
    with contextlib.suppress(Exception):
        api.call("POST", f"/mags-jobs/{job}/sync")


@node_or_all
def test_killed_when_a_job_has_just_ended(mortal_roost: RunningRoost, victims: tuple[str, ...]) -> None:
    api, name = mortal_roost.api, named("killed")
    saved(api, name, writing("old", 1))
    job = saved(api, name, writing("new", 1)).request_id
    before = head(api, name)
    kill_and_recover(mortal_roost, victims)
    assert (mortal_roost.api.status(job)["status"], head(mortal_roost.api, name)) == ("completed", before)
    assert assert_usable(mortal_roost, name, {"new"}) == "new"


def test_a_stop_of_roost_saves_persistent_jobs(own_roost: RunningRoost) -> None:
    api, name = own_roost.api, named("shut")
    job = api.submit("echo x > /root/file; echo ready", workspace_id=name, persistent=True)
    api.said(job, b"ready")
    assert own_roost.terminate() == 0
    own_roost.start()
    state = own_roost.api.status(job)
    assert (state["status"], state["sleep_depth"], state["exit_code"]) == ("sleeping", "cold", 0)
    own_roost.api.stop(job)
    assert own_roost.api.wait(job).status == "completed"
    assert seen(own_roost.api, name, "cat /root/file") == "x\n"


# ---- object stores ----


def test_a_store_with_a_key_holds_nothing_readable(tmp_path: Path) -> None:
    options, store = tmp_path / "options.json", tmp_path / "store"
    options.write_text(json.dumps({"options": {}, "key": base64.b64encode(secrets.token_bytes(32)).decode()}))
    arguments = ("--min-pool-size", "1", "--store", f"file://{store}", "--store-options", str(options))
    with an_instance(*arguments) as roost:
        api, name = roost.start().api, named("sealed")
        phrase = "a-phrase-that-nobody-writes-by-chance"
        good_end(api, f"for i in $(seq 2000); do echo {phrase}; done > /root/{phrase}", name)
        kept = [one.read_bytes() for one in store.rglob("*") if one.is_file()]
        assert sum(map(len, kept)) > 0
        assert not any(phrase.encode() in content for content in kept)
        without_its_node(roost)
        assert seen(roost.api, name, f"sort -u /root/{phrase}") == f"{phrase}\n"
        assert_whole(roost, name)


def test_a_store_that_is_damaged_is_told_by_the_check(own_roost: RunningRoost) -> None:
    api, name = own_roost.api, named("damaged")
    good_end(api, "head -c 3M /dev/urandom > /root/big", name)
    assert_whole(own_roost, name)
    files = [one for one in (own_roost.state / "node").rglob("*") if one.is_file() and "pack" in str(one)]
    largest = max(files, key=lambda one: one.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = own_roost.command("workspace", "check", "--read-data", name)
    assert done.returncode == 1
    assert re.search(rb"ok$", done.stdout.splitlines()[0]) is None


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if radosgw.missing():
        pytest.skip(f"needs {', '.join(radosgw.missing())}: scripts/system-packages --test installs them")
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-") else base) / "radosgw"
    shared.mkdir(exist_ok=True)
    with radosgw.gateway(shared) as found:
        yield found


def test_a_workspace_in_an_s3_bucket_comes_back_whole(endpoint: str, tmp_path: Path) -> None:
    bucket, options = f"test-{secrets.token_hex(6)}", tmp_path / "options.json"
    create_bucket(endpoint, bucket, radosgw.ACCESS, radosgw.SECRET)
    access = {"endpoint": endpoint, "access_key": radosgw.ACCESS, "secret_key": radosgw.SECRET}
    options.write_text(json.dumps({"options": access}))
    arguments = ("--min-pool-size", "1", "--store", f"s3://{bucket}/prefix", "--store-options", str(options))
    with an_instance(*arguments) as roost:
        api, name = roost.start().api, named("remote")
        good_end(api, MAKE, name)
        good_end(api, CHANGE, name)
        before = tree(api, name)
        without_its_node(roost)
        assert_same(before, tree(roost.api, name))
        assert_whole(roost, name)


RENAME = 'python3 -c "import os, sys; os.rename(*sys.argv[1:])" {} {}'


@pytest.mark.parametrize("keeps", [{"no_sync": True}, {}], ids=["here", "stored"])
def test_directories_of_earlier_layers_and_of_the_image_can_be_renamed(api: Api, keeps: dict[str, Any]) -> None:
    """By rename(2), as npm and rustup do, in a next job, while the workspace is saved, and after a cold wake."""
    name = f"renamed-{secrets.token_hex(4)}"
    made = api.run(
        "mkdir -p /root/a/b /opt/tool; echo 1 > /root/a/b/file; ln /root/a/b/file /root/a/link", workspace_id=name
    )
    assert made.exit_code == 0
    job = api.submit("sleep infinity", workspace_id=name, persistent=True, **keeps)
    api.running(job)

    def told(command: str) -> str:
        answer = api.exec(job, command)
        assert answer["exit_code"] == 0, answer
        return answer["stdout"]

    told(f"cd /root; {RENAME.format('a', 'c')}; {RENAME.format('/usr/share/doc', '/srv/doc')}; echo 2 >> c/b/file")
    if not keeps:
        api.call("POST", f"/mags-jobs/{job}/sync")
        fork = api.run("cat /root/c/b/file; ls -d /srv/doc/base-files /root/a 2>&1", base_workspace_id=name)
        assert "/root/a: No such" in fork.text.replace("'", "") and "2\n" in fork.text and "\n/srv/doc" in fork.text
    told(f"cd /root; {RENAME.format('c', 'd')}; {RENAME.format('d/b', 'e')}")
    api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": "cold"})
    assert told("cd /root; cat e/file; ls d; ls -d /srv/doc/base-files") == "1\n2\nlink\n/srv/doc/base-files\n"
    told(f"cd /root; {RENAME.format('e', 'd/b')}; {RENAME.format('d', 'a')}")
    api.stop(job)
    assert api.wait(job).status == "completed"
    assert api.run("cat /root/a/b/file; ls /root", base_workspace_id=name).lines == ["1", "2", "a"]
