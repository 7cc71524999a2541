"""The types of answers are what the API says of itself."""

import ast
import importlib.util
from pathlib import Path
from typing import Any, cast

from roost.api.app import build
from roost.api.document import document

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts/sdk_results.py"


def test_the_types_of_answers_are_current() -> None:
    spec = importlib.util.spec_from_file_location("sdk_results", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.results(document(build(cast(Any, None))))
    kept = (ROOT / "src/roost/sdk/results.py").read_text()
    cure = "write it anew: python scripts/sdk_results.py > src/roost/sdk/results.py, and ruff format it"
    assert ast.dump(ast.parse(kept)) == ast.dump(ast.parse(made)), cure
