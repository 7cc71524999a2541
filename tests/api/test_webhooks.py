"""Webhooks: what is told of, to whom, how it is signed, and what becomes of what does not arrive."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from sqlalchemy import update

from roost.db.schema import webhook_deliveries, webhooks
from roost.webhooks.webhook import PATIENCE
from tests.api.conftest import Served, serving
from tests.api.test_durability import OLD_JOB
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

HOOKS = "/webhooks"
DAY = 24 * 3600 * 10**9


@dataclass
class Receiver:
    """An ordinary web server that keeps what it gets."""

    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: Callable[[int], web.StreamResponse] = lambda _: web.Response(status=204)

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.requests]

    def told(self, type: str) -> dict[str, Any]:
        return next(told for _, body in self.requests if (told := json.loads(body))["type"] == type)

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.requests]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()

    async def take(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        receiver.requests.append((headers, await request.read()))
        return receiver.answers(len(receiver.requests))

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


async def made(api: Api, receiver: Receiver, **more: Any) -> dict[str, Any]:
    return await api.json(HOOKS, 201, "POST", json={"url": receiver.url, **more})


async def delivered(api: Api, hook: dict[str, Any], **query: str) -> list[dict[str, Any]]:
    answer: Any = await api.json(f"{HOOKS}/{hook['id']}/deliveries", params=query)
    return answer["deliveries"]


def signature(secret: str, headers: dict[str, str], body: bytes) -> str:
    """As the scheme's own libraries compute it."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def pass_time(api: Api, nanoseconds: int) -> None:
    clock = api.webhooks.clock
    real = clock.now_ns
    clock.now_ns = lambda: real() + nanoseconds  # type: ignore[method-assign]
    api.webhooks.changed()


async def test_a_job_is_told_of_from_its_submission_to_its_end(api: Api, receiver: Receiver) -> None:
    await made(api, receiver)
    vm_id = await api.run(name="n", environment={"KEY": "s3cret"}, script="echo private")
    api.node.end(vm_id, exit_code=0)
    await until(lambda: len(receiver.requests) == 3)
    assert receiver.types() == ["job.submitted", "job.started", "job.completed"]
    told = receiver.told("job.completed")
    assert (told["data"]["name"], told["data"]["status"], told["data"]["exit_code"]) == ("n", "completed", 0)
    assert receiver.told("job.started")["data"]["status"] == "running"
    assert "exit_code" not in receiver.told("job.started")["data"]
    assert [json.loads(body)["sequence"] for _, body in receiver.requests] == [1, 2, 3]
    everything = b"".join(body for _, body in receiver.requests)
    assert b"s3cret" not in everything and b"private" not in everything


async def test_a_job_that_fails_and_one_that_is_stopped_are_told_apart(api: Api, receiver: Receiver) -> None:
    await made(api, receiver, events=["job.failed", "job.stopped"])
    api.node.end(await api.run(), exit_code=3)
    await until(lambda: receiver.types() == ["job.failed"])
    assert receiver.told("job.failed")["data"]["exit_code"] == 3
    await api.run(name="endless")
    await api.json("/mags-jobs/endless/stop", method="POST")
    await until(lambda: receiver.types() == ["job.failed", "job.stopped"])


async def test_sleep_and_saves_are_told(api: Api, receiver: Receiver) -> None:
    await made(api, receiver)
    vm_id = await api.run(persistent=True, name="p", workspace_id="w")
    api.node.exit_script(vm_id, 0)
    await until(lambda: "job.script_ended" in receiver.types())
    await api.json("/mags-jobs/p/sleep", method="POST")
    await until(lambda: "sandbox.asleep" in receiver.types())
    await api.json("/mags-jobs/p/wake", method="POST")
    await until(lambda: "sandbox.awake" in receiver.types())
    await api.json("/mags-jobs/p/sleep", method="POST", json={"depth": "cold"})
    await until(lambda: {"sandbox.cold", "workspace.saved"} <= set(receiver.types()))
    assert receiver.told("workspace.saved")["data"]["workspace_id"] == "w"
    assert receiver.types().count("job.started") == 1


async def test_messages_are_signed_by_the_standard_scheme(api: Api, receiver: Receiver) -> None:
    hook = await made(api, receiver)
    path = f"{HOOKS}/{hook['id']}"
    await api.json(f"{path}/test", 202, "POST")
    await until(lambda: len(receiver.requests) == 1)
    headers, body = receiver.requests[0]
    assert headers["webhook-signature"] == signature(hook["secret"], headers, body)
    rotated = await api.json(f"{path}/rotate", 200, "POST")
    await api.json(f"{path}/test", 202, "POST")
    await until(lambda: len(receiver.requests) == 2)
    headers, body = receiver.requests[1]
    both = [signature(str(one), headers, body) for one in (rotated["secret"], hook["secret"])]
    assert headers["webhook-signature"].split(" ") == both
    shown = json.dumps(await api.json(HOOKS)) + json.dumps(await api.json(path))
    assert str(rotated["secret"]) not in shown and hook["secret"] not in shown


async def test_what_fails_is_tried_again_with_the_same_id_and_holds_up_nothing(api: Api, receiver: Receiver) -> None:
    hook = await made(api, receiver)
    receiver.answers = lambda number: web.Response(status=500 if number == 1 else 200)
    for _ in range(2):
        await api.json(f"{HOOKS}/{hook['id']}/test", 202, "POST")
    await until(lambda: len(receiver.requests) == 2)

    async def recorded() -> bool:
        return [one["status"] for one in await delivered(api, hook)] == ["delivered", "waiting"]

    await until(recorded)
    (failed,) = await delivered(api, hook, status="waiting")
    assert (failed["attempts"], failed["response_status"]) == (1, 500) and "500" in failed["error"]
    pass_time(api, 60 * 10**9)
    await until(lambda: len(receiver.requests) == 3)
    assert receiver.ids()[2] == receiver.ids()[0]
    assert receiver.requests[2][1] == receiver.requests[0][1]


async def test_after_a_day_a_message_has_failed_and_can_be_sent_again(api: Api, receiver: Receiver) -> None:
    hook = await made(api, receiver)
    receiver.answers = lambda _: web.Response(status=500)
    await api.json(f"{HOOKS}/{hook['id']}/test", 202, "POST")
    await until(lambda: len(receiver.requests) == 1)
    pass_time(api, DAY + 3600 * 10**9)

    async def failed() -> bool:
        return bool(await delivered(api, hook, status="failed"))

    await until(failed)
    receiver.answers = lambda _: web.Response()
    (message,) = await delivered(api, hook)
    await api.json(f"{HOOKS}/{hook['id']}/deliveries/{message['id']}/redeliver", 202, "POST")

    async def arrived() -> bool:
        return bool(await delivered(api, hook, status="delivered"))

    await until(arrived)
    assert set(receiver.ids()) == {message["id"]}


async def test_a_receiver_that_has_failed_for_days_is_left_alone(api: Api, receiver: Receiver) -> None:
    hook = await made(api, receiver)
    receiver.answers = lambda _: web.Response(status=503)
    await api.database.write(update(webhooks).values(failing_since_ns=api.webhooks.clock.now_ns() - PATIENCE - 10**9))
    await api.json(f"{HOOKS}/{hook['id']}/test", 202, "POST")

    async def disabled() -> bool:
        return (await api.json(f"{HOOKS}/{hook['id']}"))["enabled"] is False

    await until(disabled)
    assert "5 days" in str((await api.json(f"{HOOKS}/{hook['id']}"))["disabled_reason"])
    assert "disabled" in str((await api.json(f"{HOOKS}/{hook['id']}/test", 409, "POST"))["error"])
    on = await api.json(f"{HOOKS}/{hook['id']}", 200, "PATCH", json={"enabled": True})
    assert on["enabled"] is True and "disabled_reason" not in on


async def test_one_that_says_gone_is_left_alone_at_once(api: Api, receiver: Receiver) -> None:
    hook = await made(api, receiver)
    receiver.answers = lambda _: web.Response(status=410)
    await api.json(f"{HOOKS}/{hook['id']}/test", 202, "POST")

    async def disabled() -> bool:
        return (await api.json(f"{HOOKS}/{hook['id']}"))["enabled"] is False

    await until(disabled)


async def test_redirects_are_not_followed(api: Api, receiver: Receiver) -> None:
    hook = await made(api, receiver)
    receiver.answers = lambda _: web.Response(status=302, headers={"Location": receiver.url + "/elsewhere"})
    await api.json(f"{HOOKS}/{hook['id']}/test", 202, "POST")

    async def failed() -> bool:
        return (await delivered(api, hook))[0]["attempts"] == 1

    await until(failed)
    assert len(receiver.requests) == 1 and "302" in (await delivered(api, hook))[0]["error"]


async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = await made(api, receiver)
    looped = receiver.url.replace("127.0.0.1", "localhost")
    await api.json(f"{HOOKS}/{hook['id']}", 200, "PATCH", json={"url": looped})
    monkeypatch.setattr(type(api.webhooks.may), "address", lambda _self, text: text not in ("127.0.0.1", "::1"))
    await api.json(f"{HOOKS}/{hook['id']}/test", 202, "POST")

    async def failed() -> bool:
        return (await delivered(api, hook))[0]["attempts"] == 1

    await until(failed)
    assert receiver.requests == []
    assert "not a public address" in (await delivered(api, hook))[0]["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "url: missing"),
        ({"url": "ftp://example.com"}, "no http or https URL"),
        ({"url": "http://10.0.0.1/x"}, "not a public address"),
        ({"url": "http://[::1]/x"}, "not a public address"),
        ({"url": "http://[::ffff:169.254.169.254]/x"}, "not a public address"),
        ({"url": "http://169.254.169.254/x"}, "not a public address"),
        ({"url": "https://user:word@example.com"}, "user or password"),
        ({"url": "https://example.com/" + "x" * 2048}, "at most 2048"),
        ({"url": "https://example.com", "events": ["job.exploded"]}, "job.completed"),
        ({"url": "https://example.com", "description": "x" * 1025}, "description"),
        ({"url": "https://example.com", "secret": "x"}, "unknown field"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_cure(api: Api, body: dict[str, Any], words: str) -> None:
    assert words in str((await api.json(HOOKS, 400, "POST", json=body))["error"])
    assert (await api.json(HOOKS))["total"] == 0


async def test_other_accounts_webhooks_are_not_there_and_hear_nothing(
    api: Api, stranger: httpx.AsyncClient, receiver: Receiver
) -> None:
    path = f"{HOOKS}/{(await made(api, receiver))['id']}"
    async with receiving() as its:
        assert (await stranger.post(HOOKS, json={"url": its.url})).status_code == 201
        api.node.end(await api.run())
        await until(lambda: len(receiver.requests) == 3)
        assert its.requests == []
    calls = [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/test"), ("GET", "/deliveries")]
    for method, more in [*calls, ("POST", f"/deliveries/{receiver.ids()[0]}/redeliver")]:
        answer = await stranger.request(method, path + more, json={} if method == "PATCH" else None)
        assert answer.status_code == 404, (method, more, answer.text)
    assert (await api.json(path))["enabled"] is True


async def test_a_deleted_webhook_hears_nothing_more(api: Api, receiver: Receiver) -> None:
    hook = await made(api, receiver)
    await api.json(f"{HOOKS}/{hook['id']}", 200, "DELETE")
    api.node.end(await api.run(name="n"))

    async def over() -> bool:
        return (await api.json("/mags-jobs/n/status"))["status"] == "completed"

    await until(over)
    assert await api.database.read(webhook_deliveries.select()) == []
    assert receiver.requests == []


# ---- kills -------------------------------------------------------------------------------------------------


@pytest.fixture
async def killed_between(state: Path) -> AsyncIterator[Callable[[], Served]]:
    """Starts the same control plane again and again; one that is left at the end is ended."""
    all_of_them: list[Served] = []

    def start() -> Served:
        served = serving(state)
        all_of_them.append(served)
        return served

    yield start
    for served in all_of_them:
        if served.process.poll() is None:
            served.kill()


async def test_what_was_committed_before_a_kill_is_sent_after_it(
    killed_between: Callable[[], Served], state: Path
) -> None:
    async with receiving() as receiver:
        served = await asyncio.to_thread(killed_between)

        def register() -> None:
            with served.client() as client:
                client.post("/api/v1/webhooks", json={"url": receiver.url})

        await asyncio.to_thread(register)
        served.kill()
        with contextlib.closing(sqlite3.connect(state / "roost.db")) as database, database:
            database.execute(OLD_JOB)  # the commit after which it died
        await asyncio.to_thread(killed_between)
        await until(lambda: receiver.types() == ["job.submitted"])
        assert receiver.told("job.submitted")["data"]["request_id"] == "old-id"


async def test_what_was_sent_but_not_recorded_before_a_kill_is_sent_again_with_its_id(
    killed_between: Callable[[], Served],
) -> None:
    async with receiving() as receiver:
        served = await asyncio.to_thread(killed_between)

        def die(_: int) -> web.StreamResponse:
            if served.process.poll() is None:
                served.kill()  # it has sent, and never sees the answer
            return web.Response()

        receiver.answers = die

        def submit() -> None:
            with served.client() as client:
                client.post("/api/v1/webhooks", json={"url": receiver.url})
                client.post("/api/v1/mags-jobs", json={"script": "true"})

        await asyncio.to_thread(submit)
        await until(lambda: len(receiver.requests) == 1)
        await asyncio.to_thread(killed_between)
        await until(lambda: len(receiver.requests) == 2)
        assert receiver.ids()[0] == receiver.ids()[1]
        assert receiver.requests[0][1] == receiver.requests[1][1]
