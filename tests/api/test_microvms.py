"""The REST side of microVMs, with a node in memory: what may be asked, whose it is, and what is told once."""

import asyncio
import base64
import io
import subprocess
from pathlib import Path

import httpx
import paramiko
import pytest

from roost.gateways.ssh import keys
from roost.jobs import job as jobs
from roost.jobs.microvms import START
from roost.sandboxes import well_known
from roost.sandboxes.pulls import image_of
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api, an_api


async def created(api: Api, **fields: object) -> str:
    """The id of one that runs."""
    made = await api.json("/microvms", 201, "POST", json={"image": "standard", **fields})
    await until_state(api, str(made["id"]), "running")
    return str(made["id"])


async def until_state(api: Api, id: str, state: str) -> None:
    while (await api.json(f"/microvms/{id}"))["state"] != state:
        await asyncio.sleep(0.01)


def vm_of(api: Api) -> str:
    """The only sandbox that has not ended."""
    (vm_id,) = [vm_id for vm_id, state in api.node.states.items() if state.phase != "ended"]
    return vm_id


@pytest.fixture
def public_key(tmp_path: Path) -> str:
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


async def test_one_is_created_as_documented_listed_and_shown(api: Api) -> None:
    asked = {"name": "ingest-edge", "cpu": 1, "memory": 1024, "disk": 20, "image": "standard"}
    made = await api.json("/microvms", 201, "POST", json=asked)
    assert asked.items() <= made.items()
    assert (made["state"], made["runtime"], made["key_generated"]) == ("creating", "oci", True)
    await until_state(api, "ingest-edge", "running")
    shown = await api.json(f"/microvms/{made['id']}")
    assert shown["ip_address"] == "100.64.0.1"
    assert await api.json("/microvms") == {"microvms": [shown], "total": 1}
    request = api.node.requests[vm_of(api)]
    assert (request.hostname, request.tools, request.linger) == ("ingest-edge", ["microvm"], True)
    assert request.script.decode() == START
    assert (request.limits.memory_mb, request.limits.disk_gb, request.limits.timeout_seconds) == (1024, 20, 0)


async def test_what_is_left_out_has_the_documented_values(api: Api) -> None:
    made = await api.json("/microvms", 201, "POST", json={"image": "standard"})
    assert (made["cpu"], made["memory"], made["disk"]) == (2, 2048, 20)
    assert made["name"] == f"vm-{str(made['id'])[:8]}"


WRONG: list[tuple[dict[str, object], str]] = [
    ({"cpu": 3}, "cpu: 3"),
    ({"memory": 8000}, "memory: 8000"),
    ({"disk": 65}, "disk: 65"),
    ({"disk": 0}, "disk: 0"),
    ({"name": "under_score"}, "host name"),
    ({"name": "x" * 64}, "host name"),
    ({"runtime": "firecracker"}, 'there is "oci"'),
    ({"ssh_public_keys": ["nonsense"]}, "ssh_public_keys[0]"),
    ({"ssh_public_keys": "ssh-ed25519 AAAA"}, "ssh_public_keys"),
    ({"image": "nosuch"}, "roost image pull REFERENCE --name nosuch"),
    ({"image": "../x"}, "image"),
    ({"cpus": 1}, "did you mean 'cpu'"),
]


async def test_what_cannot_be_is_refused_in_words(api: Api) -> None:
    for fields, words in WRONG:
        answer = await api.json("/microvms", 400, "POST", json={"image": "standard", **fields})
        assert words in str(answer["error"])
    assert (await api.json("/microvms"))["total"] == 0


UBUNTU = "docker://docker.io/library/ubuntu:22.04"
DOCUMENTED = {
    "name": "ingest-edge", "cpu": 2, "memory": 2048, "disk": 20, "image": "ubuntu-22.04",
    "ssh_public_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUQ0Ld8VsJ4zVJnvZ5yq9yJYt1cJb5M9hQ0v5GQX1yD"],
}  # fmt: skip


async def test_the_documented_body_takes_what_is_there_where_no_registry_is_and_says_so(api: Api) -> None:
    made = await api.json("/microvms", 201, "POST", json=DOCUMENTED)
    assert made["image"] == "standard"
    told = "ubuntu-22.04 cannot be pulled here, so the image standard was taken: the image"
    assert str(made["image_note"]).startswith(told) and "no route" in str(made["image_note"])
    await until_state(api, "ingest-edge", "running")
    assert api.node.requests[vm_of(api)].image == "standard"
    assert "image_note" not in await api.json("/microvms/ingest-edge")


async def test_the_documented_body_takes_the_registrys_image_where_there_is_one(api: Api) -> None:
    api.node.registry.add(UBUNTU)
    made = await api.json("/microvms", 201, "POST", json=DOCUMENTED)
    assert made["image"] == "docker.io/library/ubuntu:22.04"
    assert "which is pulled" in str(made["image_note"])
    await until_state(api, "ingest-edge", "running")
    assert api.node.requests[vm_of(api)].image == image_of(UBUNTU)
    assert api.node.pulled == [image_of(UBUNTU)]


async def test_a_system_that_is_there_under_another_name_is_taken(api: Api) -> None:
    made = await api.json("/microvms", 201, "POST", json={"image": "debian-12"})
    assert (made["image"], made["image_note"]) == ("standard", "debian-12 is the image standard here")
    exact = await api.json("/microvms", 201, "POST", json={"image": "standard"})
    assert "image_note" not in exact


async def test_a_registry_that_does_not_answer_holds_nobody_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.node.asked.clear()
    monkeypatch.setattr(well_known, "WITHIN", 0.05)
    made = await api.json("/microvms", 201, "POST", json={"image": "alpine-3.20"})
    assert "has not answered" in str(made["image_note"])
    api.node.asked.set()


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("ubuntu", "ubuntu:22.04"), ("ubuntu-24.04", "ubuntu:24.04"), ("debian-12", "debian:12"),
        ("alpine", "alpine:latest"),
        ("alpine-3.20", "alpine:3.20"), ("python", "python:3-slim"), ("python-3.12", "python:3.12-slim"),
        ("node", "node:lts-slim"), ("node-20", "node:20-slim"), ("go", "golang:1"), ("ubuntu-", None), ("nodes", None),
        ("python-x", None), ("my-ubuntu-22.04", None),
    ],
)  # fmt: skip
def test_a_well_known_name_means_a_registrys_image(name: str, reference: str | None) -> None:
    assert well_known.reference_of(name) == reference


async def test_a_name_is_taken_until_its_owner_deletes_it(api: Api, stranger: httpx.AsyncClient) -> None:
    await created(api, name="edge")
    twice = await asyncio.gather(
        *(api.client.post("/microvms", json={"name": "twin", "image": "standard"}) for _ in "ab")
    )
    assert sorted(answer.status_code for answer in twice) == [201, 409]
    assert (await stranger.post("/microvms", json={"name": "edge", "image": "standard"})).status_code == 201
    await api.json("/microvms/edge", 200, "DELETE")
    await created(api, name="edge")


async def test_anothers_is_not_there(api: Api, stranger: httpx.AsyncClient) -> None:
    id = await created(api, name="edge")
    assert (await stranger.get("/microvms")).json() == {"microvms": [], "total": 0}
    for method, path in [
        ("GET", ""), ("DELETE", ""), ("GET", "/ssh-connection"), ("GET", "/ssh-keys/download"),
        ("POST", "/start"), ("POST", "/stop"), ("POST", "/restart"),
    ]:  # fmt: skip
        for reference in (id, "edge"):
            answer = await stranger.request(method, f"/microvms/{reference}{path}")
            assert answer.status_code == 404, (method, path)
            assert answer.json() == (await stranger.request(method, f"/microvms/{reference}{path}")).json()
    assert (await api.json(f"/microvms/{id}"))["state"] == "running"


async def test_the_generated_key_is_told_once_even_to_many_at_once(api: Api) -> None:
    id = await created(api, name="edge")
    told = await api.json(f"/microvms/{id}/ssh-connection")
    assert told["ssh_command"] == f"ssh -i ~/.ssh/vm-{id}-key.pem -p {told['ssh_port']} ubuntu@roost"
    assert (told["key_generated"], told["ip_address"]) == (True, "100.64.0.1")
    answers = await asyncio.gather(*(api.client.get(f"/microvms/{id}/ssh-keys/download") for _ in range(5)))
    (private,) = [answer for answer in answers if answer.status_code == 200]
    assert [answer.status_code for answer in answers].count(404) == 4
    assert f"vm-{id}-key.pem" in private.headers["content-disposition"]
    assert private.headers["cache-control"] == "no-store"
    blob = base64.b64decode(paramiko.Ed25519Key.from_private_key(io.StringIO(private.text)).get_base64())
    job = await jobs.find(api.database, 1, id)
    assert await keys.grant_of(api.database, blob, "ubuntu") == keys.Grant("", 1, job.seq, "ubuntu")
    assert await keys.grant_of(api.database, blob, f"ubuntu+{id}") == keys.Grant("", 1, job.seq, "ubuntu")
    assert await keys.grant_of(api.database, blob, "root") is None
    assert await keys.grant_of(api.database, blob, "ubuntu", own_job=job.seq + 1) is None
    refused = await api.json(f"/microvms/{id}/ssh-keys/download", 404)
    assert "roost vm ssh edge" in str(refused["error"])
    await api.json(f"/microvms/{id}", 200, "DELETE")
    assert await keys.grant_of(api.database, blob, "ubuntu") is None


async def test_a_key_of_ones_own_opens_only_the_microvm_that_is_named(
    api: Api, stranger: httpx.AsyncClient, public_key: str
) -> None:
    mine = await created(api, name="edge", ssh_public_keys=[public_key, public_key])
    asked = {"image": "standard", "ssh_public_keys": [public_key]}
    theirs = (await stranger.post("/microvms", json=asked)).json()["id"]
    told = await api.json(f"/microvms/{mine}/ssh-connection")
    assert told["ssh_command"] == f"ssh -p {told['ssh_port']} ubuntu+{mine}@roost"
    blob = keys.read_public(public_key)
    assert await keys.grant_of(api.database, blob, "ubuntu") is None
    found = [await keys.grant_of(api.database, blob, f"ubuntu+{id}") for id in (mine, theirs)]
    assert [grant and grant.account_id for grant in found] == [1, 77]
    seq = found[0].job_seq if found[0] else None
    assert await keys.grant_of(api.database, blob, "ubuntu", own_job=seq) == found[0]
    answer = await api.json(f"/microvms/{mine}/ssh-keys/download", 404)
    assert "public keys that you gave" in str(answer["error"])


async def test_the_key_of_access_opens_it_as_root_and_as_ubuntu(api: Api) -> None:
    id = await created(api)
    access = await api.json(f"/mags-jobs/{id}/access", 200, "POST", json={"port": 22})
    private = paramiko.Ed25519Key.from_private_key(io.StringIO(str(access["ssh_private_key"])))
    blob = base64.b64decode(private.get_base64())
    logins = [await keys.grant_of(api.database, blob, user) for user in ("root", "ubuntu", "eve")]
    assert [grant and (grant.login or "root") for grant in logins] == ["root", "ubuntu", None]


async def test_stopped_stays_stopped_until_it_is_started_with_its_files(api: Api) -> None:
    id = await created(api, name="edge")
    api.node.files[vm_of(api)]["/kept"] = b"yes"
    assert (await api.json("/microvms/edge/stop", 200, "POST"))["state"] == "stopped"
    assert (await api.json("/microvms/edge/stop", 200, "POST"))["state"] == "stopped"
    for path, body in [("exec", {"command": "true"}), ("access", {"port": 22}), ("wake", None)]:
        answer = await api.json(f"/mags-jobs/{id}/{path}", 409, "POST", json=body)
        assert "is stopped; start it" in str(answer["error"])
    changed = await api.json(f"/mags-jobs/{id}", 200, "PATCH", json={"no_sleep": True})
    assert changed["status"] == "sleeping"
    assert "ip_address" not in await api.json("/microvms/edge")
    assert (await api.json("/microvms/edge/start", 200, "POST"))["state"] == "running"
    assert api.node.files[vm_of(api)] == {"/kept": b"yes"}
    assert api.node.requests[vm_of(api)].script.decode() == START
    assert (await api.json("/microvms/edge/start", 200, "POST"))["state"] == "running"


async def test_restart_is_another_sandbox_with_the_same_files(api: Api) -> None:
    await created(api, name="edge")
    before = vm_of(api)
    api.node.files[before]["/kept"] = b"yes"
    for _ in range(3):  # at once each time, for nothing has failed
        assert (await api.json("/microvms/edge/restart", 200, "POST"))["state"] == "running"
    assert vm_of(api) != before
    assert api.node.files[vm_of(api)] == {"/kept": b"yes"}
    await api.json("/microvms/edge/stop", 200, "POST")
    assert (await api.json("/microvms/edge/restart", 200, "POST"))["state"] == "running"


async def test_one_whose_sandbox_dies_is_started_again(api: Api) -> None:
    await created(api, name="edge")
    before = vm_of(api)
    api.node.end(before, cause="lost", exit_code=None)
    await until(lambda: before not in api.node.states and len(api.node.states) == 1)
    await until_state(api, "edge", "running")


async def test_one_that_cannot_be_set_up_says_so(api: Api) -> None:
    await created(api, name="edge")
    api.node.exit_script(vm_of(api), 3)
    await until_state(api, "edge", "error")
    assert "/logs says why" in str((await api.json("/microvms/edge"))["error"])


async def test_one_whose_job_was_stopped_has_to_be_deleted(api: Api) -> None:
    id = await created(api, name="edge")
    await api.json(f"/mags-jobs/{id}/stop", 200, "POST")
    await until_state(api, "edge", "error")
    answer = await api.json("/microvms/edge/start", 409, "POST")
    assert "delete it" in str(answer["error"])
    await api.json("/microvms/edge", 200, "DELETE")


@pytest.mark.parametrize("stopped", [False, True])
async def test_deleting_removes_its_files_its_sandbox_and_its_keys(api: Api, stopped: bool) -> None:
    id = await created(api, name="edge")
    if stopped:
        await api.json("/microvms/edge/stop", 200, "POST")
    await api.json("/microvms/edge", 200, "DELETE")
    for path in ("", "/ssh-connection", "/ssh-keys/download"):
        await api.json(f"/microvms/{id}{path}", 404)
    assert (await api.json("/mags-workspaces"))["total"] == 0
    assert (await api.json(f"/mags-jobs/{id}/status"))["status"] == "completed"
    await until(lambda: not api.node.states)


async def test_a_stop_and_a_deletion_that_were_acknowledged_are_carried_out_by_the_next_process(tmp_path: Path) -> None:
    async with an_api(tmp_path) as api:
        kept, gone = await created(api, name="kept"), await created(api, name="gone")
        api.node.may_stop.clear()
        asking = [
            asyncio.create_task(api.client.request(method, path))
            for method, path in (("POST", "/microvms/kept/stop"), ("DELETE", "/microvms/gone"))
        ]
        await until_state(api, kept, "stopping")
        while (await api.client.get(f"/microvms/{gone}")).status_code != 404:
            await asyncio.sleep(0.01)
        for task in asking:
            task.cancel()
        node = api.node
    async with an_api(tmp_path) as api:
        api.node.__dict__.update(node.__dict__ | {"listeners": api.node.listeners})
        api.node.may_stop.set()
        await until_state(api, kept, "stopped")
        while [one["workspace_id"] for one in (await api.json("/mags-workspaces"))["workspaces"]] != [  # type: ignore[index, union-attr]
            f"microvm-{kept}"
        ]:
            await asyncio.sleep(0.01)
