"""Webhooks: who asks to be told is told of each change once it is durable, signed, and again until it has arrived."""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from roost.db import secret
from roost.outward import allowed
from roost.webhooks import deliverer
from roost.webhooks.deliverer import Deliverer
from tests.jobs.memory_node import until
from tests.workspaces.conftest import Api

HOOKS = "/webhooks"
GUIDE = Path(__file__).parents[2] / "docs" / "webhooks.md"


@dataclass
class Receiver:
    """Somebody's server."""

    url: str = ""
    answer: int = 204
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append(({name.lower(): value for name, value in request.headers.items()}, await request.read()))
        return web.Response(status=self.answer, headers={"Location": self.url} if self.answer == 302 else None)

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]

    @property
    def types(self) -> list[str]:
        return [one["type"] for one in self.told]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield made
    await runner.cleanup()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(deliverer, "LONGEST_PAUSE", 0.1)


async def hook(api: Api, url: str, **fields: object) -> dict[str, Any]:
    return await api.json(HOOKS, 201, "POST", json={"url": url, **fields})


def is_signed(headers: dict[str, str], body: bytes, key: str) -> bool:
    """As the guide checks it."""
    (program,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    return names["is_genuine"](headers, body, key) and not names["is_genuine"](headers, body + b" ", key)


# ---- what is told ------------------------------------------------------------------------------------------


async def test_a_job_is_told_from_its_submission_to_its_end(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url)
    vm_id = await api.run(name="told", workspace_id="w", environment={"KEY": "hidden-value"})
    await until(lambda: "job.started" in receiver.types)
    api.node.end(vm_id)
    await until(lambda: "job.completed" in receiver.types)
    await until(lambda: "workspace.saved" in receiver.types)
    assert receiver.types[:2] == ["job.submitted", "job.started"]
    assert [one["sequence"] for one in receiver.told] == list(range(1, len(receiver.told) + 1))
    end = next(one for one in receiver.told if one["type"] == "job.completed")["data"]
    assert (end["name"], end["workspace_id"], end["status"], end["exit_code"]) == ("told", "w", "completed", 0)
    assert end["ended_at"].endswith("Z")
    assert all(is_signed(headers, body, made["secret"]) for headers, body in receiver.got)
    assert not any(b"hidden-value" in body for _, body in receiver.got)


async def test_failures_stops_and_sleep_have_types_of_their_own(api: Api, receiver: Receiver) -> None:
    await hook(api, receiver.url)
    api.node.end(await api.run(), exit_code=3)
    await until(lambda: "job.failed" in receiver.types)
    await api.run(name="stays", persistent=True)
    await until(lambda: receiver.types.count("job.started") == 2)
    await api.json("/mags-jobs/stays/sleep", 200, "POST", json={})
    await until(lambda: "sandbox.asleep" in receiver.types)
    await api.json("/mags-jobs/stays/wake", 200, "POST")
    await until(lambda: "sandbox.awake" in receiver.types)
    await api.json("/mags-jobs/stays/stop", 200, "POST")
    await until(lambda: "job.stopped" in receiver.types)


async def test_only_what_was_asked_for_is_told_and_only_to_its_account(
    api: Api, receiver: Receiver, stranger: httpx.AsyncClient
) -> None:
    await hook(api, receiver.url, events=["job.completed"])
    assert (await stranger.post(HOOKS, json={"url": receiver.url})).status_code == 201
    api.node.end(await api.run())
    await until(lambda: receiver.types == ["job.completed"])


async def test_a_test_message_is_sent_at_once(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url, events=["job.failed"])
    sent = await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")
    await until(lambda: receiver.types == ["webhook.test"])
    assert receiver.got[0][0]["webhook-id"] == sent["id"]


# ---- at least once -----------------------------------------------------------------------------------------


async def test_what_fails_is_sent_again_with_the_same_id_and_body(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url)
    receiver.answer = 500
    await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")
    await until(lambda: len(receiver.got) >= 2)
    receiver.answer = 200

    async def arrived() -> bool:
        (sent,) = (await api.json(f"{HOOKS}/{made['id']}/deliveries"))["deliveries"]
        return bool(sent["status"] == "delivered")

    await until(arrived)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1


async def test_what_was_committed_and_not_sent_is_sent_after_a_restart(
    api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """As a kill leaves it: the change is durable, and nobody has looked yet."""
    made = await hook(api, receiver.url)
    await api.webhooks.__aexit__(None, None, None)
    api.node.end(await api.run())
    await api.database.write()
    assert receiver.got == []
    async with Deliverer(api.database, secret.load(tmp_path / "key"), allowed(["127.0.0.1"])):
        await until(lambda: "job.completed" in receiver.types)
    assert all(is_signed(headers, body, made["secret"]) for headers, body in receiver.got)
    await api.webhooks.__aenter__()


async def test_what_was_sent_and_not_recorded_is_sent_again(
    api: Api, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kill between the answer and its record leaves it."""
    made = await hook(api, receiver.url)
    recorded = deliverer.deliveries.record

    async def killed(*_: object) -> None:
        raise RuntimeError("killed here")

    monkeypatch.setattr(deliverer.deliveries, "record", killed)
    await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")
    await until(lambda: len(receiver.got) == 1)
    await api.webhooks.__aexit__(None, None, None)
    monkeypatch.setattr(deliverer.deliveries, "record", recorded)
    async with Deliverer(api.database, secret.load(tmp_path / "key"), allowed(["127.0.0.1"])):
        await until(lambda: len(receiver.got) == 2)
    assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]
    await api.webhooks.__aenter__()


async def test_a_message_is_sent_again_on_request(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url)
    sent = await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")
    await until(lambda: len(receiver.got) == 1)
    await api.json(f"{HOOKS}/{made['id']}/deliveries/{sent['id']}/redeliver", 202, "POST")
    await until(lambda: len(receiver.got) == 2)
    await api.json(f"{HOOKS}/{made['id']}/deliveries/msg_0/redeliver", 404, "POST")


async def test_a_receiver_that_is_gone_disables_its_webhook(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url)
    receiver.answer = 410
    await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")

    async def disabled() -> bool:
        return (await api.json(f"{HOOKS}/{made['id']}"))["enabled"] is False

    await until(disabled)
    assert "410" in str((await api.json(f"{HOOKS}/{made['id']}"))["disabled_reason"])
    await api.json(f"{HOOKS}/{made['id']}/test", 409, "POST")


async def test_redirects_are_not_followed(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url)
    receiver.answer = 302
    await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")

    async def failing() -> bool:
        (sent,) = (await api.json(f"{HOOKS}/{made['id']}/deliveries"))["deliveries"]
        return sent.get("response_status") == 302 and sent["status"] == "waiting"

    await until(failing)


# ---- secrets -----------------------------------------------------------------------------------------------


async def test_the_secret_is_shown_once_and_kept_sealed(api: Api, receiver: Receiver, tmp_path: Path) -> None:
    made = await hook(api, receiver.url)
    assert made["secret"].startswith("whsec_")
    assert "secret" not in await api.json(f"{HOOKS}/{made['id']}")
    content = b"".join(file.read_bytes() for file in tmp_path.glob("roost.db*"))
    assert made["secret"].encode() not in content


async def test_after_a_rotation_both_secrets_sign(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url)
    rotated = await api.json(f"{HOOKS}/{made['id']}/rotate", 200, "POST")
    await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")
    await until(lambda: len(receiver.got) == 1)
    ((headers, body),) = receiver.got
    assert is_signed(headers, body, made["secret"]) and is_signed(headers, body, rotated["secret"])
    assert made["secret"] != rotated["secret"]


# ---- changes and refusals ----------------------------------------------------------------------------------


async def test_a_webhook_is_changed_disabled_listed_and_deleted(api: Api, receiver: Receiver) -> None:
    made = await hook(api, receiver.url)
    changed = await api.json(
        f"{HOOKS}/{made['id']}", 200, "PATCH", json={"events": ["job.failed"], "description": "d", "enabled": False}
    )
    assert (changed["events"], changed["description"], changed["enabled"]) == (["job.failed"], "d", False)
    assert [one["id"] for one in (await api.json(HOOKS))["webhooks"]] == [made["id"]]
    await api.json(f"{HOOKS}/{made['id']}", 200, "DELETE")
    await api.json(f"{HOOKS}/{made['id']}", 404)
    assert (await api.json(HOOKS))["total"] == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "url: missing"),
        ({"url": "ftp://example.com/"}, "http"),
        ({"url": "http://10.0.0.1/"}, "not a public address"),
        ({"url": "http://[::1]/"}, "not a public address"),
        ({"url": "http://169.254.169.254/"}, "not a public address"),
        ({"url": "https://u:p@example.com/"}, "password"),
        ({"url": "https://example.com/" + "x" * 2048}, "2048"),
        ({"url": "https://example.com/", "events": ["job.nonsense"]}, "job.completed"),
        ({"url": "https://example.com/", "description": "x" * 5000}, "description"),
    ],
)
async def test_what_is_wrong_is_refused(api: Api, fields: dict[str, object], words: str) -> None:
    answer = await api.client.post(HOOKS, json=fields)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]
    assert (await api.json(HOOKS))["total"] == 0


async def test_a_name_that_leads_inward_is_not_connected_to(api: Api, receiver: Receiver, tmp_path: Path) -> None:
    made = await hook(api, receiver.url.replace("127.0.0.1", "localhost"))
    await api.webhooks.__aexit__(None, None, None)
    await api.json(f"{HOOKS}/{made['id']}/test", 202, "POST")

    async def refused() -> bool:
        listed = (await api.json(f"{HOOKS}/{made['id']}/deliveries"))["deliveries"]
        return "not a public address" in str(listed[0].get("error"))

    async with Deliverer(api.database, secret.load(tmp_path / "key"), allowed([])):
        await until(refused)
    assert receiver.got == []
    await api.webhooks.__aenter__()


async def test_another_account_finds_none_of_it(api: Api, receiver: Receiver, stranger: httpx.AsyncClient) -> None:
    id = (await hook(api, receiver.url))["id"]
    for method, path in (
        ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/test"), ("GET", "/deliveries"),
        ("POST", "/deliveries/msg_1/redeliver"),
    ):  # fmt: skip
        answer = await stranger.request(method, f"{HOOKS}/{id}{path}", json={} if method == "PATCH" else None)
        assert answer.status_code == 404, (method, path, answer.text)
