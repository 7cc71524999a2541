"""Calls without any network: what they ask for, and what they do with each answer."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from roost.sdk import JobFailed, NotFound, RateLimited, ServerError, Unavailable, Unreachable, jobs, wire
from roost.sdk.wire import Answer, Call, Events, Request, Send, Tries, Wait

RUN = Request("POST", "/mags-jobs", json={})
READ = Request("GET", "/mags-jobs")
LOST = Unreachable("the connection broke", sent=True)
UNSENT = Unreachable("nobody listens", sent=False)


def says(status: int, body: object, **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode())


def played(call: Call[Any], answers: Sequence[Answer | Exception], tries: int = 3) -> tuple[Any, list[Any]]:
    """What the call returns or raises when it is answered so, and what it asked for: requests and seconds."""
    left, asked = list(answers), list[Any]()
    answer: Any = None
    failure: Exception | None = None
    try:
        while True:
            effect = call.throw(failure) if failure else call.send(answer)
            answer, failure = None, None
            if isinstance(effect, Tries):
                answer = tries
            elif isinstance(effect, Wait):
                asked.append(effect.seconds)
            else:
                assert isinstance(effect, Send)
                asked.append(effect.request)
                told = left.pop(0)
                answer, failure = (None, told) if isinstance(told, Exception) else (told, None)
    except StopIteration as end:
        assert not left
        return end.value, asked
    except Exception as error:
        return error, asked


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [
        (READ, LOST),
        (READ, UNSENT),
        (READ, says(503, {"error": "no node"})),
        (READ, says(429, {"error": "slow down"}, retry_after="1")),
        (RUN, UNSENT),
        (RUN, says(429, {"error": "full"})),
    ],
)
def test_what_is_safe_is_tried_again(request_: Request, refusal: Answer | Exception) -> None:
    found, asked = played(wire.send(request_), [refusal, refusal, says(200, {})])
    assert isinstance(found, Answer)
    assert [one for one in asked if isinstance(one, Request)] == [request_] * 3


@pytest.mark.parametrize(
    ("request_", "refusal", "kind"),
    [
        (RUN, LOST, Unreachable),
        (RUN, says(503, {"error": "no node"}), Unavailable),
        (READ, says(500, {"error": "internal error"}), ServerError),
        (READ, says(404, {"error": "none"}), NotFound),
        (READ, says(429, {"error": "tomorrow"}, retry_after="86400"), RateLimited),
    ],
)
def test_what_might_be_done_twice_or_would_not_help_is_not(
    request_: Request, refusal: Answer | Exception, kind: type[Exception]
) -> None:
    found, asked = played(wire.send(request_), [refusal])
    assert (type(found), asked) == (kind, [request_])


def test_the_server_says_how_long_to_wait() -> None:
    _, asked = played(wire.send(READ), [says(429, {}, retry_after="7"), says(200, {})])
    assert asked == [READ, 7, READ]


def test_it_gives_up_after_as_many_tries_as_the_client_has() -> None:
    found, asked = played(wire.send(READ), [LOST] * 3, tries=2)
    assert (found, len([one for one in asked if one is READ])) == (LOST, 3)


def test_a_limit_tells_when_it_ends() -> None:
    found, _ = played(wire.send(READ), [says(429, {"error": "slow"}, retry_after="90")])
    assert (found.message, found.status_code, found.retry_after) == ("slow", 429, 90)


def test_a_sandbox_that_ends_before_it_runs_is_told_of() -> None:
    accepted = says(202, {"request_id": "r", "status": "accepted", "message": ""})
    failed = says(200, {"request_id": "r", "status": "error", "error": "no disk"})
    found, _ = played(jobs.new("box"), [accepted, failed])
    assert (type(found), "no disk" in str(found)) == (JobFailed, True)


def test_events_are_cut_wherever_the_bytes_are() -> None:
    stream = (
        b': alive\n\nid: 1\ndata: {"a": 1}\n\nid: 2\r\ndata: [\r\ndata: 2]\r\n\r\nevent: end\ndata: {}\n\ndata: "rest"'
    )
    for size in (1, 2, 7, 1000):
        events = Events()
        found = [one for at in range(0, len(stream), size) for one in events.feed(stream[at : at + size])]
        assert [(one.name, one.id, one.data) for one in found] == [
            ("message", 1, {"a": 1}),
            ("message", 2, [2]),
            ("end", 2, {}),
        ]


def test_names_are_quoted_in_paths_and_query() -> None:
    assert wire.quoted("a/b", "c d") == "/a%2Fb/c%20d"
    assert Request("GET", "/x", {"a": True, "b": None, "c": "d&e"}).url == "/api/v1/x?a=true&c=d%26e"
