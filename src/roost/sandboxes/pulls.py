"""Images that jobs name by a registry's reference: pulled when the first job needs one, once for all who wait.

Only from registries that the operator lets users name, since it is the node that connects. An image is pulled once;
`roost image remove` makes the next job pull it anew.
"""

import asyncio
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roost.errors import Invalid, Refused
from roost.node.protocol import PullImage
from roost.node.reference import normalised

if TYPE_CHECKING:
    from roost.node.client import NodeClient

PUBLIC = (
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "quay.io",
    "registry.gitlab.com",
    "registry.k8s.io",
)
TRANSPORT = "docker://"
PLAIN = "http://"
PULLING = "pulling "  # how the node's progress begins once a registry has said that it has the image
ASK_AGAIN = 60.0  # seconds until a registry that did not help is asked again


@dataclass(frozen=True)
class Registries:
    """Those that users may name; `plain` ones are reached without TLS."""

    encrypted: frozenset[str] = frozenset(PUBLIC)
    plain: frozenset[str] = frozenset()

    def source(self, field: str, reference: str) -> str:
        """What is kept with a job: the full reference. Raises Invalid."""
        try:
            full = normalised(reference)
        except Invalid as error:
            raise Invalid(f"{field}: {error}") from None
        host = full.removeprefix(TRANSPORT).partition("/")[0]
        if not full.startswith(TRANSPORT) or host not in self.encrypted | self.plain:
            known = ", ".join(sorted(self.encrypted | self.plain))
            raise Invalid(
                f"{field}: {reference[:80]!r} is from none of the registries that may be used here ({known}); "
                "the operator adds one by `roost up --registry HOST`"
            )
        return full


def registries(more: Iterable[str]) -> Registries:
    """The public ones and `more`: HOST[:PORT], or http://HOST[:PORT] for one without TLS. Raises Invalid."""
    encrypted, plain = set[str](PUBLIC), set[str]()
    for one in more:
        host = one.removeprefix(PLAIN).removeprefix("https://").rstrip("/")
        if not re.fullmatch(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?", host):
            raise Invalid(f"--registry: {one!r} is no HOST[:PORT], like registry.example.com or http://10.0.0.5:5000")
        (plain if one.startswith(PLAIN) else encrypted).add(host)
    return Registries(frozenset(encrypted), frozenset(plain))


def image_of(source: str) -> str:
    """The name under which the node keeps it; nobody else gives such names by chance."""
    words = re.sub(r"[^a-z0-9]+", "-", source.removeprefix(TRANSPORT).lower()).strip("-")[:80]
    return f"docker-{words}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class _Pull:
    task: "asyncio.Task[None]"
    found: "asyncio.Future[None]"  # the registry has it


class Pulls:
    def __init__(self, node: "NodeClient", known: Registries) -> None:
        self.registries = known
        self._node = node
        self._pulling: dict[str, _Pull] = {}
        self._refused: dict[str, tuple[float, str]] = {}  # until when, and why

    async def ensure(self, source: str) -> None:
        """Returns when the node has the image. Raises Refused, in the words of whoever refuses; NodeUnavailable."""
        name = image_of(source)
        if any(image.name == name for image in await self._node.images()):
            return
        await asyncio.shield(self._begun(name, source).task)

    async def find(self, source: str, within: float) -> None:
        """Returns when the node has the image or has begun to pull it. Raises Refused, also when nobody answers."""
        name, now = image_of(source), asyncio.get_running_loop().time()
        until, why = self._refused.get(source, (0.0, ""))
        if now < until:
            raise Refused(why)
        if any(image.name == name for image in await self._node.images()):
            return
        pull = self._begun(name, source)
        await asyncio.wait({pull.task, pull.found}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        if pull.task.done() and (error := pull.task.exception()):
            self._refuse(source, str(error))
        if not pull.task.done() and not pull.found.done():
            self._refuse(source, f"the registry has not answered within {within:g} s")

    def _refuse(self, source: str, why: str) -> None:
        self._refused[source] = (asyncio.get_running_loop().time() + ASK_AGAIN, why)
        raise Refused(why)

    def _begun(self, name: str, source: str) -> "_Pull":
        pull = self._pulling.get(name)
        if pull is None:
            found = asyncio.get_running_loop().create_future()
            pull = self._pulling[name] = _Pull(asyncio.create_task(self._pull(name, source, found)), found)
            pull.task.add_done_callback(lambda task: self._ended(name, task))
        return pull

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        self._pulling.pop(name, None)
        if not task.cancelled():
            task.exception()  # whoever waits is told; nobody need wait

    async def _pull(self, name: str, source: str, found: "asyncio.Future[None]") -> None:
        host = source.removeprefix(TRANSPORT).partition("/")[0]
        wanted = PullImage(reference=source, tls_verify=host not in self.registries.plain)
        async for step in self._node.pull_image(name, wanted):
            if step.message.startswith(PULLING) and not found.done():
                found.set_result(None)
            if step.error is not None:
                raise Refused(f"the image {source.removeprefix(TRANSPORT)} could not be pulled: {step.error}")
