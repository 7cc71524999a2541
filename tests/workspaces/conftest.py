"""The real application with a node in memory behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2.profiles import CHEAPEST
from litestar import Litestar
from sqlalchemy import insert

from roost.accounts.audit import Audit
from roost.accounts.default_images import DefaultImages
from roost.accounts.identity import identity_of
from roost.accounts.passwords import Passwords
from roost.accounts.quotas import Quotas
from roost.accounts.tokens import Tokens, digest, ensure_account
from roost.api.app import build
from roost.api.plane import ControlPlane
from roost.api.timing import Durations
from roost.api.traced import Traced
from roost.db import secret
from roost.db.database import Database
from roost.db.schema import accounts, tokens
from roost.gateways.admission import Admission
from roost.gateways.hosts import hosts_of
from roost.gateways.routes import SIGNED_LINKS, Routes
from roost.gateways.ssh.gateway import SshGateway
from roost.jobs.live import LiveJobs
from roost.jobs.microvms import MicroVMs
from roost.jobs.scheduler import Scheduler
from roost.outward import allowed
from roost.sandboxes.images import Images
from roost.sandboxes.placement import Machine, SingleNode
from roost.settings import ServeSettings
from roost.tracing import OFF, Tracer
from roost.webhooks.deliverer import Deliverer
from roost.workspaces.collection import Collection, Retention
from tests.jobs.fresh import fresh_database
from tests.jobs.memory_node import Node, until

TOKEN = "t" * 32
JOBS = "/mags-jobs"


@dataclass
class Plane:
    app: Litestar
    node: Node
    live: LiveJobs
    routes: Routes
    database: Database
    scheduler: Scheduler
    webhooks: Deliverer


_IDLE: list[Litestar] = []  # applications of tests that are over: to make one takes half a second


@asynccontextmanager
async def control_plane(directory: Path, tracer: Tracer = OFF, **options: Any) -> AsyncIterator[Plane]:
    if not (directory / "roost.db").exists():
        fresh_database(directory / "roost.db")
    node, placement = Node(), SingleNode(Machine(2, 4000))
    async with Database(directory / "roost.db") as database:
        await ensure_account(database, TOKEN)
        settings, key = ServeSettings(directory, directory / "node.sock", **options), secret.load(directory / "key")
        quotas = Quotas(database)
        async with (
            LiveJobs(database, key, node, placement, quotas=quotas, tracer=tracer) as live,  # type: ignore[arg-type]
            Collection(database, node, live.link, live.unrecorded, Retention()) as collection,  # type: ignore[arg-type]
            Scheduler(database, key, live, node) as scheduler,  # type: ignore[arg-type]
            Deliverer(database, key, allowed(["127.0.0.1"])) as webhooks,
            MicroVMs(database, key, live) as microvms,
        ):
            routes = Routes(database, live, hosts_of(settings), Admission(key.derive(SIGNED_LINKS)))
            ssh = SshGateway(settings, database, live, node)  # type: ignore[arg-type]
            tokens = Tokens(database)
            identity = identity_of(database, tokens, key, settings, Passwords(CHEAPEST))
            plane = ControlPlane(
                database, tokens, identity, live, placement, Images(node), node, collection, ssh, routes,  # type: ignore[arg-type]
                key, scheduler, webhooks.may, webhooks, microvms, quotas, Audit(database),
                DefaultImages(database, settings.default_image),
            )  # fmt: skip
            app = _IDLE.pop() if _IDLE else build(plane)
            app.state.plane, app.state.durations = plane, Durations()
            await until(lambda: live.link.is_up)
            yield Plane(app, node, live, routes, database, scheduler, webhooks)
            _IDLE.append(app)


@dataclass
class Api:
    client: httpx.AsyncClient
    node: Node
    live: LiveJobs
    routes: Routes
    database: Database
    scheduler: Scheduler
    webhooks: Deliverer

    async def run(self, **fields: object) -> str:
        """A job that has a sandbox; its vm_id."""
        known = set(self.node.requests)
        answer = await self.client.post(JOBS, json={"script": "x", "type": "inline", **fields})
        assert answer.status_code == 202, answer.text
        await until(lambda: len(self.node.requests) > len(known))
        (vm_id,) = set(self.node.requests) - known
        return vm_id

    async def fill(self, name: str, **files: bytes) -> str:
        """A workspace whose head holds these files; that revision."""
        vm_id = await self.run(workspace_id=name)
        self.node.files[vm_id] |= files
        self.node.end(vm_id)
        await until(lambda: vm_id not in self.node.states)
        save = self.node.requests[vm_id].save
        assert save is not None
        return save.revision

    async def json(self, path: str, status: int = 200, method: str = "GET", **more: object) -> dict[str, object]:
        answer = await self.client.request(method, path, **more)  # type: ignore[arg-type]
        assert answer.status_code == status, answer.text
        return answer.json()


@asynccontextmanager
async def an_api(directory: Path, tracer: Tracer = OFF, **options: Any) -> AsyncIterator[Api]:
    """`options` are those of ServeSettings."""
    async with control_plane(directory, tracer, **options) as plane:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        app = Traced(plane.app, tracer) if tracer.on else plane.app  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://roost/api/v1", headers=headers) as client:
            yield Api(client, plane.node, plane.live, plane.routes, plane.database, plane.scheduler, plane.webhooks)


@asynccontextmanager
async def another_account(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    await api.database.write(
        insert(accounts).values(id=77, name="stranger", created_ns=1),
        insert(tokens).values(account_id=77, name="its", hash=digest("s" * 32), created_ns=1),
    )
    headers = {"Authorization": f"Bearer {'s' * 32}", "Content-Type": "application/json"}
    transport = api.client._transport  # the same application
    async with httpx.AsyncClient(transport=transport, base_url=api.client.base_url, headers=headers) as client:
        yield client


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path) as api:
        yield api
