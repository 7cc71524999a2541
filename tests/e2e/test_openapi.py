"""What the OpenAPI document says is what the server does: generated requests, right and wrong, against a real one.

ROOST_EXAMPLES=100 sends that many of each kind to every call instead of a few.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.conftest import an_instance
from tests.e2e.instance import RunningRoost

EXAMPLES = int(os.environ.get("ROOST_EXAMPLES", "3"))
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
ELSEWHERE = ("/images/{name}/pull",)  # a registry that does not exist refuses, which is told as 502
NOT_SENT = ("/images/{name}/build",)  # any list of packages is right, and each takes minutes
for kind in ("application/x-tar", "application/octet-stream"):
    schemathesis.serializer(kind)(lambda _context, value: value if isinstance(value, bytes) else str(value).encode())

EVERY = settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[RunningRoost]:
    """Running, for requests that leave all kinds of things behind."""
    with an_instance("--min-pool-size", "1") as instance:
        yield instance.start()


def operations(roost: RunningRoost) -> Iterator[APIOperation[Any, Any, Any, Any]]:
    document = schemathesis.openapi.from_url(f"{roost.api.url}/openapi.json")
    for found in document.get_all_operations():
        yield found.ok()


def known(roost: RunningRoost) -> list[str]:
    """Names that lead to something: a job that has ended, and one that stays."""
    ended = roost.api.run("echo out; echo err >&2", name="ended", workspace_id="ended")
    roost.api.submit("true", name="stays", workspace_id="stays", persistent=True)
    roost.api.running("stays")
    return [ended.request_id, "ended", "stays"]


def cases(operation: APIOperation[Any, Any, Any, Any], names: list[str]) -> st.SearchStrategy[Case]:
    """Right and wrong requests, for things that exist and things that do not."""
    kinds = [operation.as_strategy(mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
    if "{id}" in operation.path:
        safe = operation.method == "get"  # to follow what stays would take for ever
        kinds += [
            operation.as_strategy(GenerationMode.POSITIVE, path_parameters={"id": name})
            for name in names
            if not (safe and name == "stays")
        ]
    return st.one_of(kinds)


def test_no_request_is_answered_otherwise_than_documented(fuzzed: RunningRoost) -> None:
    names, failures, sent = known(fuzzed), list[str](), 0
    for operation in operations(fuzzed):
        if operation.path.endswith(NOT_SENT):
            continue

        @EVERY
        @given(case=cases(operation, names))
        def each(case: Case) -> None:
            nonlocal sent
            sent += 1
            answer = case.call(headers={"Authorization": f"Bearer {fuzzed.api.token}"}, timeout=30)
            elsewhere = case.operation.path.endswith(ELSEWHERE) and answer.status_code in (502, 503)
            assert answer.status_code < 500 or elsewhere, f"{answer.status_code}: {answer.text}"
            case.validate_response(answer, checks=CHECKS)

        try:
            each()
        except Exception as failure:
            failures.append(f"{operation.method.upper()} {operation.path}: {failure}")
    assert not failures, "\n\n".join(failures)
    assert sent > 100
