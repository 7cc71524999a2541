"""Generators of clients make every call of the OpenAPI document, and linters take the metrics."""

import re
import subprocess
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from roost.api.app import build
from roost.api.document import document
from roost.api.plane import ControlPlane
from tests.api.conftest import Served
from tests.e2e.test_clients import interpreter


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return document(build(cast(ControlPlane, None)))


def calls_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [call for calls in found["paths"].values() for call in calls.values()]


def test_every_schema_has_a_title_of_its_own_and_every_reference_leads_to_one(found: dict[str, Any]) -> None:
    schemas = found["components"]["schemas"]
    assert {name: schema["title"] for name, schema in schemas.items()} == {name: name for name in schemas}
    assert all(re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) for name in schemas)
    wanted = set(re.findall(rb'"\$ref":"#/components/schemas/([^"]+)"', msgspec.json.encode(found)))
    assert wanted <= {name.encode() for name in schemas}


def test_every_call_has_an_id_of_its_own_and_a_tag(found: dict[str, Any]) -> None:
    calls = calls_of(found)
    ids = [call["operationId"] for call in calls]
    assert len(set(ids)) == len(ids) > 100
    named = {tag["name"] for tag in found["tags"]}
    assert {tag for call in calls for tag in call["tags"]} == named
    assert {"mags-jobs", "jobs", "microvms", "webhooks", "mags-workspaces"} <= named


def test_what_is_in_a_path_is_never_null(found: dict[str, Any]) -> None:
    parameters = [one for call in calls_of(found) for one in call.get("parameters", []) if one["in"] == "path"]
    assert parameters
    assert not [one for one in parameters if "null" in str(one["schema"])]


def test_a_generator_makes_every_call(found: dict[str, Any], tmp_path: Path) -> None:
    python = interpreter("0.29.1", "openapi-python-client")
    (tmp_path / "openapi.json").write_bytes(msgspec.json.encode(found))
    done = subprocess.run(
        [python, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--output-path", "client",
         "--meta", "none"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = [file for file in (tmp_path / "client" / "api").rglob("*.py") if "def _get_kwargs" in file.read_text()]
    assert len(made) == len(calls_of(found)), done.stdout
    assert "Unable to" not in done.stdout


def test_the_metrics_pass_the_linter_of_prometheus(served: Served) -> None:
    with served.client() as client:
        client.get("/api/v1/mags-jobs")
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = re.findall(r"^# TYPE (\S+) (\S+)$", answer.text, re.MULTILINE)
    assert len(names) > 5
    assert not [name for name, _ in names if re.search(r"_(mb|kb|gb|ms|minutes|hours)(_|$)", name)]
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in names)
    try:
        linted = subprocess.run(
            ["promtool", "check", "metrics"], input=answer.text, capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        pytest.skip("promtool is not here; the package prometheus has it")
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")
