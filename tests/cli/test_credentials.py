"""Whose server and token a command uses."""

import json
from pathlib import Path

import pytest

from roost import instance, logins
from roost.credentials import TOKEN_VARIABLES, URL_VARIABLES, find_credentials
from roost.errors import Conflict, Invalid, NotFound, Unauthenticated
from roost.instance import Credentials
from roost.logins import Login


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: no instance runs, nobody logged in, and nothing lies in the default place."""
    monkeypatch.setattr(instance, "RUN", tmp_path / "run")
    monkeypatch.setattr(instance, "DEFAULT_STATE", tmp_path / "default")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
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


def mags_login(machine: Path, **values: str) -> None:
    (machine / "home" / ".mags").mkdir(parents=True)
    (machine / "home" / ".mags" / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", URL_VARIABLES)
def test_every_name_of_the_variables_counts(machine: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    logins.save(Login("http://kept", "kept"))
    monkeypatch.setenv(name, "http://far")
    monkeypatch.setenv("MAGS_TOKEN", "t")
    assert find_credentials(None, None, None) == Credentials("http://far", "t")


def test_a_login_comes_before_the_local_instance_and_after_everything_said(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = running_instance(machine, 0, "default")
    logins.save(Login("http://kept", "kept"))
    assert find_credentials(None, None, None) == Credentials("http://kept", "kept")
    assert find_credentials(None, None, machine / "default") == local
    monkeypatch.setenv("ROOST_API_TOKEN", "other")
    assert find_credentials(None, None, None) == Credentials("http://kept", "other")


def test_a_kept_token_is_sent_to_its_own_url_alone(machine: Path) -> None:
    local = running_instance(machine, 0, "default")
    logins.save(Login("http://kept/", "kept"))
    mags_login(machine, url="http://mags", api_token="older")
    assert find_credentials("http://kept", None, None) == Credentials("http://kept", "kept")
    assert find_credentials("http://mags", None, None) == Credentials("http://mags", "older")
    assert find_credentials(local.api_url, None, None) == local
    with pytest.raises(Unauthenticated, match="roost login --url http://far"):
        find_credentials("http://far", None, None)


def test_a_token_of_mags_without_url_waits_for_one(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mags_login(machine, apiToken="older")
    with pytest.raises(Unauthenticated, match="MAGS_API_URL"):
        find_credentials(None, None, None)
    local = running_instance(machine, 0, "default")
    assert find_credentials(None, None, None) == local
    monkeypatch.setenv("MAGS_API_URL", "http://far")
    assert find_credentials(None, None, None) == Credentials("http://far", "older")


@pytest.mark.parametrize("content", ["", "[]", '{"api_url": "x"}', "\x00"])
def test_a_broken_file_says_how_to_replace_it(machine: Path, content: str) -> None:
    running_instance(machine, 0, "default")
    (machine / "default" / "credentials.json").write_text(content)
    with pytest.raises(Invalid, match="remove it"):
        find_credentials(None, None, None)
