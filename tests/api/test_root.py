"""The control plane holds no privilege."""

import os
from pathlib import Path

import pytest

from tests.api.conftest import launch


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try")
def test_it_refuses_to_run_as_root(state: Path, tmp_path: Path) -> None:
    assert launch(state, tmp_path / "events", root=True).wait(20) == 1
    assert "must not run as root" in (tmp_path / "events").read_text()
    assert list(state.iterdir()) == []
