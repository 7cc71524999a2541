"""What an image says of its processes holds for every way to start one: Docker's ENV, WORKDIR and USER."""

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.instance import Api, RunningRoost, eventually
from tests.e2e.ssh_client import with_access
from tests.node.image_world import Layout, Tarball

BUSYBOX = shutil.which("busybox") or "/bin/busybox"
PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
GROUP = b"root:x:0:\napp:x:1001:\n"
TELL = 'echo "$PATH $JAVA_HOME $USER $HOME $(pwd) $(id -u):$(id -g)"'
TOLD = "/opt/go/bin:/usr/bin:/bin /opt/java app /home/app /srv/app 1000:1001"

pytestmark = pytest.mark.skipif("static" not in subprocess.run(
    ["file", "-L", BUSYBOX], capture_output=True, text=True, check=False
).stdout and not Path("/usr/share/doc/busybox-static").exists(), reason="an image of busybox-static")  # fmt: skip


@pytest.fixture(scope="module")
def image(roost: RunningRoost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Busybox, with everything said that Docker has."""
    place, name = tmp_path_factory.mktemp("image"), f"e2e-config-{os.getpid()}"
    root = Tarball().directory("bin").directory("etc").file("etc/passwd", PASSWD).file("etc/group", GROUP)
    root.directory("usr").directory("usr/bin").directory("home").directory("home/app", uid=1000, gid=1001)
    root.file("bin/busybox", Path(BUSYBOX).read_bytes(), 0o755)
    for applet in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            root.symlink(f"bin/{applet}", "busybox")
    layout = Layout(place / "layout").create().image("v1", root)
    layout.configure(
        "v1", "--config.env=PATH=/opt/go/bin:/usr/bin:/bin", "--config.env=JAVA_HOME=/opt/java",
        "--config.workingdir=/srv/app", "--config.user=app",
    )  # fmt: skip
    (place / "image.tar").write_bytes(layout.archive())
    imported = roost.command("image", "import", "-n", name, str(place / "image.tar"))
    assert imported.returncode == 0, imported.stderr
    yield name
    roost.api.call("DELETE", f"/images/{name}")


def test_a_script_begins_with_it_and_the_jobs_own_environment_wins(api: Api, image: str) -> None:
    assert api.run(TELL, rootfs_type=image).text.strip() == TOLD
    own = api.run(TELL, rootfs_type=image, environment={"PATH": "/usr/bin:/bin", "JAVA_HOME": "/mine"})
    assert own.text.split()[:2] == ["/usr/bin:/bin", "/mine"]
    executed = api.run(f"#!/bin/sh\n{TELL}\necho shown > /dev/stdout", rootfs_type=image)
    assert executed.lines == [TOLD, "shown"]


def test_so_do_commands_startup_commands_and_those_after_a_cold_wake(
    roost: RunningRoost, api: Api, image: str, tmp_path: Path
) -> None:
    job = api.submit(
        TELL, rootfs_type=image, persistent=True, workspace_id=f"config-{os.getpid()}", startup_command=TELL,
        environment={"EXTRA": "yes"},
    )  # fmt: skip
    try:
        api.said(job, TOLD.encode())
        assert api.exec(job, TELL)["stdout"].strip() == TOLD
        shown = roost.command("exec", "-i", job, TELL)
        assert shown.stdout.decode().strip() == TOLD, shown.stderr
        there = api.call("POST", f"/mags-jobs/{job}/execs", {"command": "pwd", "directory": "/tmp"})["exec_id"]
        path = f"/mags-jobs/{job}/execs/{there}"
        eventually(lambda: api.call("GET", path)["status"] != "running")
        records = api.call("GET", f"{path}/output")["records"]
        assert b"".join(base64.b64decode(one["data"]) for one in records) == b"/tmp\n"
        logged_in = with_access(roost, job, tmp_path).ssh(f"{TELL}; echo $EXTRA")
        words = logged_in.stdout.decode().split()
        assert words[1:] == ["/opt/java", "root", "/root", "/root", "0:0", "yes"], logged_in
        api.call("POST", f"/mags-jobs/{job}/sleep", {"depth": "cold"}, timeout=100)
        assert api.exec(job, f"{TELL}; echo $EXTRA", timeout=100)["stdout"].split() == [*TOLD.split(), "yes"]
        eventually(lambda: api.raw(job).count(TOLD.encode()) == 2)
    finally:
        api.stop(job)
        api.call("DELETE", f"/mags-workspaces/config-{os.getpid()}")


def test_a_microvm_is_set_up_by_root_whatever_user_the_image_says(api: Api, image: str) -> None:
    made = api.call("POST", "/microvms", {"image": image, "memory": 128, "disk": 1})
    try:
        eventually(lambda: api.call("GET", f"/microvms/{made['id']}")["state"] == "running")
        words = api.exec(made["id"], TELL)["stdout"].split()
        assert words == ["/opt/go/bin:/usr/bin:/bin", "/opt/java", "root", "/root", "/root", "0:0"]
        assert "uid=1000" not in api.exec(made["id"], "grep ubuntu /etc/passwd")["stdout"]
    finally:
        api.call("DELETE", f"/microvms/{made['id']}")


def test_it_cannot_be_removed_while_it_is_needed_and_the_reason_is_said(
    roost: RunningRoost, api: Api, image: str
) -> None:
    def refused() -> str:
        done = roost.command("image", "remove", image)
        assert done.returncode != 0, done.stdout
        assert image.encode() in roost.command("image", "list").stdout
        return done.stderr.decode()

    name = f"needs-image-{os.getpid()}"
    job = api.submit("sleep 100", rootfs_type=image, name=name)
    api.running(job)
    assert f"1 job(s) that have not ended started from it: {name}; stop them first" in refused()
    api.stop(job)
    api.run("echo kept > /tmp/kept", rootfs_type=image, workspace_id=name)
    assert f"1 workspace(s) stand on it: {name}; delete them first" in refused()
    api.call("DELETE", f"/mags-workspaces/{name}")
    schedule = {"name": name, "cron_expression": "0 0 1 1 *", "script": "true", "rootfs_type": image}
    cron = api.call("POST", "/mags-cron", schedule)["id"]
    assert f"1 schedule(s) start from it: {name}" in refused()
    api.call("DELETE", f"/mags-cron/{cron}")
    api.call("PUT", "/default-image", {"name": image})
    try:
        assert "default image of 1 account(s)" in refused()
    finally:
        api.call("PUT", "/default-image", {"name": None})
    assert roost.command("image", "remove", "standard").stderr.count(b"default image of this Roost") == 1
    missing = roost.command("image", "remove", "nosuch")
    assert missing.returncode != 0 and b"no image 'nosuch'" in missing.stderr


def test_jobs_that_name_no_image_start_from_the_accounts_default(roost: RunningRoost, api: Api, image: str) -> None:
    try:
        assert (
            roost.command("image", "default", image).stdout
            == f"default image: {image} (chosen for your account)\n".encode()
        )
        assert api.run(TELL).text.strip() == TOLD
        assert api.run("command -v apt-get", rootfs_type="standard").status == "completed"
    finally:
        unset = roost.command("image", "default", "--unset")
    assert unset.stdout == b"default image: standard (the installation's)\n"
    assert api.run("command -v apt-get").status == "completed"
    unknown = roost.command("image", "default", "nosuch")
    assert unknown.returncode != 0 and b"there is no image 'nosuch'" in unknown.stderr


def test_a_workspace_outlives_the_replacement_of_the_image_below_it(roost: RunningRoost, api: Api, image: str) -> None:
    """Also where nothing runs: what it stands on is kept. The last of these tests, since it replaces their image."""
    name, tar = f"stands-{os.getpid()}", Path(roost.place) / "replaced.tar"
    api.run("echo old > /home/app/mine", rootfs_type=image, workspace_id=name)
    root = Tarball().directory("bin").file("bin/sh", Path(BUSYBOX).read_bytes(), 0o755).file("version", b"new\n")
    root.save(tar)
    assert roost.command("image", "import", "-n", image, str(tar)).returncode == 0
    assert api.run("read x < /version; echo $x", rootfs_type=image).text == "new\n"
    ended = api.run("cat /home/app/mine; ls /version", workspace_id=name)
    assert ended.stdout == b"old\n", ended
    api.call("DELETE", f"/mags-workspaces/{name}")
