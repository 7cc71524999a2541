"""Whose server and token a command uses."""

import json
from pathlib import Path

import pytest

from roost import instance
from roost.cli.connection import TOKEN_VARIABLES, URL_VARIABLES, find_credentials
from roost.errors import Conflict, Invalid, NotFound, Unauthenticated
from roost.instance import Credentials


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: no instance runs, and nothing lies in the default place."""
    monkeypatch.setattr(instance, "RUN", tmp_path / "run")
    monkeypatch.setattr(instance, "DEFAULT_STATE", tmp_path / "default")
    for name in (*URL_VARIABLES, *TOKEN_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def running_instance(machine: Path, number: int, state: str) -> Credentials:
    directory = machine / state
    directory.mkdir()
    known = Credentials(f"http://127.0.0.1:{9000 + number}", f"token-{state}")
    (directory / "credentials.json").write_text(json.dumps(known.__dict__))
    (machine / "run" / str(number)).mkdir(parents=True)
    (machine / "run" / str(number) / "state").write_text(f"{directory}\n")
    return known


def test_url_and_token_together_need_no_local_instance(machine: Path) -> None:
    assert find_credentials("http://far", "t", None) == Credentials("http://far", "t")


def test_the_environment_counts_unless_a_state_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = running_instance(machine, 0, "default")
    monkeypatch.setenv("MAGS_API_URL", "http://far")
    monkeypatch.setenv("MAGS_API_TOKEN", "t")
    assert find_credentials(None, None, None) == Credentials("http://far", "t")
    assert find_credentials(None, None, machine / "default") == known


def test_the_only_running_instance_is_found(machine: Path) -> None:
    known = running_instance(machine, 3, "elsewhere")
    assert find_credentials(None, None, None) == known


def test_the_default_state_wins_over_other_instances(machine: Path) -> None:
    running_instance(machine, 0, "other")
    known = running_instance(machine, 1, "default")
    assert find_credentials(None, None, None) == known


def test_two_other_instances_are_ambiguous_until_one_is_named(machine: Path) -> None:
    running_instance(machine, 0, "one")
    known = running_instance(machine, 1, "two")
    with pytest.raises(Conflict, match="--state DIR"):
        find_credentials(None, None, None)
    assert find_credentials(None, None, machine / "two") == known


def test_an_instance_whose_state_is_gone_does_not_count(machine: Path) -> None:
    known = running_instance(machine, 0, "one")
    (machine / "run" / "1").mkdir()
    (machine / "run" / "1" / "state").write_text(f"{machine}/removed\n")
    assert find_credentials(None, None, None) == known


def test_without_any_instance_the_error_says_how_to_get_one(machine: Path) -> None:
    with pytest.raises(NotFound, match="sudo roost up"):
        find_credentials(None, None, None)


def test_the_local_token_is_not_sent_to_another_server(machine: Path) -> None:
    running_instance(machine, 0, "default")
    with pytest.raises(Unauthenticated, match="no token for http://far"):
        find_credentials("http://far", None, None)


def test_a_token_alone_is_for_the_local_instance(machine: Path) -> None:
    known = running_instance(machine, 0, "default")
    assert find_credentials(None, "mine", None) == Credentials(known.api_url, "mine")


@pytest.mark.parametrize("content", ["", "[]", '{"api_url": "x"}', "\x00"])
def test_a_broken_file_says_how_to_replace_it(machine: Path, content: str) -> None:
    running_instance(machine, 0, "default")
    (machine / "default" / "credentials.json").write_text(content)
    with pytest.raises(Invalid, match="remove it"):
        find_credentials(None, None, None)
