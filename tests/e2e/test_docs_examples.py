"""The examples in the guides are programs that work: all blocks of one language in a document, run in their order."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.instance import RunningRoost, clean_environment

DOCS = Path(__file__).parent.parent.parent / "docs"
RUNNERS = {"python": [sys.executable, "-c"]}
EXAMPLES = [("python.md", "python")]  # a document and the language whose blocks in it are run


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / document).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("document", "language"), EXAMPLES)
def test_the_examples_of_a_guide_work(roost: RunningRoost, tmp_path: Path, document: str, language: str) -> None:
    found = blocks(document, language)
    assert found
    access = {"MAGS_API_URL": roost.api.url, "MAGS_API_TOKEN": roost.api.token}
    done = subprocess.run(
        [*RUNNERS[language], "\n".join(found)],
        cwd=tmp_path,
        env=clean_environment() | access,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
