"""What one program is told when it starts: frozen values, read once by the command line and passed inward."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeSettings:
    """The control plane's place on this machine."""

    state_dir: Path  # its own directory: DIR/serve of `roost up --state DIR`; made if it is not there
    node_socket: Path
    host: str = "127.0.0.1"
    port: int = 8484  # 0: any free one, told in the log event `serve.listening`
    keep_revisions: int = 20  # of each workspace, the newest
    keep_days: int = 30  # that a revision, or a local workspace, is kept; 0: for ever

    @property
    def database(self) -> Path:
        return self.state_dir / "roost.db"

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
