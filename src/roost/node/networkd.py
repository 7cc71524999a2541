"""Keeps systemd-networkd from our links, where it runs.

A machine whose network file matches every Ethernet (`Type=ether`) gives each new sandbox's link an address by DHCP, or
tries to, and removes the addresses and routes that we set: then no sandbox has a network. The file stays in /run, where
it does nothing without such links; it goes with a reboot.
"""

import shutil
import subprocess
from pathlib import Path

import structlog
from structlog.typing import FilteringBoundLogger

RUNS = Path("/run/systemd/netif")
# The first in the order of names counts, whichever directory it is in
FILE = Path("/run/systemd/network/00-roost.network")
TEXT = "[Match]\nDriver=veth\nName=r[0-9]v* r1[0-5]v*\n\n[Link]\nUnmanaged=yes\n"
RELOAD_SECONDS = 20

log: FilteringBoundLogger = structlog.get_logger()


def leave_our_links_alone(runs: Path = RUNS, file: Path = FILE) -> None:
    """Before the first link is made. What goes wrong is logged: most machines match no links but their own."""
    if not runs.is_dir() or _text(file) == TEXT:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TEXT)
        file.chmod(0o644)  # it does not run as root
        _reload()
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("networkd.unchanged", reason=str(error))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _reload() -> None:
    if program := shutil.which("networkctl"):
        subprocess.run([program, "reload"], check=True, capture_output=True, timeout=RELOAD_SECONDS)
