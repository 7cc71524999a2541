"""A real ACME server: Pebble with its DNS stand-in, both on free ports; it looks at hosts over HTTP as the world does.

All names lead to 127.0.0.1; HTTP-01 is validated on `http_port`. Skips where the programs are not installed.
"""

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gateways.tls_world import Lab

START_SECONDS = 20


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports


@dataclass
class Pebble:
    directory: str
    management: str
    trust: Path  # certificates to know its API by
    http_port: int
    log: Path

    def roots(self, place: Path) -> Path:
        """What clients must trust to believe in the certificates that it issues."""
        path = place / "pebble-roots.pem"
        path.write_bytes(self.ask("/roots/0"))
        return path

    def ask(self, path: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.trust))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with urllib.request.urlopen(self.management + path, timeout=5, context=context) as answer:
            return answer.read()

    def orders(self) -> int:
        """How many certificates have been ordered of it."""
        return self.log.read_text(errors="replace").count("Added order")  # refused nonces come before that


@contextlib.contextmanager
def a_pebble(place: Path, **settings: str) -> Generator[Pebble]:
    if not shutil.which("pebble") or not shutil.which("pebble-challtestsrv"):
        pytest.skip("no pebble; `make test-packages` installs it")
    place.mkdir(parents=True, exist_ok=True)
    lab = Lab(place)
    own = lab.files("localhost", name="pebble")
    api, management, http, tls, dns, control = free_ports(6)
    config = {
        "listenAddress": f"127.0.0.1:{api}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(own.chain),
        "privateKey": str(own.key),
        "httpPort": http,
        "tlsPort": tls,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    (place / "config.json").write_text(json.dumps({"pebble": config}))
    names = ["pebble-challtestsrv", "-dns01", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{control}"]
    names += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
    server = ["pebble", "-config", str(place / "config.json"), "-dnsserver", f"127.0.0.1:{dns}"]
    environment = {"PATH": os.environ["PATH"], "PEBBLE_VA_NOSLEEP": "1", **settings}
    pebble = Pebble(
        f"https://localhost:{api}/dir", f"https://localhost:{management}", lab.root, http, place / "pebble.log"
    )
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(pebble.log.open("wb"))
        for command in (names, server):
            running = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
            stack.callback(running.wait, 10)
            stack.callback(running.kill)
        _until_up(pebble)
        yield pebble


def _until_up(pebble: Pebble) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            pebble.ask("/roots/0")
            return
        except OSError as error:
            assert time.monotonic() < deadline, f"{error}: {pebble.log.read_text()}"
            time.sleep(0.05)
