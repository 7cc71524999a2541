"""Who may log in: public keys, each of one job or of an account for all of its sandboxes.

A job's key pair is made here for `POST access`; its private half is told once and kept nowhere. What is stored is the
public half as it is on the wire, so that a login is one indexed look-up, whether the key is known or not.

Public keys are public: anybody may register anybody's. So a key may be in several accounts, and leads into one only
when who holds it has said so by a login as NAME+ACCOUNT, once, or where there is but one account at all.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from sqlalchemy import Row, and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from roost import ids
from roost.clock import now_ns
from roost.db.database import Database
from roost.db.prefixes import whole_id
from roost.db.schema import accounts, jobs, ssh_keys
from roost.errors import Conflict, Invalid, NotFound
from roost.gateways.ssh.host_key import openssh, public_line
from roost.jobs import microvms

KEYS_OF_JOB = 1000  # the least recently used go: older clients ask for one with every command
KEYS_OF_ACCOUNT = 1000
MAX_PUBLIC_KEY = 8192  # characters; RSA of 16384 bits takes 2,800
MAX_NAME = 100  # characters
MOST_NAMED = 5  # accounts
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

    key_id: str  # empty: of a microVM's own, which go with it
    account_id: int
    job_seq: int | None
    login: str | None = None  # the user that it makes in the sandbox; None: root
    name: str = field(default="", compare=False)  # of a sandbox, with an account's key
    confirms: bool = field(default=False, compare=False)  # this login says that the key is for this account
    refusal: str | None = None  # where it leads cannot be told: what to say


def read_public(text: str, field: str = "public_key") -> bytes:
    """A line as ssh-keygen writes it, as bytes of the wire. Raises Invalid."""
    words = text.split()
    if "PRIVATE KEY" in text:
        raise Invalid(f"{field}: this is a private key, which stays with you; send the file that ends in .pub")
    if len(text) > MAX_PUBLIC_KEY or len(words) < 2 or words[0] not in KINDS:
        known = ", ".join(KINDS)
        raise Invalid(f"{field}: not one line of a file like id_ed25519.pub; kinds that work: {known}")
    kind, encoded = words[0], words[1]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise Invalid(f"{field}: damaged (its second word is not base64); copy the whole line") from None
    if _kind(blob) != kind:
        raise Invalid(f"{field}: it says {kind} and holds something else; copy the whole line")
    _require_strong(f"{kind} {encoded}", field)
    return blob


def _require_strong(line: str, field: str) -> None:
    if line.startswith("sk-"):
        return  # a curve of fixed size; what signs with it is decoded when it does
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Invalid(f"{field}: damaged ({error}); copy the whole line") from None
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS:
        cure = "make an ed25519 one with `ssh-keygen -t ed25519`"
        raise Invalid(f"{field}: RSA of {key.key_size} bits is too weak (at least {RSA_BITS}); {cure}")


def _kind(blob: bytes) -> str:
    length = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + length].decode("ascii", "replace")


def fingerprint(blob: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def generate() -> tuple[bytes, bytes]:
    """A new key pair: the public half as on the wire, the private one as PEM."""
    made = Ed25519PrivateKey.generate()
    return base64.b64decode(public_line(made).split()[1]), openssh(made)


async def make_for_job(database: Database, account_id: int, job_seq: int, user_id: int | None = None) -> str:
    """A new key of the job: its private half, as PEM. Raises StateUnwritable."""
    blob, private = generate()
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
    return private.decode()


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
        raise Conflict("this key is registered in this account already") from None
    return Key(id, name, _kind(blob), fingerprint(blob), now, None)


async def listed(database: Database, account_id: int, job_seq: int | None) -> list[Key]:
    """A job's, or with None the account's own; the oldest first."""
    query = select(ssh_keys).where(*_of(account_id, job_seq)).order_by(ssh_keys.c.created_ns)
    return [_key(row) for row in await database.read(query)]


async def remove(database: Database, account_id: int, job_seq: int | None, id: str) -> None:
    """Raises NotFound."""
    mine = and_(*_of(account_id, job_seq))
    id = await whole_id(database, ssh_keys.c.id, mine, id) or id
    row = delete(ssh_keys).where(mine, ssh_keys.c.id == id)
    if not (await database.write(row))[0].rows:
        raise NotFound(f"there is no SSH key {id!r} here; list them to see their ids")


async def grant_of(database: Database, blob: bytes, user: str = "root", own_job: int | None = None) -> Grant | None:
    """What the key opens for who logs in as `user`, on a port that leads to `own_job` or to all.

    A job's key opens that job as root, or as a microVM's user; a microVM's own keys open it as its user alone; an
    account's key is let in under any name, of which `NAME+ACCOUNT` says whose sandbox is meant.
    """
    if user.partition("+")[0] == microvms.USER:
        rows = await database.read(microvms.opened_by(blob, user, own_job))
        if rows:
            return Grant("", rows[0].account_id, rows[0].seq, rows[0].login)
    columns = ssh_keys.c.id, ssh_keys.c.account_id, ssh_keys.c.job_seq, ssh_keys.c.confirmed_ns, jobs.c.login
    query = (
        select(*columns, accounts.c.name.label("account"))
        .join(accounts, accounts.c.id == ssh_keys.c.account_id)
        .outerjoin(jobs, jobs.c.seq == ssh_keys.c.job_seq)
        .where(ssh_keys.c.public_key == blob)
    )
    rows = await database.read(query.order_by(ssh_keys.c.created_ns))
    for row in rows:
        if row.job_seq is not None and user in ("root", row.login) and own_job in (None, row.job_seq):
            return Grant(row.id, row.account_id, row.job_seq, None if user == "root" else row.login)
    return await _of_account(database, [row for row in rows if row.job_seq is None], user, own_job)


async def _of_account(database: Database, rows: list[Row[Any]], user: str, own_job: int | None) -> Grant | None:
    """`rows`: the accounts that the key is registered in. None: there is none, or the port is another's."""
    if own_job is not None:
        owners = await database.read(select(jobs.c.account_id).where(jobs.c.seq == own_job))
        rows = [row for row in rows if row.account_id in [owner.account_id for owner in owners]]
        return Grant(rows[0].id, rows[0].account_id, None) if rows else None
    if not rows:
        return None
    name, _, account = user.rpartition("+")
    for row in rows:
        if name and row.account == account:
            return Grant(row.id, row.account_id, None, name=name, confirms=row.confirmed_ns is None)
    meant = [row for row in rows if row.confirmed_ns is not None] or rows
    if len(meant) == 1 and (meant[0].confirmed_ns is not None or await _is_only(database)):
        return Grant(meant[0].id, meant[0].account_id, None, name=user)
    return Grant(meant[0].id, meant[0].account_id, None, name=user, refusal=_which(user, meant))


async def _is_only(database: Database) -> bool:
    return len(await database.read(select(accounts.c.id).limit(2))) == 1


def _which(user: str, rows: list[Row[Any]]) -> str:
    named = " or ".join(f"`ssh {user}+{row.account}@HOST`" for row in rows[:MOST_NAMED])
    if rows[0].confirmed_ns is not None:
        return f"your key is in several accounts; say which: {named}"
    return (
        "anybody can add anybody's public key, and nobody has logged in with this one yet; "
        f"if you mean this account, say so once: {named}, from then on without the account"
    )


def record_confirmed(database: Database, key_id: str) -> None:
    """Its holder has logged in as NAME+ACCOUNT; if this is lost, it has to be said again."""
    database.write_soon(update(ssh_keys).where(ssh_keys.c.id == key_id).values(confirmed_ns=now_ns()))


def record_use(database: Database, key_id: str) -> None:
    """May be lost: it decides only which of a thousand goes first."""
    if not key_id:
        return
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
