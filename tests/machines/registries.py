"""How a machine reaches the registries that this one reaches: sources, settings, proxies, certificates.

Everything is read from this machine when a run begins. What names files of this machine (a local index) is left out.
"""

import os
import shutil
import subprocess
from pathlib import Path

from roost.node.images.sources import Host, choose
from tests.machines.disk import apt_options

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
INDEXES = ("PIP_", "UV_", "NPM_CONFIG_", "npm_config_")
CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")


def hand_in(root: Path, suite: str) -> None:
    """Write below `root` the files that are to lie below a machine's own root."""
    _write(root / "etc/apt/sources.list", "")
    _write(root / "etc/apt/sources.list.d/machine.sources", choose(suite, Host.read()).deb822())
    _write(root / "etc/apt/apt.conf.d/99machine", "".join(f"{line};\n" for line in apt_options()))
    _write(root / "etc/environment", "".join(f"{name}={value}\n" for name, value in variables().items()))
    _write(root / "etc/pip.conf", pip_conf())
    if Path("/etc/npmrc").is_file():
        shutil.copy("/etc/npmrc", root / "etc/npmrc")
    _write(root / BUNDLE[1:], Path(BUNDLE).read_text())


def variables() -> dict[str, str]:
    """The environment of everybody in the machine, as far as it is about registries."""
    proxies = {name: os.environ[name] for name in PROXIES if name in os.environ}
    indexes = {name: value for name, value in os.environ.items() if name.startswith(INDEXES) and not _local(value)}
    return {"LANG": "C.UTF-8"} | proxies | indexes | {name: BUNDLE for name in CERTIFICATES if name in os.environ}


def pip_conf() -> str:
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, timeout=60)
    pairs = (line.partition("=") for line in listed.stdout.splitlines() if line.startswith("global."))
    known = {name.removeprefix("global."): value.strip("'") for name, _, value in pairs}
    kept = {name: value for name, value in known.items() if name == "cert" or not _local(value)}
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in kept.items())


def _local(value: str) -> bool:
    return any(word.startswith(("/", "file:")) for word in value.split())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
