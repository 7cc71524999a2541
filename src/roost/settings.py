"""What one program is told when it starts: frozen values, read once by the command line and passed inward."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

STANDARD = "standard"  # the image that `make setup` builds
OIDC_SECRET_VARIABLE = "ROOST_OIDC_CLIENT_SECRET"  # noqa: S105 - the name of an environment variable
LogFormat: TypeAlias = Literal["auto", "text", "json"]  # auto: text on a terminal, else JSON


@dataclass(frozen=True)
class ServeSettings:
    """The control plane's place on this machine."""

    state_dir: Path  # its own directory: DIR/serve of `roost up --state DIR`; made if it is not there
    node_socket: Path
    listen: str = "127.0.0.1:8484"  # HOST:PORT; port 0: any free one, told in the log event `serve.listening`
    inherited: dict[str, int] = field(default_factory=dict[str, int])  # option -> descriptor that listens already
    keep_revisions: int = 20  # of each workspace, the newest
    keep_days: int = 30  # that a revision, or a local workspace, is kept; 0: for ever
    idle_minutes: float = 10  # without use, until a persistent job falls asleep, where it does not say itself
    cold_after_minutes: float = 60  # frozen, until it is saved and its sandbox goes
    gateway: str = "127.0.0.1:8485"  # HOST:PORT where sandboxes' ports are reached by host name
    gateway_tls: str | None = None  # HOST:PORT of the same over TLS
    gateway_url: str | None = None  # as the world reaches it: "https", "https:8443"; None: as it listens
    domains: tuple[str, ...] = ("apps.localhost",)  # the first is the one that is told
    certificate: Path | None = None  # PEM files; read anew when they change
    certificate_key: Path | None = None
    acme: str | None = None  # directory URL of a certificate authority
    acme_email: str | None = None
    acme_ca: Path | None = None  # certificates to trust that authority by; None: the machine's
    route_rate: int = 0  # requests a second that one host name may get; 0: any number
    account_rate: int = 0  # … all host names of one account
    route_connections: int = 10_000
    account_connections: int = 20_000
    ssh: str = "127.0.0.1:2222"  # HOST:PORT
    ssh_host: str | None = None  # the name that clients are told; None: of the API's own request
    ssh_ports: tuple[int, int] | None = None  # first and last of those that jobs may have to themselves
    default_image: str = STANDARD  # of jobs that name none, where their account chose none
    registries: tuple[str, ...] = ()  # of images, besides the public ones; http://HOST for one without TLS
    otlp_endpoint: str | None = None  # base URL of what receives traces; None: there are none
    default_quotas: tuple[str, ...] = ()  # NAME=VALUE, of every account but the first
    audit_days: int = 90  # that entries of the audit log are kept; 0: for ever
    allow_private: tuple[str, ...] = ()  # hosts and networks that users may have Roost connect to though not public
    log_format: LogFormat = "json"  # of the events on standard error

    oidc_issuer: str | None = None  # of an OpenID provider, whose users may log in
    oidc_client_id: str | None = None
    oidc_client_secret: Path | None = None  # a file; None: in the environment
    oidc_domains: tuple[str, ...] = ()  # of e-mail addresses that are let in
    oidc_emails: tuple[str, ...] = ()

    @property
    def database(self) -> Path:
        return self.state_dir / "roost.db"

    @property
    def certificates(self) -> Path:
        """Where those from an authority are kept."""
        return self.state_dir / "certificates"

    @property
    def ssh_host_key(self) -> Path:
        return self.state_dir / "ssh_host_key"

    @property
    def secret_key(self) -> Path:
        return self.state_dir / "secret.key"


@dataclass(frozen=True)
class NodeSettings:
    """The node daemon's place on this machine."""

    state: Path  # STATE/node: records, logs, disks
    runtime_dir: Path  # /run/roost/N: the socket and what lives as long as the machine is up
    instance: int  # N, 0 to 15: names, addresses and uid ranges derive from it
    store: str | None  # an object store's URL; None: a directory beside the node's records
    store_options: Path | None  # a JSON file: how to reach it, and `key` (base64 of 32 bytes) to encrypt with
    layer_cache_gb: int  # that revisions may take on this node's disk before stored ones go
    images: Path  # shared by all instances of the machine
    prefix6: str | None  # an IPv6 prefix that is routed to this machine; None: one of its own behind NAT66
    runtime: str | None  # an OCI runtime's name or path; None: crun on cgroup v2, runc on v1
    min_pool_size: int
    max_pool_size: int  # 0 = by capacity
    group: str  # whose members may use the socket
    log_format: LogFormat = "json"  # of the events on standard error
