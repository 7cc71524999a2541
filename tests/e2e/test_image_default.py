"""One command makes another image the default: README's and the guide's lines, with a registry of this test's own."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import an_instance
from tests.e2e.instance import RunningRoost, eventually
from tests.node.image_world import Layout, Tarball, registry, skopeo_copy

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^(?:\.venv/bin/)?roost (image pull alpine:3\.20 --default)", re.MULTILINE)
BUSYBOX = shutil.which("busybox") or "/bin/busybox"
NAME = f"alpine-{os.getpid()}"  # the store is the machine's


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that has NAME:3.20: a busybox that says what it is."""
    place = tmp_path_factory.mktemp("registry")
    root = Tarball().directory("bin").file("bin/busybox", Path(BUSYBOX).read_bytes(), 0o755).directory("etc")
    root.symlink("bin/sh", "busybox").symlink("bin/cat", "busybox").file("etc/os-release", b"ID=alpine\n")
    layout = Layout(place / "layout").create().image("v1", root).configure("v1", "--config.workingdir=/")
    with registry(place) as address:
        skopeo_copy(f"oci:{layout.path}:v1", f"docker://{address}/{NAME}:3.20")
        yield address


@pytest.mark.parametrize("document", ["README.md", "docs/images.md"])
def test_the_line_that_makes_alpine_the_default_does(roost: RunningRoost, served: str, document: str) -> None:
    """As it is written, but for the registry and the name."""
    (line,) = LINE.findall((ROOT / document).read_text())
    words = shlex.split(line.replace("alpine:3.20", f"{served}/{NAME}:3.20 --insecure"))
    try:
        done = roost.command(*words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().splitlines()[-1] == f"default image: {NAME} (chosen for your account)"
        ended = roost.api.run("cat /etc/os-release; pwd")
        assert ended.lines == ["ID=alpine", "/root"]
    finally:
        assert roost.command("image", "default", "--unset").returncode == 0
        assert roost.command("image", "remove", NAME).returncode == 0


def test_the_installations_default_is_refused_where_it_is_missing_and_holds_where_it_is_there(served: str) -> None:
    with an_instance("--min-pool-size", "1", "--default-image", NAME) as unable:
        unable.launch()
        assert unable.process and unable.process.wait(30) != 0
        assert f"there is no image '{NAME}'" in unable.said()
    with an_instance("--min-pool-size", "1") as first:
        first.start()
        assert first.command("image", "pull", f"{served}/{NAME}:3.20", "--insecure").returncode == 0
    with an_instance("--min-pool-size", "1", "--default-image", NAME) as instance:
        instance.start()
        api = instance.api
        assert api.run("cat /etc/os-release").text == "ID=alpine\n"
        assert api.call("GET", "/default-image") == {"name": NAME, "chosen": False, "installation": NAME}
        cron = api.call("POST", "/mags-cron", {"name": "c", "cron_expression": "0 0 1 1 *", "script": "true"})
        assert cron["rootfs_type"] == NAME
        assert b"default image of this Roost" in instance.command("image", "remove", NAME).stderr
    with an_instance("--min-pool-size", "1") as last:
        last.start()
        eventually(lambda: last.command("image", "remove", NAME).returncode == 0)
