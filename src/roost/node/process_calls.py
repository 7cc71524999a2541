"""The protocol's calls about kept processes and the script's input, each: read, do, answer."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from aiohttp import web

from roost.errors import Invalid
from roost.node.bodies import answer, read
from roost.node.processes import KEPT, Processes
from roost.node.protocol import ChangeProcess, StartProcess, Wire
from roost.node.sandbox import Sandbox

MAX_INPUT = 1024 * 1024  # bytes of one call

Stream = Callable[[web.Request, AsyncGenerator[Sequence[Wire]]], Awaitable[web.StreamResponse]]


class ProcessCalls:
    """`find` gives the processes of a sandbox by id, `sandbox` itself while it runs; or they raise NotFound."""

    def __init__(self, find: Callable[[str], Processes], sandbox: Callable[[str], Sandbox], stream: Stream) -> None:
        self._find = find
        self._sandbox = sandbox
        self._stream = stream

    def routes(self) -> list[web.RouteDef]:
        one = "/v1/sandboxes/{id}/processes/{pid}"
        return [
            web.post("/v1/sandboxes/{id}/input", self.write_to_script),
            web.get("/v1/sandboxes/{id}/processes", self.list),
            web.put(one, self.start),
            web.get(one, self.state),
            web.delete(one, self.remove),
            web.post(one + "/input", self.write),
            web.post(one + "/change", self.change),
            web.get(one + "/output", self.read),
        ]

    async def list(self, request: web.Request) -> web.Response:
        return answer(self._of(request).list())

    async def start(self, request: web.Request) -> web.Response:
        return answer(await self._of(request).start(_pid(request), await read(request, StartProcess)))

    async def state(self, request: web.Request) -> web.Response:
        return answer(self._of(request).state(_pid(request)))

    async def remove(self, request: web.Request) -> web.Response:
        await self._of(request).remove(_pid(request))
        return answer(None)

    async def write_to_script(self, request: web.Request) -> web.Response:
        at, end = _number(request, "at"), request.query.get("end") == "1"
        return answer(await self._sandbox(request.match_info["id"]).write_input(at, await _input(request), end))

    async def write(self, request: web.Request) -> web.Response:
        data = await _input(request)
        return answer(await self._of(request).write(_pid(request), _number(request, "at"), data))

    async def change(self, request: web.Request) -> web.Response:
        return answer(await self._of(request).change(_pid(request), await read(request, ChangeProcess)))

    async def read(self, request: web.Request) -> web.StreamResponse:
        follow = request.query.get("follow") == "1"
        return await self._stream(request, self._of(request).read(_pid(request), _number(request, "after"), follow))

    def _of(self, request: web.Request) -> Processes:
        return self._find(request.match_info["id"])


async def _input(request: web.Request) -> bytes:
    data = await request.read()
    if len(data) > MAX_INPUT:
        raise Invalid(f"input of {len(data)} bytes; at most {MAX_INPUT} at a time")
    return data


def _pid(request: web.Request) -> int:
    text = request.match_info["pid"]
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or not 0 < int(text) < KEPT:
        raise Invalid(f"{text[:80]!r} is no number of a process: 1 to {KEPT - 1}")
    return int(text)


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "0")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise Invalid(f"`{name}` is a whole number of 0 or more")
    return int(text)
