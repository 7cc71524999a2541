"""Roost as a systemd service: the unit's text, and what systemd is asked to do with it.

The unit makes no mount namespace of its own (ProtectSystem, PrivateTmp and their like): mounts of living sandboxes must
be seen by the node that is started after one that was killed. It filters no system calls either, for a filter is
inherited by every sandbox. Sandboxes outlive a crash of `roost up`, so systemd ends that process alone; an orderly stop
ends them, as Ctrl-C does. Where their control groups are: `node/delegation.py`.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.errors import Conflict, NoCapacity, NotFound, SetupMissing

UNITS = Path("/etc/systemd/system")
SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
MARK = "# Written by `roost service install`; `roost service remove` removes it."
NAME = "roost"
STOP_SECONDS = 90  # `roost up` gives its programs 40 and 30
DELEGATES = 254  # the version of systemd that has DelegateSubgroup=
LEAF = "roost-programs"  # as `node/delegation.py` calls it
START_SECONDS = 240  # a first start migrates the database, fills the pool and may wait 120 s for health
# What nothing of Roost does; sandboxes have user namespaces of their own, whose capabilities these are not
DROPPED = (
    *("CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_LEASE", "CAP_SYSLOG", "CAP_SYS_BOOT"),
    *("CAP_SYS_RAWIO", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM"),
)


@dataclass(frozen=True)
class Service:
    """`command`: absolute program and arguments; `owner`: the user id that is to have the credentials."""

    command: tuple[str, ...]
    state: Path
    owner: int
    name: str = NAME
    delegates: bool = True  # whether this systemd starts a service again while sandboxes live in its group

    @property
    def unit(self) -> Path:
        return UNITS / f"{self.name}.service"


def unit_text(service: Service) -> str:
    """See systemd.unit(5), systemd.service(5), systemd.exec(5)."""
    return f"""{MARK}
[Unit]
Description=Roost, a cloud of instant sandboxes
Wants=network-online.target
After=network-online.target nftables.service
RequiresMountsFor={_path(service.state)}
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(_word(word) for word in service.command)}
EnvironmentFile=-/etc/default/{service.name}
# Whose the credentials in the state are
Environment=ROOST_OWNER={service.owner}
SyslogIdentifier={service.name}
Restart=on-failure
RestartSec=5
TimeoutStartSec={START_SECONDS}
TimeoutStopSec={STOP_SECONDS}
# `roost up` stops the others in order; if it is killed, its programs end with it, and sandboxes live on
KillMode=process
# `roost up` starts a program again that ran out of memory
OOMPolicy=continue
{"Delegate=yes" if service.delegates else "# Delegate=yes needs DelegateSubgroup=, which systemd 254 has"}
{f"DelegateSubgroup={LEAF}" if service.delegates else "# so sandboxes have control groups at the root of the tree"}
TasksMax=infinity
LimitNOFILE=1048576
UMask=0022
NoNewPrivileges=yes
CapabilityBoundingSet=~{" ".join(DROPPED)}
KeyringMode=private

[Install]
WantedBy=multi-user.target
"""


def _word(text: str) -> str:
    """One argument, so that systemd takes it as it is: quoted, and without its specifiers and variables."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return plain if plain and all(c.isalnum() or c in "/._-:=@,+[]" for c in plain) else f'"{plain}"'


def _path(path: Path) -> str:
    return str(path).replace("%", "%%").replace(" ", "\\x20")


def install(service: Service) -> None:
    """Write, enable and start it, or start it anew with these options.

    SetupMissing: there is no systemd. Conflict: the unit is not ours. NoCapacity: it did not start; the text has its
    last lines.
    """
    _require_systemd(service.command)
    _require_ours(service)
    fresh = service.unit.with_suffix(".new")
    fresh.write_text(unit_text(service))
    fresh.chmod(0o644)
    fresh.replace(service.unit)
    _systemctl("daemon-reload")
    _systemctl("enable", "--quiet", service.unit.name)
    _systemctl("reset-failed", service.unit.name, must=False)
    if _systemctl("restart", service.unit.name, must=False).returncode:
        raise NoCapacity(f"the service is installed, but did not start:\n{last_lines(service.name)}")


def remove(service: Service) -> None:
    """Stop, disable and forget it; the state stays. NotFound: there is none."""
    _require_systemd(service.command)
    if not service.unit.exists():
        raise NotFound(f"there is no service {service.name!r}")
    _require_ours(service)
    _systemctl("disable", "--quiet", "--now", service.unit.name)
    service.unit.unlink()
    _systemctl("daemon-reload")
    _systemctl("reset-failed", service.unit.name, must=False)


PROPERTIES = ("UnitFileState", "ActiveState", "SubState", "MainPID", "NRestarts", "ActiveEnterTimestamp", "Result")


def status(service: Service) -> dict[str, str]:
    """By the names of systemd's properties. NotFound: there is none."""
    _require_systemd(service.command)
    if not service.unit.exists():
        raise NotFound(f"there is no service {service.name!r}; `roost service install` makes it")
    shown = _systemctl("show", "--property", ",".join(PROPERTIES), service.unit.name).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def last_lines(name: str, count: int = 15) -> str:
    """What it has told the journal, as text."""
    words = ["journalctl", "--unit", name, "--lines", str(count), "--no-pager", "--output", "cat"]
    return subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=60).stdout.rstrip()


class Systemd:
    """Whoever started this program and waits to hear how it gets on (sd_notify(3)); often nobody.

    Taken out of the environment: OCI runtimes that find it there hand the socket to their containers.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def tell(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.sendto(
                text.encode(), self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
            )


def systemd_version() -> int:
    """0 where there is none."""
    if shutil.which("systemctl") is None:
        return 0
    told = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=60).stdout.split()
    return int(told[1]) if told[1:] and told[1].isdecimal() else 0


def _require_systemd(command: Sequence[str]) -> None:
    if not SYSTEMD.is_dir() or shutil.which("systemctl") is None:
        raise SetupMissing(
            "systemd does not run this machine, so there are no services; let what does start this as root, and "
            f"stop it with SIGTERM:\n{' '.join(command)}"
        )


def _require_ours(service: Service) -> None:
    if service.unit.exists() and not service.unit.read_text(errors="replace").startswith(MARK):
        text = f"{service.unit} was not written by `roost service install`; remove it, or choose another --name"
        raise Conflict(text)


def _systemctl(*words: str, must: bool = True) -> subprocess.CompletedProcess[str]:
    limit = START_SECONDS + STOP_SECONDS + 30
    command = ["systemctl", "--no-ask-password", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=os.environ | {"LC_ALL": "C"})
    if must and done.returncode:
        raise NoCapacity(f"`systemctl {' '.join(words)}` failed: {done.stderr.strip()}")
    return done
