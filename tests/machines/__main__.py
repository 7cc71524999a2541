"""`python -m tests.machines SUITE…`: bare machines, each of which follows README from a clean clone of HEAD.

Prints every step with the time since the machine was switched on, and what is written there; ends with 1 if a step
failed, whose last words and those of the machine's kernel and journal stand below it. A suite whose archive is out of
reach is said to be skipped.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

from roost.errors import SetupMissing
from tests.machines.disk import PROJECT, system
from tests.machines.machine import Machine, MachineFailed, TimeOver, accelerator, booted, lines_of, quoted

CACHE = Path(os.environ.get("ROOST_MACHINES_CACHE", "/var/cache/roost-machines"))
IMAGES = Path("/var/lib/roost/images")  # of this machine: building them anew takes longer than everything else
MINUTES = 20
TAIL = 40  # lines
CHECKS = "cd roost && python3 -m tests.machines.checks"
# What apt, dpkg and uv tell of each package
NOISE = re.compile(
    r"\(Reading database|Get:|Hit:|Selecting|Preparing|Unpacking|Setting up|Processing| \+ |Download|.*\"event\""
)
GROUPS = ("first", "limits", "sleep", "files", "doors", "cron", "kills")


class Run:
    """One machine's walk through all steps, which has an end at which it fails."""

    def __init__(self, suite: str, machine: Machine, minutes: float) -> None:
        self.suite = suite
        self.machine = machine
        self.begun = time.monotonic()
        self.end = self.begun + 60 * minutes
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
        if not NOISE.match(text):
            self.show(text)

    def show(self, text: str) -> None:
        print(f"[{self.suite} {time.monotonic() - self.begun:5.0f} s] {text}", flush=True)

    def rest(self) -> float:
        """Seconds that are left. TimeOver when none are."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeOver("the time for this machine is over")
        return left

    def step(self, name: str, command: str) -> None:
        self.say(f"-- {name}")
        status = self.machine.run(command, self.rest(), self.say)
        if status:
            raise MachineFailed(f"{name}: exit status {status}")

    def check(self, *groups: str) -> None:
        self.step(f"checks: {', '.join(groups)}", f"{CHECKS} {' '.join(groups)}")

    @contextlib.contextmanager
    def up(self, command: str) -> Generator[None]:
        """Roost in the foreground, as a user has it, until it is ready; stopped by Ctrl-C's signal afterwards."""
        self.say(f"-- {command}")
        ready, ended = threading.Event(), threading.Event()
        status: list[int] = []

        def follow() -> None:
            with lines_of(self.machine.ssh(f"cd roost && {command}"), self.rest()) as (process, lines):
                for text in lines:
                    self.say(text)
                    if "Roost is ready" in text:
                        ready.set()
                status.append(process.wait())
            ended.set()
            ready.set()

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        ready.wait(self.rest())
        if ended.is_set() or not ready.is_set():
            raise MachineFailed(f"`{command}` did not become ready")
        if any(text.startswith("the first job failed") for text in self.said):
            raise MachineFailed("the first job failed")
        yield
        self.say("-- Ctrl-C")
        self.machine.told("sudo pkill -INT -of 'python.* -m roost.cli up'")
        if not ended.wait(min(120, self.rest())) or status != [0]:
            raise MachineFailed(f"`{command}` did not stop in order: {status}")


def follow_readme(run: Run) -> None:
    run.step("git clone", "git -c advice.detachedHead=false clone -q /handed-in/roost.bundle roost && uname -r")
    with run.up("make run"):
        run.check(*GROUPS)
    run.check("stopped")
    with run.up(".venv/bin/roost up --runtime runc"):
        run.check("brief")
    run.check("stopped")
    run.step("roost service install", "cd roost && .venv/bin/roost service install")
    run.check("before-reboot")
    run.say("-- reboot")
    run.machine.reboot(min(300, run.rest()))
    run.check("after-reboot")
    run.step("roost service remove", "cd roost && .venv/bin/roost service remove && test -e /var/lib/roost/serve")
    run.check("stopped")


def last_words(run: Run) -> None:
    """What may tell why a step failed."""
    print(f"---- {run.suite}: Roost's last lines")
    print("\n".join(text for text in run.said if '"event"' in text)[-6000:])
    for command in ("sudo journalctl -b --no-pager -n 60 -o short-monotonic", "sudo dmesg | tail -15"):
        print(f"---- {run.suite}: {command}", flush=True)
        with contextlib.suppress(MachineFailed):
            run.machine.run(command, 90, print)
    print(f"---- {run.suite}: console")
    print("\n".join(run.machine.console().splitlines()[-TAIL:]), flush=True)


def try_machine(suite: str, minutes: float, keep: bool) -> str:
    """One word for the end: passed, FAILED, unfinished or skipped."""
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{suite} {time.monotonic() - begun:5.0f} s] {text}", flush=True)

    try:
        bare = system(suite, CACHE, say)
    except SetupMissing as error:
        say(f"skipped: {error}")
        return "skipped"
    accel = accelerator(bare)
    say(f"booting, {'by KVM' if accel == 'kvm' else 'emulated'}; at most {minutes:.0f} minutes from here on")
    CACHE.joinpath("runs").mkdir(exist_ok=True)
    with booted(bare, suite, accel, CACHE / "runs", IMAGES if IMAGES.is_dir() else None) as machine:
        run = Run(suite, machine, minutes)
        try:
            machine.wait_until_up(min(300, run.rest()))
            follow_readme(run)
        except (MachineFailed, subprocess.TimeoutExpired) as error:
            end = "unfinished" if time.monotonic() >= run.end else "FAILED"
            run.say(f"{end}: {error}")
            last_words(run)
            if keep:
                run.say(f"it runs on until it is switched off: {quoted(*machine.ssh(''))}")
                machine.process.wait()
            return end
        run.say("passed")
        return "passed"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.machines", description=__doc__)
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="bookworm, trixie, noble")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for each machine, once it is built")
    parser.add_argument("--may-stop", action="store_true", help="no failure if the time is over before all was tried")
    parser.add_argument("--keep", action="store_true", help="leave a machine that failed running, to log in")
    wanted = parser.parse_args()
    changed = subprocess.run(["git", "-C", PROJECT, "status", "--porcelain"], capture_output=True, text=True).stdout
    if changed.strip():
        print("what is not committed is not tried: the machines clone HEAD", flush=True)
    ends = {suite: try_machine(suite, wanted.minutes, wanted.keep) for suite in wanted.suites}
    print("\n".join(f"{suite}: {end}" for suite, end in ends.items()), flush=True)
    bad = {"FAILED"} if wanted.may_stop else {"FAILED", "unfinished"}
    return 1 if bad & set(ends.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
