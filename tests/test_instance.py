"""Who owns a state directory and an instance number, and what the credentials file holds."""

import json
import os
import stat
from pathlib import Path

import pytest

from roost import instance
from roost.errors import Conflict, NoCapacity
from roost.instance import claim, read_credentials, settle_credentials


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Numbers of our own, apart from those of instances that run here."""
    monkeypatch.setattr(instance, "RUN", tmp_path / "run")
    return tmp_path


def new_state(machine: Path, name: str) -> Path:
    state = machine / name
    state.mkdir()
    return state


def test_a_state_belongs_to_one_process(machine: Path) -> None:
    state = new_state(machine, "a")
    claimed = claim(state)
    with pytest.raises(Conflict, match="--state"):
        claim(state)
    claimed.release()
    claim(state).release()


def test_two_states_have_two_numbers(machine: Path) -> None:
    one, two = claim(new_state(machine, "a")), claim(new_state(machine, "b"))
    assert one.number != two.number
    assert one.runtime_dir != two.runtime_dir
    assert (one.runtime_dir / "state").read_text() == f"{one.state}\n"
    assert stat.S_IMODE(one.runtime_dir.stat().st_mode) == 0o711
    one.release()
    two.release()


def test_a_released_number_leaves_nothing(machine: Path) -> None:
    claimed = claim(new_state(machine, "a"))
    claimed.release()
    assert not claimed.runtime_dir.exists()


def test_a_number_that_another_has_by_now_is_not_taken_from_it(machine: Path) -> None:
    first = claim(new_state(machine, "a"))
    (first.runtime_dir / "state").unlink()  # as if somebody had cleaned up too early
    second = claim(new_state(machine, "b"))
    assert second.number == first.number
    first.release()
    assert (second.runtime_dir / "state").read_text() == f"{second.state}\n"
    second.release()


def test_a_crashed_instance_gets_its_number_back(machine: Path) -> None:
    first, crashed = claim(new_state(machine, "a")), claim(new_state(machine, "b"))
    os.close(crashed.lock)  # what the kernel does when a process dies
    first.release()
    again = claim(crashed.state)
    assert again.number == crashed.number
    again.release()


def test_all_numbers_can_be_taken_and_then_a_dead_one_is_given_away(machine: Path) -> None:
    claims = [claim(new_state(machine, str(n))) for n in range(instance.INSTANCES)]
    assert sorted(c.number for c in claims) == list(range(instance.INSTANCES))
    late = new_state(machine, "late")
    with pytest.raises(NoCapacity, match="stop one"):
        claim(late)
    os.close(claims[5].lock)
    assert claim(late).number == claims[5].number


def test_a_failed_claim_does_not_keep_the_state(machine: Path) -> None:
    claims = [claim(new_state(machine, str(n))) for n in range(instance.INSTANCES)]
    late = new_state(machine, "late")
    with pytest.raises(NoCapacity):
        claim(late)
    claims[0].release()
    claim(late).release()


def test_credentials_are_private_and_keep_their_token(machine: Path) -> None:
    state = new_state(machine, "a")
    first = settle_credentials(state, "http://127.0.0.1:1")
    moved = settle_credentials(state, "http://127.0.0.1:2")
    file = state / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {"api_url": "http://127.0.0.1:2", "api_token": first.api_token}
    assert read_credentials(state) == moved
    assert len(bytes.fromhex(first.api_token)) == 32
    assert [path.name for path in state.iterdir()] == ["credentials.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_credentials_belong_to_whoever_called_sudo(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "12345")
    state = new_state(machine, "a")
    settle_credentials(state, "http://127.0.0.1:1")
    assert (state / "credentials.json").stat().st_uid == 12345


def test_where_an_instance_is_may_be_known_to_every_user_while_it_runs(machine: Path) -> None:
    state = new_state(machine, "a")
    claimed = claim(state)
    claimed.announce("http://127.0.0.1:9000")
    assert instance.known_urls() == {state: "http://127.0.0.1:9000"}
    assert stat.S_IMODE((claimed.runtime_dir / "url").stat().st_mode) == 0o644
    claimed.release()
    assert instance.known_urls() == {}
