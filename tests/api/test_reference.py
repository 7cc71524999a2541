"""The reference of the API is what the API says of itself."""

from pathlib import Path
from typing import cast

from roost.api.app import build
from roost.api.document import document
from roost.api.plane import ControlPlane
from roost.api.reference import reference

FILE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_reference_is_current() -> None:
    found = document(build(cast(ControlPlane, None)))
    assert FILE.read_text() == reference(found), "write it anew: python -m roost.api.reference > docs/api.md"
    assert all(call.get("summary") for calls in found["paths"].values() for call in calls.values())
