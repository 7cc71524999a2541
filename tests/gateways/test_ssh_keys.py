"""Keys for SSH: which are taken, whose they are, and which go first."""

import io
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, rsa

from roost.db.database import Database
from roost.db.migrate import migrate
from roost.db.schema import accounts, jobs
from roost.errors import Conflict, Invalid, NotFound, StateUnwritable
from roost.gateways.ssh import host_key, keys


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """With accounts 1 and 2 and, of account 1, the jobs 1 and 2."""
    await migrate(tmp_path / "roost.db")
    async with Database(tmp_path / "roost.db") as opened:
        for account in (1, 2):
            await opened.write(accounts.insert().values(id=account, name=f"a{account}", created_ns=1))
        for seq in (1, 2):
            await opened.write(jobs.insert().values(**_job(seq)))
        yield opened


def _job(seq: int) -> dict[str, object]:
    named = {name: f"{name}{seq}" for name in ("request_id", "name", "vm_id", "subdomain")}
    needed = {"vcpus": 1.0, "memory_mb": 1, "disk_gb": 1, "timeout_seconds": 0, "created_ns": 1}
    return {"seq": seq, "account_id": 1, "status": "running", "script": b"", "image": "i", **named, **needed}


def generated(place: Path, *words: str) -> str:
    path = place / f"key-{'-'.join(words)}".replace(" ", "")
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", "laptop of somebody", "-f", path, "-t", *words], check=True)
    return path.with_suffix(".pub").read_text() if path.suffix == "" else Path(f"{path}.pub").read_text()


def blob_of(private: str) -> bytes:
    return paramiko.Ed25519Key.from_private_key(io.StringIO(private)).asbytes()


KINDS = [("ed25519",), ("ecdsa", "-b", "256"), ("ecdsa", "-b", "521"), ("rsa", "-b", "2048")]


@pytest.mark.parametrize("kind", KINDS, ids="".join)
async def test_usual_keys_are_taken_and_found_again(database: Database, tmp_path: Path, kind: tuple[str, ...]) -> None:
    line = generated(tmp_path, *kind)
    key = await keys.add(database, 1, "", line)
    assert key.name == "laptop of somebody"
    shown = subprocess.run(["ssh-keygen", "-l", "-f", "-"], input=line.encode(), capture_output=True, check=True).stdout
    assert key.fingerprint in shown.decode()
    assert await keys.grant_of(database, keys.read_public(line), "dev+a1") == keys.Grant(key.id, 1, None)


async def test_keys_of_hardware_are_taken(database: Database) -> None:
    line = (
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIEX/dQ0v4127bEo8eeG1EV0A"
        "pO2lWbSnN6RWusn/NjqIAAAABHNzaDo= token"
    )
    assert (await keys.add(database, 1, "token", line)).kind == "sk-ssh-ed25519@openssh.com"


def test_weak_damaged_and_unknown_keys_are_refused_with_the_cure(tmp_path: Path) -> None:
    openssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    weak = rsa.generate_private_key(65537, 1024).public_key().public_bytes(*openssh).decode()
    with pytest.raises(Invalid, match=r"1024 bits is too weak.*ssh-keygen"):
        keys.read_public(weak)
    old = dsa.generate_private_key(1024).public_key().public_bytes(*openssh).decode()
    with pytest.raises(Invalid, match="kinds that work"):
        keys.read_public(old)
    whole = generated(tmp_path, "ed25519").split()
    for damaged in ("", "ssh-ed25519", "ssh-ed25519 !!", f"ssh-rsa {whole[1]}", f"{whole[0]} {whole[1][:40]}"):
        with pytest.raises(Invalid, match="public_key"):
            keys.read_public(damaged)
    with pytest.raises(Invalid, match="not one line"):
        keys.read_public("ssh-ed25519 " + "A" * 10_000)


async def test_a_key_is_once_in_an_account_and_is_removed_by_it_alone(database: Database, tmp_path: Path) -> None:
    line = generated(tmp_path, "ed25519")
    key = await keys.add(database, 1, "mine", line)
    with pytest.raises(Conflict, match="registered in this account already"):
        await keys.add(database, 1, "again", line)
    with pytest.raises(NotFound):
        await keys.remove(database, 2, None, key.id)
    with pytest.raises(NotFound):
        await keys.remove(database, 1, 1, key.id)
    await keys.remove(database, 1, None, key.id)
    assert await keys.grant_of(database, keys.read_public(line)) is None
    assert await keys.listed(database, 1, None) == []


async def test_a_strangers_claim_to_a_key_leads_its_holder_nowhere(database: Database, tmp_path: Path) -> None:
    """A public key says nothing of who sends it: 2 has registered that of 1, who comes with a name that 2 chose."""
    line = generated(tmp_path, "ed25519")
    blob = keys.read_public(line)
    await keys.add(database, 2, "squatted", line)
    alone = await keys.grant_of(database, blob, "web")
    assert alone is not None and alone.refusal is not None
    assert "`ssh web+a2@HOST`" in alone.refusal
    mine = await keys.add(database, 1, "mine", line)
    both = await keys.grant_of(database, blob, "web")
    assert both is not None and both.refusal is not None
    assert "`ssh web+a2@HOST` or `ssh web+a1@HOST`" in both.refusal
    chosen = await keys.grant_of(database, blob, "web+a1")
    assert chosen == keys.Grant(mine.id, 1, None)
    assert (chosen.name, chosen.confirms) == ("web", True)
    await confirm(database, mine.id)
    found = await keys.grant_of(database, blob, "web")
    assert found == keys.Grant(mine.id, 1, None)
    assert (found.name, found.confirms) == ("web", False)


async def test_a_key_that_its_holder_uses_in_several_accounts_leads_where_the_name_says(
    database: Database, tmp_path: Path
) -> None:
    line = generated(tmp_path, "ed25519")
    blob = keys.read_public(line)
    for account in (1, 2):
        key = await keys.add(database, account, "mine", line)
        await confirm(database, key.id)
    for account in (1, 2):
        found = await keys.grant_of(database, blob, f"web+a{account}")
        assert found is not None
        assert (found.account_id, found.name, found.refusal) == (account, "web", None)
    unclear = await keys.grant_of(database, blob, "web")
    assert unclear is not None and unclear.refusal is not None
    assert "say which" in unclear.refusal


async def test_where_there_is_one_account_a_key_needs_no_more(database: Database, tmp_path: Path) -> None:
    await database.write(accounts.delete().where(accounts.c.id == 2))
    line = generated(tmp_path, "ed25519")
    key = await keys.add(database, 1, "mine", line)
    assert await keys.grant_of(database, keys.read_public(line), "web") == keys.Grant(key.id, 1, None)


async def test_the_port_of_a_job_decides_whose_key_it_is(database: Database, tmp_path: Path) -> None:
    line = generated(tmp_path, "ed25519")
    await keys.add(database, 2, "squatted", line)
    assert await keys.grant_of(database, keys.read_public(line), "root", own_job=1) is None
    mine = await keys.add(database, 1, "mine", line)
    assert await keys.grant_of(database, keys.read_public(line), "root", own_job=1) == keys.Grant(mine.id, 1, None)


async def confirm(database: Database, key_id: str) -> None:
    keys.record_confirmed(database, key_id)
    await database.write(jobs.update().where(jobs.c.seq == 2).values(name="x"))  # behind it in the queue


async def test_a_jobs_key_opens_that_job_and_its_private_half_is_nowhere(database: Database) -> None:
    private = await keys.make_for_job(database, 1, 2)
    grant = await keys.grant_of(database, blob_of(private))
    assert grant is not None
    assert (grant.account_id, grant.job_seq) == (1, 2)
    assert await keys.listed(database, 1, 1) == []
    await database.write(jobs.update().where(jobs.c.seq == 1).values(name="x"))
    secret = private.splitlines()[2].encode()
    assert not [path for path in database.file.parent.iterdir() if secret in path.read_bytes()]


async def test_of_too_many_keys_the_least_recently_used_go(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KEYS_OF_JOB", 3)
    made = [blob_of(await keys.make_for_job(database, 1, 1)) for _ in range(3)]
    first = await keys.grant_of(database, made[0])
    assert first
    keys.record_use(database, first.key_id)
    made.append(blob_of(await keys.make_for_job(database, 1, 1)))
    known = [await keys.grant_of(database, blob) is not None for blob in made]
    assert known == [True, False, True, True]


async def test_keys_of_ended_jobs_are_forgotten(database: Database) -> None:
    blobs = [blob_of(await keys.make_for_job(database, 1, seq)) for seq in (1, 2)]
    await database.write(jobs.update().where(jobs.c.seq == 1).values(ended_ns=5))
    keys.forget_of_ended_jobs(database)
    await database.write(jobs.update().where(jobs.c.seq == 2).values(name="x"))  # behind it in the queue
    assert [await keys.grant_of(database, blob) is not None for blob in blobs] == [False, True]


def test_the_host_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "ssh_host_key"
    made = host_key.load(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert host_key.load(path) == made
    assert made.public.startswith("ssh-ed25519 ")
    assert made.private.decode() not in repr(made)
    assert [entry.name for entry in tmp_path.iterdir()] == ["ssh_host_key"]


def test_a_host_key_that_was_half_made_by_a_crash_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "ssh_host_key.new").write_text("-----BEGIN OPENSSH")
    assert host_key.load(tmp_path / "ssh_host_key").public


def test_a_damaged_host_key_is_not_replaced_behind_the_owners_back(tmp_path: Path) -> None:
    (tmp_path / "ssh_host_key").write_text("nonsense")
    with pytest.raises(StateUnwritable, match="put it back"):
        host_key.load(tmp_path / "ssh_host_key")
