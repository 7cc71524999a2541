"""The parts of the control plane that handlers work with; `serve.py` makes them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

from litestar.params import Dependency

from roost.accounts.audit import Audit
from roost.accounts.default_images import DefaultImages
from roost.accounts.identity import Identity
from roost.accounts.quotas import Quotas
from roost.accounts.tokens import Tokens
from roost.db.database import Database
from roost.db.secret import Secret
from roost.gateways.routes import Routes
from roost.jobs.live import LiveJobs
from roost.jobs.microvms import MicroVMs
from roost.jobs.scheduler import Scheduler
from roost.outward import Allowed
from roost.sandboxes.images import Images
from roost.sandboxes.placement import Placement
from roost.webhooks.deliverer import Deliverer
from roost.workspaces.collection import Collection

if TYPE_CHECKING:
    from roost.gateways.ssh.gateway import SshGateway
    from roost.node.client import NodeClient


@dataclass(frozen=True)
class ControlPlane:
    database: Database
    tokens: Tokens
    identity: Identity
    live: LiveJobs
    placement: Placement
    images: Images
    node: "NodeClient"
    collection: Collection
    ssh: "SshGateway"
    routes: Routes
    secret: Secret
    scheduler: Scheduler
    outward: Allowed  # where users may have Roost itself connect to
    webhooks: Deliverer
    microvms: MicroVMs
    quotas: Quotas
    audit: Audit
    default_images: DefaultImages


Plane: TypeAlias = Annotated[ControlPlane, Dependency(skip_validation=True)]  # as a handler's parameter
