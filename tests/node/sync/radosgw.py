"""Ceph's S3 gateway with one monitor and one object daemon, on free ports of 127.0.0.1, in one directory.

`gateway(DIR)` gives its endpoint, starting it if nobody has. Users hold a shared lock on DIR/users; the gateway ends
when it gets that lock for itself, so it serves several test workers and outlives none. Needs Debian's radosgw, ceph-mon
and ceph-osd.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool", "ceph")
ACCESS, SECRET = "access", "secret"


def missing() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def config(home: Path, cluster: str, monitor: int, gateway: int, first: int) -> str:
    return f"""[global]
fsid={cluster}
mon_host=v2:127.0.0.1:{monitor}/0
mon_initial_members=a
auth_cluster_required=none
auth_service_required=none
auth_client_required=none
public_network=127.0.0.0/8
ms_bind_port_min={first}
ms_bind_port_max={first + 400}
osd_pool_default_size=1
osd_pool_default_min_size=1
osd_pool_default_pg_num=8
osd_pool_default_pgp_num=8
osd_crush_chooseleaf_type=0
mon_allow_pool_size_one=true
mon_max_pg_per_osd=1000
mon_data={home}/mon
osd_data={home}/osd
osd_objectstore=bluestore
bluestore_block_size=8589934592
bluestore_fsck_on_mount=false
osd_memory_target=939524096
run_dir={home}
admin_socket={home}/$name.asok
pid_file={home}/$name.pid
log_file={home}/log/$name.log
mon_cluster_log_file={home}/log/cluster.log
keyring={home}/keyring
crash_dir={home}/crash
ms_mon_client_mode=crc
[client.rgw]
rgw_data={home}/rgw
rgw_frontends=beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw_enable_usage_log=false
rgw_dynamic_resharding=false
rgw_run_sync_thread=false
rgw_thread_pool_size=64
"""


class Gateway:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.daemons: list[subprocess.Popen[bytes]] = []

    def run(self, *words: str, timeout: float = 60) -> str:
        done = subprocess.run(
            [words[0], "-c", f"{self.home}/ceph.conf", *words[1:]], capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout

    def daemon(self, *words: str) -> None:
        argv = [words[0], "-f", "-c", f"{self.home}/ceph.conf", *words[1:]]
        with open(self.home / "log" / f"{words[0]}.out", "wb") as out:
            self.daemons.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def start(self) -> str:
        for name in ("mon", "osd", "rgw", "log", "crash"):
            (self.home / name).mkdir(parents=True)
        monitor, gateway, first = free_ports(3)
        cluster = str(uuid.uuid4())
        (self.home / "ceph.conf").write_text(config(self.home, cluster, monitor, gateway, min(first, 65000)))
        self._keys_and_map(cluster, monitor)
        self.daemon("ceph-mon", "-i", "a")
        number = self.run("ceph", "osd", "create").strip()
        self.run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        self.daemon("ceph-osd", "-i", number)
        self.run("ceph", "osd", "crush", "add", f"osd.{number}", "1.0", "root=default", "host=localhost")
        self.daemon("radosgw", "-n", "client.rgw")
        endpoint = f"http://127.0.0.1:{gateway}"
        self._wait(endpoint)
        admin = ("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=t", "--display-name=t")
        self.run(*admin, f"--access-key={ACCESS}", f"--secret-key={SECRET}")
        return endpoint

    def _keys_and_map(self, cluster: str, monitor: int) -> None:
        keyring, monmap = f"{self.home}/keyring", f"{self.home}/monmap"
        caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        for words in (
            ["ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"],
            ["ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *caps, "--cap", "mgr", "allow *"],
            ["ceph-authtool", keyring, "--gen-key", "-n", "client.rgw", *caps],
            ["monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", "--fsid", cluster, monmap],
        ):
            subprocess.run(words, check=True, capture_output=True, timeout=30)
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)

    def _wait(self, endpoint: str) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(endpoint, timeout=2)
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"radosgw does not answer; see {self.home}/log")

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.kill()
        for daemon in self.daemons:
            daemon.wait(30)


def unused(users: Path) -> bool:
    """Whether nobody holds the lock; if so we do, until this process ends."""
    fd = os.open(users, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    return True


def main(directory: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ready = directory / "ready.json"
    server = Gateway(Path(tempfile.mkdtemp(prefix="ceph-", dir=directory)))
    try:
        endpoint = server.start()
        beside = directory / "ready.new"
        beside.write_text(json.dumps({"endpoint": endpoint}))
        beside.rename(ready)
        while not unused(directory / "users"):
            time.sleep(0.5)
    finally:
        ready.unlink(missing_ok=True)
        server.stop()
        shutil.rmtree(server.home, ignore_errors=True)


@contextmanager
def gateway(directory: Path) -> Iterator[str]:
    """The endpoint of a running gateway, shared by everybody who names the same directory."""
    users = os.open(directory / "users", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        starting = os.open(directory / "starting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(starting, fcntl.LOCK_EX)
            endpoint = _endpoint(directory)
        finally:
            os.close(starting)
        yield endpoint
    finally:
        os.close(users)


def _endpoint(directory: Path) -> str:
    ready = directory / "ready.json"
    process = None
    if not ready.exists():
        argv = [sys.executable, __file__, str(directory)]
        with open(directory / "log", "ab") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    while not ready.exists():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"radosgw did not start: {(directory / 'log').read_text()[-2000:]}")
        time.sleep(0.1)
    return json.loads(ready.read_text())["endpoint"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
