"""HTTPS into real sandboxes: certificates from files and by ACME from a real Pebble, as `roost up` is told of them."""

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import a_place, an_instance
from tests.e2e.instance import RunningRoost, eventually, free_address
from tests.gateways.pebble import a_pebble
from tests.gateways.tls_world import Lab, Pair

pytestmark = pytest.mark.e2e

SERVER = "cd /root; echo {content} > index.html; exec python3 -m http.server 8080 --bind 127.0.0.1"


@pytest.fixture
def place() -> Iterator[Path]:
    """Which other users may enter, as /etc/roost would be."""
    with a_place() as made:
        made.chmod(0o755)
        yield made


@pytest.fixture
def lab(place: Path) -> Lab:
    return Lab(place)


def for_roost(pair: Pair) -> Pair:
    """As the guide says: the key is of the group that serves."""
    subprocess.run(["chgrp", "roost", pair.key], check=True)
    pair.key.chmod(0o640)
    return pair


def with_files(pair: Pair) -> tuple[str, ...]:
    return ("--certificate", str(pair.chain), "--certificate-key", str(pair.key), "--min-pool-size", "1")


def an_open_site(roost: RunningRoost) -> tuple[str, str]:
    """Its URL and what it serves."""
    name = f"site-{secrets.token_hex(4)}"
    job = roost.api.submit(SERVER.format(content=name), name=name, workspace_id=name, persistent=True)
    roost.api.running(job)
    return roost.api.call("POST", f"/mags-jobs/{job}/access", {"port": 8080})["url"], name


def curl(url: str, trust: Path, *options: str) -> tuple[str, str]:
    """What it served, and a word of `-w`."""
    command = ["curl", "-sS", "-m", "60", "--cacert", str(trust), "-w", "\n%{http_version} %{http_code}", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    body, _, told = done.stdout.rpartition("\n")
    return body.strip(), told


def serial(address: str, host: str, trust: Path) -> str:
    words = ["openssl", "s_client", "-connect", address, "-servername", host, "-CAfile", str(trust)]
    shown = subprocess.run(words, input=b"", capture_output=True, timeout=30, check=False).stdout
    done = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=shown, capture_output=True, check=True)
    return done.stdout.decode()


def test_an_application_is_served_by_https_and_http_2(lab: Lab) -> None:
    pair = for_roost(lab.files("*.apps.localhost"))
    listen = free_address()
    with an_instance("--gateway-tls", listen, *with_files(pair)) as roost:
        url, name = an_open_site(roost.start())
        assert url.startswith("https://") and url.endswith(listen.rpartition(":")[2])
        assert curl(url, lab.root) == (name, "2 200")
        assert curl(url, lab.root, "--http1.1") == (name, "1.1 200")
        host = url.removeprefix("https://").partition(":")[0]
        first = serial(listen, host, lab.root)
        lab.replace(pair, "*.apps.localhost")
        for_roost(pair)
        eventually(lambda: serial(listen, host, lab.root) != first, 30, "the new certificate is not served")
        roost.kill("serve")
        roost.healthy()
        assert curl(url, lab.root)[1] == "2 200"


def test_a_certificate_that_is_a_link_is_followed_when_it_is_repointed(lab: Lab) -> None:
    live = lab.place / "live"
    live.mkdir()
    for count in (1, 2):
        for_roost(lab.files("*.apps.localhost", name=f"archived-{count}"))
    pair = Pair(live / "fullchain.pem", live / "privkey.pem")

    def point(count: int) -> None:
        for link, target in ((pair.chain, f"archived-{count}.pem"), (pair.key, f"archived-{count}-key.pem")):
            new = link.with_suffix(".new")
            new.symlink_to(f"../{target}")
            new.replace(link)

    point(1)
    listen = free_address()
    with an_instance("--gateway-tls", listen, *with_files(pair)) as roost:
        roost.start()
        first = serial(listen, "any.apps.localhost", lab.root)
        point(2)
        eventually(lambda: serial(listen, "any.apps.localhost", lab.root) != first, 30, "the link is not followed")


def test_a_certificate_that_cannot_be_used_is_refused_with_the_cure(lab: Lab) -> None:
    pair = lab.files("*.apps.localhost")
    pair.key.chmod(0o600)
    for prepare, says in (
        (lambda: None, f"chgrp roost {pair.key} && chmod 640 {pair.key}"),
        (lambda: for_roost(lab.files("*.apps.localhost")).chain.write_bytes(b""), "holds no certificate"),
    ):
        prepare()
        with an_instance("--gateway-tls", free_address(), *with_files(pair)) as roost:
            roost.launch()
            assert roost.process
            assert roost.process.wait(60) != 0
            assert says in roost.said()


def test_a_certificate_that_is_not_there_is_refused_before_anything_starts(place: Path) -> None:
    missing, in_tmp = place / "nowhere.pem", Path(f"/tmp/roost-{secrets.token_hex(4)}.pem")
    in_tmp.touch()
    try:
        for path, says in ((missing, "there is no such file"), (in_tmp, "put the file into a directory of its own")):
            with an_instance("--gateway-tls", free_address(), "--certificate", str(path)) as roost:
                roost.launch()
                assert roost.process
                assert roost.process.wait(60) != 0
                assert says in roost.said() and "starting Roost" not in roost.said()
    finally:
        in_tmp.unlink()


def test_the_first_request_orders_a_certificate_which_a_kill_leaves(place: Path) -> None:
    with a_pebble(place / "pebble") as pebble:
        (place / "pebble").chmod(0o755)
        trust = pebble.roots(place)
        listen = free_address()
        acme = ("--acme", pebble.directory, "--acme-ca", str(pebble.trust), "--acme-email", "operator@example.org")
        with an_instance("--gateway-tls", listen, *acme, "--min-pool-size", "1") as roost:
            roost.gateway = f"127.0.0.1:{pebble.http_port}"  # where the authority looks
            url, name = an_open_site(roost.start())
            assert curl(url, trust) == (name, "2 200")
            assert pebble.orders() == 1
            stranger = f"https://ffffffffffff.apps.localhost:{listen.rpartition(':')[2]}"
            refused = subprocess.run(["curl", "-sS", "-k", stranger], capture_output=True, timeout=60, check=False)
            assert refused.returncode != 0 and pebble.orders() == 1
            roost.kill("serve")
            roost.healthy()
            assert curl(url, trust) == (name, "2 200")
            assert pebble.orders() == 1
            kept = [path for path in (roost.state / "serve" / "certificates").rglob("*") if path.is_file()]
            assert kept and all(path.stat().st_mode & 0o077 == 0 for path in kept)
            assert b"PRIVATE KEY" not in roost.log.read_bytes()
