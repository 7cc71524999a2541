"""What `roost login` keeps."""

import json
from pathlib import Path

import pytest

from roost import logins
from roost.errors import Invalid, StateUnwritable
from roost.logins import Login, MagsLogin


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def test_a_login_is_kept_until_it_is_deleted(home: Path) -> None:
    assert logins.load() is None
    login = Login("https://roost.example", "t", "ada")
    assert logins.save(login) == home / ".config" / "roost" / "config.json"
    assert logins.load() == login
    assert logins.delete() is True
    assert logins.load() is None
    assert logins.delete() is False


def test_the_file_is_its_owners_alone_also_when_it_was_not(home: Path) -> None:
    place = home / ".config" / "roost"
    place.mkdir(parents=True, mode=0o755)
    (place / "config.json").write_text("{}")
    (place / "config.json").chmod(0o644)
    logins.save(Login("http://a", "t"))
    assert place.stat().st_mode & 0o777 == 0o700
    assert logins.path().stat().st_mode & 0o777 == 0o600
    assert [one.name for one in place.iterdir()] == ["config.json"]
    assert json.loads(logins.path().read_text()) == {"url": "http://a", "token": "t"}


def test_the_directory_for_configuration_may_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "elsewhere"))
    assert logins.save(Login("http://a", "t")) == home / "elsewhere" / "roost" / "config.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert logins.path() == home / ".config" / "roost" / "config.json"


@pytest.mark.parametrize("content", ["", "[]", '{"url": "x"}', "\x00"])
def test_a_damaged_file_says_how_to_replace_it(content: str) -> None:
    logins.save(Login("http://a", "t")).write_text(content)
    with pytest.raises(Invalid, match="roost login"):
        logins.load()


def test_what_cannot_be_written_is_said(home: Path) -> None:
    (home / ".config").write_text("a file")
    with pytest.raises(StateUnwritable, match="cannot write"):
        logins.save(Login("http://a", "t"))


@pytest.mark.parametrize(
    ("content", "login"),
    [
        ('{"token": "t"}', MagsLogin(None, "t")),
        ('{"apiToken": "t", "apiUrl": "http://a", "email": "x"}', MagsLogin("http://a", "t")),
        ('{"api_token": "t", "api_url": ""}', MagsLogin(None, "t")),
        ('{"token": 7}', None),
        ("[1]", None),
        ("no json", None),
    ],
)
def test_the_file_of_mags_is_read_in_the_forms_it_may_have(home: Path, content: str, login: MagsLogin | None) -> None:
    assert logins.load_mags() is None
    (home / ".mags").mkdir()
    (home / ".mags" / "config.json").write_text(content)
    assert logins.load_mags() == login
