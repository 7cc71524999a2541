"""A process that does one thing with a vault and kills itself on the way, as `kill -9` would at that very moment.

`python -m tests.node.sync.harness COMMAND STORE STEP BEFORE ARGUMENT…`: at the STEP-th write or delete, before it is
made or after. Exit status 0: there were fewer steps, and the command was done.
"""

import os
import signal
import sys
from pathlib import Path

from roost.node.sync import Layer, Vault, collect, open_store, revision, save
from roost.node.sync.store import Store


class Mortal(Store):
    steps = 0
    fatal = 0
    before = False

    def create(self, name: str, data: bytes) -> None:
        self.step(True)
        super().create(name, data)
        self.step(False)

    def delete(self, name: str) -> None:
        self.step(True)
        super().delete(name)
        self.step(False)

    def step(self, before: bool) -> None:
        Mortal.steps += before
        if Mortal.steps >= Mortal.fatal and before == Mortal.before:
            os.kill(os.getpid(), signal.SIGKILL)


def main(command: str, url: str, step: str, before: str, *arguments: str) -> None:
    store = open_store(url)
    store.__class__ = Mortal
    Mortal.fatal, Mortal.before = int(step), before == "before"
    vault = Vault(store, "account")
    if command == "save":
        base, layer = arguments
        save(vault, revision.read(vault, base), [Layer(Path(layer), 0)], "image", "job")
    else:
        collect(vault, arguments, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
