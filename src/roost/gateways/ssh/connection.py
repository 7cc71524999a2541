"""One SSH connection: its terms, its login, and the channels that its client opens.

`Login` is what asyncssh asks; `Connection` adds the limits that asyncssh leaves open. Who may come in is decided by
keys alone; where it leads is found out after that, so that nothing is told to strangers.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import asyncssh
import structlog
from asyncssh.constants import (
    DISC_BY_APPLICATION,
    DISC_NO_MORE_AUTH_METHODS_AVAILABLE,
    MSG_IGNORE,
    OPEN_ADMINISTRATIVELY_PROHIBITED,
    OPEN_RESOURCE_SHORTAGE,
)
from asyncssh.kex import get_kex_algs
from asyncssh.packet import SSHPacket
from structlog.typing import FilteringBoundLogger

from roost.accounts.audit import Audit
from roost.errors import RoostError
from roost.gateways.ssh import forwarding, keys
from roost.gateways.ssh.keys import Grant
from roost.gateways.ssh.lobby import LobbySession
from roost.gateways.ssh.session import Channel, SandboxSession
from roost.gateways.ssh.visit import Visit

if TYPE_CHECKING:
    from roost.gateways.ssh.gateway import SshGateway
    from roost.jobs.run import Run

LOGIN_GRACE = 30  # seconds
TRIES = 10  # keys and methods that one connection may try
KEEPALIVE = 30  # seconds of silence; three unanswered questions and the client is gone
CHANNELS = 128  # of one connection: sessions and forwarded connections
LISTENERS = 32  # of one connection
WINDOW = 2 * 1024 * 1024  # bytes that a client may send ahead on a channel, as OpenSSH grants
PACKET = 32 * 1024
DEFERRED = 64  # packets that wait for a key exchange before the channels do
LAST_WORDS = 1.0  # seconds for sessions to tell how they ended, when their sandbox has
LOBBY = "roost"  # the user who is told what there is

KEY_EXCHANGES = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
)
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
SIGNATURES = (
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
)

log: FilteringBoundLogger = structlog.get_logger()


class Terms:
    """What every connection is offered; made once, since reading keys and algorithms takes a while."""

    def __init__(self, host_key: bytes) -> None:
        known = get_kex_algs()
        self.options = asyncssh.SSHServerConnectionOptions(
            server_host_keys=[asyncssh.import_private_key(host_key)],
            server_version="Roost",
            kex_algs=[name for name in KEY_EXCHANGES if name.encode() in known],
            encryption_algs=list(CIPHERS),
            mac_algs=list(MACS),
            compression_algs=None,
            signature_algs=list(SIGNATURES),
            login_timeout=LOGIN_GRACE,
            keepalive_interval=KEEPALIVE,
            keepalive_count_max=3,
            gss_host=None,
            gss_kex=False,
            gss_auth=False,
            agent_forwarding=False,
            x11_forwarding=False,
            line_editor=False,
            encoding=None,
            window=WINDOW,
            max_pktsize=PACKET,
        )


class Connection(asyncssh.SSHServerConnection):
    """asyncssh's, with bounds on tries and on what waits to be sent."""

    def __init__(self, login: "Login", terms: Terms) -> None:
        super().__init__(asyncio.get_running_loop(), terms.options)
        self._protocol_factory = lambda: login
        self._tries = 0
        self._writable = asyncio.Event()
        self._writable.set()

    async def reload_config(self) -> None:
        """There is no configuration that depends on the user."""

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        """Without the empty packet before each one, a defence of ciphers that are not offered here."""
        if pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, handler=handler)

    def send_userauth_failure(self, partial_success: bool) -> None:
        self._tries += 1
        if self._tries > TRIES:
            self.disconnect(DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many tries")
        else:
            super().send_userauth_failure(partial_success)

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """asyncssh would take a signature by SHA-1 that it had not offered to."""
        if signature and SSHPacket(signature).get_string().decode("ascii", "replace") not in SIGNATURES:
            return False
        return await super().validate_public_key(username, key_data, msg, signature)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None = None) -> None:
        self._writable.set()
        super().connection_lost(exc)

    async def flowing(self) -> None:
        """Returns when the client takes what it is sent."""
        await self._writable.wait()
        while len(self._deferred_packets) > DEFERRED and not self.is_closed():
            await asyncio.sleep(0.02)  # a key exchange is under way: one round trip, or a client that withholds it


class Login(asyncssh.SSHServer):
    """asyncssh's questions about one connection. On a port that belongs to a job, `own_job` is its number."""

    def __init__(self, gateway: "SshGateway", terms: Terms, own_job: int | None) -> None:
        self.account_id = 0
        self._gateway = gateway
        self._terms = terms
        self._own_job = own_job
        self._connection: Connection | None = None
        self._grant: Grant | None = None
        self._user = ""
        self._visit: Visit | None = None
        self._channels = 0
        self._listeners = 0
        self._waking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    def protocol(self) -> Connection:
        self._connection = Connection(self, self._terms)
        return self._connection

    # -- who -----------------------------------------------------------------------------------------------

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """The key and the name decide, see `keys.grant_of`."""
        self._grant = None
        grant = await keys.grant_of(self._gateway.database, key.public_data, username, self._own_job)
        if grant is None:
            return False
        self._grant, self._user = grant, username
        return True

    def auth_completed(self) -> None:
        assert self._grant and self._connection
        grant = self._grant
        self.account_id = grant.account_id
        if not self._gateway.admit(self, grant.account_id, grant.key_id):
            return self.leave("your account has too many SSH connections; close some")
        if grant.refusal is None:  # else nobody knows yet whose login it is
            keys.record_use(self._gateway.database, grant.key_id)
            self._record_login(grant)
        if grant.confirms:
            keys.record_confirmed(self._gateway.database, grant.key_id)
        name = grant.name or self._user
        if name == LOBBY and self._own_job is None and grant.refusal is None:
            return None
        job_seq = self._own_job if grant.job_seq is None else grant.job_seq
        gateway = self._gateway
        self._visit = Visit(
            gateway.database, gateway.live, grant.account_id, name, job_seq, self._entered, grant.refusal
        )
        self._waking = asyncio.create_task(self._wake(self._visit))
        return None

    def _record_login(self, grant: keys.Grant) -> None:
        assert self._connection
        address = self._connection.get_extra_info("peername")
        Audit(self._gateway.database).record_soon(
            account_id=grant.account_id,
            actor=f"key {grant.key_id}" if grant.key_id else "key of a microVM",
            action="ssh login",
            resource=self._user,
            address=str(address[0]) if address else "unknown",
            status=200,
        )

    async def _wake(self, visit: Visit) -> None:
        """At once, beside the client's next request, which meets the same error and can tell it."""
        with contextlib.suppress(RoostError):
            await visit.run()

    def _entered(self, run: "Run") -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = asyncio.create_task(self._watch(run))

    async def _watch(self, run: "Run") -> None:
        await run.done.wait()
        await asyncio.sleep(LAST_WORDS)
        self.leave("the sandbox has ended")

    def leave(self, why: str) -> None:
        if self._connection is not None:
            self._connection.disconnect(DISC_BY_APPLICATION, why)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.left(self)
        for task in (self._waking, self._watching):
            if task is not None:
                task.cancel()
        if self._visit is not None:
            self._visit.close()
        if exc is not None and not isinstance(exc, (asyncssh.Error, OSError)):
            log.error("ssh.fault", exc_info=exc)

    # -- channels ------------------------------------------------------------------------------------------

    def session_requested(self) -> tuple[Channel, asyncssh.SSHServerSession[bytes]]:
        assert self._connection
        self._count_channel()
        channel = Channel(self._connection, WINDOW, PACKET)
        if self._visit is None:
            return channel, LobbySession(self._gateway, self.account_id, self._channel_closed)
        login = None if self._grant is None else self._grant.login
        return channel, SandboxSession(self._connection, self._visit, self._gateway.node, self._channel_closed, login)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Awaitable[asyncssh.SSHTCPSession[bytes]]:
        visit = self._forwarding()
        self._count_channel()
        assert self._connection
        return forwarding.connect(
            self._connection, visit, self._gateway.node, (dest_host, dest_port), self._channel_closed
        )

    async def server_requested(self, listen_host: str, listen_port: int) -> asyncssh.SSHListener | bool:
        try:
            visit = self._forwarding()
        except asyncssh.ChannelOpenError:
            return False
        if self._listeners >= LISTENERS:
            return False
        assert self._connection
        self._listeners += 1
        listener = await forwarding.listen(
            self._connection, visit, self._gateway.node, (listen_host, listen_port), self._listener_closed
        )
        if listener is None:
            self._listeners -= 1
            return False
        return listener

    def _forwarding(self) -> Visit:
        if self._visit is None:
            raise asyncssh.ChannelOpenError(
                OPEN_ADMINISTRATIVELY_PROHIBITED, f"{LOBBY}@ leads to no sandbox; use NAME@"
            )
        return self._visit

    def _count_channel(self) -> None:
        if self._channels >= CHANNELS:
            text = f"at most {CHANNELS} channels at once on one connection; open another one"
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, text)
        self._channels += 1

    def _channel_closed(self) -> None:
        self._channels -= 1

    def _listener_closed(self) -> None:
        self._listeners -= 1
