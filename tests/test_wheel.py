"""The wheel, installed where there is no checkout and no compiler."""

import os
import platform
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
NO_COMPILER = (
    "import shutil; shutil.which = lambda name, *more, which=shutil.which, **options: "
    "None if name == 'musl-gcc' else which(name, *more, **options)\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    uv = PROJECT / ".tools/bin/uv"
    command = [str(uv) if uv.exists() else "uv", "build", "--wheel", "--quiet", "--out-dir", str(place), str(PROJECT)]
    subprocess.run(command, check=True, timeout=300)
    [built] = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The program in an environment of its own, which borrows from ours what the wheel depends on."""
    place = Path(tmp_path_factory.mktemp("installed"), "env")
    subprocess.run([sys.executable, "-m", "venv", place], check=True, timeout=120)
    pip = [place / "bin/pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, timeout=120)
    [packages] = place.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    yield place / "bin/roost"
    shutil.rmtree(place)


def test_it_is_for_this_architecture(wheel: Path) -> None:
    assert wheel.name.endswith(f"py3-none-linux_{platform.machine()}.whl")


def test_it_brings_its_documents(installed: Path) -> None:
    script = (
        "from roost import handouts; print(handouts.__file__); print(len(handouts.guides()), handouts.SHELL.exists())"
    )
    told = subprocess.run([installed.with_name("python"), "-c", script], capture_output=True, text=True, cwd="/")
    place, rest = told.stdout.splitlines()
    assert place.startswith(str(installed.parents[1]))
    assert rest == f"{len(list((PROJECT / 'docs').glob('*.md')))} True"


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="roost up needs root")
def test_it_runs_jobs_without_a_compiler(installed: Path, tmp_path: Path) -> None:
    [packages] = installed.parents[1].glob("lib/python3*/site-packages")
    (packages / "no_compiler.pth").write_text(NO_COMPILER)
    command = [installed, "up", "--state", tmp_path / "state", "--listen", "127.0.0.1:0", "--hello"]
    command += ["--gateway", "127.0.0.1:0", "--ssh", "127.0.0.1:0", "--min-pool-size", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/") as up:
        assert up.stdout
        told: list[str] = []
        try:
            for line in up.stdout:
                told.append(line)
                if "Roost is ready" in line:
                    break
        finally:
            up.terminate()
        told += up.stdout.readlines()
    assert any(line.startswith("Hello from a sandbox") for line in told), "".join(told)
    assert up.returncode == 0
