"""What a program written for `mags.Mags` relies on: its methods, with their parameters, are those of Roost, too."""

import inspect
import json
import subprocess

from roost import AsyncRoost, MagsError, Roost
from tests.e2e.test_clients import interpreter

TELL = """
import inspect, json
from mags import Mags
def told(call):
    return [[one.name, one.kind.name, one.default is not one.empty, repr(one.default)]
            for one in list(inspect.signature(call).parameters.values())[1:]]
names = [name for name, _ in inspect.getmembers(Mags, inspect.isfunction) if not name.startswith('_')]
print(json.dumps({name: told(getattr(Mags, name)) for name in [*names, '__init__']}))
"""
CHANGED = {("url_alias_create", "domain")}  # ours is the server's first, which the old default also names


def test_every_method_of_mags_is_there_with_its_parameters_and_defaults() -> None:
    done = subprocess.run([interpreter("1.3.8"), "-c", TELL], capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    assert len(theirs) > 25
    for method, parameters in theirs.items():
        for client in (Roost, AsyncRoost):
            ours = list(inspect.signature(getattr(client, method)).parameters.values())[1:]
            positional = [one for one in parameters if one[1] == "POSITIONAL_OR_KEYWORD"]
            assert [one[0] for one in positional] == [
                one.name for one in ours if one.kind is one.POSITIONAL_OR_KEYWORD
            ], method
            known = {one.name: one for one in ours}
            for name, kind, optional, default in parameters:
                assert name in known, f"{method}({name})"
                assert known[name].kind.name == kind or kind == "VAR_KEYWORD", f"{method}({name})"
                assert (known[name].default is not inspect.Parameter.empty) == optional, f"{method}({name})"
                if optional and (method, name) not in CHANGED:
                    assert repr(known[name].default) == default, f"{method}({name})"


def test_its_error_is_ours() -> None:
    error = MagsError("words", status_code=404)
    assert (str(error), error.message, error.status_code) == ("words", "words", 404)
