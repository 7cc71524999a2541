"""Turns the machine's packet forwarding on for the instances that need it, and off again after the last of them.

What was changed is kept in one file under /run/roost, guarded by a lock, with the numbers of the instances that rely on
it; it goes with a reboot as the settings themselves do. Order matters: claim, then load rules that drop foreign
packets in the families it names, then turn on. Software that starts later and needs forwarding for itself has to be
preceded by the administrator's own `net.ipv4.ip_forward=1`; otherwise Roost's rules stop its packets.
"""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from roost.node.firewall import Family

FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")


class Record(msgspec.Struct):
    """instances: who relies on it. before: path below /proc/sys -> the value it had; families: those turned on."""

    instances: set[int] = msgspec.field(default_factory=set[int])
    families: list[Family] = msgspec.field(default_factory=list[Family])
    before: dict[str, str] = msgspec.field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Forwarding:
    """`run` holds the record `forwarding` and its lock. Every call blocks for the lock; each may be repeated."""

    run: Path = Path("/run/roost")
    sysctl: Path = Path("/proc/sys")

    def claim(self, instance: int) -> tuple[Family, ...]:
        """Count the instance in; answer the families that were off, so that only guests may be forwarded in them."""
        with self._locked() as record:
            record.instances.add(instance)
            for family in FAMILIES:
                if family not in record.families and self._read(_all(family)) == "0":
                    record.families.append(family)
                    record.before |= self._settings(family)
            return tuple(sorted(record.families))

    def turn_on(self) -> None:
        """Make what was claimed so."""
        with self._locked() as record:
            if "ipv6" in record.families:
                # first: at the moment a router is made, routes learnt from advertisements go unless this is 2
                for path in record.before:
                    if path.endswith("/accept_ra"):
                        self._write(path, "2")
            for family in record.families:
                if self._read(_all(family)) == "0":
                    self._write(_all(family), "1")

    def release(self, instance: int) -> None:
        """Count the instance out; the last one puts back what `turn_on` changed and nobody has changed since."""
        with self._locked() as record:
            record.instances.discard(instance)
            if record.instances:
                return
            for family in record.families:
                if self._read(_all(family)) == "1":
                    self._restore(record, family)
            record.families.clear()
            record.before.clear()

    def _restore(self, record: Record, family: Family) -> None:
        self._write(_all(family), "0")  # first: it also sets the interfaces, and accept_redirects
        for path, value in record.before.items():
            if not path.startswith(f"net/{family}/") or path == _all(family):
                continue
            if path.endswith("/accept_ra") and self._read(path) != "2":
                continue
            self._write(path, value)

    def _settings(self, family: Family) -> dict[str, str]:
        """Everything that turning the family on changes, by itself or by our hand, with its present value."""
        net = Path(f"net/{family}/conf")
        interfaces = [entry.name for entry in (self.sysctl / net).iterdir()]
        before = {f"{net}/{name}/forwarding": self._read(f"{net}/{name}/forwarding") for name in interfaces}
        if family == "ipv4":
            before[f"{net}/all/accept_redirects"] = self._read(f"{net}/all/accept_redirects")
            return before
        learning = {f"{net}/{name}/accept_ra" for name in interfaces if name != "all"}
        return before | {path: "1" for path in sorted(learning) if self._read(path) == "1"}

    def _read(self, path: str) -> str:
        """The value; empty if the interface has gone."""
        try:
            return (self.sysctl / path).read_text().strip()
        except OSError:
            return ""

    def _write(self, path: str, value: str) -> None:
        """Nothing happens to an interface that has gone."""
        if value and self._read(path) not in ("", value):
            (self.sysctl / path).write_text(value)

    @contextmanager
    def _locked(self) -> Generator[Record]:
        """The record under its lock, stored when the block ends well; no file is kept for nobody."""
        self.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self.run / "forwarding"
        with (self.run / "forwarding.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            record = msgspec.json.decode(path.read_bytes(), type=Record) if path.exists() else Record()
            yield record
            if not record.instances:
                path.unlink(missing_ok=True)
                return
            fresh = path.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(record))
            fresh.replace(path)


def _all(family: Family) -> str:
    return f"net/{family}/conf/all/forwarding"
