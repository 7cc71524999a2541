"""Execs as far as they go without a node: what is refused, and in which words."""

from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from .conftest import TOKEN
from .test_jobs import JOBS, submit

EXEC = "0000abcd"


def refused(client: httpx.Client, url: str, token: str | None, *subprotocols: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    address = str(client.base_url).replace("http", "ws", 1).rstrip("/") + url
    with (
        pytest.raises(InvalidStatus) as refusal,
        connect(
            address,
            additional_headers=headers,
            subprotocols=[*subprotocols] or None,  # type: ignore[arg-type]
        ),
    ):
        pass
    response = refusal.value.response
    return response.status_code, (response.body or b"").decode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either command"),
        ({"command": "a", "arguments": ["b"]}, "either command"),
        ({"command": "  "}, "command: empty"),
        ({"arguments": [""]}, "arguments: empty"),
        ({"arguments": ["a"] * 5000}, "4096 words"),
        ({"arguments": ["a", "b\0"]}, "NUL"),
        ({"command": "a", "environment": {"": "x"}}, "environment"),
        ({"command": "a", "directory": "relative"}, "not absolute"),
        ({"command": "a", "terminal": {"rows": 70000}}, "1 to 65535"),
        ({"command": "a", "terminal": {"row": 1}}, "unknown field"),
        ({"command": "a", "exec_id": "40000000"}, "below 40000000"),
        ({"command": "a", "exec_id": "00000000"}, "below 40000000"),
        ({"command": "a", "input": 5}, "input"),
    ],
)
def test_an_exec_that_makes_no_sense_is_refused(shared: httpx.Client, body: dict[str, Any], words: str) -> None:
    answer = shared.post(f"{JOBS}/{submit(shared)}/execs", json=body)
    assert (answer.status_code, words in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize("wanted", ["NOPE", "", 0, -1, 65, 1000, "term "])
def test_signals_that_do_not_exist_are_refused(shared: httpx.Client, wanted: str | int) -> None:
    answer = shared.post(f"{JOBS}/{submit(shared)}/execs/{EXEC}/signal", json={"signal": wanted})
    assert (answer.status_code, "no signal" in answer.json()["error"]) == (400, True)


def test_a_job_that_waits_cannot_be_entered_and_says_so(shared: httpx.Client) -> None:
    job = submit(shared)
    for call in ("exec", "execs"):
        answer = shared.post(f"{JOBS}/{job}/{call}", json={"command": "true"})
        assert (answer.status_code, "status: pending" in answer.json()["error"]) == (409, True)


def test_what_belongs_to_no_job_is_not_found(shared: httpx.Client) -> None:
    for method, path in (("GET", ""), ("GET", f"/{EXEC}"), ("GET", f"/{EXEC}/output"), ("DELETE", f"/{EXEC}")):
        assert shared.request(method, f"{JOBS}/nobodys/execs{path}").status_code == 404
    assert refused(shared, f"{JOBS}/nobodys/execs/{EXEC}/stream", TOKEN)[0] == 404


def test_a_stream_needs_a_token_in_a_header_or_a_subprotocol(shared: httpx.Client) -> None:
    url = f"{JOBS}/{submit(shared)}/execs/{EXEC}/stream"
    for token, subprotocols in ((None, ()), ("wrong", ()), (None, ("roost.exec", "roost.token.wrong"))):
        status, text = refused(shared, url, token, *subprotocols)
        assert (status, "token" in text) == (401, True)
    assert refused(shared, f"{url}?token={TOKEN}", None)[0] == 401
    assert refused(shared, url, None, "roost.exec", f"roost.token.{TOKEN}")[0] == 409  # known, but the job waits
    assert refused(shared, f"{url}?after=x", TOKEN)[0] in (400, 409)
    assert shared.get(url).status_code in (404, 405)


def test_other_addresses_are_no_websockets(shared: httpx.Client) -> None:
    assert refused(shared, JOBS, TOKEN)[0] in (403, 404, 405)
    assert shared.get(JOBS).status_code == 200
