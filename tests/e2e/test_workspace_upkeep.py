"""What happens to workspaces by themselves: sent again, synced, collected, evicted, restored; and a base that is built.

Time is moved, not waited for: the rows of a stopped instance are made older.
"""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from roost import ids
from roost.clock import now_ns
from roost.errors import NotFound
from roost.node.client import NodeClient
from roost.node.protocol import Limits, Revision, SandboxState, SaveRequest, StartSandbox, StopSandbox
from tests.e2e.conftest import an_instance
from tests.e2e.instance import Api, RunningRoost, eventually
from tests.e2e.test_workspaces import (
    archived,
    assert_same,
    assert_whole,
    good,
    good_end,
    head,
    listed,
    named,
    put,
    revisions,
    saved,
    seen,
    tree,
    uploaded,
    without_its_node,
)

DAY = 24 * 3600 * 10**9  # nanoseconds
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
LIMITS = Limits(vcpus=1, memory_mb=256, disk_gb=2, pids=256, timeout_seconds=0)


def stored(api: Api, workspace: str) -> list[object]:
    return [one["stored"] for one in revisions(api, workspace)]


# ---- an object store that is away ----


class Lost:
    """A store in a directory, whose place something else takes while it is away."""

    def __init__(self, tmp_path: Path) -> None:
        self.place, self.aside = tmp_path / "store", tmp_path / "aside"
        self.options = tmp_path / "options.json"
        self.options.write_text(json.dumps({"options": {"attempts": 2}}))

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--min-pool-size", "1", "--store", self.place.as_uri(), "--store-options", str(self.options))

    def go(self) -> None:
        self.place.rename(self.aside)
        self.place.write_text("no directory")

    def come_back(self) -> None:
        self.place.unlink()
        self.aside.rename(self.place)


@pytest.mark.parametrize("killed", [(), ("node",), ("up",)], ids=lambda killed: "+".join(killed) or "alive")
def test_what_an_outage_of_the_store_kept_back_is_sent_when_it_ends(tmp_path: Path, killed: tuple[str, ...]) -> None:
    store = Lost(tmp_path)
    with an_instance(*store.arguments) as roost:
        api, name = roost.start().api, named("outage")
        good_end(api, "echo one > /root/file; head -c 3M /dev/urandom > /root/big", name)
        store.go()
        saved(api, name, "echo two >> /root/file; sha256sum /root/big > /root/sum")
        put(api, name, "root/edited", b"too")
        assert stored(api, name) == [False, False, True]
        assert seen(api, name, "cat /root/file /root/edited") == "one\ntwo\ntoo"
        store.come_back()
        if killed:
            roost.kill(*killed)
            roost.start() if "up" in killed else None
            roost.healthy()
            api = roost.api
        eventually(lambda: stored(api, name) == [True] * 3, 90, "it was not sent again")
        assert_whole(roost, name)
        without_its_node(roost)
        assert seen(roost.api, name, "cat /root/file /root/edited; sha256sum -c /root/sum > /dev/null") == (
            "one\ntwo\ntoo"
        )
        assert_whole(roost, name)


# ---- every so many seconds ----


def on_the_node(roost: RunningRoost, what: Callable[[NodeClient], Awaitable[None]]) -> None:
    """Spoken to past the control plane, which pays no heed to sandboxes that it did not ask for."""

    async def speak() -> None:
        async with NodeClient(roost.runtime_dir / "node.sock") as client, asyncio.timeout(90):
            await what(client)

    asyncio.run(speak())


def test_a_running_sandbox_is_saved_every_so_many_seconds(own_roost: RunningRoost) -> None:
    image = own_roost.api.run("true").state  # the image is there
    assert image["status"] == "completed"
    on_the_node(own_roost, _saved_by_itself)


async def _saved_by_itself(client: NodeClient) -> None:
    sandbox, last = ids.vm_id(), SaveRequest(revision=ids.revision_id(), account=1, upload=True)
    request = StartSandbox(
        image="standard",
        script=b"i=0; echo 0 > /root/count; while sleep 0.1; do i=$((i + 1)); echo $i > /root/count; done",
        environment={},
        hostname="box",
        limits=LIMITS,
        account=1,
        linger=True,
        save=last,
        sync_seconds=1,
    )
    await client.start(sandbox, request)
    first = await _next_save(client, sandbox, None)
    second = await _next_save(client, sandbox, first)
    assert second.parent == first.id
    assert 0 <= await _count(client, first) < await _count(client, second)
    ended = await client.stop(sandbox, StopSandbox(grace_seconds=0))
    assert ended.revision is not None
    assert (ended.revision.id, ended.save_error) == (last.revision, None)
    assert await _count(client, second) < await _count(client, ended.revision)
    await client.forget(sandbox)


async def _next_save(client: NodeClient, sandbox: str, before: Revision | None) -> Revision:
    async for event in client.events():
        state: SandboxState | None = event.state
        if state and state.id == sandbox and state.revision and state.revision != before:
            assert state.revision.stored
            return state.revision
    raise AssertionError("the node went")


async def _count(client: NodeClient, revision: Revision) -> int:
    content = [part async for part in client.read_file(revision.id, 1, "root/count", 0, 100)]
    return int(b"".join(content) or b"0")


# ---- retention ----


def collected(roost: RunningRoost) -> None:
    """A deletion has what is due go at once, and not in an hour."""
    before = len(roost.events("collection.end"))
    other = named("deleted")
    saved(roost.api, other, "true")
    assert roost.api.call("DELETE", f"/mags-workspaces/{other}")["success"] is True
    eventually(lambda: len(roost.events("collection.end")) > before)


def test_only_so_many_revisions_are_kept(unstarted_roost: RunningRoost) -> None:
    unstarted_roost.arguments += ("--keep-revisions", "2")
    api, name = unstarted_roost.start().api, named("history")
    for number in range(4):
        saved(api, name, f"echo {number} >> /root/file")
    fourth, third, second, first = [str(one["revision"]) for one in revisions(api, name)]
    api.call("POST", f"/mags-workspaces/{name}/restore", {"revision": first})
    collected(unstarted_roost)
    assert [one["revision"] for one in revisions(api, name)] == [fourth, third, first]
    assert head(api, name) == first
    assert seen(api, name, "cat /root/file") == "0\n"
    assert seen(api, f"{name}@{fourth}", "cat /root/file") == "0\n1\n2\n3\n"  # second lies below it
    body = {"script": "true", "type": "inline", "base_workspace_id": f"{name}@{second}"}
    assert api.ask("POST", "/mags-jobs", body)[0] == 404


def test_space_of_what_is_listed_no_more_comes_back(unstarted_roost: RunningRoost) -> None:
    unstarted_roost.arguments += ("--keep-revisions", "1")
    api, name, other = unstarted_roost.start().api, named("space"), named("other")
    saved(api, name, "head -c 30M /dev/urandom > /root/big")
    saved(api, other, "head -c 30M /dev/urandom > /root/big")
    good_end(api, "echo stored > /root/file", stored_too := named("stored"))
    gone, live = head(api, other), [head(api, name), head(api, stored_too)]
    api.call("DELETE", f"/mags-workspaces/{other}")

    async def collect(client: NodeClient) -> None:
        found = await client.collect({1: live, 2: []}, [], now_ns())
        assert found.bytes_freed > 30e6
        with pytest.raises(NotFound):
            await client.revision(gone, 1)

    on_the_node(unstarted_roost, collect)
    assert unstarted_roost.events("collection.refused") == []
    assert seen(api, name, "wc -c < /root/big") == f"{30 * 2**20}\n"
    assert_whole(unstarted_roost, stored_too)


def test_space_comes_back_while_another_workspace_is_in_use(unstarted_roost: RunningRoost) -> None:
    api = unstarted_roost.start().api
    good_end(api, "head -c 1M /dev/urandom > /root/file", stored := named("stored"))
    busy = api.submit("echo on", workspace_id=named("busy"), persistent=True)
    eventually(lambda: api.status(busy)["status"] == "running")
    collected(unstarted_roost)
    assert unstarted_roost.events("collection.refused") == []
    assert unstarted_roost.events("collection.failed") == []
    assert_whole(unstarted_roost, stored)
    api.stop(busy)


def test_what_is_too_old_goes_but_never_a_head(unstarted_roost: RunningRoost) -> None:
    unstarted_roost.arguments += ("--keep-days", "3")
    api, kept, local = unstarted_roost.start().api, named("kept"), named("local")
    good_end(api, "echo one > /root/file", kept)
    good_end(api, "echo two > /root/file", kept)
    saved(api, local, "true")
    unused, fresh = named("unused"), named("fresh")
    saved(api, unused, "true")
    _make_older(unstarted_roost, 4 * DAY)
    api = unstarted_roost.start().api
    saved(api, local, "echo used again > /root/file")
    saved(api, fresh, "true")
    collected(unstarted_roost)
    assert [one["head"] for one in revisions(api, kept)] == [True]
    assert seen(api, kept, "cat /root/file") == "two\n"
    assert seen(api, local, "cat /root/file") == "used again\n"
    assert len(revisions(api, local)) == 1
    assert listed(api, unused) is None
    assert listed(api, fresh) is not None


def _make_older(roost: RunningRoost, nanoseconds: int) -> None:
    assert roost.terminate() == 0
    (file,) = roost.state.rglob("roost.db")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE revisions SET created_ns = created_ns - ?", (nanoseconds,))
        database.execute("UPDATE workspaces SET created_ns = created_ns - ?1, used_ns = used_ns - ?1", (nanoseconds,))
    database.close()


# ---- room ----


def test_a_nodes_disk_is_a_cache_of_what_is_stored(unstarted_roost: RunningRoost) -> None:
    """Three of 0.45 GB where 1 GB may be used: what compresses well takes its room on the disk all the same."""
    unstarted_roost.arguments += ("--layer-cache-gb", "1")
    api = unstarted_roost.start().api
    local, first, second = named("local"), named("first"), named("second")
    saved(api, local, "yes local | head -c 450M > /root/big")
    good_end(api, "yes first | head -c 450M > /root/big; echo 1 > /root/file", first)
    good_end(api, "yes second | head -c 450M > /root/big; echo 2 > /root/file", second)
    evicted = unstarted_roost.events("layer.evicted")
    assert [one["revision"] for one in evicted] == [head(api, first)]
    assert seen(api, first, "cat /root/file; head -n 1 /root/big; wc -c < /root/big") == f"1\nfirst\n{450 * 2**20}\n"
    evicted = unstarted_roost.events("layer.evicted")
    assert [one["revision"] for one in evicted[1:]] == [head(api, second)]
    assert seen(api, local, "head -n 1 /root/big") == "local\n"
    assert_whole(unstarted_roost, local, first, second)


# ---- sizes ----


@pytest.mark.parametrize("persistent", [False, True], ids=["local", "stored"])
def test_a_workspace_larger_than_the_disk_is_read_and_emptied(api: Api, persistent: bool) -> None:
    name = named("large")
    make = good_end if persistent else lambda api, script, name, **more: saved(api, name, script, **more)
    make(api, "yes | head -c 1200M > /root/big; truncate -s 20G /root/sparse", name, disk_gb=4)
    make(api, "echo small > /root/small", name, disk_gb=4)
    ended = saved(api, name, "cat /root/small; fallocate -l 100M /root/more || rm /root/big /root/more", disk_gb=1)
    assert ended.text == "small\n" and b"holds 1.2 GB, and the disk has 1 GB" in ended.remarks
    ended = saved(api, name, "cat /root/small; fallocate -l 300M /root/more; rm /root/sparse", disk_gb=1)
    assert (ended.text, ended.remarks) == ("small\n", b"")


def test_a_sandbox_that_goes_cold_again_and_again_stays_within_its_disk(api: Api) -> None:
    job = api.submit("true", persistent=True, disk_gb=1, name=named("cold"))
    eventually(lambda: api.status(job).get("exit_code") == 0)
    results: list[int] = []
    for number in range(3):
        filled = api.exec(job, f"fallocate -l 600M /root/{number} || {{ rm /root/{number}; false; }}")
        results.append(filled["exit_code"])
        api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": "cold"})
        eventually(lambda: api.status(job)["status"] == "sleeping")
    assert results[0] == 0 and 0 not in results[1:]
    used, available = map(int, api.exec(job, "df --output=used,avail -m / | tail -1")["stdout"].split())
    assert 600 <= used < 620 and available < 400
    assert api.exec(job, "rm /root/0")["exit_code"] == 0
    eventually(lambda: api.exec(job, "fallocate -l 600M /root/again")["exit_code"] == 0)
    api.stop(job)


# ---- the documented example ----


@pytest.mark.timeout(400)
def test_workers_use_a_base_with_packages_from_an_index(api: Api) -> None:
    base = named("python-base")
    authorities = uploaded(api, "authorities.crt", AUTHORITIES.read_bytes())  # a proxy may stand before the index
    more = {"file_ids": [authorities], "memory_mb": 1024, "timeout": 240}
    reach = """python3 - <<'PROGRAM'
import ssl, urllib.request
trusted = ssl.create_default_context(cafile="/root/authorities.crt")
urllib.request.urlopen("http://deb.debian.org/debian/dists/bookworm/InRelease", timeout=15).read(1)
urllib.request.urlopen("https://pypi.org/simple/colorama/", context=trusted, timeout=15).read(1)
PROGRAM"""
    if (tried := api.run(reach, **more)).exit_code:
        pytest.skip(f"sandboxes reach no package index here: {tried.stderr.decode().splitlines()[-1:]}")
    install = """set -e; export DEBIAN_FRONTEND=noninteractive
apt-get update -q; apt-get install -q -y --no-install-recommends python3-flask
pip3 install -q --break-system-packages --cert /root/authorities.crt colorama; mkdir /opt/data; echo 0 > /opt/data/n"""
    saved(api, base, install, seconds=300, **more)
    before, archive = tree(api, base, "/"), archived(api, base)
    script = """python3 -c 'import os, flask, colorama
app = flask.Flask("worker"); app.add_url_rule("/", view_func=lambda: "hello " + os.environ["WORKER"])
print(app.test_client().get("/").text)'
echo $WORKER > /opt/data/n; dpkg -P --force-depends python3-flask > /dev/null; rm -r /usr/share/doc; cat /opt/data/n"""
    jobs = [
        api.submit(script, base_workspace_id=base, memory_mb=128, environment={"WORKER": str(worker)})
        for worker in range(10)
    ]
    for worker, job in enumerate(jobs):
        assert good(api.wait(job, 300)).text == f"hello {worker}\n{worker}\n"
    assert_same(before, tree(api, base, "/"))
    assert archived(api, base) == archive
    assert len(revisions(api, base)) == 1
