"""Puts the programs that run in guests into the wheel, built for this machine, whose architecture it is then for.

An editable installation has none: `make setup` builds them in the checkout.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GuestPrograms(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or self.target_name != "wheel":
            return
        build = self._builder()
        for program in build.SOURCES:
            binary = build.build(program)
            for file in (binary, build.record(binary)):
                build_data["force_include"][str(file)] = f"roost/node/guest/build/{file.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{build.platform.machine()}"

    def _builder(self) -> Any:
        """`roost.node.guest.build`, by its path: the package is not installed here, nor what it needs."""
        sys.path.insert(0, f"{self.root}/src")  # roost.errors
        path = Path(self.root, "src/roost/node/guest/build.py")
        spec = importlib.util.spec_from_file_location("roost_guest_build", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
