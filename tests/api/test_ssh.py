"""The REST side of SSH: an account's keys, a job's keys, and the way in that `access` tells."""

import base64
import io
import subprocess
from pathlib import Path

import httpx
import paramiko
import pytest

from roost.gateways.ssh import keys
from roost.gateways.ssh.access import host_of
from tests.workspaces.conftest import Api


@pytest.fixture
def public_key(tmp_path: Path) -> str:
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "my laptop", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


async def test_a_key_is_added_listed_and_removed(api: Api, public_key: str) -> None:
    added = await api.json("/ssh-keys", 201, "POST", json={"public_key": public_key})
    assert added["name"] == "my laptop"
    assert added["type"] == "ssh-ed25519"
    assert str(added["fingerprint"]).startswith("SHA256:")
    assert await api.json("/ssh-keys") == {"keys": [added]}
    await api.json(f"/ssh-keys/{added['id']}", 200, "DELETE")
    assert await api.json("/ssh-keys") == {"keys": []}
    await api.json(f"/ssh-keys/{added['id']}", 404, "DELETE")
    refused = await api.json("/ssh-keys", 400, "POST", json={"public_key": public_key, "name": "x\ny"})
    assert "name" in str(refused["error"])


async def test_anothers_keys_are_not_there(api: Api, stranger: httpx.AsyncClient, public_key: str) -> None:
    added = await api.json("/ssh-keys", 201, "POST", json={"public_key": public_key, "name": "mine"})
    assert (await stranger.get("/ssh-keys")).json() == {"keys": []}
    assert (await stranger.delete(f"/ssh-keys/{added['id']}")).status_code == 404
    again = {"public_key": public_key, "name": "again"}
    assert (await api.client.post("/ssh-keys", json=again)).status_code == 409
    assert (await stranger.post("/ssh-keys", json=again)).status_code == 201  # it does not say who has it, too


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"public_key": "-----BEGIN OPENSSH PRIVATE KEY-----"}, "private key"),
        ({"public_key": "ssh-ed25519 AAAA", "name": "x"}, "public_key"),
        ({"public_key": 7}, "public_key"),
        ({"name": "x"}, "public_key"),
        ({"key": "x"}, "unknown field"),
    ],
)
async def test_what_is_no_key_is_refused_in_words(api: Api, body: dict[str, object], words: str) -> None:
    answer = await api.json("/ssh-keys", 400, "POST", json=body)
    assert words in str(answer["error"])


async def test_access_makes_a_key_of_the_job_that_can_be_listed_and_removed(
    api: Api, stranger: httpx.AsyncClient
) -> None:
    await api.run(workspace_id="garden", persistent=True)
    answer = await api.json("/mags-jobs/garden/access", 200, "POST", json={"port": 22})
    assert {"success", "ssh_host", "ssh_port", "ssh_private_key", "access_type"} <= set(answer)
    assert (answer["success"], answer["ssh_host"], answer["access_type"]) == (True, "roost", "ssh_proxy")
    private = paramiko.Ed25519Key.from_private_key(io.StringIO(str(answer["ssh_private_key"])))
    (listed,) = (await api.json("/mags-jobs/garden/ssh-keys"))["keys"]  # type: ignore[misc]
    assert listed["fingerprint"] == keys.fingerprint(base64.b64decode(private.get_base64()))
    assert await api.json("/ssh-keys") == {"keys": []}
    path = f"/mags-jobs/garden/ssh-keys/{listed['id']}"
    assert (await stranger.delete(path)).status_code == 404
    await api.json(f"/ssh-keys/{listed['id']}", 404, "DELETE")
    await api.json(path, 200, "DELETE")
    assert await api.json("/mags-jobs/garden/ssh-keys") == {"keys": []}


async def test_a_job_that_ends_with_its_script_has_no_way_in(api: Api) -> None:
    await api.run(name="short")
    answer = await api.json("/mags-jobs/short/access", 400, "POST", json={"port": 22})
    assert "persistent: true" in str(answer["error"])


async def test_a_port_of_its_own_without_any_set_aside_is_refused_with_the_cure(api: Api) -> None:
    await api.run(workspace_id="garden", persistent=True)
    answer = await api.json("/mags-jobs/garden/access", 400, "POST", json={"port": 22, "dedicated": True})
    assert "--ssh-ports" in str(answer["error"])
    url = await api.json("/mags-jobs/garden/access", 400, "POST", json={"port": 80, "dedicated": True})
    assert "dedicated" in str(url["error"])


@pytest.mark.parametrize(
    ("header", "host"),
    [("example.org:8484", "example.org"), ("example.org", "example.org"), ("[::1]:8484", "::1"), ("", "")],
)
def test_the_host_is_the_one_by_which_the_api_was_reached(header: str, host: str) -> None:
    assert host_of(header) == host
