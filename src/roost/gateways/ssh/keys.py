"""Who may log in: public keys, each of one job or of an account for all of its sandboxes.

A job's key pair is made here for `POST access`; its private half is told once and kept nowhere. What is stored is the
public half as it is on the wire, so that a login is one indexed look-up, whether the key is known or not.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.schema import jobs, ssh_keys
from roost.errors import Conflict, Invalid, NotFound
from roost.gateways.ssh.host_key import openssh, public_line

KEYS_OF_JOB = 1000  # the least recently used go: older clients ask for one with every command
KEYS_OF_ACCOUNT = 1000
MAX_PUBLIC_KEY = 8192  # characters; RSA of 16384 bits takes 2,800
MAX_NAME = 100  # characters
RSA_BITS = 2048
KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


@dataclass(frozen=True)
class Key:
    id: str
    name: str
    kind: str
    fingerprint: str  # "SHA256:…", as ssh-keygen -l shows it
    created_ns: int
    last_used_ns: int | None


@dataclass(frozen=True)
class Grant:
    """What a known key opens: one job, or all sandboxes of its account."""

    key_id: str
    account_id: int
    job_seq: int | None


def read_public(text: str) -> bytes:
    """A line as ssh-keygen writes it, as bytes of the wire. Raises Invalid."""
    words = text.split()
    if "PRIVATE KEY" in text:
        raise Invalid("public_key: this is a private key, which stays with you; send the file that ends in .pub")
    if len(text) > MAX_PUBLIC_KEY or len(words) < 2 or words[0] not in KINDS:
        known = ", ".join(KINDS)
        raise Invalid(f"public_key: not one line of a file like id_ed25519.pub; kinds that work: {known}")
    kind, encoded = words[0], words[1]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise Invalid("public_key: damaged (its second word is not base64); copy the whole line") from None
    if _kind(blob) != kind:
        raise Invalid(f"public_key: it says {kind} and holds something else; copy the whole line")
    _require_strong(f"{kind} {encoded}")
    return blob


def _require_strong(line: str) -> None:
    if line.startswith("sk-"):
        return  # a curve of fixed size; what signs with it is decoded when it does
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Invalid(f"public_key: damaged ({error}); copy the whole line") from None
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS:
        cure = "make an ed25519 one with `ssh-keygen -t ed25519`"
        raise Invalid(f"public_key: RSA of {key.key_size} bits is too weak (at least {RSA_BITS}); {cure}")


def _kind(blob: bytes) -> str:
    length = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + length].decode("ascii", "replace")


def fingerprint(blob: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


async def make_for_job(database: Database, account_id: int, job_seq: int, user_id: int | None = None) -> str:
    """A new key of the job: its private half, as PEM. Raises StateUnwritable."""
    made = Ed25519PrivateKey.generate()
    blob = base64.b64decode(public_line(made).split()[1])
    id, now = ids.key_id(), now_ns()
    used = func.coalesce(ssh_keys.c.last_used_ns, ssh_keys.c.created_ns)
    newest = select(ssh_keys.c.id).where(ssh_keys.c.job_seq == job_seq).order_by(used.desc()).limit(KEYS_OF_JOB)
    await database.write(
        insert(ssh_keys).values(
            id=id,
            account_id=account_id,
            job_seq=job_seq,
            name="access",
            public_key=blob,
            created_ns=now,
            user_id=user_id,
        ),
        delete(ssh_keys).where(ssh_keys.c.job_seq == job_seq, ssh_keys.c.id.not_in(newest)),
    )
    return openssh(made).decode()


async def add(database: Database, account_id: int, name: str, public_key: str, user_id: int | None = None) -> Key:
    """Of the account itself; it goes with the user. Raises Invalid, Conflict."""
    blob = read_public(public_key)
    words = public_key.split(maxsplit=2)
    name = name or (words[2].strip() if len(words) > 2 else "")
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise Invalid(f"name: 1 to {MAX_NAME} printable characters; say where the key is kept, for example 'laptop'")
    mine = select(func.count()).select_from(ssh_keys).where(*_of(account_id, None))
    if (await database.read(mine))[0][0] >= KEYS_OF_ACCOUNT:
        raise Conflict(f"an account may have {KEYS_OF_ACCOUNT} keys; remove one first")
    id, now = ids.key_id(), now_ns()
    row = insert(ssh_keys).values(
        id=id, account_id=account_id, name=name, public_key=blob, created_ns=now, user_id=user_id
    )
    try:
        await database.write(row)
    except IntegrityError:
        raise Conflict("this key is registered already; a key belongs to one account, once") from None
    return Key(id, name, _kind(blob), fingerprint(blob), now, None)


async def listed(database: Database, account_id: int, job_seq: int | None) -> list[Key]:
    """A job's, or with None the account's own; the oldest first."""
    query = select(ssh_keys).where(*_of(account_id, job_seq)).order_by(ssh_keys.c.created_ns)
    return [_key(row) for row in await database.read(query)]


async def remove(database: Database, account_id: int, job_seq: int | None, id: str) -> None:
    """Raises NotFound."""
    row = delete(ssh_keys).where(*_of(account_id, job_seq), ssh_keys.c.id == id)
    if not (await database.write(row))[0].rows:
        raise NotFound(f"there is no SSH key {id!r} here; list them to see their ids")


async def grant_of(database: Database, blob: bytes) -> Grant | None:
    query = select(ssh_keys.c.id, ssh_keys.c.account_id, ssh_keys.c.job_seq).where(ssh_keys.c.public_key == blob)
    rows = await database.read(query)
    return Grant(rows[0].id, rows[0].account_id, rows[0].job_seq) if rows else None


def record_use(database: Database, key_id: str) -> None:
    """May be lost: it decides only which of a thousand goes first."""
    database.write_soon(update(ssh_keys).where(ssh_keys.c.id == key_id).values(last_used_ns=now_ns()))


def forget_of_ended_jobs(database: Database) -> None:
    ended = select(jobs.c.seq).where(jobs.c.ended_ns.is_not(None))
    database.write_soon(delete(ssh_keys).where(ssh_keys.c.job_seq.in_(ended)))


def _of(account_id: int, job_seq: int | None) -> tuple[Any, Any]:
    whose = ssh_keys.c.job_seq.is_(None) if job_seq is None else ssh_keys.c.job_seq == job_seq
    return ssh_keys.c.account_id == account_id, whose


def _key(row: Row[Any]) -> Key:
    blob = row.public_key
    return Key(row.id, row.name, _kind(blob), fingerprint(blob), row.created_ns, row.last_used_ns)
